"""When a stage, a phase and a run are over: stop rules, told what they are to look at.

A limit that `optimize` was given (steps, time, requests) is one of the whole run. Every other rule ends a stage, by its
records alone, as values of earlier ones are of other functions; in the last stage it ends the run. Limits of a phase
are counted from its beginning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.resting import Resting
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.schedule import Phase, Stage
from tesseract_flow.optimize.stopping import (
    DEFAULT_MAX_STEPS,
    AbstractStoppingRule,
    FirstOrder,
    Infeasible,
    MaxEvaluations,
    MaxRequests,
    MaxSteps,
    Stagnation,
    Stalled,
    TargetValue,
    Unbounded,
    Unmet,
    Unresponsive,
    Until,
    WallTime,
    first_reason,
    rules_given,
    stop_rules_from,
)

Rules = tuple[AbstractStoppingRule, ...]

# In force whatever is asked for.
ALWAYS: Rules = (Unresponsive(), Unmet(), Infeasible(), Unbounded(), Stalled(), Resting())


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
    """When a phase is over: rules for each of its stages, and a budget that is counted from its beginning, by default
    if nobody has asked for one."""

    rules: Rules
    budget: Rules = ()
    is_default: bool = False


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
            found = first_reason((*ends.budget, *self.budget), history) or first_reason(ends.rules, comparable(history))
            return None if found is None else Verdict(found[1], found[0])
        following = stage.index + 1 if stage.index + 1 < len(self.stages) else None
        found = first_reason(ends.rules, comparable(tail(history, "stage")))
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


# What a setting of a form makes.
_MADE_BY: Mapping[str, type[AbstractStoppingRule]] = {
    "gradient_tolerance": FirstOrder,
    "max_evaluations": MaxEvaluations,
    "max_requests": MaxRequests,
    "max_steps": MaxSteps,
    "patience": Stagnation,
    "stagnation_tolerance": Stagnation,
    "target_value": TargetValue,
    "wall_time": WallTime,
}


def rules_by_setting(limits: Limits, settings: Iterable[str]) -> dict[str, list[str]]:
    """The rules that are in force of the kinds that these settings make, in words."""
    rules = dict.fromkeys([*limits.budget, *(rule for one in limits.ends for rule in (*one.rules, *one.budget))])
    return {name: sorted({str(rule) for rule in rules if isinstance(rule, _MADE_BY[name])}) for name in settings}


def with_rules(limits: Limits, settings: Mapping[str, Any], dtype: np.dtype) -> Limits:
    """With other rules of the kinds that these settings make; None: with none. Limits are those of the whole run."""
    kinds = tuple(_MADE_BY[name] for name in settings)
    new = stop_rules_from(settings, dtype)

    def others(rules: Rules) -> Rules:
        return tuple(rule for rule in rules if not isinstance(rule, kinds))

    goals = tuple(rule for rule in new if not rule.is_budget)
    ends = tuple(
        dataclasses.replace(
            one,
            rules=(*goals, *others(one.rules)),
            budget=others(one.budget) if len(limits.ends) == 1 or one.is_default else one.budget,
        )
        for one in limits.ends
    )
    budget = (*others(limits.budget), *(rule for rule in new if rule.is_budget))
    return dataclasses.replace(limits, ends=ends, budget=budget)


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
        rules = given if own is None else _rules_of_phase(own, given, dtype)
        limits = tuple(rule for rule in rules if rule.is_budget and own is not None)
        # A moment ends a process, and the run is to go on in the next.
        is_default = not limits and all(isinstance(rule, Until) for rule in budget)
        if is_default:
            limits = (MaxSteps(DEFAULT_MAX_STEPS),)
        ends.append(Ends((*(rule for rule in rules if not rule.is_budget), *ALWAYS), limits, is_default))
    return Limits(problem.stages, tuple(ends), budget)


def stop_of(problem: Problem, stop: Any) -> Any:
    """What is in force where `stop` is said of a problem that may say so itself: settings add to the problem's own, and
    rules take their place."""
    own = (problem.defaults or {}).get("stop")
    if stop is None:
        return own
    if isinstance(own, Mapping) and isinstance(stop, Mapping):
        return {**own, **{key: value for key, value in stop.items() if value is not None}}
    return stop


def _rules_of_phase(own: Any, given: Rules, dtype: np.dtype) -> Rules:
    """Those of a phase, in a run with the rules `given`; settings without a tolerance leave the run's in force."""
    if not isinstance(own, Mapping) or own.get("gradient_tolerance") is not None:
        return rules_given(own, dtype)
    return (*(rule for rule in given if isinstance(rule, FirstOrder)), *stop_rules_from(own, dtype))


def tolerance_of(problem: Problem, phase: Phase, stop: Any) -> float | None:
    """Of first-order optimality, if a stop rule of the phase asks for it."""
    dtype = problem.partition.dtype
    rules = rules_given(stop, dtype)
    if phase.stop is not None:
        rules = _rules_of_phase(phase.stop, rules, dtype)
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


def comparable(history: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """The last records that are of one problem."""
    n_before = history[-1].since - history[0].step
    return history[n_before:] if n_before > 0 else history


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
