"""What a person should know about a run besides its numbers, as sentences.

Some can be said of the problem (`notes_before`), the others only when the run is over (`notes_after`). They end in
`Result.notes`, and from there in the terminal, the report and the log of a flow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import PyTree

from tesseract_flow.autodiff import guards, informed
from tesseract_flow.optimize.optimality import best_record, is_first_order, unit_of
from tesseract_flow.optimize.partition import named_leaves, path_name
from tesseract_flow.optimize.problem import Evaluation, Problem, as_evaluation
from tesseract_flow.optimize.promised import promised_names
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.optimize.stopping import MOST_LENIENT

if TYPE_CHECKING:
    from tesseract_flow.optimize.run import Run
    from tesseract_flow.optimize.state import State

CHECK_GRADIENTS = "check the gradients: tesseract-flow check-gradients PROBLEM, and with --at JOURNAL where the run is"
_UNLIKE = 1e8  # times as large
_LARGE_MULTIPLIER = 1e6  # of the objective's slope: times what a violation may be, all of the objective
_FAILED_SEARCHES = 3  # in a row, before it is worth a note
_A_WHILE = 20  # steps
_FAR = 1e6  # times the size of the start
_SHOWN = 6
_SHORTEST = 1e-9  # of the scaled design: a step
_PARALLEL = 1e-8  # of the largest singular value of the rows, each of length 1
_MOST_ENTRIES = 2_000_000  # of a Jacobian that is looked at


def notes_before(problem: Problem, template: Evaluation, shared: Shared) -> tuple[str, ...]:
    """What is odd about a problem that is not wrong. Traces `evaluate`, and runs nothing."""
    notes = []
    if not problem.box.contains(problem.partition.varying):
        notes.append("the start was outside the bounds, and was moved into them")
    for name in sorted(set(template.constraints) - set(problem.constraints or {})):
        notes.append(
            f"constraint {name!r} is returned by evaluate, but has no demand: Problem(constraints=...) has none"
        )
    if floats := _floats(problem):
        notes.append(
            f"{_listed(floats)} {'is a Python float' if len(floats) == 1 else 'are Python floats'}, so the design does "
            "not vary there; what should vary is an array: jax.numpy.asarray(...)"
        )
    if halves := _in_half_precision(problem):
        notes.append(
            f"{_listed(halves)} {'varies' if len(halves) == 1 else 'vary'} in half precision, of two or three digits: "
            f"an optimum is claimed, and constraints count as held, to {MOST_LENIENT:g} only, and steps below the "
            "last digit are none; let it vary in float32 or float64, and cast where it is used"
        )
    if idle := shared.once("idle", lambda: leaves_without_effect(problem, template)):
        notes.append(f"nothing depends on {_listed(idle)}: no way leads from there to the objective or a constraint")
    return tuple(notes)


def _floats(problem: Problem) -> list[str]:
    """Python floats that were left out only because they are not arrays."""
    if problem.vary is not eqx.is_inexact_array:
        return []  # somebody has said what varies
    named = jtu.tree_flatten_with_path(problem.partition.fixed)[0]
    return [path_name(path) for path, leaf in named if type(leaf) is float]


def _in_half_precision(problem: Problem) -> list[str]:
    return [name for name, leaf in named_leaves(problem.partition.varying) if leaf.dtype.itemsize < 4]


def leaves_without_effect(problem: Problem, template: Evaluation) -> list[str]:
    """Varying leaves that neither the objective nor a demanded constraint is computed from."""
    demanded = [name for name in template.constraints if name in (problem.constraints or {})]

    def values(varying: PyTree) -> list[Any]:
        evaluation = as_evaluation(problem.answer(problem.partition.combine(varying)))
        return [evaluation.objective, *(evaluation.constraints[name] for name in demanded)]

    varying = problem.partition.varying
    jaxpr = informed(lambda: jax.make_jaxpr(values)(varying), lambda: values(problem.start))
    used = _used_inputs(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    named = jtu.tree_flatten_with_path(problem.partition.varying)[0]
    return [path_name(path) for (path, leaf), is_used in zip(named, used, strict=True) if leaf.size and not is_used]


def _used_inputs(jaxpr: Jaxpr, wanted: list[bool]) -> list[bool]:
    """Which inputs of a jaxpr the wanted outputs are computed from; of control flow, all inputs of the equation."""
    needed = {var for var, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted and not _is_literal(var)}
    for eqn in reversed(jaxpr.eqns):
        out = [var in needed for var in eqn.outvars]
        if not any(out) and not eqn.effects and not guards(eqn):
            continue
        body = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit", "closed_call") else None
        inner = body.jaxpr if isinstance(body, ClosedJaxpr) else body
        used = _used_inputs(inner, out) if isinstance(inner, Jaxpr) else [True] * len(eqn.invars)
        needed.update(var for var, is_used in zip(eqn.invars, used, strict=True) if is_used and not _is_literal(var))
    return [var in needed for var in jaxpr.invars]


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, Literal)


_A_KINK = "the objective has a kink there, as a maximum of several has (tf.epigraph makes it smooth)"


def notes_after(run: Run, state: State, history: Sequence[StepRecord]) -> tuple[str, ...]:
    """What a run turned out to be like."""
    notes = list(dict.fromkeys(event for event in history[0].events))
    # Values of earlier stages are of other functions.
    history = [record for record in history if record.stage == history[-1].stage]
    first, last = history[0], history[-1]
    notes += _about_units(run, state)
    notes += _about_large_scales(run)
    notes += _about_promises(run)
    notes += _about_multipliers(run, state, history)
    notes += _about_dependence(run, state, last)
    n_since = last.step - last.best_step
    manner = run.engine.manner
    if not run.driver.asks_for_gradients:
        notes.append("no gradient is known of any design, so that none is claimed to be optimal")
    elif last.best_feasible and n_since and (outside := _lower_but_outside(history)):
        notes.append(outside)
    elif last.best_step == first.step and n_since:
        where = "the start" if first.step == 0 else "that with which the last stage began"
        notes.append(
            f"the best design is {where}: none of {n_since} steps found a better one. Unless {where} is known to be "
            f"optimal, {CHECK_GRADIENTS}"
        )
    elif manner == "searches" and (n_failed := _failed_searches(history, run.has_constraints)) >= _FAILED_SEARCHES:
        notes.append(f"the last {n_failed} line searches found no better design: {_A_KINK}, or {CHECK_GRADIENTS}")
    elif manner == "steps" and last.best_step - first.step <= max(3, (last.step - first.step) // 10) and n_since >= 10:
        notes.append(
            f"the best design was found at step {last.best_step}, and none of {n_since} steps since was better: the "
            f"learning rate is too large, or {CHECK_GRADIENTS}"
        )
    if (
        manner == "searches"
        and last.best_step == first.step
        and (n_failed := _failed_searches(history, run.has_constraints)) >= _FAILED_SEARCHES
    ):
        n_spent = last.evaluations - history[-1 - n_failed].evaluations
        notes.append(f"the line search failed {n_failed} times in a row, with {n_spent} evaluations; {CHECK_GRADIENTS}")
    if not (run.tolerance is not None and is_first_order(last, run.tolerance)):
        notes += _about_a_fall(run, state, history, manner)
    if run.tolerance is not None and last.stationarity is not None and not is_first_order(last, run.tolerance):
        notes += _about_sizes(state)
    notes += _about_bounds(run.problem, state.best.varying)
    return tuple(notes)


def _about_dependence(run: Run, state: State, last: StepRecord) -> list[str]:
    """Of an infeasible end: equalities that say the same to first order, which leave a driver's subproblem singular."""
    if last.feasible or (rows := run.engine.rows(run, state)) is None:
        return []
    is_equal = (rows.lower == rows.upper) & np.any(rows.jacobian != 0.0, axis=1)
    if is_equal.sum() < 2 or rows.jacobian.size > _MOST_ENTRIES:
        return []
    slopes = rows.jacobian[is_equal]
    directions, values, _ = np.linalg.svd(slopes / np.linalg.norm(slopes, axis=1, keepdims=True), full_matrices=False)
    lost = np.abs(directions[:, values <= _PARALLEL * values[0]]).max(axis=1, initial=0.0) > _PARALLEL
    if len(slopes) > slopes.shape[1]:
        lost |= True
    equal = [name for name, counts in zip(rows.names, is_equal, strict=True) if counts]
    names = list(dict.fromkeys(name for name, is_lost in zip(equal, lost, strict=True) if is_lost))
    if not names:
        return []
    return [
        f"equalities of {_listed(names)} depend on each other at this design: they say the same twice, or contradict "
        "each other. Drop one of them; drivers such as lbfgs and adam need no independent constraints"
    ]


