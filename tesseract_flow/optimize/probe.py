"""A second look before anything is believed: one evaluation next to a start whose gradient says that there is nothing
to do, or nothing to do somewhere.

A gradient of zero at the start is right where the start is optimal. It is also what a component gives that answers zero
for its pullback, what an objective gives that does not depend on the design, and, in a corner of the bounds, what a
wrong sign gives. Values tell them apart. Costs nothing where no entry of the gradient at the start is exactly zero and
the whole of it is not suspicious. Where some are zero it is one evaluation, up to three if some of them come to life
next to the start, and up to six more if the value moves with entries that have no gradient; where all are zero,
three more at most, to tell a saddle from an optimum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.evaluator import Evaluator, Sample
from tesseract_flow.optimize.optimality import LOOK_BACK
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.silence import Silence, listen
from tesseract_flow.optimize.vicinity import Mask, Seen, Vector, Vicinity, largest

# A start is suspicious where no move by the design's size would change the objective by more than this part of it.
SUSPICIOUS = 1e-4

_CHECK = (
    "Check the gradients: tesseract-flow check-gradients, or jax.test_util.check_grads on evaluate with a known design."
)

# What is found: why the gradients are not to be believed, if they are not, and what is to be told.
_Verdict = tuple[str | None, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class View:
    """What the surroundings of the start look like: the slope seen there, and what speaks against the gradients."""

    slope: float
    doubt: str | None = None
    events: tuple[str, ...] = ()


def look_around(
    problem: Problem,
    box: Box,
    u: PyTree,
    here: Sample,
    sample: Callable[[PyTree], Sample | None],
    evaluator: Evaluator,
) -> View:
    """The slope of the objective at the start `u`, of which `here` is the sample of the objective alone.

    Evaluates once more, if an entry of the gradient is exactly zero or all of it is tiny.
    """
    vicinity = Vicinity(u, box, here, sample, evaluator.dtype)
    slope = largest(vicinity.slopes)
    free = vicinity.slopes_of(box.projected_gradient(u, here.gradient))
    is_flat = largest(free) <= SUSPICIOUS * abs(vicinity.value)
    silent = vicinity.slopes == 0
    step = _way_aside(vicinity, silent)
    # What cannot move at all is no question; what has a slope and is not flat needs no second look.
    step = np.clip(vicinity.x + (step if is_flat else np.where(silent, step, 0.0)), vicinity.lower, vicinity.upper)
    step = step - vicinity.x
    if not step.any():
        return View(slope)
    there = vicinity.look(step)
    if there is None:
        return View(slope, events=("a second look at the gradient of the start failed: the point next to it does",))
    reach = largest(there.step)
    if reach == 0.0:
        return View(slope)
    # By how much it bends, so that a constant added to a linear objective is no slope.
    seen = max(slope, largest(there.slopes - vicinity.slopes) / reach) if is_flat else slope
    doubt, events = _about_silence(problem, evaluator, vicinity, listen(vicinity, silent, there))
    if doubt is None and is_flat and there.change < -vicinity.rounding(there):
        doubt = (
            f"by its gradient the start is optimal, yet a design next to it is better by {-there.change:.3g}: the "
            f"start is a maximum or a saddle, and another start is needed, or its gradient is wrong. {_CHECK}"
        )
        events = (*events, doubt)
    if doubt is None and not is_flat and (ridge := _about_a_ridge(vicinity, silent, there)):
        events = (*events, ridge)
    if doubt is None and not events and silent.all() and not problem.constraints:
        doubt, events = _look_for_a_way_down(vicinity, there)
    return View(seen, doubt, events)


def _way_aside(vicinity: Vicinity, silent: Mask) -> Vector:
    """Uphill where there is a slope, so into the box in its corners; else a pattern without symmetry, where there is
    room for it.
    """
    patterns = [np.cos(1.0 + np.arange(part.size)) for part in vicinity.parts(vicinity.x)]
    pattern = np.concatenate([np.zeros(0), *patterns])
    pattern = np.where(np.abs(pattern) < 0.1, 1.0, pattern)
    up, down = vicinity.upper - vicinity.x, vicinity.x - vicinity.lower
    ahead, behind = np.where(pattern > 0, up, down), np.where(pattern > 0, down, up)
    inwards = np.where((ahead < LOOK_BACK * np.abs(pattern)) & (behind > ahead), -pattern, pattern)
    return LOOK_BACK * np.where(silent, inwards, np.sign(vicinity.slopes))


def _about_silence(problem: Problem, evaluator: Evaluator, vicinity: Vicinity, found: Silence | None) -> _Verdict:
    """What is to be said of entries without a gradient."""
    if found is None:
        return None, ()
    if found.kind == "idle":
        return _about_idle(problem, evaluator, vicinity, found)
    names = ", ".join(vicinity.named(found.entries))
    zero = f"the gradient with respect to {names} is exactly zero at the start and next to it"
    if found.kind == "cut":
        doubt = f"{zero}, yet the objective changes there by {found.change:.3g}: it cannot be right. {_CHECK}"
        return doubt, (doubt,)
    fact = (
        f"{zero}, yet the objective is another one there, by {found.change:.3g}: a rounding, a cast to integers, a "
        "comparison or stop_gradient cuts the way, or it has a step between two flat places. Drivers follow gradients "
        "and do not see it"
    )
    # With what is flat at just these two places the start may still be the best one.
    other = found.seen if found.change < 0 else vicinity.look(-found.seen.step)
    if other is None or other.change >= -vicinity.rounding(other):
        return None, (fact,)
    doubt = f"{fact}; and a design next to the start is better by {-other.change:.3g}. {_CHECK}"
    return doubt, (doubt,)


def _about_idle(problem: Problem, evaluator: Evaluator, vicinity: Vicinity, found: Silence) -> _Verdict:
    before, after = (evaluator.evaluation(sample.leaves).constraints for sample in (vicinity.here, found.seen.sample))
    if not all(np.array_equal(before[name], after[name]) for name in problem.constraints or {}):
        return None, ()
    # Of a leaf that has an effect somewhere, a part without one is nothing to tell: rectifiers, elements that are off.
    names = vicinity.whole(found.entries | ((vicinity.slopes == 0) & (vicinity.lower == vicinity.upper)))
    if not names:
        return None, ()
    fact = f"nothing depends on {', '.join(map(repr, names))}: neither the gradient nor a value next to the start"
    return (fact if not vicinity.slopes.any() and found.entries.all() else None), (fact,)


def _about_a_ridge(vicinity: Vicinity, silent: Mask, there: Seen) -> str:
    """What is to be said where entries without a gradient lead down, and the others have one; `there` only the silent
    ones were moved. Empty if they do not."""
    parts = np.where(silent, there.slopes * there.step, 0.0)
    downhill = parts < 0
    # Where it goes down by a power of the step, the change is this part of slope times step; noise is not.
    if not downhill.any() or there.change >= min(-vicinity.rounding(there), 0.1 * float(parts.sum())):
        return ""
    names = ", ".join(vicinity.named(downhill))
    return (
        f"the gradient with respect to {names} is exactly zero at the start, and next to it the objective is lower, by "
        f"{-there.change:.3g}: the start lies on a ridge there. Drivers that follow gradients may stay on it, and what "
        "they find be a saddle: start beside it"
    )


def _look_for_a_way_down(vicinity: Vicinity, there: Seen) -> _Verdict:
    """Of a start with a gradient of zero, next to which the slopes are those `there`: whether another direction leads
    down. Three evaluations at most.
    """
    found = _along_the_curvature(vicinity, there)
    if not _is_lower(vicinity, found):
        found = vicinity.look(-there.step)  # what is of odd order, such as x**3, goes down on one side only
    if found is None or not _is_lower(vicinity, found):
        return None, (
            "the gradient is zero at the start, and the objective is not lower where it was looked at next to it; a "
            "saddle or a maximum of a few directions cannot be told from an optimum by that",
        )
    doubt = (
        f"the gradient is zero at the start, yet a design next to it is better by {-found.change:.3g}: the start is a "
        "saddle or a maximum, and another start is needed"
    )
    return doubt, (doubt,)


def _is_lower(vicinity: Vicinity, found: Seen | None) -> bool:
    return found is not None and found.change < -vicinity.rounding(found)


def _along_the_curvature(vicinity: Vicinity, there: Seen) -> Seen | None:
    """A point in the direction that bends down most, of what is known.

    Slopes a step away from zero are a product with the second derivative. What of it is not along the step is the
    direction to look along next, as in the method of Lanczos; where the two of them span a direction down, the value
    there decides. None where the step was along an eigenvector.
    """
    first, bent, reach = there.step, there.slopes, LOOK_BACK
    # Only where there is room both ways, as the way down may be either.
    rest = bent - (bent @ first) / (first @ first) * first
    rest = np.where((vicinity.x - reach > vicinity.lower) & (vicinity.x + reach < vicinity.upper), rest, 0.0)
    if largest(rest) <= 1e-6 * largest(bent):
        return None
    second = rest * (reach / largest(rest))
    found = vicinity.look(second)
    if found is None:
        return None
    along, across, aside = first @ bent, second @ bent, second @ found.slopes
    if aside > 0 and across * across > along * aside:
        way = first - across / aside * second
        found = vicinity.look(way * (reach / largest(way)))
    return found
