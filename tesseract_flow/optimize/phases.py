"""The stages of a run: which one it is in, when that is over, and how the next one begins.

There is one loop and one journal, whatever changes. A stage is a `Run`: a problem with its limits, a driver at work,
and numbers that stay. What the loop asks here is only why a stage or the run is over (`Course.verdict`), which is
decided by the records alone, and for the step that leads into the next one (`Course.enter`).

At a border the objective becomes another one, so values are compared within a stage only: the best design begins anew.
A driver that steps moves across the border in an ordinary step, from the old gradient to a point that is evaluated with
the new numbers; so nothing is evaluated twice, and its averages go on. For any other driver the border is a step of its
own that does not move: the design is evaluated with the new numbers, and memory begins anew, as it is about another
function. Multipliers are kept where the constraint is still there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import SteeringError
from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.commands import sides_of
from tesseract_flow.optimize.constraints import Duals
from tesseract_flow.optimize.contradictions import Verify
from tesseract_flow.optimize.drivers.base import AbstractDriver, AbstractEngine
from tesseract_flow.optimize.drivers.optax.named import LEARNING_RATES, OBJECT, named_driver
from tesseract_flow.optimize.ends import (
    ALWAYS,
    Limits,
    Verdict,
    limits_of,
    phase_of,
    rules_by_setting,
    tail,
    tolerance_of,
    with_rules,
)
from tesseract_flow.optimize.evaluator import Evaluator
from tesseract_flow.optimize.failures import Attempts
from tesseract_flow.optimize.identity import constraint_text, leaf_texts
from tesseract_flow.optimize.partition import named_leaves
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.schedule import Phase, described
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.optimize.state import State
from tesseract_flow.optimize.steps import Kept, advance, begun, rebuilt
from tesseract_flow.optimize.stopping import FirstOrder
from tesseract_flow.optimize.totals import Totals


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """All stages of a run.

    Attributes:
        runs: one for each stage.
        limits: when they are over.
    """

    runs: tuple[Run, ...]
    limits: Limits

    @property
    def n_phases(self) -> int:
        return len(self.limits.ends)

    @property
    def evaluators(self) -> list[Evaluator]:
        return list(dict.fromkeys(run.evaluator for run in self.runs))

    @property
    def n_evaluations(self) -> int:
        return sum(evaluator.n_evaluations for evaluator in self.evaluators)

    @property
    def n_failed(self) -> int:
        attempts: list[Attempts] = list(dict.fromkeys(run.attempts for run in self.runs))
        return sum(one.n_failed for one in attempts)

    def close(self) -> None:
        engines: list[AbstractEngine] = list(dict.fromkeys(run.engine for run in self.runs))
        for engine in engines:
            engine.close()

    def at(self, history: Sequence[StepRecord]) -> Run:
        """The stage that the last record is of."""
        return self.runs[min(history[-1].stage, len(self.runs) - 1)]

    def verdict(self, history: Sequence[StepRecord]) -> Verdict | None:
        """Why the stage of the last record is over; None if it goes on."""
        verdict = self.limits.verdict(history)
        run = self.at(history)
        if verdict is None and run.stage.n_steps is not None:
            following = run.stage.index + 1
            # A step across the border is one of those that are made by this stage's gradients.
            last = run.stage.n_steps - _walks_on(run, self.runs[following])
            if history[-1].step - tail(history, "stage")[0].step >= last:
                return Verdict(f"its {run.stage.n_steps} steps are made", next=following)
        return verdict

    def enter(
        self, verdict: Verdict, state: State, history: Sequence[StepRecord], totals: Totals, verify: Verify
    ) -> tuple[State, StepRecord]:
        """The step that leads into the next stage.

        Raises:
            EvaluationFailed: the design cannot be evaluated there.
        """
        assert verdict.next is not None
        before, run = self.at(history), self.runs[verdict.next]
        is_new = before.stage.values != run.stage.values or before.problem is not run.problem
        if _walks_on(before, run):
            state, record = advance(run, state, history, totals, verify, is_new=is_new)
            multipliers = " and multipliers are" if run.has_constraints else " is"
            done = f"the memory of {run.driver.name}{multipliers} kept" if is_new else ""
        else:
            before.engine.close()
            kept, done = _kept(before, run, state)
            run.attempts.begin(history[-1].step + 1, decisive=f"the design where {self.named(run)} begins")
            run.evaluator.begin_at(state.here.leaves)
            # The same function for another driver: the best of what is known of it.
            varying = before.varying_at(state.u) if is_new else state.best.varying
            state, record = begun(run, varying, kept, history, totals, verify)
        if event := self._event(before, run, verdict, done):
            record = dataclasses.replace(record, events=(event, *record.events))
        return state, record

    def notes(self, history: Sequence[StepRecord]) -> tuple[str, ...]:
        """What is to be said of a run that has stages, at its end."""
        if len(self.runs) == 1:
            return ()
        run = self.at(history)
        values = described(run.stage.values)
        where = f" ({values})" if values else ""
        if run.stage.index < len(self.runs) - 1:
            last = described(self.runs[-1].stage.values)
            return (
                f"the run ended in {self.named(run)}{where}, before what was to come after it"
                f"{f' (at the end {last})' if last else ''}: its result is that of the stage it was in",
            )
        return (
            f"the best design, and whether it is optimal, are those of the last stage{where}: values of earlier ones "
            "are of other functions",
        )

    def steered(self, changes: Mapping[str, Any], stage: int, was: Mapping[str, Any] | None = None) -> Course:
        """With what somebody has changed by hand, from a stage on.

        Args:
            was: the stop rules in whose place those of `changes` came; where others are asked for by now, these hold.

        Raises:
            SteeringError, DriverError: it cannot be changed.
        """
        runs, limits, now = list(self.runs), self.limits, self.runs[stage]
        if "learning_rate" in changes:
            driver = with_learning_rate(now.driver, changes["learning_rate"])
            runs = _rebuilt(runs, lambda run: run.driver is now.driver, lambda run: rebuilt(run, run.problem, driver))
            if not _is_same_form(now.engine.fresh(now.problem.start), runs[stage].engine.fresh(now.problem.start)):
                raise SteeringError(f"Driver {driver.name!r} remembers other things with a learning rate.")
        if "bounds" in changes:
            problem = now.problem.within(with_bounds(now.problem.box, changes["bounds"]))
            runs = _rebuilt(runs, lambda run: run.problem is now.problem, lambda run: rebuilt(run, problem, run.driver))
        for name, value in changes.get("schedule", {}).items():
            if name not in now.stage.values:
                raise SteeringError(f"{name!r} is not scheduled in this run.")
            for k in range(stage, len(runs)):
                of_stage = dataclasses.replace(runs[k].stage, values={**runs[k].stage.values, name: value})
                scheduled = runs[k].problem.scheduled(of_stage)
                runs[k] = dataclasses.replace(runs[k], stage=of_stage, scheduled=scheduled)
        if "stop" in changes:
            asked = rules_by_setting(self.limits, changes["stop"])
            ours = {name: one for name, one in changes["stop"].items() if was is None or was.get(name) == asked[name]}
            limits = with_rules(limits, ours, now.problem.partition.dtype)
            if "gradient_tolerance" in ours:
                goals = [
                    next((rule.tol for rule in one.rules if isinstance(rule, FirstOrder)), None) for one in limits.ends
                ]
                runs = [dataclasses.replace(run, tolerance=goals[run.stage.phase]) for run in runs]
        stages = tuple(run.stage for run in runs)
        return Course(tuple(runs), dataclasses.replace(limits, stages=stages))

    def identity(self, problem: Problem) -> dict[str, Any]:
        """What the identity of a run says of schedule and phases: all that decides where it goes."""
        description: dict[str, Any] = {}
        if problem.schedules:
            description["schedule"] = {name: one.to_json() for name, one in problem.schedules.items()}
        if len(self.runs) == 1:
            return description
        ends = {}
        for phase, one in enumerate(self.limits.ends):
            run = next(run for run in self.runs if run.stage.phase == phase)
            is_last = phase == self.n_phases - 1 and run.stage.n_steps is None
            about = run.driver.identity(run.problem, run.evaluator.template)
            text = about.get("driver_text", {}).get("digest")
            ends[str(phase)] = {
                "driver": about["driver"] | ({} if text is None else {"text": text}),
                "limits": _limits(run) if run.problem is not problem else "those of the problem",
                # Those of the last stage decide how far it goes, and not where.
                "stop": [] if is_last else [str(rule) for rule in (*one.rules, *one.budget) if rule not in ALWAYS],
            }
        description["phases"] = ends
        return description

    def named(self, run: Run) -> str:
        """What its phase is called."""
        name = phase_of(run.problem, run.stage.phase).name
        which = f"phase {run.stage.phase + 1} of {self.n_phases}"
        return f"{which}, {name!r}" if name else which

    def _event(self, before: Run, run: Run, verdict: Verdict, done: str) -> str:
        changed = described(run.stage.values, before.stage.values)
        if not changed and run.stage.phase == before.stage.phase:  # as somebody has set it by hand
            return ""
        why = f", as {verdict.reason}; {done}" if done else f", as {verdict.reason}"
        if run.stage.phase != before.stage.phase:
            return f"{self.named(run)} begins{f' with {changed}' if changed else ''}{why}"
        # A number that changes at each step is in the history, and no event.
        return "" if before.stage.n_steps == 1 else f"{changed}{why}"


def waits_for(course: Course, verdict: Verdict, history: Sequence[StepRecord]) -> str:
    """What somebody has to approve of before the next stage begins; empty if it needs nobody."""
    if verdict.next is None:
        return ""
    run = course.runs[verdict.next]
    is_new = run.stage.phase != course.at(history).stage.phase
    return course.named(run) if is_new and phase_of(run.problem, run.stage.phase).approve else ""


def course_of(
    problem: Problem, prepared: Callable[[Problem, Phase, Run | None, Shared], Run], stop: Any, shared: Shared
) -> Course:
    """The stages of a run.

    Args:
        prepared: makes the first stage of a phase; another one, whose evaluations it may share, is given to it, and
            what runs from other starts have traced of this phase's problem.
        stop: as in `optimize`.
    """
    runs: list[Run] = []
    for k, phase in enumerate(problem.phases or (Phase(),)):
        plain = next((run for run, before in zip(runs, problem.phases or (), strict=False) if before.is_plain), None)
        if phase.is_plain and plain is not None:
            runs.append(dataclasses.replace(plain, tolerance=tolerance_of(problem, phase, stop)))
            continue
        own = {"bounds": phase.bounds, "constraints": phase.constraints}
        own = {name: limits for name, limits in own.items() if limits is not None}
        its_problem = dataclasses.replace(problem, **own) if own else problem
        runs.append(prepared(its_problem, phase, runs[0] if runs else None, shared.of(k if own else None)))
    of_stages = []
    for stage in problem.stages:
        run = runs[min(stage.phase, len(runs) - 1)]
        of_stages.append(dataclasses.replace(run, stage=stage, scheduled=run.problem.scheduled(stage)))
    return Course(tuple(of_stages), limits_of(problem, stop))


def _rebuilt(runs: Sequence[Run], which: Callable[[Run], bool], how: Callable[[Run], Run]) -> list[Run]:
    """Runs with some of them made anew; those that shared an engine share the new one."""
    made: dict[AbstractEngine, Run] = {}
    found = []
    for run in runs:
        if which(run):
            new = made.setdefault(run.engine, how(run)) if run.engine not in made else made[run.engine]
            run = dataclasses.replace(new, stage=run.stage, scheduled=run.scheduled, tolerance=run.tolerance)
        found.append(run)
    return found


def with_learning_rate(driver: AbstractDriver, rate: float) -> AbstractDriver:
    """The same driver of Optax with another learning rate.

    Raises:
        SteeringError, DriverError: it has none that could be changed.
    """
    about = dict(driver.description)
    if about.get("name") not in LEARNING_RATES or about.get("learning_rate") is None:
        why = "is an Optax object, which has its own" if about.get("name") == OBJECT else "has none"
        raise SteeringError(f"The learning rate cannot be changed: driver {driver.name!r} {why}.")
    settings = {key: value for key, value in about.items() if key not in ("name", "learning_rate")}
    return named_driver(driver.name, rate, settings)


def with_bounds(box: Box, bounds: Mapping[str, Any]) -> Box:
    """A box with other sides for some leaves.

    Raises:
        SteeringError: there is no such leaf, or its sides do not fit it.
    """
    named = dict(named_leaves(box.lower)), dict(named_leaves(box.upper))
    sides = {name: sides_of(name, pair, named[0]) for name, pair in bounds.items()}
    lower, upper = (
        jax.tree.structure(box.lower).unflatten(
            [jnp.asarray(sides[name][k]) if name in sides else leaf for name, leaf in named[k].items()]
        )
        for k in (0, 1)
    )
    return Box(lower, upper)


def _is_same_form(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape and x.dtype == y.dtype for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _walks_on(before: Run, run: Run) -> bool:
    """Whether the border is crossed in an ordinary step."""
    return before.engine is run.engine and run.engine.manner == "steps"


def _kept(before: Run, run: Run, state: State) -> tuple[Kept, str]:
    """What goes on across a border that is a step of its own; and that in words."""
    ones = run.constraints.start(run.method)[0].unit
    common = [
        key for key, one in ones.items() if key in state.duals.price and state.duals.price[key].shape == one.shape
    ]
    unit = {key: state.duals.unit[key] for key in common}
    sizes = before.constraints.sizes(state.duals), run.constraints.sizes(Duals({}, {}, ones | unit))
    price = {key: state.duals.price[key] * (sizes[1][key] / sizes[0][key]) for key in common}
    goes_on = _remembers(before, run, state)
    said = f"the memory of {run.driver.name} {'is kept' if goes_on else 'begins anew'}"
    if run.has_constraints:
        names = ", ".join(sorted({run.constraints.names[key] for key in common})) or "none"
        said += f", multipliers are kept ({names})"
    return Kept(price, unit, state.objective_scale, state.driver if goes_on else None), said


def _remembers(before: Run, run: Run, state: State) -> bool:
    """Whether averages of gradients go on: those of a driver that steps, in the same units."""
    if not before.engine.manner == run.engine.manner == "steps":
        return False
    is_same = before.driver is run.driver or before.driver.name == run.driver.name != OBJECT
    fresh = run.engine.fresh(state.u)
    scales = [jax.tree.leaves(one.problem.partition.scale) for one in (before, run)]
    return (
        is_same
        and _is_same_form(fresh, state.driver)
        and all(np.array_equal(a, b) for a, b in zip(*scales, strict=True))
    )


def _limits(run: Run) -> dict[str, Any]:
    return {
        "lower": leaf_texts(run.problem.box.lower),
        "upper": leaf_texts(run.problem.box.upper),
        "constraints": {name: constraint_text(one) for name, one in (run.problem.constraints or {}).items()},
    }
