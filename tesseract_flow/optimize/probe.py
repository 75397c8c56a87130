"""A second look before anything is believed: one evaluation next to a start whose gradient says that there is nothing
to do.

A gradient of zero at the start is right where the start is optimal. It is also what a component gives that answers zero
for its pullback, what an objective gives that does not depend on the design, and, in a corner of the bounds, what a
wrong sign gives. Values tell them apart. Costs nothing where the gradient at the start is not suspicious, and two
evaluations more at most where it is exactly zero, to tell a saddle from an optimum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.evaluator import Evaluator, Sample
from tesseract_flow.optimize.optimality import LOOK_BACK
from tesseract_flow.optimize.partition import path_name
from tesseract_flow.optimize.problem import Problem

# A start is suspicious where no move by the design's size would change the objective by more than this part of it.
SUSPICIOUS = 1e-4

_CHECK = (
    "Check the gradients: tesseract-flow check-gradients, or jax.test_util.check_grads on evaluate with a known design."
)


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

    Evaluates once more, if the gradient of a whole leaf is exactly zero or that of all is tiny.
    """
    leaves, treedef = jax.tree.flatten(u)
    slopes = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(here.gradient)]
    free = [np.asarray(leaf) for leaf in jax.tree.leaves(box.projected_gradient(u, here.gradient))]
    size = max(1.0, *(_norm(leaf) for leaf in leaves))
    slope = max(_norm(leaf) for leaf in slopes) * size
    value = float(here.lagrangian)
    silent = [not leaf.any() for leaf in slopes]
    is_flat = max(_norm(leaf) for leaf in free) * size <= SUSPICIOUS * abs(value)
    if not is_flat and not any(silent):
        return View(slope)
    # Uphill where there is a slope, so into the box in its corners; else a pattern without symmetry.
    moved = []
    for x, g, is_silent in zip(leaves, slopes, silent, strict=True):
        pattern = np.cos(1.0 + np.arange(g.size)).reshape(g.shape)
        direction = np.where(g != 0, np.sign(g), np.where(np.abs(pattern) < 0.1, 1.0, pattern))
        moved.append(x + jnp.asarray(LOOK_BACK * size * direction, x.dtype) if is_flat or is_silent else x)
    point = box.project(treedef.unflatten(moved))
    steps = [np.asarray(b) - np.asarray(a) for a, b in zip(leaves, jax.tree.leaves(point), strict=True)]
    reach = max(_norm(step) for step in steps)
    if reach == 0.0:
        return View(slope)
    there = sample(point)
    if there is None:
        return View(slope, events=("a second look at the gradient of the start failed: the point next to it does",))
    slopes_there = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(there.gradient)]
    change = float(there.lagrangian) - value
    names = [path_name(path) for path, _ in jtu.tree_flatten_with_path(u)[0]]
    still = [
        name
        for name, is_silent, step, g in zip(names, silent, steps, slopes_there, strict=True)
        if is_silent and step.any() and not g.any()
    ]
    seen = max(slope, max(_norm(leaf) for leaf in slopes_there) * size**2 / reach) if is_flat else slope
    doubt, events = _verdict(still, len(names), change, value, is_flat, evaluator, here, there, problem)
    if doubt is None and not events and all(silent) and not problem.constraints:
        doubt, events = _look_for_a_way_down(box, u, steps, slopes_there, value, LOOK_BACK * size, sample, evaluator)
    return View(seen, doubt, events)


def _look_for_a_way_down(
    box: Box,
    u: PyTree,
    steps: list[np.ndarray],
    slopes_there: list[np.ndarray],
    value: float,
    reach: float,
    sample: Callable[[PyTree], Sample | None],
    evaluator: Evaluator,
) -> tuple[str | None, tuple[str, ...]]:
    """Of a start with a gradient of zero, from which `steps` led up to where the slopes are `slopes_there`: whether
    another direction leads down.

    Slopes a step away from zero are a product with the second derivative. What of it is not along the step is the
    direction to look along next, as in the method of Lanczos; where the two of them span a direction down, the value
    there decides. Two evaluations at most; none where the step was along an eigenvector.
    """
    leaves, treedef = jax.tree.flatten(u)
    n = [leaf.size for leaf in leaves]
    x = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    sides = [
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(side)])
        for side in (box.lower, box.upper)
    ]
    first, bent = (np.concatenate([leaf.ravel() for leaf in parts]) for parts in (steps, slopes_there))

    def look(step: np.ndarray) -> tuple[float, np.ndarray] | None:
        parts = np.split(x + step, np.cumsum(n)[:-1])
        point = treedef.unflatten(
            [jnp.asarray(part.reshape(leaf.shape), leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        )
        found = sample(box.project(point))
        if found is None:
            return None
        slopes = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(found.gradient)]
        return float(found.lagrangian) - value, np.concatenate(slopes)

    # Only where there is room both ways, as the way down may be either.
    rest = bent - (bent @ first) / (first @ first) * first
    rest = np.where((x - reach > sides[0]) & (x + reach < sides[1]), rest, 0.0)
    unsure = (
        "the gradient is zero at the start, and the objective is not lower where it was looked at next to it; a saddle "
        "or a maximum of a few directions cannot be told from an optimum by that",
    )
    if _norm(rest) <= 1e-6 * _norm(bent):
        return None, unsure
    second = rest * (reach / _norm(rest))
    found = look(second)
    if found is None:
        return None, unsure
    along, across, aside = first @ bent, second @ bent, second @ found[1]
    if aside > 0 and across * across > along * aside:
        way = first - across / aside * second
        found = look(way * (reach / _norm(way)))
    rounding = 100 * float(jnp.finfo(evaluator.dtype).eps) * abs(value)
    if found is None or found[0] >= -rounding:
        return None, unsure
    doubt = (
        f"the gradient is zero at the start, yet a design next to it is better by {-found[0]:.3g}: the start is a "
        "saddle or a maximum, and another start is needed"
    )
    return doubt, (doubt,)


def _verdict(
    still: list[str],
    n_leaves: int,
    change: float,
    value: float,
    is_flat: bool,
    evaluator: Evaluator,
    here: Sample,
    there: Sample,
    problem: Problem,
) -> tuple[str | None, tuple[str, ...]]:
    rounding = 100 * float(jnp.finfo(evaluator.dtype).eps) * max(abs(value), abs(value + change))
    named = ", ".join(repr(name) for name in still)
    if still and abs(change) > rounding:
        doubt = (
            f"the gradient with respect to {named} is exactly zero at the start and next to it, yet the objective "
            f"changes there by {change:.3g}: it cannot be right. {_CHECK}"
        )
        return doubt, (doubt,)
    if still:
        before, after = (evaluator.evaluation(sample.leaves).constraints for sample in (here, there))
        unchanged = all(np.array_equal(before[name], after[name]) for name in problem.constraints or {})
        if not unchanged:
            return None, ()
        fact = f"nothing depends on {named}: neither the gradient nor a value next to the start"
        return (fact if len(still) == n_leaves else None), (fact,)
    if is_flat and change < -rounding:
        doubt = (
            f"by its gradient the start is optimal, yet a design next to it is better by {-change:.3g}: the start is a "
            f"maximum or a saddle, and another start is needed, or its gradient is wrong. {_CHECK}"
        )
        return doubt, (doubt,)
    return None, ()


def _norm(leaf: Any) -> float:
    return float(np.abs(np.asarray(leaf, np.float64)).max(initial=0.0))
