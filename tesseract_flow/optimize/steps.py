"""One step: from a `State` to the next one, and the record of it.

How the next point is found is in `moves`. The only effect in here is the `Evaluator`; journal, observers and clock are
in `loop`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import EvaluationFailed
from tesseract_flow.optimize import optimality
from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.claims import verified
from tesseract_flow.optimize.constraints import AugmentedLagrangian, ConstraintSet, Duals
from tesseract_flow.optimize.contradictions import Verify, is_suspicious, verify_gradient
from tesseract_flow.optimize.drivers.base import AbstractDriver, Setting
from tesseract_flow.optimize.drivers.moves import moved
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Transform, Weights, convergence_of
from tesseract_flow.optimize.failures import Attempts, Failure, FailurePolicy
from tesseract_flow.optimize.notes import notes_before
from tesseract_flow.optimize.optimality import best_record, first_record
from tesseract_flow.optimize.probe import View, look_around
from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.returned import check_evaluation
from tesseract_flow.optimize.run import ObjectiveScale, Run
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.optimize.state import Best, State
from tesseract_flow.optimize.stopping import reachable
from tesseract_flow.optimize.totals import Totals

_NO_SLOPE = 1e-8  # of the objective


def prepare(
    problem: Problem,
    driver: AbstractDriver,
    transform: Transform,
    method: AugmentedLagrangian | None,
    feasibility_tol: float,
    policy: FailurePolicy,
    sleep: Callable[[float], object] = time.sleep,
    tolerance: float | None = None,
    objective_scale: ObjectiveScale = None,
    like: Run | None = None,
    shared: Shared | None = None,
) -> Run:
    """The first stage of a run.

    Args:
        like: another one, whose evaluations count as this one's if they are of the same problem.
        shared: what runs of the same problem from other starts have traced and compiled.
    """
    shared = shared or Shared()
    evaluator = None if like is None or like.problem is not problem else like.evaluator
    template = shared.once("template", lambda: check_evaluation(problem)) if evaluator is None else evaluator.template
    partition, dtype = problem.partition, template.objective.dtype
    box = problem.box.scaled(partition)
    constraints = ConstraintSet.build(problem.constraints or {}, template.constraints, dtype)
    kind = {"with_gradients": driver.asks_for_gradients, "may_push_forward": driver.may_push_forward}
    if evaluator is None or evaluator.kind != kind:
        evaluator = None
    if evaluator is None:
        made = shared.once(tuple(kind.items()), lambda: Evaluator(problem, template, constraints, transform, **kind))
        evaluator = made.of_another_run()
    start = partition.to_scaled(problem.start)
    forgiven = optimality.forgiven_part(feasibility_tol, reachable(1e-6, dtype))
    engine = driver.engine(Setting(problem, start, box, constraints, evaluator, transform, policy, shared))
    return Run(
        transform=transform,
        problem=problem,
        driver=driver,
        engine=engine,
        box=box,
        constraints=constraints,
        method=method or engine.method,
        evaluator=evaluator,
        attempts=Attempts(evaluator, policy, sleep),
        feasibility_tol=feasibility_tol,
        tolerance=tolerance,
        assess=functools.partial(_assessed, engine.takes_constraints, box, constraints, evaluator, start, forgiven),
        notes=notes_before(problem, template, shared) if like is None else (),
        objective_scale=objective_scale,
        stage=problem.stages[0],
        scheduled=problem.scheduled(),
    )


def rebuilt(run: Run, problem: Problem, driver: AbstractDriver) -> Run:
    """The same run from now on within other bounds, or with a driver that does the same in another way. What was traced
    and compiled of the problem serves on."""
    box, partition = problem.box.scaled(problem.partition), problem.partition
    assert run.transform is not None
    policy, start = run.attempts.policy, partition.to_scaled(problem.start)
    setting = Setting(problem, start, box, run.constraints, run.evaluator, run.transform, policy, Shared())
    engine = driver.engine(setting)
    forgiven = optimality.forgiven_part(run.feasibility_tol, reachable(1e-6, run.evaluator.dtype))
    return dataclasses.replace(
        run,
        problem=problem,
        driver=driver,
        engine=engine,
        box=box,
        assess=functools.partial(
            _assessed, engine.takes_constraints, box, run.constraints, run.evaluator, start, forgiven
        ),
    )


def start(run: Run, totals: Totals, verify: Verify = None) -> tuple[State, StepRecord]:
    """The state at the start: one evaluation, or two if a constraint is violated there.

    Raises:
        EvaluationFailed: the start cannot be evaluated.
    """
    run.attempts.begin(0, decisive="the start")
    return begun(run, run.problem.start, None, (), totals, verify)


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """What a stage takes over from the one before.

    Attributes:
        price: multipliers of demands, in units of the objective over its scale.
        unit: what limits of zero are measured in.
        scale: what the objective was divided by.
        memory: of the driver, which goes with that scale; None where it begins anew.
    """

    price: Mapping[str, jax.Array]
    unit: Mapping[str, jax.Array]
    scale: jax.Array
    memory: PyTree


def begun(
    run: Run, varying: PyTree, kept: Kept | None, history: Sequence[StepRecord], totals: Totals, verify: Verify = None
) -> tuple[State, StepRecord]:
    """The state at a design that no step came to, and its record; all that is known is of the present problem.

    Args:
        varying: the design's varying part, in its own units.
        history: what came before.
    """
    step = history[-1].step + 1 if history else 0
    u = run.box.project(run.problem.partition.to_scaled(run.problem.box.project(varying)))
    duals, tally = run.constraints.start(run.method)
    scale = jnp.ones((), run.evaluator.dtype)
    alone = run.engine.first_look(run, u)
    run.evaluator.begin_at(alone.leaves)
    evaluation = run.evaluator.evaluation(alone.leaves)
    if run.has_constraints:
        duals = Duals(duals.price, duals.penalty, _units(run, evaluation))
    if kept is not None and kept.memory is not None:
        scale = kept.scale
    elif run.is_scaled:
        slopes = [float(jnp.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(alone.gradient)]
        extent = max(1.0, *(float(jnp.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(u)))
        size = abs(float(evaluation.objective))
        scale = jnp.asarray(_objective_scale(run, size, max(slopes), extent), run.evaluator.dtype)
    if kept is not None:
        price = {key: one * (kept.scale / scale).astype(one.dtype) for key, one in kept.price.items()}
        duals = Duals(duals.price | price, duals.penalty, duals.unit | dict(kept.unit))
    best = Best(run.varying_at(u), alone.leaves, jnp.asarray(step, jnp.int32))
    state = State(u, run.engine.fresh(u), scale, duals, tally, alone, best)
    state = run.engine.begin(run, state, alone)
    if kept is not None and kept.memory is not None:
        state = dataclasses.replace(state, driver=kept.memory)
    state = dataclasses.replace(state, best=Best(best.varying, state.here.leaves, best.step))
    measures, events = run.assess(state), run.attempts.events()
    run.attempts.begin(step)  # a point next to it may fail
    run.evaluator.begin_at(alone.leaves)
    view = View(0.0)
    if run.driver.asks_for_gradients:
        view = look_around(run.problem, run.box, u, alone, functools.partial(_alone, run), run.evaluator)
    record = _record(run, state, history, 0.0, False, totals, measures, view.slope)
    record = dataclasses.replace(record, doubt=view.doubt, events=(*events, *view.events), since=step)
    return state, verified(run, state, history, record, totals, verify)


def _units(run: Run, evaluation: Evaluation) -> dict[str, jax.Array]:
    """What limits of zero are measured in."""
    # One penalty for all entries of a demand carries no further; a library has each row by itself.
    spread = np.inf if run.engine.takes_constraints else 1e3
    return run.constraints.units_from(evaluation.constraints, spread)


def _objective_scale(run: Run, size: float, steepest: float, extent: float) -> float:
    """What the objective is divided by, from its size and its steepest slope at the start, and the design's size."""
    if isinstance(run.objective_scale, float):
        return run.objective_scale
    if run.objective_scale is None and run.engine.slopes is not None and max(size, steepest) > 0.0:
        least, most = run.engine.slopes
        # A slope that rounding may have left says nothing: such an objective changes by its size over the design's.
        steepest = steepest if steepest > _NO_SLOPE * size else size / extent or size
        # A tiny objective becomes one of slope one, and not of the least: that would take two or three times as many.
        return steepest if steepest < least else max(1.0, steepest / most)
    # The slope guards against a start where the objective happens to be about zero.
    return max(size, steepest) or 1.0


