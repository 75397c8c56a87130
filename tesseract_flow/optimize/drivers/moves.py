"""What a step of a driver came to, and what it tried on the way."""

from __future__ import annotations

import dataclasses
import itertools

import jax
from jaxtyping import PyTree

from tesseract_flow.optimize.evaluator import Sample
from tesseract_flow.optimize.state import State

_FAR = 100.0  # times the first trial's distance; searches double theirs, some twenty times


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One point that a search looked at: what the gradient where it began predicts there, and what was found.

    Attributes:
        u: the point, in scaled units and inside the bounds.
        sample: what was found there; `None` if the evaluation failed.
        distance: from where the search began, in the Euclidean norm.
        predicted: change of the Lagrangian from there to here, by the gradient there.
        found: the same change, by the values; infinite if the evaluation failed.
        slope: of the Lagrangian here, along the way from there, per unit of `distance`; NaN if the evaluation failed.
    """

    u: PyTree
    sample: Sample | None
    distance: float
    predicted: float
    found: float
    slope: float


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """What one search along a line tried, in order, and where it ended.

    Attributes:
        trials: every point it looked at.
        u, driver: where the driver wants to go on, and its state.
        here: the sample at `u`; `None` where the search failed: it did not move, ended higher than it began, or where
            the evaluation fails.
    """

    trials: tuple[Trial, ...]
    u: PyTree
    driver: PyTree
    here: Sample | None

    @property
    def is_endless(self) -> bool:
        """Whether it went straight down, hundreds of times as far as it first looked, and met no end."""
        if self.here is None or len(self.trials) < 2 or self.trials[0].distance == 0.0:
            return False
        found = [0.0, *(trial.found for trial in self.trials)]
        last = self.trials[-1]
        return (
            all(after < before for before, after in itertools.pairwise(found))
            and last.distance >= _FAR * self.trials[0].distance
            and last.found <= 0.9 * last.predicted < 0.0
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """What a step came to.

    Attributes:
        state: the next one.
        stalled: the driver could not improve on this one, even from a fresh start.
        searches: along lines, for drivers that make them here.
        ending: in what words a library ended that owns its loop, where it stalled.
        doubtful: nothing was better of all that derivatives promised, so values and slopes have to be compared.
    """

    state: State
    stalled: bool = False
    searches: tuple[Search, ...] = ()
    ending: str = ""
    doubtful: bool = False

    @property
    def is_endless(self) -> bool:
        return bool(self.searches) and self.searches[-1].is_endless


def moved(a: PyTree, b: PyTree) -> bool:
    """Whether two points differ in any bit that counts."""
    return any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
