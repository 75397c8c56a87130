"""What is behind a violation that does not go away: constraints that rule each other out, or one that holds by its
tolerance alone.

Both are questions about how a violation changes with the design, which a violation by itself does not say. They are
local, as everything is that gradients say.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Float

from tesseract_flow.optimize.aside import sample_aside
from tesseract_flow.optimize.constraints import Duals
from tesseract_flow.optimize.evaluator import Weights
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State

_LEGIBLE = 1e3  # roundings of a constraint's value: what it is off by less is met
_CHEAP = 0.1  # of the unit of a claim: the whole limit, at this price, is worth less than that
_FAR = 1e-2  # of its own size: what a design has to move by if a violation is to count that is within the tolerance

_PATIENCE = 5  # steps in which the violation hardly falls, and the design hardly moves
_LONG = 25  # in which it does not fall although the design moves
_FALLS, _FALLS_IN_LONG = 0.99, 0.95  # to that part of it, over them
_OFTEN = 5  # steps between two looks for a way that the driver does not find
_NEAR, _WIDE = 0.1, 1.0  # of the design's size: within which constraints are asked for a way to meet them
_NEAR_PART, _WIDE_PART = 0.1, 0.5  # of the violation, which there has to be a way to get rid of
_MOST_ENTRIES = 2_000_000  # entries of a Jacobian that are looked at


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The constraints of a step, linearised.

    Attributes:
        names: of the constraint that each row is of.
        values, lower, upper: in units of its measure.
        jacobian: with respect to the scaled design.
        point, box: the scaled design, and lower and upper bounds of it.
    """

    names: Sequence[str]
    values: Float[np.ndarray, " m"]
    lower: Float[np.ndarray, " m"]
    upper: Float[np.ndarray, " m"]
    jacobian: Float[np.ndarray, "m n"]
    point: Float[np.ndarray, " n"]
    box: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def in_conflict(run: Run, state: State, history: Sequence[StepRecord], rows: Rows) -> list[str]:
    """Names of the constraints that rule each other out near the last design of a history, in which the violation has
    stopped falling; empty where there is a way to meet them.

    To first order, no move then makes all violations smaller by the same part and violates nothing else: that part is
    maximised, by a linear program. Its multipliers say which constraints stand in the way. Where the design hardly
    moves, little must be promised nearby and not much farther off. Where it does move, and nothing comes of it for
    long, the way that is promised is gone: one or two evaluations.

    Source: infeasible stationary points, Burke, Curtis & Wang, SIAM Journal on Optimization 24 (2014), section 2.
    """
    last, largest = history[-1], float(np.abs(rows.point).max(initial=1.0))
    if last.feasible or rows.jacobian.size > _MOST_ENTRIES:
        return []
    moved = sum(record.move for record in history[-_PATIENCE:])
    if last.stalled or (_has_stopped_falling(history, _PATIENCE) and moved <= _NEAR * largest):
        near = _way_out(rows, _NEAR)
        if near.part < _NEAR_PART and _way_out(rows, _WIDE).part < _WIDE_PART:
            return near.names
    # Not at each step, as it may be told again and again that there is a way.
    if last.step % _OFTEN or not _has_stopped_falling(history, _LONG, _FALLS_IN_LONG):
        return []
    near = _way_out(rows, _NEAR)
    leads_on = (_leads_on(run, state, reach / _NEAR * near.move) for reach in (_NEAR, _NEAR**2))
    return near.names if near.part < _WIDE_PART and not any(leads_on) else []


def _has_stopped_falling(history: Sequence[StepRecord], n_steps: int, part: float = _FALLS) -> bool:
    """Whether no design of the last steps was feasible, or less violated than the one before them."""
    if len(history) <= n_steps + 1:  # the start counts for nothing
        return False
    before, *since = history[-n_steps - 1 :]
    return not any(record.feasible for record in (before, *since)) and (
        min(record.violation for record in since) >= part * before.violation
    )