def _about_sizes(state: State) -> list[str]:
    """Leaves that are as different in size as no driver can walk through, in a run that did not converge."""
    largest = [(name, float(np.abs(np.asarray(u, np.float64)).max())) for name, u in named_leaves(state.u) if u.size]
    sizes = [(name, size) for name, size in largest if size > 0]
    if len(sizes) < 2:
        return []
    (small, least), (large, most) = min(sizes, key=lambda item: item[1]), max(sizes, key=lambda item: item[1])
    if most < _UNLIKE * least:
        return []
    return [
        f"in the scaled design {large!r} is around {most:.1g} and {small!r} around {least:.1g}, and drivers walk with "
        "one measure for all: Problem(scale={...}) says how large each is, scale='bounds' takes it from the bounds"
    ]


def _about_a_fall(run: Run, state: State, history: Sequence[StepRecord], manner: str) -> list[str]:
    """Of a run that went down for as long as it went at all."""
    last = history[-1]
    start, end = (
        max(np.abs(np.asarray(u, np.float64)).max(initial=0.0) for u in jax.tree.leaves(tree))
        for tree in (run.problem.start, state.u)
    )
    is_as_steep = (last.gradient_norm or 0.0) >= 0.5 * (history[0].gradient_norm or 0.0) > 0.0
    is_lower = last.best_value < history[0].value
    if (
        last.best_step > history[0].step
        and not last.endless
        and is_as_steep
        and is_lower
        and end > _FAR * max(start, 1.0)
    ):
        return [
            f"the design went as far as {end:.1g}, downhill all the way, to {last.best_value:.3g}: the objective looks "
            "unbounded below. Is a bound or a constraint missing, or the sign of the objective wrong?"
        ]
    if not _fell_undiminished(history):
        return []
    more = " or a larger learning rate" if manner == "steps" else ""
    return [
        f"the objective still fell as fast in the last steps as in the first ones, to {last.value:.3g}: more steps"
        f"{more} are needed, or it is unbounded below"
    ]