def _alone(run: Run, u: PyTree) -> Sample | None:
    """The sample of the objective alone; `None` where it fails."""
    try:
        sample = run.look(u, Weights(jnp.ones((), run.evaluator.dtype), run.constraints.silent()))
    except EvaluationFailed:
        return None
    return sample if isinstance(sample, Sample) else None


def template_state(run: Run) -> State:
    """A state of the right structure, for reading a journal; nothing is evaluated."""
    u = run.problem.partition.to_scaled(run.problem.start)
    duals, tally = run.constraints.start(run.method)
    zero = jnp.zeros((), run.evaluator.dtype)
    here = Sample(zero, u, [zero for _ in run.evaluator.shapes])
    best = Best(u, here.leaves, jnp.asarray(0, jnp.int32))
    return State(u, run.engine.fresh(u), zero, duals, tally, here, best)


def reassess(
    run: Run,
    state: State,
    varying: PyTree,
    last: StepRecord,
    totals: Totals,
    verify: Verify = None,
    unseen: Collection[str] = (),
) -> tuple[State, StepRecord]:
    """A step that does not move: a state that was found for another problem, evaluated for this one.

    Whatever the old problem said of the current design and of the best one is replaced.

    Args:
        varying: the current design's varying part, in its own units.
        unseen: demands that there were none of. What their limits of zero are measured in is seen here, as at a start.
    """
    step = last.step + 1
    run.attempts.begin(step, decisive="the design of the journal, for the changed problem")
    u = run.box.project(run.problem.partition.to_scaled(run.problem.box.project(varying)))
    if any(bool(run.constraints.is_zero[key].any()) for key in unseen):
        units = _units(run, run.evaluator.evaluation(run.engine.first_look(run, u).leaves))
        unit = state.duals.unit | {key: units[key] for key in unseen}
        state = dataclasses.replace(state, duals=dataclasses.replace(state.duals, unit=unit))
    new = run.engine.begin_again(run, state, u)
    here = new.here
    best_u = run.box.project(run.problem.partition.to_scaled(run.problem.box.project(state.best.varying)))
    there = run.sample(best_u, state.weights)
    best = Best(run.varying_at(best_u), there.leaves, state.best.step)
    new = dataclasses.replace(new, best=best)
    measures = run.assess(new)
    # What was seen of the old problem's slope is of no use, but for constraints there is no other.
    slope = None if run.has_constraints else float(measures["slope"])
    record = _record(run, new, (last,), 0.0, False, totals, measures, slope)
    if not moved(u, best_u) or _is_better(run, new, measures, record, None, record):
        new = dataclasses.replace(new, best=Best(run.varying_at(u), here.leaves, jnp.asarray(step, jnp.int32)))
        record = _record(run, new, (last,), 0.0, False, totals, run.assess(new), slope)
    return new, verified(run, new, (last,), dataclasses.replace(record, since=record.step), totals, verify)


