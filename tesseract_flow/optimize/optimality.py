"""Whether a design is optimal to first order: one measure for every driver, and what "converged" means.

With the multipliers `y` of the constraints and `z` of the bounds, a design is a first-order point if

    ∇f + Σ y ∇c - z = 0    stationarity
    c within its limits    feasibility
    y, z = 0 off limits    complementarity

The three figures are those of Wächter & Biegler, On the implementation of an interior-point filter line-search
algorithm for large-scale nonlinear programming, Mathematical Programming 106 (2006), equations (5) and (6), but for one
thing. There the first and the third are divided by `max(100, mean multiplier) / 100`, so that large multipliers do not
ask for more digits than there are, at tolerances of 1e-8 and for gradients scaled to 100. That divisor has no limit.
Where no multipliers exist at the solution (a cusp), or a row is all but zero, estimates grow until it excuses any
gradient. Here **large multipliers excuse nothing**: what is said of a design is said of the objective. Where rounding
of what they cancel leaves more than the tolerance, which takes multipliers of a billion times the objective's slope,
nothing is claimed.

Nothing is evaluated for the figures. The gradient of the augmented Lagrangian is the gradient of the Lagrangian with
the multipliers `λ + ρ t`, and what it leaves at an active bound is `z` (a bound is met exactly here, by projection, so
it is complementary by construction).

**What they are relative to.** Wächter and Biegler, as most, compare with a number in the objective's own units; in a
workflow these are anything from 1e-12 to 1e12. The gradient at the start is no better: a start that is far off, or
infeasible, excuses everything. Here the unit is the *slope* of the objective: by how much it may change if one entry
of the design moves by its own size (the larger of 1 and |u_i|, u the scaled design), seen from where the design is
now. Entry by entry: a modulus of 2e11 beside a thickness of 4e-3 must not lend the thickness its size. It is

    |f|, but at least a part of, and at most, the slope that was seen.

|f| is the relative gradient of Dennis & Schnabel, Numerical Methods for Unconstrained Optimization (1996), section 7.2.
The slope that was seen caps it, because adding a constant to an objective must not make a design optimal (Knitro does
the same: min(|f|, |∇f at the start|)); and it keeps objectives that fall to zero, sums of squares, able to converge:
the part is 1 % where |f| has fallen to nothing, to 1e-15 of that slope, and else a millionth. For where one direction
is a million times as steep as another, the slope seen is that of the steep one, and 1 % of it is all there is to win
along the floor of the valley. Single precision has no room for this; there it is 1 % throughout.
*Seen* means: without constraints, the gradient at the last step that lies at least 1 % of the design's size back,
extrapolated linearly to all of its size, so a far start is forgotten; with constraints, the gradient of the objective
alone at the start, taken back linearly if the design has gone further than its own size. Penalties are never in it.

With a tolerance of 1e-6 all of this says: no move of a leaf by its own size (the larger of 1 and its largest entry)
changes the objective, to first order, by more than a millionth of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import ConstraintSet
from tesseract_flow.optimize.problem import Evaluation
from tesseract_flow.optimize.state import State

if TYPE_CHECKING:
    from tesseract_flow.optimize.result import StepRecord

LOWEST_SLOPE = 1e-2  # of what was seen, for a value that has fallen to nothing; see above
LOWEST_IN_A_VALLEY = 1e-6  # for any other, in double precision
NOTHING = 1e-15  # of the slope that was seen
LOOK_BACK = 1e-2  # of the design's size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimality:
    """How far a design is from being optimal to first order; all three are relative, and 0 at a solution.

    Attributes:
        stationarity: what is left of the gradient of the Lagrangian, over the slope of the objective.
        feasibility: the largest violation of a constraint, in units of the limit that is violated.
        complementarity: the largest product of a multiplier and the distance to its limit, over the same slope.
        tolerance: what the first and the last are compared with, `None` where nothing in the run asked for it.
    """

    stationarity: float
    feasibility: float
    complementarity: float
    tolerance: float | None = None


def measures(
    box: Box,
    constraints: ConstraintSet,
    start: PyTree,
    state: State,
    here: Evaluation,
    *,
    is_interior: bool = False,
    forgiven: float = 0.0,
) -> dict[str, Array]:
    """What the figures are made of, at the design of a state; pure.

    Gradients and multipliers are in units of the objective, per unit of the scaled design.

    Args:
        is_interior: designs may come close to an active bound and not meet it; what there is to win counts then.
        forgiven: the part of a violation that nothing is charged for, as it was asked for (`forgiven_part`).
    """
    dtype = here.objective.dtype
    scale = state.objective_scale
    raw = state.here.gradient
    sizes = jax.tree.map(lambda leaf: jnp.maximum(jnp.abs(leaf).max(initial=0.0), 1.0), state.u)
    if is_interior:
        free = box.reachable_gradient(state.u, raw, sizes)
    else:
        free = box.projected_gradient(state.u, raw)
    prices = constraints.estimates(here.constraints, state.duals)
    scaled = constraints.scaled(here.constraints, state.duals)
    products = [
        _product(prices[key], c, constraints.lower[key], constraints.upper[key], 1.0 - forgiven)
        for key, c in scaled.items()
    ]
    return {
        "gradient_norm": _largest(free, dtype) * scale,
        "left": _largest(jax.tree.map(jnp.multiply, free, sizes), dtype) * scale,
        "slope": _largest(jax.tree.map(_by_own_size, raw, state.u), dtype) * scale,
        "free_slope": _largest(jax.tree.map(_by_own_size, free, state.u), dtype) * scale,
        "largest_price": _largest(prices, dtype) * scale,
        "product": _largest(products, dtype) * scale,
        "size": jnp.maximum(_largest(state.u, dtype), 1.0),
        "start_size": jnp.maximum(_largest(start, dtype), 1.0),
        "distance": _largest(jax.tree.map(jnp.subtract, state.u, start), dtype),
    }


def forgiven_part(feasibility_tol: float, tolerance: float) -> float:
    """Which part of a violation is left out of the products: where more of it is allowed than of anything else."""
    return max(0.0, 1.0 - tolerance / feasibility_tol) if feasibility_tol > 0 else 0.0


def _product(price: Array, value: Array, lower: Array, upper: Array, charged: float) -> Array:
    """Multiplier times the distance to the limit that it pushes away from; the limit of its own side only.

    On the far side of the limit it is what the objective has won by the violation.
    """
    room = jnp.where(price > 0, upper - value, value - lower)
    # A price towards where there is no limit is what rounding left of zero.
    room = jnp.where(jnp.isfinite(room), room, jnp.zeros_like(value))
    return jnp.abs(price) * jnp.where(room < 0, jnp.asarray(-charged, room.dtype) * room, room)


def _by_own_size(gradient: Array, leaf: Array) -> Array:
    return gradient * jnp.maximum(jnp.abs(leaf), 1.0)


def _largest(tree: PyTree, dtype: Any) -> Array:
    norms = [jnp.abs(leaf).max(initial=0.0).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.stack(norms).max() if norms else jnp.zeros((), dtype)


def slope_seen(m: Mapping[str, float], history: Sequence[StepRecord], move: float, has_constraints: bool) -> float:
    """The slope of the objective, as far as the run has seen it from where it is now.

    `m` are the `measures` of the design, and `move` is its step from the last record of `history`. 0 means that no
    slope was ever seen.
    """
    beginning = first_record(history)
    first = beginning.slope or 0.0
    if has_constraints:
        here = first * m["size"] / m["start_size"]
        return here * min(1.0, m["size"] / m["distance"]) if m["distance"] > 0 else here
    path = move
    # What pushes against active bounds counts, as it would in the sum that has to cancel.
    seen = m["slope"]
    for record in reversed(history):
        if path >= LOOK_BACK * m["size"] or record is beginning:
            then = record.steepness
            if then is None:  # written before there was one
                then = (record.gradient_norm or 0.0) * m["size"]
            seen = max(seen, then * m["size"] / max(path, LOOK_BACK * m["size"]))
            break
        path += record.move
    # Near the start what was seen there still counts: a start at the optimum has no other slope to show.
    return max(seen, first) if m["distance"] <= m["size"] else seen


def stationarity(m: Mapping[str, float], value: float, seen: float, dtype: np.dtype) -> float:
    """By how much a move by its own size of one leaf still changes the Lagrangian, relative to the slope."""
    return m["left"] / unit_of(value, seen, dtype)


def complementarity(m: Mapping[str, float], value: float, seen: float, dtype: np.dtype) -> float:
    return m["product"] / unit_of(value, seen, dtype)


def unit_of(value: float, seen: float, dtype: np.dtype) -> float:
    """What changes of the objective are relative to. `value` is its own, `seen` the slope that the run has seen."""
    # An objective that is zero and flat has no unit; what is left are the constraints, in theirs. And a slope that is
    # beyond what can be written, in a run that goes out of all bounds, must not make what is left of it look small.
    if not 0 < seen < math.inf:
        return abs(value) or 1.0
    is_a_valley = np.dtype(dtype).itemsize >= 8 and abs(value) > NOTHING * seen
    return min(max(abs(value), (LOWEST_IN_A_VALLEY if is_a_valley else LOWEST_SLOPE) * seen), seen)


def is_first_order(record: StepRecord, tolerance: float) -> bool:
    """Whether the figures of a step are within the tolerance, and its design feasible by that of the run."""
    if record.stationarity is None or record.complementarity is None:
        return False  # written before there were figures
    return record.feasible and record.stationarity <= tolerance and record.complementarity <= tolerance


def first_record(history: Sequence[StepRecord]) -> StepRecord:
    """The first step of the problem as it now is, of these."""
    return history[max(0, history[-1].since - history[0].step)]


def best_record(history: Sequence[StepRecord]) -> StepRecord | None:
    """The step that found the best design so far; `None` if it was found for another problem."""
    last = history[-1]
    return None if last.best_step < last.since else history[last.best_step - history[0].step]


def optimality_of(record: StepRecord | None, tolerance: float | None = None) -> Optimality | None:
    """The figures of a step's design; `None` where none were written, by a version that had none."""
    if record is None or record.stationarity is None or record.complementarity is None:
        return None
    return Optimality(
        stationarity=record.stationarity,
        feasibility=record.violation,
        complementarity=record.complementarity,
        tolerance=tolerance,
    )
