"""When to stop: small rules that look at the history and give a reason, or nothing.

A rule sees records only, never clocks or counters, so it decides alike on a resumed run, whose records carry time and
requests over from the journal. To stop is a value in the result, not an exception.
"""

from __future__ import annotations

import abc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import ProblemError, did_you_mean
from tesseract_flow.optimize.optimality import best_record, first_record, is_first_order
from tesseract_flow.optimize.result import StepRecord

DEFAULT_MAX_STEPS = 200
DEFAULT_TOLERANCE = 1e-6  # of first-order optimality
TIME_IS_UP = "the time of this process is nearly up"
# What a form, or `optimize(stop={...})`, may say; see `stop_rules_from`.
STOP_SETTINGS = (
    "gradient_tolerance",
    "max_evaluations",
    "max_requests",
    "max_steps",
    "patience",
    "stagnation_tolerance",
    "target_value",
    "wall_time",
)
_COUNTS = ("max_evaluations", "max_requests", "max_steps", "patience")


class AbstractStoppingRule(eqx.Module):
    """A reason to stop.

    `means_success`: whether the rule is about the problem being solved; what it then is about has to be so, too, for
    the design that is returned (`is_met`).
    `is_budget`: whether the rule ends every run sooner or later.
    """

    means_success: eqx.AbstractClassVar[bool]
    is_budget: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        """Why to stop after the last of these records, or `None` to go on. `history` is never empty."""

    def is_met(self, history: Sequence[StepRecord]) -> bool:
        """Whether the best design of this history, which a run returns, solves the problem."""
        return False


class MaxSteps(AbstractStoppingRule):
    """Stop after this many updates of the design."""

    n: int
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = True

    def __check_init__(self):
        _require_count(self.n, "MaxSteps", "n")

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        return f"maximum number of steps reached ({self.n})" if history[-1].step >= self.n else None


class FirstOrder(AbstractStoppingRule):
    """Stop at a design that is optimal to first order: stationary, feasible and complementary, see `optimality`.

    The only rule that means success. `tol` is relative to the slope of the objective; how well constraints have to hold
    is `optimize(feasibility_tol=...)`.
    """

    tol: float
    means_success: ClassVar[bool] = True
    is_budget: ClassVar[bool] = False

    def __check_init__(self):
        # 1 is as steep as the objective was; beyond, each start is optimal.
        _require(0 <= self.tol < 1, "FirstOrder", "tol", "zero or more, and below 1", self.tol)

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        last, best = history[-1], best_record(history)
        if first_record(history).doubt is not None or last.unmet or not is_first_order(last, self.tol):
            return None
        if best is not None and is_first_order(best, self.tol):
            return (
                f"optimal to first order (gradient below tolerance: stationarity {best.stationarity:.2g}, "
                f"complementarity {best.complementarity:.2g} <= {self.tol:g}; violation {best.violation:.2g})"
            )
        return (
            f"the driver came to rest at a first-order point that is no better than the design of step "
            f"{last.best_step} ({last.value:.8g}, there {last.best_value:.8g})"
        )

    def is_met(self, history: Sequence[StepRecord]) -> bool:
        best = best_record(history)
        if first_record(history).doubt is not None or best is None or best.unmet:
            return False
        return is_first_order(best, self.tol)


class GradientBelow(AbstractStoppingRule):
    """Stop when the projected gradient of the Lagrangian is this small, in units of objective per scaled design unit.

    Says nothing about constraints, and is no success: only the user knows what the number means. `FirstOrder` does.
    """

    tol: float
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def __check_init__(self):
        _require(self.tol >= 0, "GradientBelow", "tol", "zero or more", self.tol)

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        norm = history[-1].gradient_norm
        return f"gradient below {self.tol:g} ({norm:.3g})" if norm is not None and norm <= self.tol else None


