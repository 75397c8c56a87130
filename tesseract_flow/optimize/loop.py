"""`optimize`: from a problem to a result, one finished step after another.

A step takes a `State` to the next one (`_step_by_step`, `_step_by_search`); what it measures becomes a `StepRecord`. The
effects are at the rim, in `optimize`: evaluations through the `Evaluator`, the journal, observers, the clock.

Multipliers never cost an evaluation with drivers that step: they change between two points. A search needs the new
Lagrangian where it stands, so each of its few changes costs one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from tesseract_flow.errors import NonFiniteError, ProblemError
from tesseract_flow.execute import concurrent
from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import (
    AugmentedLagrangian,
    ConstraintSet,
    Duals,
    Tally,
    change_duals,
    count_step,
    mean_residuals,
)
from tesseract_flow.optimize.drivers import Driver, build_driver, initial_state
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Transform, Weights, check_finite
from tesseract_flow.optimize.fingerprint import fingerprint_of
from tesseract_flow.optimize.journal import AbstractJournal, Checkpoint, Resumption, as_journal
from tesseract_flow.optimize.observers import AbstractObserver
from tesseract_flow.optimize.problem import Problem, check_evaluation
from tesseract_flow.optimize.result import Result, StepRecord
from tesseract_flow.optimize.search import Updater
from tesseract_flow.optimize.state import Best, State, pack, unpack
from tesseract_flow.optimize.stopping import AbstractStoppingRule, MaxRequests, as_rules, first_reason


def default_transform() -> Transform:
    """What runs the objective when `optimize(transform=...)` is not given."""
    return concurrent


def _on_the_spot(step: int, fn: Callable[[], Any]) -> Any:
    return fn()


def optimize(
    problem: Problem,
    driver: str | optax.GradientTransformation = "adam",
    *,
    learning_rate: float | None = None,
    driver_settings: Mapping[str, Any] | None = None,
    stop: AbstractStoppingRule | Sequence[AbstractStoppingRule] | Mapping[str, Any] | None = None,
    journal: AbstractJournal | str | os.PathLike[str] | None = None,
    transform: Transform | None = None,
    observers: Sequence[AbstractObserver] = (),
    count: Callable[[], int] | None = None,
    run_step: Callable[[int, Callable[[], Any]], Any] = _on_the_spot,
    clock: Callable[[], float] = time.monotonic,
    constraint_method: AugmentedLagrangian | None = None,
    feasibility_tol: float = 1e-4,
    on_nonfinite: str = "raise",
) -> Result:
    """The best design that the driver finds before a stop rule speaks.

    Without constraints this is the plain Optax loop on `design / scale`, with projection onto the bounds. With
    constraints the driver minimises an augmented Lagrangian, whose objective is divided by its size at the start.

    Args:
        problem: what to optimise.
        driver: a name (see `driver_names()`), or any `optax.GradientTransformation`, line searches included.
        learning_rate: for a named driver, in units of the problem's `scale`.
        driver_settings: for a named driver, see `driver_settings(name)`.
        stop: one rule, several, or settings as in `stop_rules_from`. Default: a small gradient, or 200 steps.
        journal: a folder, or a journal. If it holds an unfinished run of the same problem, that run goes on.
        transform: applied to `jax.value_and_grad(lagrangian, has_aux=True)`; decides how evaluations run.
        observers: told about every finished step.
        count: how many requests this process has sent so far; for `MaxRequests` and `Result.requests`.
        run_step: called as `run_step(step, fn)`, returns `fn()`; where a step becomes a task, or is timed.
        clock: seconds, for `WallTime` and the records.
        constraint_method: how multipliers and penalties move.
        feasibility_tol: a design with no violation above this (in units of each constraint's scale) is feasible.
        on_nonfinite: `"raise"`, or `"stop"` to end with the best design so far.

    Raises:
        ProblemError, BoundsError, DriverError: something does not fit; raised before the first evaluation.
        JournalError: the journal belongs to another run, is in use, or cannot be written.
        NonFiniteError: NaN or inf in the objective, a constraint or a gradient; names which.
    """
    if on_nonfinite not in ("raise", "stop"):
        raise ProblemError(f"on_nonfinite must be 'raise' or 'stop', received {on_nonfinite!r}.")
    run = _prepare(
        problem,
        build_driver(driver, learning_rate, driver_settings),
        transform or default_transform(),
        constraint_method,
        feasibility_tol,
    )
    rules = as_rules(stop, problem.partition.dtype)
    if count is None and any(isinstance(rule, MaxRequests) for rule in rules):
        raise ProblemError(
            "MaxRequests needs somebody who counts: pass count=..., a function that returns the number of requests so far, "
            "or use MaxEvaluations."
        )
    kept = as_journal(journal) if journal is not None else None
    with _opened(kept, run) as resumed:
        history = [StepRecord.from_json(fields) for fields in resumed.history] if resumed else []
        meter = _Meter(clock, count or (lambda: 0), run.evaluator, history[-1] if history else None)
        for observer in observers:
            observer.on_start(problem, tuple(history))

        def finish(state: State, record: StepRecord) -> None:
            if kept is not None:
                kept.save(Checkpoint(record.step, pack(state)), record.to_json())
            history.append(record)
            design, evaluation = run.design_at(state.u), run.evaluator.evaluation(state.here.leaves)
            for observer in observers:
                observer.on_step(record, design, evaluation)

        if resumed:
            state = unpack(resumed.checkpoint.arrays, _template_state(run))
        else:
            state, record = run_step(0, lambda: _start(run, meter))
            finish(state, record)
        while (verdict := first_reason(rules, history)) is None:
            try:
                state, record = run_step(history[-1].step + 1, functools.partial(_advance, run, state, history[-1], meter))
            except NonFiniteError as error:
                if on_nonfinite == "raise":
                    raise
                verdict = (None, str(error))
                break
            finish(state, record)
        rule, reason = verdict
        notes = (*run.notes, *(resumed.notes if resumed else ()))
        result = _result(run, state, history, reason, rule is not None and rule.means_success, notes)
        for observer in observers:
            observer.on_finish(result)
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
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


def _prepare(
    problem: Problem,
    driver: Driver,
    transform: Transform,
    method: AugmentedLagrangian | None,
    feasibility_tol: float,
) -> _Run:
    template = check_evaluation(problem)
    partition, dtype = problem.partition, template.objective.dtype
    box = problem.box.scaled(partition.scale)
    constraints = ConstraintSet.build(problem.constraints or {}, template.constraints, dtype)
    evaluator = Evaluator(problem, template, constraints, transform)
    update = Updater(driver, box, dtype)
    start = partition.to_scaled(problem.start)
    searching = update.is_searching(start, initial_state(driver, start))
    notes = () if problem.box.contains(partition.varying) else ("the start was outside the bounds, and was moved into them",)
    return _Run(
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


@contextlib.contextmanager
def _opened(journal: AbstractJournal | None, run: _Run) -> Iterator[Resumption | None]:
    if journal is None:
        yield None
        return
    try:
        yield journal.open(fingerprint_of(run.problem, run.driver, run.method, run.feasibility_tol))
    finally:
        # Also after KeyboardInterrupt: finished steps are on disk already, only possession is given up.
        journal.close()


class _Meter:
    """Totals of time, requests and evaluations over all runs of a journal."""

    def __init__(
        self, clock: Callable[[], float], count: Callable[[], int], evaluator: Evaluator, last: StepRecord | None
    ):
        self._clock, self._count, self._evaluator, self._last = clock, count, evaluator, last
        self._began, self._counted = clock(), count()

    def totals(self) -> dict[str, Any]:
        before = self._last
        return {
            "seconds": float(self._clock() - self._began) + (before.seconds if before else 0.0),
            "requests": int(self._count() - self._counted) + (before.requests if before else 0),
            "evaluations": self._evaluator.n_evaluations + (before.evaluations if before else 0),
        }


def _start(run: _Run, meter: _Meter) -> tuple[State, StepRecord]:
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
    return state, _record(run, state, 0, 0.0, False, meter, run.assess(state))


def _template_state(run: _Run) -> State:
    """A state of the right structure, for reading a journal; nothing is evaluated."""
    u = run.problem.partition.to_scaled(run.problem.start)
    duals, tally = run.constraints.start(run.method)
    zero = jnp.zeros((), run.evaluator.dtype)
    here = Sample(zero, u, [zero for _ in run.evaluator.shapes])
    best = Best(u, here.leaves, jnp.asarray(0, jnp.int32))
    return State(u, initial_state(run.driver, u), zero, duals, tally, here, best)


def _advance(run: _Run, state: State, last: StepRecord, meter: _Meter) -> tuple[State, StepRecord]:
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
    return new, _record(run, new, step, max(moves), stalled, meter, measures)


def _step_by_step(run: _Run, state: State, step: int) -> tuple[State, bool]:
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


def _step_by_search(run: _Run, state: State, step: int) -> tuple[State, bool]:
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
        is_time = failed or slope <= run.method.inner_goal(int(tally.n_changes)) or int(tally.n_steps) >= run.method.every
        unsettled = max(float(jnp.abs(t).max(initial=0.0)) for t in residuals.values()) > run.method.target
        if is_time and unsettled:
            duals, tally = change_duals(duals, tally, residuals, run.method)
            # The driver's memory is about another Lagrangian now.
            driver, failed = initial_state(run.driver, u), False
            here = run.sample(u, Weights(state.objective_scale, duals))
    check_finite(here, run.evaluator.evaluation(here.leaves), f"At step {step}")
    return State(u, driver, state.objective_scale, duals, tally, here, state.best), failed


def _search(run: _Run, state: State, driver_state: PyTree) -> tuple[PyTree, PyTree, Sample | None]:
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
    """The trial that `u` is, up to the rounding of how it was put together; `None` if the driver made something else of it.

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


def _values(run: _Run, sample: Sample) -> dict[str, jax.Array]:
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


def _is_better(run: _Run, measures: Mapping[str, Any]) -> bool:
    """Whether the current design beats the best so far (Deb's rule: feasible first, then the objective, else violation).

    Between feasible designs the present Lagrangian decides, which charges what is left of a violation. By the bare objective,
    the design that uses up the whole tolerance would win, by the price of the tolerance, over one that is better converged.
    """
    m = {key: float(value) for key, value in measures.items()}
    here_ok, best_ok = m["violation"] <= run.feasibility_tol, m["best_violation"] <= run.feasibility_tol
    if here_ok and best_ok:
        return m["lagrangian"] < m["best_lagrangian"]
    return here_ok if here_ok != best_ok else m["violation"] < m["best_violation"]


def _record(
    run: _Run, state: State, step: int, move: float, stalled: bool, meter: _Meter, measures: Mapping[str, Any]
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
        **meter.totals(),
    )


def _result(
    run: _Run, state: State, history: Sequence[StepRecord], reason: str, success: bool, notes: tuple[str, ...]
) -> Result:
    last = history[-1]
    evaluation = run.evaluator.evaluation(state.best.leaves)
    # λ + ρ t is the estimate after the next change of multipliers, and the better one.
    estimate, _ = change_duals(
        state.duals, state.tally, run.constraints.residuals(evaluation.constraints, state.duals), run.method
    )
    size = run.constraints.size
    return Result(
        design=run.problem.partition.combine(state.best.varying),
        value=float(evaluation.objective),
        reason=reason,
        converged=success and last.best_feasible,
        steps=last.step,
        constraints=dict(evaluation.constraints),
        multipliers={name: estimate.price[name] * state.objective_scale / size[name] for name in size},
        violation=float(run.constraints.violation(evaluation.constraints)),
        feasible=last.best_feasible,
        history=tuple(history),
        evaluations=last.evaluations,
        requests=last.requests,
        seconds=last.seconds,
        evaluation=evaluation,
        notes=notes,
    )
