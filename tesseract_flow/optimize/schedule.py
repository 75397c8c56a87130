"""Numbers that change while a run goes, and the phases in which it goes: their description, and the stages they make.

A schedule is a list of values, whatever it was made from, so it can be written into the identity of a run. Schedules
and phases together make one list of *stages*, stretches in which nothing changes. When one is over, and what happens at
its border, is in `phases`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import ProblemError, did_you_mean

_KEYS = ("values", "every")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The values of one number, one after the other; the last one stays.

    Attributes:
        values: at least one.
        every: a value for so many steps each, or fewer where a stop rule finds that there is no more to do. None: a
            value for each phase, so the next one comes when a stop rule has ended a phase.

    Raises:
        ProblemError: values that are no finite numbers, or a function, of which nobody can tell when it is another one.

    >>> Schedule([1.0, 2.0, 4.0])
    Schedule(values=(1.0, 2.0, 4.0), every=None)
    """

    values: tuple[float, ...]
    every: int | None = None

    def __init__(self, values: Iterable[float], every: int | None = None):
        if callable(values):
            raise ProblemError(
                "Schedule takes values, received a function: a journal could not tell whether it is the same one.\n"
                "Schedule.from_function(fn, n) keeps its values at 0, ..., n - 1."
            )
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise ProblemError(f"Schedule takes a list of numbers, received {values!r}.")
        listed = list(values)
        if not listed:
            raise ProblemError("Schedule takes at least one value.")
        object.__setattr__(self, "values", tuple(_number("a value of a schedule", value) for value in listed))
        is_count = isinstance(every, int) and not isinstance(every, bool)
        if every is not None and not (is_count and every >= 1):
            raise ProblemError(f"Schedule: every must be a number of steps, 1 or more, received {every!r}.")
        object.__setattr__(self, "every", every)

    @classmethod
    def linear(cls, first: float, last: float, n: int, every: int | None = None) -> Schedule:
        """`n` values at equal distances, the first and the last one included.

        >>> Schedule.linear(1.0, 3.0, 5, every=10).values
        (1.0, 1.5, 2.0, 2.5, 3.0)
        """
        return cls(np.linspace(_number("first", first), _number("last", last), _count(n)).tolist(), every)

    @classmethod
    def geometric(cls, first: float, last: float, n: int, every: int | None = None) -> Schedule:
        """`n` values with equal ratios, the first and the last one included.

        >>> Schedule.geometric(1.0, 64.0, 4).values
        (1.0, 4.0, 16.0, 64.0)
        """
        ends = _number("first", first), _number("last", last)
        if min(ends) <= 0.0:
            raise ProblemError(f"Schedule.geometric goes between positive numbers, received {first!r} and {last!r}.")
        return cls(np.geomspace(*ends, _count(n)).tolist(), every)

    @classmethod
    def from_function(cls, fn: Callable[[int], Any], n: int, every: int | None = 1) -> Schedule:
        """The values of a function at 0, ..., `n` - 1; a schedule of Optax is one.

        >>> Schedule.from_function(lambda k: 2.0**k, 3).values
        (1.0, 2.0, 4.0)
        """
        return cls([float(fn(k)) for k in range(_count(n))], every)

    def to_json(self) -> dict[str, Any]:
        return {"values": list(self.values), "every": self.every}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Phase:
    """A part of a run that has a driver, limits or stop rules of its own. What is left out is as everywhere in the run.

    Attributes:
        driver, learning_rate, driver_settings: as in `optimize`.
        bounds, constraints: as in `Problem`, in place of the problem's; `{}` is no constraint at all.
        stop: as in `optimize`; limits on steps, time and requests are those of this phase.
        approve: the run waits before this phase until somebody says `steer(journal, "go-on")`; it needs a journal.
        name: what events and reports call it.
    """

    driver: Any = None
    learning_rate: float | None = None
    driver_settings: Mapping[str, Any] | None = None
    bounds: tuple[PyTree, PyTree] | None = None
    constraints: Mapping[str, Any] | None = None
    stop: Any = None
    approve: bool = False
    name: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it has neither a driver nor limits of its own."""
        own = (self.driver, self.learning_rate, self.driver_settings, self.bounds, self.constraints)
        return all(one is None for one in own)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of a run in which nothing changes.

    Attributes:
        index: its place among all stages of the run.
        phase: the place of its phase.
        values: of what is scheduled.
        n_steps: how many steps are made in it at most; None where only a stop rule ends it.
    """

    index: int = 0
    phase: int = 0
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    n_steps: int | None = None