def _fell_undiminished(history: Sequence[StepRecord]) -> bool:
    """Whether a run that took a while ended with the slope of its start, and lower at each step."""
    if len(history) < _A_WHILE:
        return False
    values = [record.value for record in history]
    return (
        all(after < before for before, after in itertools.pairwise(values))
        and min(record.gradient_norm or 0.0 for record in history[1:]) >= 0.9 * (history[0].gradient_norm or 0.0) > 0.0
    )


def _lower_but_outside(history: Sequence[StepRecord]) -> str | None:
    """Where most designs since the best one are lower and infeasible, that says more than what else can be wrong."""
    last = history[-1]
    since = [record for record in history if record.step > last.best_step]
    outside = [record for record in since if record.value < last.best_value and not record.feasible]
    if 2 * len(outside) < len(since):
        return None
    return (
        f"of the {len(since)} designs since the best one, that of step {last.best_step}, {len(outside)} are lower and "
        f"infeasible, the last by {outside[-1].violation:.3g}: it takes more steps to meet the constraints, then the "
        "best is among them"
    )


def _failed_searches(history: Sequence[StepRecord], has_constraints: bool) -> int:
    """How many steps at the end did not improve on the one before, under the same multipliers.

    What is searched for with constraints is not a better design, but one with less of a Lagrangian: there, it is those
    that found nothing to go to.
    """
    n = 0
    for before, record in zip(reversed(history[:-1]), reversed(history[1:]), strict=True):
        if record.best_step == record.step or record.changes != before.changes:
            break
        if has_constraints and record.move > _SHORTEST:
            break
        n += 1
    return n