class Stagnation(AbstractStoppingRule):
    """Stop when the best design has not improved by the relative tolerance for `patience` steps.

    While iterates are infeasible the search is under way, whatever the best value does, so those steps do not count.
    """

    patience: int
    rtol: float = 1e-6
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def __check_init__(self):
        _require_count(self.patience, "Stagnation", "patience")
        _require(self.patience >= 1, "Stagnation", "patience", "one or more", self.patience)
        _require(self.rtol >= 0, "Stagnation", "rtol", "zero or more", self.rtol)

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        if len(history) <= self.patience:
            return None
        before, *window = history[-self.patience - 1 :]
        if not all(record.feasible for record in (before, *window)):
            return None
        improvement = before.best_value - history[-1].best_value
        if improvement > self.rtol * abs(before.best_value):
            return None
        return f"no improvement by more than {self.rtol:g} (relative) in {self.patience} steps"


class WallTime(AbstractStoppingRule):
    """Stop when this many seconds have been spent, over all runs of the journal."""

    seconds: float
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = True

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        spent = history[-1].seconds
        return f"wall time used up ({spent:.1f} s of {self.seconds:g} s)" if spent >= self.seconds else None


class Until(AbstractStoppingRule):
    """Stop in time before a moment at which this process has to be over, such as the end of a batch job.

    There has to be room for one and a quarter times the longest step so far, and for `reserve` seconds, in which
    results are written. The run is to go on later from its journal, with another moment.

    Unlike all others it looks at a clock: what it decides is about this process, and not about the run.
    """

    moment: float  # seconds since the epoch
    reserve: float = 30.0
    clock: Callable[[], float] = eqx.field(default=time.time, static=True, repr=False)
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = True

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        left = self.moment - self.clock()
        if left > 1.25 * history[-1].seconds + self.reserve:  # no step took longer than all of them
            return None
        seconds = [0.0, *(record.seconds for record in history)]
        longest = max(after - before for before, after in itertools.pairwise(seconds))
        if left > 1.25 * longest + self.reserve:
            return None
        about = f"{max(left, 0.0):.0f} s left, the longest step took {longest:.3g} s"
        return f"{TIME_IS_UP} ({about}); start it again to go on"


class MaxRequests(AbstractStoppingRule):
    """Stop when the run has sent this many requests to Tesseracts, questions for shapes aside.

    The step under way is always finished.
    """

    n: int
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = True

    def __check_init__(self):
        _require_count(self.n, "MaxRequests", "n")

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        spent = history[-1].requests
        return f"maximum number of requests reached ({spent} of {self.n})" if spent >= self.n else None


class MaxEvaluations(AbstractStoppingRule):
    """Stop when the value and gradient have been evaluated this often, trials of line searches included."""

    n: int
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = True

    def __check_init__(self):
        _require_count(self.n, "MaxEvaluations", "n")

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        spent = history[-1].evaluations
        return f"maximum number of evaluations reached ({spent} of {self.n})" if spent >= self.n else None


class TargetValue(AbstractStoppingRule):
    """Stop when a feasible design has an objective this low."""

    value: float
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        last = history[-1]
        if not last.best_feasible or last.best_value > self.value:
            return None
        return f"target value reached ({last.best_value:.6g} <= {self.value:g})"


class Stalled(AbstractStoppingRule):
    """Stop when the driver could not improve on a design even from a fresh start: it would only repeat itself.

    Always in force; usually the last digits of the objective drown in rounding.
    """

    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        last = history[-1]
        if not last.stalled:
            return None
        if not last.ending:
            return "the line search finds no better design, even after a restart"
        where = "" if last.feasible else f", where constraint {last.worst!r} is violated by {last.violation:.3g}"
        again = ", and again after a restart" if last.gradient_norm is not None else ""
        return f"the driver came to rest{again}{where}; in its own words: {last.ending}"


class Unresponsive(AbstractStoppingRule):
    """Stop when nothing moves the design, and the start has shown that the gradients are not to be believed.

    Always in force.
    """

    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        return first_record(history).doubt if history[-1].gradient_norm == 0.0 else None


