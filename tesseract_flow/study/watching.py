"""Who watches a study: told on the thread that called it, of finished steps and of runs that are over."""

from __future__ import annotations

import abc
from collections.abc import Callable

from tesseract_flow.optimize import StepRecord
from tesseract_flow.study.outcome import AbstractStudy, StudyRun


class AbstractStudyObserver(abc.ABC):
    """Told about a study as it goes. Observers see and change nothing; one that raises ends the study."""

    @abc.abstractmethod
    def on_start(self, name: str, n_runs: int) -> None:
        """Before the first run."""

    @abc.abstractmethod
    def on_step(self, index: int, record: StepRecord) -> None:
        """After a step of the run that has this index; its journal has it already."""

    @abc.abstractmethod
    def on_run(self, run: StudyRun) -> None:
        """After a run, whichever way it ended."""

    def on_wait(self, why: str | None) -> None:
        """Again and again while the study waits for somebody, and with None when it goes on."""
        return None

    @abc.abstractmethod
    def on_finish(self, study: AbstractStudy) -> None:
        """After the last run. Not called when an exception ends the study."""


def _nothing(*_: object) -> None:
    return None


class StudyObserver(AbstractStudyObserver):
    """An observer from functions; those left out do nothing.

    >>> watch = StudyObserver(on_run=lambda run: print(run.index, run.status, run.why))
    """

    def __init__(
        self,
        *,
        on_start: Callable[[str, int], None] = _nothing,
        on_step: Callable[[int, StepRecord], None] = _nothing,
        on_run: Callable[[StudyRun], None] = _nothing,
        on_finish: Callable[[AbstractStudy], None] = _nothing,
    ):
        self._on_start, self._on_step, self._on_run, self._on_finish = on_start, on_step, on_run, on_finish

    def on_start(self, name: str, n_runs: int) -> None:
        self._on_start(name, n_runs)

    def on_step(self, index: int, record: StepRecord) -> None:
        self._on_step(index, record)

    def on_run(self, run: StudyRun) -> None:
        self._on_run(run)

    def on_finish(self, study: AbstractStudy) -> None:
        self._on_finish(study)