def look_again(
    run: Run, state: State, history: Sequence[StepRecord], totals: Totals, verify: Verify
) -> tuple[State, StepRecord]:
    """A step that does not move: the design of the last one is looked at as an optimum."""
    step = history[-1].step + 1
    run.attempts.begin(step)
    run.evaluator.begin_at(state.here.leaves)
    new = dataclasses.replace(state, best=dataclasses.replace(state.best, step=jnp.asarray(step, jnp.int32)))
    record = dataclasses.replace(history[-1], step=step, best_step=step, move=0.0, events=(), contradiction="")
    return new, verified(run, new, history, record, totals, verify)


def advance(
    run: Run,
    state: State,
    history: Sequence[StepRecord],
    totals: Totals,
    verify: Verify = None,
    is_new: bool = False,
) -> tuple[State, StepRecord]:
    """One step: the next state, and its record.

    Args:
        is_new: the state is of other scheduled numbers than those of `run`; the best design begins anew.

    Raises:
        EvaluationFailed: no next point can be evaluated, or the policy is not to look for one.
    """
    step = history[-1].step + 1
    run.attempts.begin(step, history[-1].failed_in_a_row)
    run.evaluator.begin_at(state.here.leaves)
    move = run.engine.step(run, state)
    new = move.state
    if is_new and new.here is state.here:  # the update was dropped
        here = run.look(new.u, new.weights)
        if isinstance(here, Failure):
            raise run.attempts.given_up()
        new = dataclasses.replace(new, here=here)
    moves = [
        float(np.abs(np.asarray(b, np.float64) - np.asarray(a, np.float64)).max(initial=0.0))
        for a, b in zip(jax.tree.leaves(state.u), jax.tree.leaves(new.u), strict=True)
    ]
    if is_new:
        best = Best(run.varying_at(new.u), new.here.leaves, jnp.asarray(step, jnp.int32))
        new = dataclasses.replace(new, best=best)
        measures = run.assess(new)
        slope = None if run.has_constraints else float(measures["slope"])
        record = _record(run, new, history, max(moves), move.stalled, totals, measures, slope)
        return new, verified(run, new, history, dataclasses.replace(record, since=step), totals, verify)
    measures = run.assess(new)
    record = _record(run, new, history, max(moves), move.stalled, totals, measures)
    known = [*history, record]
    if _is_better(run, new, measures, record, best_record(known), first_record(known)):
        best = Best(run.varying_at(new.u), new.here.leaves, jnp.asarray(step, jnp.int32))
        new = dataclasses.replace(new, best=best)
        record = _record(run, new, history, max(moves), move.stalled, totals, run.assess(new))
    if move.ending:
        record = dataclasses.replace(record, ending=move.ending)
    if move.is_endless and not run.box.is_finite:
        record = dataclasses.replace(record, endless=history[-1].endless + 1)
    found = verify_gradient(run, state) if is_suspicious(move, state) else None
    return new, verified(run, new, history, record, totals, verify, found)