class Unmet(AbstractStoppingRule):
    """Stop where a closer look at constraints has shown that further steps are in vain: they rule each other out near
    the design, or one is held by its tolerance alone. Always in force.
    """

    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        return history[-1].unmet or None


class Infeasible(AbstractStoppingRule):
    """Stop where the constraints contradict each other, or what the design can reach: a stationary point of the
    violation.

    Multipliers have been raised `patience` times in a row, penalties with them, and the violation did not fall by a
    tenth; they are large by now, so the gradient of the Lagrangian is that of the violation, and it promises less than
    a hundredth of the violation for a move by one scaled unit. Somewhere else there may still be a feasible design: the
    finding is local, as all of a gradient is. Always in force.

    Source: the stationary points of infeasibility of Nocedal & Wright (2006), section 17.4 and Theorem 17.2.
    """

    patience: int = 4
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        last = history[-1]
        if last.best_feasible or last.changes < self.patience:
            return None
        before = next((record for record in reversed(history) if record.changes <= last.changes - self.patience), None)
        if before is None or before.step == 0:
            return None
        since = history[before.step - last.step - 1 :]
        least = min(record.violation for record in since)
        has_stopped_falling = not last.feasible and least > 0.9 * before.violation and last.price > before.price
        scale = max(last.slope or 0.0, abs(last.value))
        if (
            not has_stopped_falling
            or last.price < LARGE_PRICE * scale
            or last.gradient_norm is None
            or last.gradient_norm > 0.01 * last.violation * last.price
        ):
            return None
        return (
            f"the problem looks infeasible: constraint {last.worst!r} is violated by {last.violation:.3g} of its "
            f"limit, and to first order nothing near this design makes that smaller"
        )


class Unbounded(AbstractStoppingRule):
    """Stop where searches run straight down without an end: the objective looks unbounded below.

    `patience` searches in a row came as far as they may go, each trial lower than the one before and the last no less
    so than the slope at the beginning had promised, hundreds of times as far as the first one looked. A curvature
    anywhere on the way would have shown. Always in force; drivers that only step go no such distance, of them a note
    says so (`notes`).
    """

    patience: int = 3
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        last = history[-1]
        if last.endless < self.patience or not last.feasible or last.gradient_norm is None:
            return None
        return (
            f"the objective looks unbounded below: {last.endless} searches in a row went down without an end, to "
            f"{last.value:.3g}, slope {last.gradient_norm:.3g}. Is a bound or a constraint missing, or "
            "the sign of the objective wrong?"
        )


LARGE_PRICE = 30.0  # multipliers, in units of the objective, that leave nothing of the objective's own gradient


MOST_LENIENT = 1e-2  # beyond, nothing is said of a design that is called optimal


def reachable(tolerance: float, dtype: np.dtype) -> float:
    """A tolerance that rounding leaves room for; in half precision that would be any, and it is the most lenient one
    that still means something."""
    return max(tolerance, min(1000 * float(jnp.finfo(dtype).eps), MOST_LENIENT))