def as_schedules(schedule: Mapping[str, Any] | None, whose: str) -> dict[str, Schedule]:
    """What `Problem(schedule=...)` takes, as schedules by name: each one, a number, or `{"values": ..., "every": ...}`.

    Raises:
        ProblemError: something else.
    """
    if schedule is None:
        return {}
    if not isinstance(schedule, Mapping):
        raise ProblemError(
            f"schedule of {whose}: expected a dictionary {{name: Schedule(...)}}, received {schedule!r}."
        )
    return {_named(name, whose): as_schedule(one, f"schedule of {name!r} in {whose}") for name, one in schedule.items()}


def with_values(own: Mapping[str, Schedule], given: Mapping[str, Any], whose: str) -> dict[str, Schedule]:
    """Schedules with others in place of some of them.

    Raises:
        ProblemError: a name that is not among them, or no schedule.
    """
    for name in given:
        if name not in own:
            there = f"It schedules {', '.join(map(repr, own))}." if own else "It schedules nothing."
            raise ProblemError(f"{whose} does not schedule {name!r}.{did_you_mean(str(name), own)} {there}")
    return {**own, **as_schedules(given, whose)}


def as_schedule(given: Any, where: str) -> Schedule:
    """A schedule from what a form or a command line may say: a number, a list of values, or its parts by name.

    Raises:
        ProblemError: nothing of the kind.
    """
    try:
        match given:
            case Schedule():
                return given
            case Mapping():
                for key in given:
                    if key not in _KEYS:
                        raise ProblemError(f"unknown key {key!r}.{did_you_mean(str(key), _KEYS)}")
                if "values" not in given:
                    raise ProblemError("it has no values.")
                return Schedule(given["values"], given.get("every"))
            case bool() | str() | None:
                raise ProblemError(f"expected a number, a list of values or a Schedule, received {given!r}.")
            case list() | tuple() | np.ndarray() if np.ndim(given):  # type: ignore[arg-type]
                return Schedule(given)
            case _ if callable(given):
                return Schedule(given)  # type: ignore[arg-type]  # which says what to do
            case _:
                return Schedule([given])
    except ProblemError as error:
        raise ProblemError(f"{where}: {error}") from error


def as_phases(phases: Sequence[Phase] | None, whose: str) -> tuple[Phase, ...]:
    """What `Problem(phases=...)` takes.

    Raises:
        ProblemError: something that is no phase.
    """
    if phases is None:
        return ()
    if isinstance(phases, Phase | Mapping | str) or not all(isinstance(phase, Phase) for phase in phases):
        raise ProblemError(f"phases of {whose}: expected a list of Phase(...), received {phases!r}.")
    return tuple(phases)


def stages_of(schedules: Mapping[str, Schedule], n_phases: int) -> tuple[Stage, ...]:
    """All stages of a run, in order.

    Schedules by step go on in the first phase, as a later one begins where they have come to their ends. Where there
    are more values for phases than phases, the last phase is gone through again for each.
    """
    by_phase = {name: schedule for name, schedule in schedules.items() if schedule.every is None}
    by_step = {name: schedule for name, schedule in schedules.items() if schedule.every is not None}
    n_phases = max([1, n_phases, *(len(schedule.values) for schedule in by_phase.values())])
    changes = {k * (one.every or 1) for one in by_step.values() for k in range(1, len(one.values))}
    moments = [0, *sorted(changes)]
    stages: list[Stage] = []
    for phase in range(n_phases):
        for k, moment in enumerate(moments if phase == 0 else moments[-1:]):
            is_last = phase > 0 or k == len(moments) - 1
            values = {}
            for name, one in schedules.items():
                place = phase if name in by_phase else moment // (one.every or 1)
                values[name] = one.values[min(place, len(one.values) - 1)]
            stages.append(Stage(len(stages), phase, values, None if is_last else moments[k + 1] - moment))
    return tuple(stages)


def described(values: Mapping[str, float], before: Mapping[str, float] | None = None) -> str:
    """Scheduled numbers in words; of those that changed, what they were."""
    parts = []
    for name, value in values.items():
        was = None if before is None else before.get(name)
        if before is None or was is None:
            parts.append(f"{name} {value:g}")
        elif was != value:
            parts.append(f"{name} {was:g} -> {value:g}")
    return ", ".join(parts)


def _named(name: Any, whose: str) -> str:
    if not (isinstance(name, str) and name.isidentifier()):
        raise ProblemError(
            f"schedule of {whose}: {name!r} is no name for a number; use letters, digits and underscores."
        )
    if name == "learning_rate":
        raise ProblemError(
            f"schedule of {whose}: the learning rate is the driver's, and not evaluate's.\n"
            "Let it fall step by step with driver_settings={'schedule': 'cosine', 'schedule_steps': 200} or an Optax "
            "object, and phase by phase with Phase(learning_rate=...)."
        )
    return name


def _number(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool | str) or not math.isfinite(number):
        raise ProblemError(f"{what} must be a finite number, received {value!r}.")
    return number


def _count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ProblemError(f"Schedule: expected a number of values, 1 or more, received {n!r}.")
    return n
