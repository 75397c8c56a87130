"""One step: from a `State` to the next one, and the record of it.

A driver that steps (`_step_by_step`) moves, and the new point is evaluated. A driver that searches (`_step_by_search`)
has evaluated the new point as one of its trials. Multipliers never cost an evaluation with drivers that step: they
change between two points. A search needs the new Lagrangian where it stands, so each of its few changes costs one.

The only effect in here is the `Evaluator`; journal, observers and clock are in `loop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import (
    AugmentedLagrangian,
    ConstraintSet,
    change_duals,
    count_step,
    mean_residuals,
)
from tesseract_flow.optimize.drivers import Driver, initial_state
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Transform, Weights, check_finite
from tesseract_flow.optimize.problem import Problem, check_evaluation
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.search import Updater
from tesseract_flow.optimize.state import Best, State

# Seconds, requests and evaluations so far, as a record has them.
Totals = Callable[[], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What stays the same from the first step to the last."""

    problem: Problem
    driver: Driver
    searching: bool
    box: Box  # in scaled units
    constraints: ConstraintSet
    method: AugmentedLagrangian
    evaluator: Evaluator
    feasibility_tol: float
    update: Updater
    assess: Callable[..., dict[str, Any]]  # compiled `_assess`
    notes: tuple[str, ...]

    @property
    def has_constraints(self) -> bool:
        return bool(self.constraints.size)

    def varying_at(self, u: PyTree) -> PyTree:
        # Projected again in the design's units: scaling back may round a bound away by one digit.
        return self.problem.box.project(self.problem.partition.from_scaled(u))

    def design_at(self, u: PyTree) -> PyTree:
        return self.problem.partition.combine(self.varying_at(u))

    def sample(self, u: PyTree, weights: Weights) -> Sample:
        """The sample at `u`, with the gradient in scaled units."""
        sample = self.evaluator(self.varying_at(u), weights)
        return Sample(sample.lagrangian, self.problem.partition.scale_gradient(sample.gradient), sample.leaves)


def prepare(
    problem: Problem,
    driver: Driver,
    transform: Transform,
    method: AugmentedLagrangian | None,
    feasibility_tol: float,
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
        feasibility_tol=feasibility_tol,
        update=update,
        assess=jax.jit(lambda state: _assess(box, constraints, evaluator, state)),
        notes=notes,
    )


def start(run: Run, totals: Totals) -> tuple[State, StepRecord]:
    """The state at the start: one evaluation, or two if a constraint is violated there."""
    u = run.box.project(run.problem.partition.to_scaled(run.problem.start))
    duals, tally = run.constraints.start(run.method)
    one = jnp.ones((), run.evaluator.dtype)
    here = run.sample(u, Weights(one, run.constraints.silent()))
    evaluation = run.evaluator.evaluation(here.leaves)
    check_finite(here, evaluation, "At the start")
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


def advance(run: Run, state: State, last: StepRecord, totals: Totals) -> tuple[State, StepRecord]:
    """One step: the next state, and its record."""
    run.evaluator.forget()
    step = last.step + 1
    new, stalled = (_step_by_search if run.searching else _step_by_step)(run, state, step)
    moves = [
        float(np.abs(np.asarray(b, np.float64) - np.asarray(a, np.float64)).max(initial=0.0))
        for a, b in zip(jax.tree.leaves(state.u), jax.tree.leaves(new.u), strict=True)
    ]
    measures = run.assess(new)
    if _is_better(run, measures):
        best = Best(run.varying_at(new.u), new.here.leaves, jnp.asarray(step, jnp.int32))
        new = dataclasses.replace(new, best=best)
        measures = run.assess(new)
    return new, _record(run, new, step, max(moves), stalled, totals, measures)


