"""`optimize`: from a problem to a result, one finished step after another.

What a step does is in `steps`. Here are the effects around it: the journal, observers, the clock, and when to stop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optax

from tesseract_flow.autodiff import rehearsal
from tesseract_flow.client import current_account, own_requests
from tesseract_flow.errors import (
    BoundsError,
    DriverError,
    EvaluationFailed,
    ProblemError,
    RunStopped,
    SteeringError,
)
from tesseract_flow.execute import concurrent
from tesseract_flow.optimize.activity import Activity, active_bounds, active_constraints
from tesseract_flow.optimize.afterwards import conclude, describe, interrupt
from tesseract_flow.optimize.automatic import automatic_driver
from tesseract_flow.optimize.checkpoint import Checkpoint
from tesseract_flow.optimize.claims import is_claim, is_unseen_claim
from tesseract_flow.optimize.commands import require_inside
from tesseract_flow.optimize.constraints import AugmentedLagrangian
from tesseract_flow.optimize.contradictions import Verify, advice, as_verify, verify_gradient
from tesseract_flow.optimize.drivers.base import AbstractDriver
from tesseract_flow.optimize.drivers.registry import AUTO, build_driver
from tesseract_flow.optimize.ends import Verdict, rules_by_setting, stop_of, tolerance_of
from tesseract_flow.optimize.evaluator import Transform
from tesseract_flow.optimize.failures import FailureAction, FailurePolicy, as_policy
from tesseract_flow.optimize.identity import identity_of
from tesseract_flow.optimize.journal import AbstractJournal, Resumption, as_journal
from tesseract_flow.optimize.keywords import with_remedies
from tesseract_flow.optimize.notes import notes_after
from tesseract_flow.optimize.observers import AbstractObserver
from tesseract_flow.optimize.optimality import best_record, optimality_of
from tesseract_flow.optimize.phases import Course, course_of, waits_for
from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.result import Result, StepRecord
from tesseract_flow.optimize.resuming import StartFrom, go_on, started_from
from tesseract_flow.optimize.run import ObjectiveScale, Run, as_objective_scale
from tesseract_flow.optimize.schedule import Phase
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.optimize.state import State, name_leaves, pack
from tesseract_flow.optimize.steering import Due, Steering
from tesseract_flow.optimize.steps import advance, look_again, prepare, reassess, start
from tesseract_flow.optimize.stopping import AbstractStoppingRule, as_feasibility_tol
from tesseract_flow.optimize.totals import Meter, Totals


def default_transform() -> Transform:
    """What runs the objective when `optimize(transform=...)` is not given."""
    return concurrent


def _on_the_spot(step: int, fn: Callable[[], Any]) -> Any:
    return fn()


@with_remedies
@rehearsal()  # what had to be asked in order to trace serves the first evaluation
@own_requests()
def optimize(
    problem: Problem,
    driver: str | AbstractDriver | optax.GradientTransformation = AUTO,
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
    feasibility_tol: float | None = None,
    on_failure: FailurePolicy | FailureAction | Mapping[str, Any] = "shrink",
    sleep: Callable[[float], object] = time.sleep,
    start_from: StartFrom | None = None,
    accept_changes: bool = False,
    recheck: bool = False,
    verify_gradients: Verify = None,
    objective_scale: ObjectiveScale = None,
    shared: Shared | None = None,
) -> Result:
    """The best design that the driver finds before a stop rule speaks.

    Without constraints an Optax driver runs the plain Optax loop on `design / scale`, with projection onto the bounds.
    With constraints it minimises an augmented Lagrangian, whose objective is divided by its size at the start. SciPy's
    and NLopt's drivers (`slsqp`, `trust-constr`, `mma`) have constraints of their own. Half the sum of squares of a
    misfit is minimised by any of them, and by those for least squares (`levenberg-marquardt`) as what it is.

    Args:
        problem: what to optimise.
        driver: a name (see `driver_names()`), or any `optax.GradientTransformation`, line searches included. Default:
            `"auto"`, which is the problem's own (`Problem.defaults`); or else `slsqp` for a problem with constraints,
            up to 500 unknowns and 100 values under constraints (without components, that many entries of a Jacobian),
            and `adam` for others, or where something is asked for that only drivers of Optax have (a learning rate,
            `constraint_method`, `on_failure="skip"`).
        learning_rate: for a driver of Optax by name, in units of the problem's `scale`.
        driver_settings: for a named driver, see `driver_settings(name)`.
        stop: one rule, several, or settings as in `stop_rules_from`. Default: the problem's own, or else a
            first-order optimum (1e-6), or 200 steps. Settings add to these; rules take their place. Where the problem
            has phases, a limit (steps, time, requests) is one of the whole run; any other rule ends a phase, and the
            run in its last one; by default each phase has 200 steps.
        journal: a folder, a URL such as `s3://bucket/runs/beam`, or a journal. If it holds a run of the same problem,
            that run goes on; another run is refused.
        transform: applied to `jax.value_and_grad(lagrangian, has_aux=True)`; decides how evaluations run.
        observers: told about every finished step.
        count: how many requests were sent so far, for `MaxRequests` and `Result.requests`. Default: those that this
            run has caused, whatever else the process does; questions for shapes, which no solver runs for, left out.
        run_step: called as `run_step(step, fn)`, returns `fn()`; where a step becomes a task, or is timed.
        clock: seconds, for `WallTime` and the records.
        constraint_method: how multipliers and penalties move.
        feasibility_tol: a design with no violation above this (in units of the limit that is violated) is feasible.
            Default: 1e-6, or what the precision allows.
        on_failure: what to do when an evaluation fails (NaN, a component's own error, a time-out, ...): a
            `FailurePolicy`, or its action by name. Default: go back along the step until an evaluation succeeds.
        sleep: how to wait for a component that is away.
        start_from: another journal (folder, URL), whose best design is the start; or `(journal, "last")`; or the
            `design.npz` that a run has left.
        accept_changes: go on with what is in the journal although the problem is another one now. The design is then
            judged anew, in a step of its own; history, notes and report say what changed.
        recheck: evaluate the last finished point again before going on, and compare. Done without being asked where
            it cannot be told otherwise that the problem is the same (a component that says no version, a Python
            function behind a callback, another version of JAX); worth asking for where a component may have changed
            without changing its version.
        verify_gradients: `"start"`: one evaluation more at the start, a short step away, tells whether values and
            gradients fit together (up to three if they do not), and two more, on both sides of a design that is about
            to be called optimal, whether values agree with that (four if they do not): a slope of the values of more
            than a thousandth of the claim's unit (1000 times the default tolerance), and the run is not converged. A
            number: also after so many steps each, as a derivative may be right at the start and wrong where a limit is
            active. None: only when a line search that has trouble makes it suspect. Where they contradict each other
            the run stops and says so; started again, it looks again. With a driver that asks for no gradients there is
            nothing to look at.
        objective_scale: what the objective is divided by before a driver sees it. `"start"`: its size or its steepest
            slope at the start, whichever is larger; a number; None: `"start"` with constraints, which are weighed
            against it, and for the drivers of SciPy and NLopt; 1 for Optax without constraints, whose own steps are
            kept to the bit; and for `slsqp` and `ld_slsqp`, whose first step is as long as the slope, 1 as long as that
            is between 0.001 and 10 per scaled unit, and else what brings it to 1 or 10. Worth asking for where one
            of its drivers has absolute thresholds (the first step of L-BFGS, the epsilon of Adam) and the objective is
            far from 1.
        shared: for runs of one problem from several starts (`Problem.starting_at`), the same object for each, also at
            once: what the first one traces and compiles serves all. They need the same `transform`.

    Raises:
        UnknownArgument: a keyword that belongs elsewhere; the message says where.
        ProblemError, BoundsError, DriverError: something does not fit; raised before the first evaluation.
        OtherRun: the journal belongs to another run; the message shows the difference, and the ways on.
        JournalError: the journal is in use, or cannot be written.
        EvaluationFailed: the start cannot be evaluated; or, with `on_failure="raise"`, another design.
        CallError: what no other design would mend, such as a missing endpoint; or a component stays away for longer
            than the policy's patience.
    """
    account = current_account()
    assert account is not None  # that of this very call
    count = count or (lambda: account.own.n_solves)
    counted = count()
    policy, verify = as_policy(on_failure), as_verify(verify_gradients)
    origin = ""
    if start_from is not None:
        problem, origin = started_from(problem, start_from)
    ours = problem.defaults or {}
    if isinstance(driver, str) and driver == AUTO and "driver" in ours:
        driver = ours["driver"]
        learning_rate = ours.get("learning_rate") if learning_rate is None else learning_rate
        driver_settings = driver_settings or ours.get("driver_settings")
    stop = stop_of(problem, stop)
    objective_scale = ours.get("objective_scale") if objective_scale is None else objective_scale

    def prepared(problem: Problem, phase: Phase, like: Run | None, shared: Shared) -> Run:
        own = phase.driver is not None
        name = phase.driver if own else driver
        rate = phase.learning_rate if own or phase.learning_rate is not None else learning_rate
        settings = phase.driver_settings if own or phase.driver_settings is not None else driver_settings
        if isinstance(name, str) and name == AUTO:
            name = automatic_driver(
                problem,
                learning_rate=rate,
                settings=settings,
                method=constraint_method,
                policy=policy,
                journal=journal,
                shared=shared,
            )
        return prepare(
            problem,
            build_driver(name, rate, settings),
            transform or default_transform(),
            constraint_method,
            as_feasibility_tol(feasibility_tol, problem.partition.dtype),
            policy,
            sleep,
            tolerance_of(problem, phase, stop),
            as_objective_scale(objective_scale),
            like,
            shared,
        )

    shared = shared or Shared()
    shared.require(problem)
    course = course_of(problem, prepared, stop, shared)
    if journal is None and any(phase.approve for phase in problem.phases or ()):
        raise ProblemError(
            "A phase that waits for approval (approve=True) needs a journal: it is approved there (steer)."
        )
    run = course.runs[0]
    kept = as_journal(journal) if journal is not None else None
    history: list[StepRecord] = []
    with (
        _opened(kept, course, problem, accept_changes, shared) as resumed,
        _Told(kept, history) as told,
        contextlib.ExitStack() as open_ended,
    ):
        history += [StepRecord.from_json(fields) for fields in resumed.history] if resumed else []
        meter = Meter(clock, count, counted, course, history[-1] if history else None)
        actions, last = (resumed.actions, history[-1].step) if resumed else ((), -1)
        open_ended.callback(lambda: course.close())  # whichever it is by then
        steering = open_ended.enter_context(Steering(kept, account.recalls[0], actions, last, meter.idle, sleep))
        for action in steering.before(last):
            course = course.steered(action["changes"], history[action["step"]].stage, action.get("was"))

        def finish(run: Run, state: State, record: StepRecord) -> StepRecord:
            answers = run.engine.take_answers()
            if events := steering.events(record.step - 1):
                record = dataclasses.replace(record, events=(*events, *record.events))
            if kept is not None:
                design = name_leaves(run.varying_at(state.u))
                # A library that was told something in another stage is at work no more.
                is_new = bool(history) and (record.stage != history[-1].stage or record.since == record.step)
                kept.save(Checkpoint(record.step, pack(state), design, answers, is_new), record.to_json())
            history.append(record)
            design, evaluation = run.design_at(state.u), run.evaluator.evaluation(state.here.leaves)
            for observer in observers:
                observer.on_step(record, design, evaluation)
            return record

        def looks(run: Run) -> Verify:
            return verify if run.driver.asks_for_gradients else None

        notes = run.notes
        state, record = None, None
        if resumed:
            assert kept is not None
            run = course.at(history)
            state, record, said = go_on(
                run, kept, resumed, meter.totals, recheck=recheck, accept_changes=accept_changes, verify=verify
            )
            notes += (*resumed.notes, *said)
            if record is None:
                state, said = run.engine.resume(state, resumed.answers)
                notes += said
                meter.restart()
        for one in course.runs:
            one.attempts.listen(steering)
        told.begin(run)
        for observer in observers:
            observer.on_start(problem, tuple(history))
        if state is None:
            steering.due(-1)
            try:
                state, record = run_step(0, functools.partial(start, run, meter.totals, looks(run)))
            except RunStopped as error:
                steering.due(-1)
                raise RunStopped("The run was stopped by hand before there was a design to end with.") from error
            record = dataclasses.replace(record, events=(*record.events, origin)) if origin else record
        # What contradicted itself in a journal may be mended by now. A claim is not taken from there.
        if record is None and history[-1].contradiction and is_claim(run, history):
            make = functools.partial(reassess, run, state, run.varying_at(state.u), history[-1], meter.totals, "start")
            state, record = run_step(history[-1].step + 1, make)
        if record is not None:
            finish(run, state, record)
        contradiction = history[-1].contradiction
        if contradiction and record is None:
            contradiction = str(verify_gradient(run, state) or "")
        given_up: EvaluationFailed | None = None
        awaited = ""
        while True:
            step = history[-1].step
            if (due := steering.due(step, awaited)) is not None:
                course, run, found = _changed(
                    course, run, state, due, history, meter.totals, looks(run), steering, run_step
                )
                told.begin(run)
                if found is not None:
                    state, record = found
                    finish(run, state, record)
                continue
            if is_unseen_claim(run, history, looks(run)):
                make = functools.partial(look_again, run, state, tuple(history), meter.totals, looks(run))
                state, record = run_step(step + 1, make)
                finish(run, state, record)
                contradiction = record.contradiction
                continue
            verdict = _contradicted(contradiction, account.own) or course.verdict(history)
            if steering.is_stopped(step):
                verdict = Verdict(f"stopped by hand after step {step}; it goes on once it is told to (steer: go-on)")
            if verdict is not None and verdict.next is None:
                break
            awaited = "" if verdict is None else waits_for(course, verdict, history)
            if awaited and not steering.is_approved(step, awaited):
                continue
            awaited = ""
            so_far = tuple(history)
            if verdict is None:
                make = functools.partial(advance, run, state, so_far, meter.totals, looks(run))
            else:
                make = functools.partial(course.enter, verdict, state, so_far, meter.totals, looks(run))
            try:
                state, record = run_step(history[-1].step + 1, make)
            except RunStopped:
                continue
            except EvaluationFailed as error:
                if policy.action == "raise":
                    raise
                verdict, given_up = Verdict(error.reason), error
                break
            if verdict is not None and verdict.next is not None:
                is_other, run = run.problem is not course.runs[verdict.next].problem, course.runs[verdict.next]
                if is_other:
                    told.begin(run)
            finish(run, state, record)
            contradiction = record.contradiction
        if given_up is not None:
            notes += given_up.events
        rule = verdict.rule
        has_converged = rule is not None and rule.means_success and rule.is_met(history)
        notes += (*notes_after(run, state, history), *course.notes(history))
        result = _result(run, state, history, verdict.reason, has_converged, notes)
        if given_up is not None:  # the step that it was in has no record
            result = dataclasses.replace(result, **{name: meter.totals()[name] for name in ("evaluations", "requests")})
        if kept is not None:
            conclude(kept, result)
    for observer in observers:
        observer.on_finish(result)
    return result


def _changed(
    course: Course,
    run: Run,
    state: State,
    due: Due,
    history: Sequence[StepRecord],
    totals: Totals,
    verify: Verify,
    steering: Steering,
    run_step: Callable[[int, Callable[[], Any]], Any],
) -> tuple[Course, Run, tuple[State, StepRecord] | None]:
    """A course that was changed by hand, the stage that it is in, and the step that it took; all as it was, if it was
    refused.

    Other bounds and other numbers make another function of it, or other optima: the design stays, and is judged anew.
    """
    changes, found, last = due.changes, None, history[-1]
    varying = run.varying_at(state.u)
    was = rules_by_setting(course.limits, changes.get("stop", ()))
    try:
        for name, pair in changes.get("bounds", {}).items():
            require_inside(name, pair, name_leaves(varying))
        new = course.steered(changes, run.stage.index)
        now = new.runs[run.stage.index]
        if "bounds" in changes or "schedule" in changes:
            make = functools.partial(reassess, now, state, varying, last, totals, verify)
            found = run_step(last.step + 1, make)
    except (SteeringError, DriverError, BoundsError, EvaluationFailed) as error:
        if due.name is None:
            raise
        steering.done(due, refused=str(error).partition("\n")[0])
        return course, run, None
    steering.done(due, was=was)
    if now.engine is not run.engine:
        run.engine.close()
    return new, now, found


def _contradicted(contradiction: str, requests: Mapping[str, int]) -> Verdict | None:
    """The end of a run whose gradient is wrong: each further step would be paid for in vain."""
    if not contradiction:
        return None
    derivatives = ("vector_jacobian_product", "jacobian_vector_product", "jacobian")
    asked = (key.rpartition(".") for key in sorted(requests))
    components = dict.fromkeys(name for name, _, endpoint in asked if endpoint in derivatives)
    return Verdict(f"{contradiction}: {advice(components)}")


@contextlib.contextmanager
def _opened(
    journal: AbstractJournal | None, course: Course, problem: Problem, accept_changes: bool, shared: Shared
) -> Iterator[Resumption | None]:
    if journal is None:
        yield None
        return
    run = course.runs[0]
    identity = identity_of(
        problem, run.driver, run.method, run.feasibility_tol, run.evaluator.template, run.objective_scale, shared
    )
    resumed = journal.open(identity | course.identity(problem), accept_changes=accept_changes)
    try:
        yield resumed
    finally:
        # Also after KeyboardInterrupt: finished steps are on disk already, only possession is given up.
        journal.close()


class _Told:
    """Tells readers of the journal what the run is about, and, if it ends early, why."""

    def __init__(self, journal: AbstractJournal | None, history: Sequence[StepRecord]):
        self._journal, self._history = journal, history
        self._has_begun = False

    def begin(self, run: Run) -> None:
        """Not before it is settled that the journal is this run's. Again where a phase has other limits."""
        if self._journal is not None:
            describe(self._journal, run)
            self._has_begun = True

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and self._journal is not None and self._has_begun:
            interrupt(self._journal, self._history[-1].step if self._history else -1, error)


def _result(
    run: Run,
    state: State,
    history: Sequence[StepRecord],
    reason: str,
    has_converged: bool,
    notes: tuple[str, ...],
) -> Result:
    last, best = history[-1], best_record(history)
    evaluation = run.evaluator.evaluation(state.best.leaves)
    # λ + ρ t is the estimate after the next change of multipliers, and the better one.
    estimates = run.constraints.estimates(evaluation.constraints, state.duals)
    prices = run.constraints.multipliers(estimates, state.duals)
    return Result(
        design=run.problem.partition.combine(state.best.varying),
        value=float(evaluation.objective),
        reason=reason,
        converged=has_converged,
        steps=last.step,
        constraints=dict(evaluation.constraints),
        multipliers={name: price * state.objective_scale for name, price in prices.items()},
        violation=float(run.constraints.violation(evaluation.constraints, state.duals)),
        feasible=last.best_feasible,
        history=tuple(history),
        evaluations=last.evaluations,
        requests=last.requests,
        seconds=last.seconds,
        evaluation=evaluation,
        notes=notes,
        optimality=optimality_of(best, run.tolerance),
        active=_activity(run, state, last.best_step == last.step, evaluation),
    )


def _activity(run: Run, state: State, is_here: bool, evaluation: Evaluation) -> Activity:
    """Which limits hold the best design back.

    Args:
        is_here: whether that is where the run is, so that the gradient is known.
    """
    u = run.box.project(run.problem.partition.to_scaled(state.best.varying))
    return Activity(
        active_constraints(run.constraints, evaluation.constraints, state.duals, run.feasibility_tol),
        active_bounds(run.box, u, state.here.gradient if is_here else None),
    )