def _leads_on(run: Run, state: State, move: np.ndarray) -> bool:
    """Whether a move of the scaled design makes all violations smaller, by one evaluation; true if nobody can tell."""
    leaves, treedef = jax.tree.flatten(state.u)
    parts = np.split(move, np.cumsum([leaf.size for leaf in leaves])[:-1])
    steps = [jnp.asarray(part.reshape(leaf.shape), leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    u = run.box.project(treedef.unflatten([leaf + step for leaf, step in zip(leaves, steps, strict=True)]))
    sample = sample_aside(run, u, state.weights)
    if sample is None:
        return True
    before, after = (
        run.constraints.violations(run.evaluator.evaluation(leaves).constraints, state.duals)
        for leaves in (state.here.leaves, sample.leaves)
    )
    return all(float(after[key]) <= max(_FALLS * float(before[key]), run.feasibility_tol) for key in before)


@dataclasses.dataclass(frozen=True, eq=False)
class _WayOut:
    part: float
    names: list[str]
    move: Float[np.ndarray, " n"]


def _way_out(rows: Rows, reach: float) -> _WayOut:
    """The part of all violations that can go within a reach, relative to the design's size; what limits it; and the
    move of the scaled design that gets there."""
    sizes = np.maximum(np.abs(rows.point), 1.0)
    slopes = rows.jacobian * sizes
    sides = [(slopes, rows.upper - rows.values), (-slopes, rows.values - rows.lower)]
    matrix, room, names = [], [], []
    for side, left in sides:
        for k in map(int, np.flatnonzero(np.isfinite(left))):
            length = float(np.abs(side[k]).max(initial=0.0)) or 1.0
            matrix.append(np.append(side[k], max(-left[k], 0.0)) / length)
            room.append(max(left[k], 0.0) / length)
            names.append(rows.names[k])
    # In units of the largest move that a violation asks for: beside a design of 1e12 one of 1e-3 is not lost.
    asked = max((side[-1] for side in matrix), default=0.0)
    unit = min(reach, asked) if asked > 0.0 else reach
    bounds = [
        (max(-reach, (low - x) / size) / unit, min(reach, (high - x) / size) / unit)
        for x, size, low, high in zip(rows.point, sizes, *rows.box, strict=True)
    ]
    goal = np.append(np.zeros(len(sizes)), -1.0)
    scaled = np.array(matrix) * np.append(np.ones(len(sizes)), 1.0 / unit)
    found = scipy.optimize.linprog(goal, scaled, np.array(room) / unit, bounds=[*bounds, (0.0, 1.0)])
    if not found.success:
        return _WayOut(1.0, [], np.zeros(len(sizes)))
    prices = np.abs(found.ineqlin.marginals)
    large = prices > 1e-3 * prices.max(initial=0.0)
    limiting = list(dict.fromkeys(name for name, counts in zip(names, large, strict=True) if counts))
    return _WayOut(float(found.x[-1]), limiting, unit * found.x[:-1] * sizes)


def infeasible(run: Run, state: State, names: Sequence[str]) -> str:
    """The sentence that says so, with all constraints that are violated, and others, by name, that stand in the way."""
    violations: dict[str, float] = {}
    here = run.evaluator.evaluation(state.here.leaves)
    for key, violation in run.constraints.violations(here.constraints, state.duals).items():
        name = run.constraints.names[key]
        violations[name] = max(violations.get(name, 0.0), float(violation))
    off = {name: size for name, size in violations.items() if size > run.feasibility_tol}
    met = [name for name in names if name not in off]
    said = [f"constraint {name!r} is violated by {size:.3g} of its limit" for name, size in off.items()]
    said += [f"constraint {name!r} would be if that were to fall" for name in met]
    if len(said) == 1:
        return (
            f"the problem looks infeasible: {said[0]}, and to first order nothing near this design makes that smaller"
        )
    return (
        f"the problem looks infeasible: {', '.join(said[:-1])} and {said[-1]}: to first order they rule each other out "
        "near this design"
    )


def held_by_tolerance(run: Run, state: State, unit: float, rows: Rows | None = None) -> str:
    """Why a design that first-order conditions hold at is no optimum: a constraint is off, by less than its tolerance,
    and by far more in terms of the design. Empty if there is none.

    A constraint that is a small number beside a large constant is within a millionth of its limit everywhere. It then
    has no price, and nothing else asks for it to be met. One evaluation, of its slope, where one is off without a
    price and the driver does not know its derivatives.

    Args:
        unit: of the claim, for the scaled objective.
        rows: the constraints, linearised, where the driver has them.
    """
    here = run.evaluator.evaluation(state.here.leaves)
    prices = run.constraints.estimates(here.constraints, state.duals)
    scaled = run.constraints.scaled(here.constraints, state.duals)
    eps = float(jnp.finfo(run.evaluator.dtype).eps)
    worst, place, most = "", 0, 0.0
    for key, c in scaled.items():
        value, price = np.asarray(c, np.float64).ravel(), np.abs(np.asarray(prices[key], np.float64)).ravel()
        lower, upper = (
            np.asarray(side[key], np.float64).ravel() for side in (run.constraints.lower, run.constraints.upper)
        )
        off = np.maximum(np.maximum(lower - value, value - upper), 0.0)
        off = np.where((off > _LEGIBLE * eps * np.maximum(np.abs(value), 1.0)) & (price <= _CHEAP * unit), off, 0.0)
        if off.max(initial=0.0) > most:
            worst, place, most = key, int(off.argmax()), float(off.max())
    if not worst:
        return ""
    slope = _slope(run, state, worst, place, rows)
    if not 0 < slope < _FAR**-1 * most:
        return ""
    measure = float(np.asarray(run.constraints.sizes(state.duals)[worst], np.float64).ravel()[place])
    name, allowed = run.constraints.names[worst], run.feasibility_tol
    return (
        f"first-order conditions hold, but constraint {name!r} is held by its tolerance alone: it is "
        f"off by {most * measure:.3g}, where {allowed * measure:.3g} are allowed ({allowed:g} of {measure:.3g}), "
        f"and to meet it the design would have to move by {most / slope:.2g} of its size. Constraint(scale=...) says "
        "what it is to be measured in; or write it without its constant"
    )


def held_by_its_start(run: Run, state: State, rows: Rows | None = None) -> str:
    """Why a design that first-order conditions hold at is no optimum: a constraint with a limit of zero is off by what
    is little beside its value at the start, which it is measured in, and not beside all that the design can do here.

    The larger of two measures counts: what it changes by if all of the design moves by its own size, and 1. Empty if
    there is none. One evaluation where the driver does not know the derivatives of one that is off by a millionth.
    """
    here, allowed = run.evaluator.evaluation(state.here.leaves), run.feasibility_tol
    scaled, sizes = run.constraints.scaled(here.constraints, state.duals), run.constraints.sizes(state.duals)
    eps = float(jnp.finfo(run.evaluator.dtype).eps)
    candidates: list[tuple[float, str, int, float]] = []
    for key, c in scaled.items():
        value, measure = (np.asarray(x, np.float64).ravel() for x in (c, sizes[key]))
        lower, upper = (
            np.asarray(side[key], np.float64).ravel() for side in (run.constraints.lower, run.constraints.upper)
        )
        off = np.maximum(np.maximum(lower - value, value - upper), 0.0)
        start = np.asarray(run.constraints.is_zero[key]).ravel() & (off * measure > allowed) & (off > _LEGIBLE * eps)
        candidates += [(float(off[k]), key, k, float(measure[k])) for k in map(int, np.flatnonzero(start))]
    # Whose slope is known, is looked at; of the others the one that is off most.
    for off, key, place, measure in sorted(candidates, reverse=True)[: None if rows is not None else 1]:
        slope = _slope(run, state, key, place, rows)
        if off * measure > allowed * max(slope * measure, 1.0):
            return (
                f"first-order conditions hold, but constraint {run.constraints.names[key]!r}, whose limit of zero is "
                f"measured in its value at the start ({measure:.3g}), is off by {off * measure:.3g}, more than "
                f"{allowed:g} of what it changes by here if the design moves by its own size ({slope * measure:.3g}). "
                "Constraint(scale=...) says what it is to be measured in; start_from= begins again here, in its value "
                "here"
            )
    return ""


def _slope_known(run: Run, rows: Rows, key: str, place: int) -> float:
    before = itertools.takewhile(lambda other: other != key, run.constraints.names)
    row = rows.jacobian[sum(run.constraints.size[other].size for other in before) + place]
    return float((np.abs(row) * np.maximum(np.abs(rows.point), 1.0)).sum())


def _slope(run: Run, state: State, key: str, place: int, rows: Rows | None) -> float:
    """By how much an entry of a demand changes if all of the design moves by its own size; 0 if it cannot be told. From
    the row that the driver was given, or by one evaluation."""
    if rows is not None:
        return _slope_known(run, rows, key, place)
    silent = run.constraints.silent()
    one = np.zeros(silent.price[key].size)
    one[place] = 1.0
    price = silent.price | {key: jnp.asarray(one.reshape(silent.price[key].shape), silent.price[key].dtype)}
    weights = Weights(jnp.asarray(jnp.inf, run.evaluator.dtype), Duals(price, silent.penalty, state.duals.unit))
    if (sample := sample_aside(run, state.u, weights)) is None:
        return 0.0
    total = 0.0
    for g, u in zip(jax.tree.leaves(sample.gradient), jax.tree.leaves(state.u), strict=True):
        total += float((np.abs(np.asarray(g, np.float64)) * np.maximum(np.abs(np.asarray(u, np.float64)), 1.0)).sum())
    return total