def _about_units(run: Run, state: State) -> list[str]:
    """What limits of zero are measured in."""
    found: dict[str, tuple[float, float]] = {}
    for key, is_zero in run.constraints.is_zero.items():
        units = np.asarray(state.duals.unit[key])[np.asarray(is_zero)]
        if units.size:
            found[run.constraints.names[key]] = float(units.min()), float(units.max())
    return [
        f"constraint {name!r} has a limit of zero, so its violation is in units of {_about_unit(*units)}; "
        "Constraint(scale=...) sets another"
        for name, units in found.items()
    ]


def _about_unit(least: float, largest: float) -> str:
    if least != largest:
        return f"its values at the start, entry by entry, {least:.3g} to {largest:.3g}"
    return f"its value at the start, {largest:.3g}" if largest != 1.0 else "1"


def _about_multipliers(run: Run, state: State, history: Sequence[StepRecord]) -> list[str]:
    """Constraints whose multipliers are so large that there may be none at all."""
    best = best_record(history)
    if best is None or best.slope is None or not run.has_constraints:
        return []
    unit = unit_of(best.value, best.slope, run.evaluator.dtype)
    largest: dict[str, float] = {}
    for key, name in run.constraints.names.items():
        price = float(np.abs(np.asarray(state.duals.price[key], np.float64)).max(initial=0.0))
        largest[name] = max(largest.get(name, 0.0), price * float(state.objective_scale) / unit)
    return [
        f"constraint {name!r} has a multiplier of {ratio:.1e} times the objective's slope: a violation of a millionth "
        "is worth the whole objective. Where limits touch, or rule each other out but for one point, there are no "
        "multipliers at all, and a design near that point is as close as first-order conditions come"
        for name, ratio in largest.items()
        if ratio >= _LARGE_MULTIPLIER
    ]


def _about_large_scales(run: Run) -> list[str]:
    """Which constraints count as held where their value is not even of the size of the limit."""
    notes = []
    for name, constraint in (run.problem.constraints or {}).items():
        if constraint.size is None:
            continue
        sides = [np.ravel(side) for side in constraint.interval]
        limits = np.abs(np.concatenate([side[np.isfinite(side) & (side != 0)] for side in sides]))
        allowed = run.feasibility_tol * float(np.max(constraint.size))
        if limits.size and allowed >= limits.min():
            notes.append(
                f"constraint {name!r} counts as held up to a violation of {allowed:.3g} (feasibility_tol times its "
                f"scale), as much as its limit of {limits.min():.3g} itself; a smaller scale asks for more"
            )
    return notes


def _about_promises(run: Run) -> list[str]:
    """What was made of constraints that are linear, as the problem says."""
    if not (names := promised_names(run.problem)):
        return []
    which = f"{'constraint' if len(names) == 1 else 'constraints'} {_listed(list(names))}"
    if not run.engine.takes_constraints:
        return [f"{which}: {run.driver.name} makes no use of linear=True, and asks for derivatives as of any other"]
    return [f"{which}: derivatives were asked for once, as linear=True promises, and all values agree with them"]


def _about_bounds(problem: Problem, varying: PyTree) -> list[str]:
    """Which leaves of the best design lie on a bound."""
    named = jtu.tree_flatten_with_path(varying)[0]
    sides = zip(named, jax.tree.leaves(problem.box.lower), jax.tree.leaves(problem.box.upper), strict=True)
    shown = []
    for (path, leaf), lower, upper in sides:
        at_lower, at_upper = (int(np.asarray(leaf == side).sum()) for side in (lower, upper))
        # A leaf of one number has no entries to count.
        shown += [
            f"{path_name(path)!r} at its {which} bound" + (f" ({n} of {leaf.size} entries)" if leaf.size > 1 else "")
            for n, which in ((at_lower, "lower"), (at_upper, "upper"))
            if n
        ]
    return [f"a bound is active: {'; '.join(shown[:_SHOWN])}{'; ...' if len(shown) > _SHOWN else ''}"] if shown else []


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