def _assessed(
    is_interior: bool,
    box: Box,
    constraints: ConstraintSet,
    evaluator: Evaluator,
    start: PyTree,
    forgiven: float,
    state: State,
) -> dict[str, jax.Array]:
    """What records and the choice of the best need to know about a state."""
    here, best = (_judged(evaluator.evaluation(leaves)) for leaves in (state.here.leaves, state.best.leaves))
    where = dataclasses.replace(
        state, driver=None, tally=None, best=None, here=dataclasses.replace(state.here, leaves=[])
    )
    return _assess(is_interior, forgiven, box, constraints, start, where, here, best)


def _judged(evaluation: Evaluation) -> Evaluation:
    """The part that decides; `aux` may hold anything."""
    return Evaluation(evaluation.objective, evaluation.constraints)


# Of no run: what it is about are arguments, so it is compiled once for all runs whose designs and constraints have the
# same shapes.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _assess(
    is_interior: bool,
    forgiven: float,
    box: Box,
    constraints: ConstraintSet,
    start: PyTree,
    state: State,
    here: Evaluation,
    best: Evaluation,
) -> dict[str, jax.Array]:
    """Pure; of the state only what is not its driver's.

    Args:
        is_interior: the driver has the constraints for itself.
    """
    violations = constraints.violations(here.constraints, state.duals)
    dtype = here.objective.dtype
    if is_interior:
        # A Lagrangian without penalty rewards room as much as it charges violations: it compares no designs.
        residual = constraints.violation(here.constraints, state.duals)
        lagrangian, best_lagrangian = (
            found.objective / state.objective_scale + constraints.charge(found.constraints, state.duals, dtype)
            for found in (here, best)
        )
    else:
        residual = constraints.largest_residual(here.constraints, state.duals)
        lagrangian = state.here.lagrangian
        best_lagrangian = best.objective / state.objective_scale + constraints.augmentation(
            best.constraints, state.duals, dtype
        )
    return {
        **optimality.measures(box, constraints, start, state, here, is_interior=is_interior, forgiven=forgiven),
        **{f"violation of {key}": violation for key, violation in violations.items()},
        "value": here.objective,
        "violation": constraints.violation(here.constraints, state.duals),
        "residual": residual,
        "lagrangian": lagrangian,
        "best_value": best.objective,
        "best_violation": constraints.violation(best.constraints, state.duals),
        "best_lagrangian": best_lagrangian,
    }


