"""One step: from a `State` to the next one, and the record of it.

How the next point is found is in `moves`. The only effect in here is the `Evaluator`; journal, observers and clock are
in `loop`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import AugmentedLagrangian, ConstraintSet
from tesseract_flow.optimize.drivers import Driver, initial_state
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Transform, Weights
from tesseract_flow.optimize.failures import Attempts, FailurePolicy
from tesseract_flow.optimize.moves import moved, step_by_search, step_by_step
from tesseract_flow.optimize.problem import Problem, check_evaluation
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.search import Updater
from tesseract_flow.optimize.state import Best, State

# Seconds, requests and evaluations so far, as a record has them.
Totals = Callable[[], Mapping[str, Any]]


def prepare(
    problem: Problem,
    driver: Driver,
    transform: Transform,
    method: AugmentedLagrangian | None,
    feasibility_tol: float,
    policy: FailurePolicy,
    sleep: Callable[[float], object] = time.sleep,
) -> Run:
    template = check_evaluation(problem)
    partition, dtype = problem.partition, template.objective.dtype
    box = problem.box.scaled(partition.scale)
    constraints = ConstraintSet.build(problem.constraints or {}, template.constraints, dtype)
    evaluator = Evaluator(problem, template, constraints, transform)
    update = Updater(driver, box, dtype)
    start = partition.to_scaled(problem.start)
    searching = update.is_searching(start, initial_state(driver, start))
    notes = (
        ()
        if problem.box.contains(partition.varying)
        else ("the start was outside the bounds, and was moved into them",)
    )
    return Run(
        problem=problem,
        driver=driver,
        searching=searching,
        box=box,
        constraints=constraints,
        method=method or (AugmentedLagrangian.for_searches() if searching else AugmentedLagrangian.for_steps()),
        evaluator=evaluator,
        attempts=Attempts(evaluator, policy, sleep),
        feasibility_tol=feasibility_tol,
        update=update,
        assess=jax.jit(lambda state: _assess(box, constraints, evaluator, state)),
        notes=notes,
    )


def start(run: Run, totals: Totals) -> tuple[State, StepRecord]:
    """The state at the start: one evaluation, or two if a constraint is violated there.

    Raises:
        EvaluationFailed: the start cannot be evaluated.
    """
    run.attempts.begin(0, decisive="the start")
    u = run.box.project(run.problem.partition.to_scaled(run.problem.start))
    duals, tally = run.constraints.start(run.method)
    one = jnp.ones((), run.evaluator.dtype)
    here = run.sample(u, Weights(one, run.constraints.silent()))
    evaluation = run.evaluator.evaluation(here.leaves)
    scale = one
    if run.has_constraints:
        slopes = [float(jnp.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(here.gradient)]
        # The slope guards against a start where the objective happens to be about zero.
        scale = jnp.asarray(max(abs(float(evaluation.objective)), *slopes) or 1.0, run.evaluator.dtype)
        # A start that is feasible up to rounding needs no second look.
        rounding = 100 * float(jnp.finfo(run.evaluator.dtype).eps)
        if float(run.constraints.largest_residual(evaluation.constraints, duals)) > rounding:
            here = run.sample(u, Weights(scale, duals))
        else:
            # Nothing to add, so the Lagrangian is the objective, and scaling it needs no solver.
            divided = jax.tree.map(lambda g: g / scale.astype(g.dtype), here.gradient)
            here = Sample(here.lagrangian / scale, divided, here.leaves)
    best = Best(run.varying_at(u), here.leaves, jnp.asarray(0, jnp.int32))
    state = State(u, initial_state(run.driver, u), scale, duals, tally, here, best)
    return state, _record(run, state, 0, 0.0, False, totals, run.assess(state))


def template_state(run: Run) -> State:
    """A state of the right structure, for reading a journal; nothing is evaluated."""
    u = run.problem.partition.to_scaled(run.problem.start)
    duals, tally = run.constraints.start(run.method)
    zero = jnp.zeros((), run.evaluator.dtype)
    here = Sample(zero, u, [zero for _ in run.evaluator.shapes])
    best = Best(u, here.leaves, jnp.asarray(0, jnp.int32))
    return State(u, initial_state(run.driver, u), zero, duals, tally, here, best)


def reassess(run: Run, state: State, varying: PyTree, last: StepRecord, totals: Totals) -> tuple[State, StepRecord]:
    """A step that does not move: a state that was found for another problem, evaluated for this one.

    Whatever the old problem said of the current design and of the best one is replaced. A driver that searches also
    forgets what it learned of the old problem; averages of gradients fade by themselves, and keep their counters.

    Args:
        varying: the current design's varying part, in its own units.
    """
    step = last.step + 1
    run.attempts.begin(step, decisive="the design of the journal, for the changed problem")
    u = run.box.project(run.problem.partition.to_scaled(run.problem.box.project(varying)))
    here = run.sample(u, state.weights)
    best_u = run.box.project(run.problem.partition.to_scaled(run.problem.box.project(state.best.varying)))
    there = run.sample(best_u, state.weights)
    best = Best(run.varying_at(best_u), there.leaves, state.best.step)
    driver = initial_state(run.driver, u) if run.searching or moved(state.u, u) else state.driver
    new = State(u, driver, state.objective_scale, state.duals, state.tally, here, best)
    measures = run.assess(new)
    if _is_better(run, measures):
        new = dataclasses.replace(new, best=Best(run.varying_at(u), here.leaves, jnp.asarray(step, jnp.int32)))
        measures = run.assess(new)
    return new, _record(run, new, step, 0.0, False, totals, measures)


def advance(run: Run, state: State, last: StepRecord, totals: Totals) -> tuple[State, StepRecord]:
    """One step: the next state, and its record.

    Raises:
        EvaluationFailed: no next point can be evaluated, or the policy is not to look for one.
    """
    step = last.step + 1
    run.attempts.begin(step, last.failed_in_a_row)
    move = (step_by_search if run.searching else step_by_step)(run, state)
    new = move.state
    moves = [
        float(np.abs(np.asarray(b, np.float64) - np.asarray(a, np.float64)).max(initial=0.0))
        for a, b in zip(jax.tree.leaves(state.u), jax.tree.leaves(new.u), strict=True)
    ]
    measures = run.assess(new)
    if _is_better(run, measures):
        best = Best(run.varying_at(new.u), new.here.leaves, jnp.asarray(step, jnp.int32))
        new = dataclasses.replace(new, best=best)
        measures = run.assess(new)
    return new, _record(run, new, step, max(moves), move.stalled, totals, measures)


def _assess(box: Box, constraints: ConstraintSet, evaluator: Evaluator, state: State) -> dict[str, jax.Array]:
    """What records and the choice of the best need to know about a state; pure."""
    here, best = (evaluator.evaluation(leaves) for leaves in (state.here.leaves, state.best.leaves))
    slopes = box.projected_gradient(state.u, state.here.gradient)
    norms = [jnp.abs(leaf).max(initial=0.0).astype(evaluator.dtype) for leaf in jax.tree.leaves(slopes)]
    return {
        "value": here.objective,
        "gradient_norm": jnp.stack(norms).max() * state.objective_scale,
        "violation": constraints.violation(here.constraints),
        "residual": constraints.largest_residual(here.constraints, state.duals),
        "lagrangian": state.here.lagrangian,
        "best_value": best.objective,
        "best_violation": constraints.violation(best.constraints),
        "best_lagrangian": best.objective / state.objective_scale
        + constraints.augmentation(best.constraints, state.duals, evaluator.dtype),
    }


def _is_better(run: Run, measures: Mapping[str, Any]) -> bool:
    """Whether the current design beats the best so far (Deb's rule: feasible first, then the objective, else
    violation).

    Between feasible designs the present Lagrangian decides, which charges what is left of a violation. By the bare
    objective, the design that uses up the whole tolerance would win, by the price of the tolerance, over one that is
    better converged.
    """
    m = {key: float(value) for key, value in measures.items()}
    here_ok, best_ok = m["violation"] <= run.feasibility_tol, m["best_violation"] <= run.feasibility_tol
    if here_ok and best_ok:
        return m["lagrangian"] < m["best_lagrangian"]
    return here_ok if here_ok != best_ok else m["violation"] < m["best_violation"]


def _record(
    run: Run, state: State, step: int, move: float, stalled: bool, totals: Totals, measures: Mapping[str, Any]
) -> StepRecord:
    m = {key: float(value) for key, value in measures.items()}
    return StepRecord(
        step=step,
        value=m["value"],
        gradient_norm=m["gradient_norm"],
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
        **totals(),
    )