def stop_rules_from(settings: Mapping[str, Any], dtype: np.dtype | None = None) -> tuple[AbstractStoppingRule, ...]:
    """Rules from a form: a mapping with any of `STOP_SETTINGS`; keys that are absent or `None` add nothing.

    `max_steps`, `gradient_tolerance` (of `FirstOrder`; 0 switches it off), `patience` with `stagnation_tolerance`,
    `wall_time` (seconds), `max_requests`, `max_evaluations`, `target_value`.

    Raises:
        ProblemError: an unknown key, or a value that is not a usable number.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    for key, value in given.items():
        if key not in STOP_SETTINGS:
            raise ProblemError(
                f"Unknown stop setting {key!r}.{did_you_mean(key, STOP_SETTINGS)}\n"
                f"Known are: {', '.join(STOP_SETTINGS)}."
            )
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        _require(
            is_number and (value >= 0 or key == "target_value"), "stop settings", key, "a number, not below 0", value
        )
        if key in _COUNTS:
            _require_count(value, "stop settings", key)
    rules: list[AbstractStoppingRule] = []
    if tolerance := given.get("gradient_tolerance"):
        rules.append(FirstOrder(reachable(float(tolerance), dtype or np.dtype(np.float64))))
    if "target_value" in given:
        rules.append(TargetValue(float(given["target_value"])))
    if "patience" in given:
        rules.append(Stagnation(int(given["patience"]), float(given.get("stagnation_tolerance", 1e-6))))
    if "max_steps" in given:
        rules.append(MaxSteps(int(given["max_steps"])))
    if "max_evaluations" in given:
        rules.append(MaxEvaluations(int(given["max_evaluations"])))
    if "max_requests" in given:
        rules.append(MaxRequests(int(given["max_requests"])))
    if "wall_time" in given:
        rules.append(WallTime(float(given["wall_time"])))
    return tuple(rules)


def rules_given(
    stop: AbstractStoppingRule | Sequence[AbstractStoppingRule] | Mapping[str, Any] | None, dtype: np.dtype
) -> tuple[AbstractStoppingRule, ...]:
    """What `optimize(stop=...)` takes, as rules; by default a first-order point as exactly as the precision reasonably
    allows. Settings add to that; a `gradient_tolerance` of 0 switches it off. Rules take its place.

    Raises:
        ProblemError: something that is not a rule.
    """
    match stop:
        case None:
            rules = stop_rules_from({"gradient_tolerance": DEFAULT_TOLERANCE}, dtype)
        case AbstractStoppingRule():
            rules = (stop,)
        case Mapping():
            given = {key: value for key, value in stop.items() if value is not None}
            rules = stop_rules_from({"gradient_tolerance": DEFAULT_TOLERANCE, **given}, dtype)
        case _:
            rules = tuple(stop)
    for rule in rules:
        if not isinstance(rule, AbstractStoppingRule):
            raise ProblemError(
                f"stop takes stopping rules such as MaxSteps(100), or settings {{'max_steps': 100}}; received {rule!r}."
            )
    return rules


def most_steps(stop: Any) -> int:
    """How many steps a run may take that is asked to `stop` so; for a bar of progress."""
    if isinstance(stop, Mapping):
        return stop.get("max_steps") or DEFAULT_MAX_STEPS
    rules = stop if isinstance(stop, Sequence) else [stop]
    return min((rule.n for rule in rules if isinstance(rule, MaxSteps)), default=DEFAULT_MAX_STEPS)


def first_reason(
    rules: Sequence[AbstractStoppingRule], history: Sequence[StepRecord]
) -> tuple[AbstractStoppingRule, str] | None:
    """The first rule that wants to stop, with its reason. Rules that mean success speak first."""
    for rule in sorted(rules, key=lambda rule: not rule.means_success):
        if (reason := rule.reason_to_stop(history)) is not None:
            return rule, reason
    return None


def as_feasibility_tol(given: float | None, dtype: np.dtype) -> float:
    """Up to which violation, relative to its measure, a constraint counts as held; by default what fits `dtype`.

    Raises:
        ProblemError: not a number from 0 to below 1. One that is not a number would hold nowhere, and a large one
            everywhere.
    """
    if given is None:
        return reachable(1e-6, dtype)
    is_number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
    _require(is_number and 0 <= given < 1, "optimize", "feasibility_tol", "a number from 0 to below 1", given)
    return float(given)


def _require_count(n: Any, where: str, what: str) -> None:
    is_number = isinstance(n, int | float | np.number) and not isinstance(n, bool)
    _require(is_number and float(n) >= 0.0 and float(n).is_integer(), where, what, "a whole number, not below 0", n)


def _require(condition: bool, where: str, what: str, expected: str, received: Any) -> None:
    if not condition:
        raise ProblemError(f"{where}: {what} must be {expected}, received {received!r}.")
