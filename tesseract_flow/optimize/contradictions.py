"""Whether gradients and values contradict each other, seen from inside a run.

A run evaluates values and gradients together, so each two points are a test of both: by the trapezoidal rule, the
change of the value is the mean of the two slopes times the distance, up to the third power of it. The trials of a line
search are such points, and where it had trouble its shortest ones say whether to suspect the gradient; one more
evaluation, a short step down the gradient, is the test. A first contradiction is looked at again closer by before
anything is said: a smooth function comes round. Of a kink, points on one side agree with each other; a wrong gradient
contradicts everywhere.

Where a run is about to claim an optimum there is no slope to compare with: an error of a thousandth of the gradient on
the way may be all of it there. So values on both sides are compared with the claim itself, in its own unit.

Which component is wrong is not known here: `tesseract_flow.checks` finds out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize.aside import around, sample_aside
from tesseract_flow.optimize.drivers.moves import Move
from tesseract_flow.optimize.evaluator import Sample
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State
from tesseract_flow.optimize.vicinity import Vector, Vicinity, largest

Verify = Literal["start"] | int | None

# Relative to the size of the design, one after the other as long as they contradict; the last two close together.
_DISTANCES = (1e-3, 1e-4, 8e-5)
_COARSE_DISTANCES = (3e-2, 1e-2, 8e-3)  # where numbers have seven digits
_TOLERANCE = 0.1  # of the change: beyond, slopes contradict the values
_SPREAD = 0.3  # of the slope's error between pairs of points: beyond, it is something else than a wrong gradient
_MANY_TRIALS = 4  # of one search: it has trouble
_LEGIBLE = 1e3  # a change must be so many times its rounding error to be read
_CLAIMED = 1e-3  # of a claim's unit: a slope that contradicts it
_BEYOND_NOISE = 10.0  # a contradiction must be so many times what the values have of noise and kinks


def as_verify(verify: Verify) -> Verify:
    """The setting, if it is one.

    Raises:
        ProblemError: it is not `"start"`, a positive number of steps, or None.
    """
    is_number = isinstance(verify, int) and not isinstance(verify, bool) and verify >= 1
    if verify is None or verify == "start" or is_number:
        return verify
    raise ProblemError(
        f'verify_gradients must be "start", a number of steps, or None, received {verify!r}.\n'
        "It costs one evaluation at the start, and two where an optimum is claimed; with a number also one after so "
        "many steps, again and again."
    )


def is_due(verify: Verify, step: int) -> bool:
    """Whether the gradient is to be verified at this step; step 0 is the start."""
    return verify is not None and (step == 0 if verify == "start" else step % int(verify) == 0)


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """What slopes predict between two points, and values do not do.

    Attributes:
        predicted: change of what is minimised, by the slopes at both ends.
        found: by the values.
        distance: between the ends, in scaled units.
    """

    predicted: float
    found: float
    distance: float

    def __str__(self) -> str:
        return (
            f"the gradient predicts {self.predicted:+.3g} along a step of length {self.distance:.1g}, the values say "
            f"{self.found:+.3g}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Point:
    u: PyTree
    sample: Sample


def is_suspicious(move: Move, state: State) -> bool:
    """Whether a search of this step failed or went on for long, and its shortest trial does not fit the slopes."""
    if move.doubtful:
        return True
    start = _Point(state.u, state.here)
    for search in move.searches:
        trials = [_Point(trial.u, trial.sample) for trial in search.trials if trial.sample is not None]
        if search.here is not None and len(trials) < _MANY_TRIALS:
            continue
        pairs = [pair for trial in trials if (pair := _compared(start, trial)) is not None]
        if pairs and _contradicts(min(pairs, key=lambda pair: pair.distance)):
            return True
    return False


def verify_gradient(run: Run, state: State) -> Contradiction | None:
    """One evaluation a short step away; up to two more if it contradicts.

    The way is half down the gradient, half anywhere: a dependence that the gradient lacks shows in no step along it.
    None if all fits, or if it cannot be told: the gradient is zero, the values are flat, or there is no evaluation.
    """
    slopes = run.box.projected_gradient(state.u, state.here.gradient)
    norm = math.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(slopes)))
    if not norm or not math.isfinite(norm):
        return None
    way = _way(slopes, norm)
    size = max(1.0, *(float(jnp.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(state.u)))
    is_exact = float(jnp.finfo(run.evaluator.dtype).eps) < 1e-10
    points = [_Point(state.u, state.here)]
    for relative in _DISTANCES if is_exact else _COARSE_DISTANCES:
        u = run.box.project(jax.tree.map(lambda x, d, t=relative * size: x + d * jnp.asarray(t, d.dtype), state.u, way))
        sample = sample_aside(run, u, state.weights)
        if sample is None:
            return None
        found = _compared(points[0], _Point(u, sample))
        if found is None or not _contradicts(found):
            return None
        points.append(_Point(u, sample))
    return _common(points)


def verify_claim(run: Run, state: State, unit: float, tolerance: float) -> Contradiction | None:
    """Two evaluations, on both sides of a design that is claimed to be optimal; two more, closer by, if they contradict
    that.

    The slope between them is that of the values, up to the square of the distance. It is compared with the gradient in
    the `unit` of the claim, as what is left of a gradient that is all but zero is none. The way leads along all entries
    that have room, each by its own size. What is smooth comes round closer by; noise grows; and a kink shows as a bend
    that does not become smaller by the square: none of them is an error of the gradient. Entries at a bound, where a
    wrong gradient may have pushed them, have room on one side: one more evaluation, and a second if it contradicts.
    None also if it cannot be told.
    """
    vicinity = around(run, state)
    distances = _DISTANCES if vicinity.eps < 1e-10 else _COARSE_DISTANCES
    least = unit * max(_CLAIMED, 10.0 * tolerance * math.sqrt(vicinity.x.size))
    return _verify_across(vicinity, distances[:2], least) or _verify_inwards(vicinity, distances[:2], least)


def _verify_across(vicinity: Vicinity, distances: Sequence[float], least: float) -> Contradiction | None:
    """On both sides, along entries that have room there."""
    way, errors, bends, pair = _way_across(vicinity, distances[0]), [], [], None
    for distance in distances:
        ahead, behind = (vicinity.look(side * distance * way) for side in (1.0, -1.0))
        if ahead is None or behind is None:
            return None
        along = ahead.step - behind.step
        found, predicted = ahead.change - behind.change, float(vicinity.slopes @ along)
        errors.append((found - predicted) / (2.0 * distance))
        bends.append(ahead.change + behind.change)
        rounding = vicinity.eps * max(abs(vicinity.value + seen.change) for seen in (ahead, behind))
        if not abs(errors[-1]) > least or abs(found - predicted) <= _LEGIBLE * rounding:
            return None
        pair = Contradiction(predicted, found, float(np.linalg.norm(along * vicinity.sizes)))
    assert pair is not None
    unlike = abs(bends[1] - bends[0] * (distances[1] / distances[0]) ** 2)
    if not _are_alike(errors) or abs(pair.found - pair.predicted) < _BEYOND_NOISE * unlike:
        return None
    return pair


def _verify_inwards(vicinity: Vicinity, distances: Sequence[float], least: float) -> Contradiction | None:
    """Away from the bounds that entries are at, where slopes at both ends of a way are compared with the values."""
    way, errors, pair = _way_inwards(vicinity), [], None
    if not way.any():
        return None
    ends = [(np.zeros(way.size), 0.0, vicinity.slopes)]
    for distance in distances:
        if (seen := vicinity.look(distance * way)) is None:
            return None
        for step, change, slopes in ends:
            along = seen.step - step
            found, predicted = seen.change - change, 0.5 * float((seen.slopes + slopes) @ along)
            error = (found - predicted) * largest(way) / max(largest(along), np.finfo(np.float64).tiny)
            errors.append(error * np.sign(distance - largest(step)))
            rounding = vicinity.eps * max(abs(vicinity.value), abs(vicinity.value + seen.change))
            if not abs(error) > least or abs(found - predicted) <= _LEGIBLE * rounding:
                return None
            pair = pair or Contradiction(predicted, found, float(np.linalg.norm(along * vicinity.sizes)))
        ends.append((seen.step, seen.change, seen.slopes))
    return pair if _are_alike(errors) else None


def _are_alike(errors: Sequence[float]) -> bool:
    return max(errors) - min(errors) <= _SPREAD * min(map(abs, errors))


def _way_inwards(vicinity: Vicinity) -> Vector:
    """Into the box, along all entries that are at one of their bounds."""
    rng = np.random.default_rng(vicinity.x.size)
    inwards = np.where(vicinity.x <= vicinity.lower, 1.0, 0.0) - np.where(vicinity.x >= vicinity.upper, 1.0, 0.0)
    return inwards * rng.uniform(0.5, 1.0, vicinity.x.size)


def _way_across(vicinity: Vicinity, reach: float) -> Vector:
    """A direction with a part in every entry that has room on both sides, none like another, so that errors of some
    entries do not cancel those of others; always the same one."""
    rng = np.random.default_rng(vicinity.x.size)
    way = rng.choice([-1.0, 1.0], vicinity.x.size) * rng.uniform(0.5, 1.0, vicinity.x.size)
    room = np.minimum(vicinity.x - vicinity.lower, vicinity.upper - vicinity.x)
    return np.sign(way) * np.minimum(np.abs(way), np.maximum(room, 0.0) / reach)


def _way(slopes: PyTree, norm: float) -> PyTree:
    """Half down the gradient, half in a direction in which all variables count the same; always the same one."""
    leaves, treedef = jax.tree.flatten(slopes)
    n = sum(leaf.size for leaf in leaves)
    rng = np.random.default_rng(n)
    down = [-np.asarray(leaf, np.float64) / norm for leaf in leaves]
    anywhere = [rng.choice([-1.0, 1.0], leaf.shape) / math.sqrt(n) for leaf in leaves]
    # Not against each other: with few variables nothing would be left.
    sign = 1.0 if sum(float((a * b).sum()) for a, b in zip(down, anywhere, strict=True)) >= 0.0 else -1.0
    way = [(a + sign * b) / math.sqrt(2.0) for a, b in zip(down, anywhere, strict=True)]
    return treedef.unflatten([jnp.asarray(part, leaf.dtype) for part, leaf in zip(way, leaves, strict=True)])


def _common(points: Sequence[_Point]) -> Contradiction | None:
    """What a start and further points on a line from it, the nearest last, have in common: the same error of the slope.

    Noise makes an error that grows as points come closer, a kink one that is not between points on one side of it.
    """
    start, *others = points
    pairs = [*(_compared(start, other) for other in others), _compared(others[-1], others[-2])]
    if any(pair is None or not _contradicts(pair) for pair in pairs):
        return None
    errors = [(pair.found - pair.predicted) / pair.distance for pair in pairs if pair is not None]
    return pairs[len(others) - 1] if _are_alike(errors) else None


def _compared(a: _Point, b: _Point) -> Contradiction | None:
    """Slopes and values between two points; None if the change drowns in rounding."""
    ends = zip(*(map(jax.tree.leaves, (a.u, b.u, a.sample.gradient, b.sample.gradient))), strict=True)
    square, at_a, at_b = 0.0, 0.0, 0.0
    for x, y, g, h in ends:
        way = np.asarray(y, np.float64) - np.asarray(x, np.float64)
        square += float((way * way).sum())
        at_a += float((way * np.asarray(g, np.float64)).sum())
        at_b += float((way * np.asarray(h, np.float64)).sum())
    values = float(a.sample.lagrangian), float(b.sample.lagrangian)
    found = values[1] - values[0]
    rounding = float(jnp.finfo(a.sample.lagrangian.dtype).eps) * max(map(abs, values))
    change = max(abs(found), abs(at_a), abs(at_b))
    if not square or not math.isfinite(change) or change <= _LEGIBLE * rounding:
        return None
    return Contradiction(0.5 * (at_a + at_b), found, math.sqrt(square))


def _contradicts(pair: Contradiction) -> bool:
    return abs(pair.predicted - pair.found) > _TOLERANCE * max(abs(pair.predicted), abs(pair.found))


def advice(components: Collection[str]) -> str:
    """What to do about it."""
    whose = f" of {', '.join(components)}" if components else ""
    return (
        f"check the gradients{whose}: tf.check_gradients(problem, at=result), or tesseract-flow check-gradients "
        "PROBLEM --at JOURNAL, tells which component, and where in it"
    )