def _step_by_step(run: Run, state: State, step: int) -> tuple[State, bool]:
    """The driver moves on, multipliers move on if it is time, and the new point is evaluated."""
    u, driver = run.update(state.u, state.driver, state.here.gradient, state.here.lagrangian, _no_trials)
    duals, tally = state.duals, state.tally
    if run.has_constraints:
        tally = count_step(tally, run.constraints.residuals(_values(run, state.here), duals))
        if int(tally.n_steps) >= run.method.every:
            duals, tally = change_duals(duals, tally, mean_residuals(tally), run.method)
    here = run.sample(u, Weights(state.objective_scale, duals))
    check_finite(here, run.evaluator.evaluation(here.leaves), f"At step {step}")
    return State(u, driver, state.objective_scale, duals, tally, here, state.best), False


def _step_by_search(run: Run, state: State, step: int) -> tuple[State, bool]:
    """The driver searches; if it fails, once more with its memory cleared; then multipliers, if it is time."""
    u, driver, here = _search(run, state, state.driver)
    failed = here is None
    if failed:
        u, driver, here = _search(run, state, initial_state(run.driver, state.u))
        failed = here is None
    if here is None:
        u, driver, here = state.u, initial_state(run.driver, state.u), state.here
    duals, tally = state.duals, state.tally
    if run.has_constraints:
        residuals = run.constraints.residuals(_values(run, here), duals)
        tally = count_step(tally, residuals)
        slope = _max_norm(run.box.projected_gradient(u, here.gradient))
        is_time = (
            failed or slope <= run.method.inner_goal(int(tally.n_changes)) or int(tally.n_steps) >= run.method.every
        )
        unsettled = max(float(jnp.abs(t).max(initial=0.0)) for t in residuals.values()) > run.method.target
        if is_time and unsettled:
            duals, tally = change_duals(duals, tally, residuals, run.method)
            # The driver's memory is about another Lagrangian now.
            driver, failed = initial_state(run.driver, u), False
            here = run.sample(u, Weights(state.objective_scale, duals))
    check_finite(here, run.evaluator.evaluation(here.leaves), f"At step {step}")
    return State(u, driver, state.objective_scale, duals, tally, here, state.best), failed


def _search(run: Run, state: State, driver_state: PyTree) -> tuple[PyTree, PyTree, Sample | None]:
    """One search. The sample is `None` where it failed: it did not move, or ended higher than it began."""

    trials: list[tuple[PyTree, Sample]] = []

    def sample(u):
        trials.append((u, run.sample(u, state.weights)))
        return trials[-1][1].lagrangian, trials[-1][1].gradient

    u, driver = run.update(state.u, driver_state, state.here.gradient, state.here.lagrangian, sample)
    if not _moved(state.u, u) or not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(u)):
        return u, driver, None
    u, here = _accepted(state.u, u, trials) or (u, run.sample(u, state.weights))
    before, after = float(state.here.lagrangian), float(here.lagrangian)
    # Searches accept what rounding blurs (Hager & Zhang 2006, equation 23), and so do we.
    slack = max(1e-6, 10 * float(jnp.finfo(run.evaluator.dtype).eps)) * abs(before)
    return u, driver, here if after <= before + slack else None


def _accepted(before: PyTree, u: PyTree, trials: Sequence[tuple[PyTree, Sample]]) -> tuple[PyTree, Sample] | None:
    """The trial that `u` is, up to the rounding of how it was put together; `None` if the driver made something else
    of it.

    Going on from the trial itself, digit for digit, saves the evaluation of its twin.
    """

    def is_twin(a, b, origin):
        eps = jnp.finfo(a.dtype).eps
        return bool((jnp.abs(a - b) <= 4 * eps * (jnp.abs(a) + jnp.abs(origin))).all())

    for trial, sample in reversed(trials):
        if all(jax.tree.leaves(jax.tree.map(is_twin, u, trial, before))):
            return trial, sample
    return None


def _no_trials(u: PyTree) -> Any:
    raise AssertionError("a driver without trials asked for one")


def _moved(a: PyTree, b: PyTree) -> bool:
    return any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _values(run: Run, sample: Sample) -> dict[str, jax.Array]:
    return run.evaluator.evaluation(sample.leaves).constraints


def _max_norm(tree: PyTree) -> float:
    return max(float(jnp.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(tree))


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
        **totals(),
    )
