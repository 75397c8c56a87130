"""When a stage, a phase and a run are over: stop rules, told what they are to look at.

A limit that `optimize` was given (steps, time, requests) is one of the whole run. Every other rule ends a stage, by its
records alone, as values of earlier ones are of other functions; in the last stage it ends the run. Limits of a phase
are counted from its beginning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.schedule import Phase, Stage
from tesseract_flow.optimize.stopping import (
    ALWAYS,
    DEFAULT_MAX_STEPS,
    AbstractStoppingRule,
    FirstOrder,
    MaxSteps,
    Unbounded,
    Unresponsive,
    first_reason,
    rules_given,
)

Rules = tuple[AbstractStoppingRule, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why a stage is over.

    Attributes:
        rule: that says so; None where none of them does.
        next: the stage that comes now; None at the end of the run.
    """

    reason: str
    rule: AbstractStoppingRule | None = None
    next: int | None = None


@dataclasses.dataclass(frozen=True)
class Ends:
    """When a phase is over: rules for each of its stages, and a budget that is counted from its beginning."""

    rules: Rules
    budget: Rules = ()


@dataclasses.dataclass(frozen=True)
class Limits:
    """When what is over: `ends` are one for each phase, and `budget` is that of the whole run."""

    stages: tuple[Stage, ...]
    ends: tuple[Ends, ...]
    budget: Rules = ()

    def verdict(self, history: Sequence[StepRecord]) -> Verdict | None:
        """Why the stage of the last record is over, or the run; None where no rule says so."""
        stage = self.stages[min(history[-1].stage, len(self.stages) - 1)]
        ends = self.ends[stage.phase]
        if len(self.stages) == 1:
            found = first_reason((*ends.budget, *self.budget, *ends.rules), history)
            return None if found is None else Verdict(found[1], found[0])
        following = stage.index + 1 if stage.index + 1 < len(self.stages) else None
        found = first_reason(ends.rules, tail(history, "stage"))
        if found is not None and (following is None or isinstance(found[0], Unbounded | Unresponsive)):
            return Verdict(found[1], found[0])
        if (over := first_reason(self.budget, history)) is not None:
            return Verdict(over[1], over[0])
        if found is not None:
            return Verdict(found[1], found[0], following)
        if (over := first_reason(ends.budget, [_spent(history)])) is not None:
            beyond = next((one.index for one in self.stages if one.phase > stage.phase), None)
            return Verdict(f"{over[1]}, in phase {stage.phase + 1} of {len(self.ends)}", over[0], beyond)
        return None


def limits_of(problem: Problem, stop: Any) -> Limits:
    """When what is over in a run of a problem; `stop` as in `optimize`. Without a limit, each phase has 200 steps.

    Raises:
        ProblemError: something that is not a rule.
    """
    dtype = problem.partition.dtype
    given = rules_given(stop, dtype)
    budget = tuple(rule for rule in given if rule.is_budget)
    ends = []
    for place in range(problem.stages[-1].phase + 1):
        own = phase_of(problem, place).stop
        rules = given if own is None else rules_given(own, dtype)
        limits = tuple(rule for rule in rules if rule.is_budget and own is not None)
        if not limits and not budget:
            limits = (MaxSteps(DEFAULT_MAX_STEPS),)
        ends.append(Ends((*(rule for rule in rules if not rule.is_budget), *ALWAYS), limits))
    return Limits(problem.stages, tuple(ends), budget)


def tolerance_of(problem: Problem, phase: Phase, stop: Any) -> float | None:
    """Of first-order optimality, if a stop rule of the phase asks for it."""
    rules = rules_given(stop if phase.stop is None else phase.stop, problem.partition.dtype)
    return next((rule.tol for rule in rules if isinstance(rule, FirstOrder)), None)


def phase_of(problem: Problem, place: int) -> Phase:
    """What is declared of a phase; the last one that is declared serves all that follow."""
    phases = problem.phases or (Phase(),)
    return phases[min(place, len(phases) - 1)]


def tail(history: Sequence[StepRecord], name: str) -> Sequence[StepRecord]:
    """The last records that are of one stage, or of one phase."""
    last, n = getattr(history[-1], name), 0
    for record in reversed(history):
        if getattr(record, name) != last:
            break
        n += 1
    return history[len(history) - n :]


def _spent(history: Sequence[StepRecord]) -> StepRecord:
    """The last record, with what was spent in its phase. The step that leads into it is none of its steps, but what it
    cost counts."""
    own, last = tail(history, "phase"), history[-1]
    before = history[-len(own) - 1] if len(own) < len(history) else None
    totals = ("seconds", "requests", "evaluations")
    spent: dict[str, Any] = {
        name: getattr(last, name) - (0 if before is None else getattr(before, name)) for name in totals
    }
    return dataclasses.replace(last, step=last.step - own[0].step, **spent)
