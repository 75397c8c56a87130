"""What a run has cost so far, over all of its starts: seconds, requests, evaluations, failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tesseract_flow.optimize.result import StepRecord

# As a record has them.
Totals = Callable[[], Mapping[str, Any]]


class Spending(Protocol):
    """What evaluates for a run."""

    @property
    def n_evaluations(self) -> int: ...

    @property
    def n_failed(self) -> int: ...


class Meter:
    """Totals of time, requests and evaluations over all runs of a journal.

    Args:
        counted: what `count` said before anything was asked.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        count: Callable[[], int],
        counted: int,
        course: Spending,
        last: StepRecord | None,
    ):
        self._clock, self._count, self._course, self._last = clock, count, course, last
        self.restart()
        self._counted = counted

    def idle(self, seconds: float) -> None:
        """The run waited for somebody: that is not time that it took."""
        self._began += seconds

    def restart(self) -> None:
        """What was done so far is not part of the run: a point that was evaluated again, to compare."""
        self._began, self._counted, self._evaluated = self._clock(), self._count(), self._course.n_evaluations

    def totals(self) -> dict[str, Any]:
        before = self._last
        return {
            "seconds": float(self._clock() - self._began) + (before.seconds if before else 0.0),
            "requests": int(self._count() - self._counted) + (before.requests if before else 0),
            "evaluations": self._course.n_evaluations - self._evaluated + (before.evaluations if before else 0),
            "failures": self._course.n_failed + (before.failures if before else 0),
        }
