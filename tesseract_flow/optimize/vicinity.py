"""What lies around a design: the objective and its gradient a step away, as vectors.

The varying part of a design is a tree; next to it single entries are moved, whichever leaf they belong to. Vectors are
in units of each entry's own size (the larger of 1 and |u_i|): a step is then as far for a modulus of 2e11 as for a
thickness of 4e-3, and a slope is what the objective changes by over that size. Whether what is seen there is to be
believed is judged in `probe` and `silence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.evaluator import Sample
from tesseract_flow.optimize.partition import entries, named_leaves

Vector = Float[np.ndarray, " n"]
Mask = Bool[np.ndarray, " n"]

_LEGIBLE = 100.0  # roundings of the value: a smaller change is none
_SHOWN = 6  # leaves, in a message


@dataclasses.dataclass(frozen=True)
class Seen:
    """One evaluation next to a design.

    Attributes:
        step: that was taken, as far as bounds and precision let it.
        change: of the value.
        slopes: the gradient there.
        sample: all of it.
    """

    step: Vector
    change: float
    slopes: Vector
    sample: Sample


class Vicinity:
    """A design `u` and its `box`, both scaled, what is known of it (`here`), and a way to look at points next to it."""

    def __init__(self, u: PyTree, box: Box, here: Sample, sample: Callable[[PyTree], Sample | None], dtype: Any):
        self._u, self._box, self._sample = u, box, sample
        self._leaves, self._treedef = jax.tree.flatten(u)
        self._ends = np.cumsum([leaf.size for leaf in self._leaves])
        own = self.vector(u)
        self.sizes = np.maximum(np.abs(own), 1.0)
        self.x, self.lower, self.upper = (
            part / self.sizes for part in (own, *map(self.vector, (box.lower, box.upper)))
        )
        self.here, self.value = here, float(here.lagrangian)
        self.slopes = self.slopes_of(here.gradient)
        # A leaf of fewer digits makes a value of fewer, whatever its dtype.
        self.eps = max(float(jnp.finfo(d).eps) for d in (dtype, *(leaf.dtype for leaf in self._leaves)))

    @staticmethod
    def vector(tree: PyTree) -> Vector:
        return np.concatenate([np.zeros(0), *(np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree))])

    def slopes_of(self, gradient: PyTree) -> Vector:
        return self.vector(gradient) * self.sizes

    def parts(self, vector: np.ndarray) -> list[np.ndarray]:
        """A vector, cut into its leaves."""
        pieces = np.split(vector, self._ends[:-1])
        return [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, self._leaves, strict=True)]

    def moved(self, step: Vector) -> PyTree:
        """The design a step away, or as far as the bounds let it go."""
        moved = [
            leaf + jnp.asarray(part, leaf.dtype)
            for leaf, part in zip(self._leaves, self.parts(step * self.sizes), strict=True)
        ]
        return self._box.project(self._treedef.unflatten(moved))

    def look(self, step: Vector) -> Seen | None:
        """What is found a step away, or as far as the bounds let it go; `None` where the evaluation fails."""
        point = self.moved(step)
        sample = self._sample(point)
        if sample is None:
            return None
        change = float(sample.lagrangian) - self.value
        return Seen(self.vector(point) / self.sizes - self.x, change, self.slopes_of(sample.gradient), sample)

    def whole(self, mask: Mask) -> list[str]:
        """Names of leaves of which all entries are in the mask."""
        parts = zip(named_leaves(self._u), self.parts(mask), strict=True)
        return [name for (name, _), part in parts if part.size and part.all()]

    def is_one_leaf(self, mask: Mask) -> bool:
        return [bool(part.all()) for part in self.parts(mask) if part.any()] == [True]

    def rounding(self, seen: Seen) -> float:
        """A change up to this may be nothing but rounding."""
        return _LEGIBLE * self.eps * max(abs(self.value), abs(self.value + seen.change))

    def named(self, mask: Mask) -> list[str]:
        """Leaves by name, those of which only a part is meant with the entries."""
        shown = []
        for (name, _), part in zip(named_leaves(self._u), self.parts(mask), strict=True):
            if part.any():
                shown.append(repr(name) if part.all() else f"{name!r} ({entries(np.argwhere(part), limit=4)})")
        return [*shown[:_SHOWN], *([f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else [])]


def largest(vector: Vector) -> float:
    return float(np.abs(vector).max(initial=0.0))