def _is_better(
    run: Run,
    state: State,
    measures: Mapping[str, Any],
    record: StepRecord,
    best: StepRecord | None,
    first: StepRecord,
) -> bool:
    """Whether the current design beats the best so far (Deb's rule: feasible first, then the objective, else
    violation).

    Between feasible designs the present Lagrangian decides, which charges what is left of a violation. By the bare
    objective, the design that uses up the whole tolerance would win, by the price of the tolerance, over one that is
    better converged. Where two differ by less than the tolerance means, one that is optimal to first order wins over
    one that is not.
    """
    m = {key: float(value) for key, value in measures.items()}
    here_ok, best_ok = m["violation"] <= run.feasibility_tol, m["best_violation"] <= run.feasibility_tol
    if here_ok and best_ok:
        gain = m["best_lagrangian"] - m["lagrangian"]
        if run.tolerance is None or best is None or not optimality.is_first_order(record, run.tolerance):
            return gain > 0
        unit = optimality.unit_of(m["value"], record.slope or 0.0, run.evaluator.dtype)
        # A jump to where everything is steeper must not make what it lost look small: measured by what the run has won.
        unit = min(unit, abs(first.value - best.value)) / float(state.objective_scale)
        return gain > (0 if optimality.is_first_order(best, run.tolerance) else -run.tolerance * unit)
    return here_ok if here_ok != best_ok else m["violation"] < m["best_violation"]


def _record(
    run: Run,
    state: State,
    history: Sequence[StepRecord],
    move: float,
    stalled: bool,
    totals: Totals,
    measures: Mapping[str, Any],
    slope: float | None = None,
) -> StepRecord:
    m = {key: float(value) for key, value in measures.items()}
    if slope is None:
        slope = optimality.slope_seen(m, history, move, run.has_constraints)
    has_gradients = run.driver.asks_for_gradients
    worst = max(run.constraints.names, key=lambda key: m[f"violation of {key}"], default=None)
    return StepRecord(
        step=history[-1].step + 1 if history else 0,
        value=m["value"],
        gradient_norm=m["gradient_norm"] if has_gradients else None,
        violation=m["violation"],
        residual=m["residual"],
        feasible=m["violation"] <= run.feasibility_tol,
        best_value=m["best_value"],
        best_step=int(state.best.step),
        best_feasible=m["best_violation"] <= run.feasibility_tol,
        move=move,
        changes=int(state.tally.n_changes),
        stalled=stalled,
        failed_in_a_row=run.attempts.n_in_a_row,
        events=run.attempts.events(),
        stationarity=optimality.stationarity(m, m["value"], slope, run.evaluator.dtype) if has_gradients else None,
        complementarity=optimality.complementarity(m, m["value"], slope, run.evaluator.dtype)
        if has_gradients
        else None,
        slope=slope if has_gradients else None,
        steepness=m["free_slope"] if has_gradients else None,
        price=m["largest_price"],
        since=history[-1].since if history else 0,
        worst=run.constraints.names[worst] if worst is not None and m["violation"] > 0 else None,
        stage=run.stage.index,
        phase=run.stage.phase,
        scheduled=dict(run.stage.values),
        coupled=convergence_of(run.evaluator.evaluation(state.here.leaves)),
        **totals(),
    )
