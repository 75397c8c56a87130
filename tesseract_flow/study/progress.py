"""A study in the terminal: a line when a run is over, and now and then one about those that are at work."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from tesseract_flow.optimize import StepRecord
from tesseract_flow.report.tables import duration, number
from tesseract_flow.storage import without_secrets
from tesseract_flow.study.outcome import AbstractStudy, StudyRun
from tesseract_flow.study.watching import AbstractStudyObserver


class StudyProgress(AbstractStudyObserver):
    """Lines on standard error, so that results on standard output stay clean.

    Args:
        console: where to print.
        clock: seconds from any origin.
        every: least time between two lines about runs that are at work.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic, every: float = 5.0
    ):
        self._console = console if console is not None else Console(stderr=True)
        self._clock = clock
        self._every = every
        self._begin(0)

    def _begin(self, n_runs: int) -> None:
        self._n_runs = n_runs
        self._runs: list[StudyRun] = []
        self._at_work: dict[int, StepRecord] = {}
        self._said_at = self._clock()

    def on_start(self, name: str, n_runs: int) -> None:
        self._begin(n_runs)
        self._print("running ", f"{name}: {n_runs} runs")

    def on_step(self, index: int, record: StepRecord) -> None:
        self._at_work[index] = record
        now = self._clock()
        if now - self._said_at >= self._every:
            self._said_at = now
            steps = ", ".join(f"{k} at step {self._at_work[k].step}" for k in sorted(self._at_work)[:8])
            more = f" and {len(self._at_work) - 8} more" if len(self._at_work) > 8 else ""
            self._print(f"{len(self._runs)}/{self._n_runs} over  ", f"run {steps}{more}{self._best()}")

    def on_run(self, run: StudyRun) -> None:
        self._at_work.pop(run.index, None)
        self._runs.append(run)
        self._said_at = self._clock()
        result = run.result
        found = "" if result is None else f"value {number(result.value)}, {result.steps} steps, "
        if result is not None and not result.feasible:
            found += f"violation {number(result.violation, 2)}, "
        settings = ", ".join(f"{name}={number(value)}" for name, value in _settings(run).items())
        self._print(
            f"{len(self._runs)}/{self._n_runs} over  ",
            f"run {run.index}{f' ({settings})' if settings else ''} {run.status}: {found}{run.requests} requests, "
            f"{duration(run.seconds)}{f': {run.why}' if result is None else ''}",
        )

    def on_finish(self, study: AbstractStudy) -> None:
        self._print("", f"{study.summary}; {study.requests} requests, {study.sent} of them now")

    def _best(self) -> str:
        values = [run.result.value for run in self._runs if run.result is not None and run.result.feasible]
        return f"  best {number(min(values))}" if values else ""

    def _print(self, label: str, text: str) -> None:
        self._console.print(Text().append(label, style="dim").append(text), soft_wrap=True)


def _settings(run: StudyRun) -> dict[str, object]:
    """The settings without secrets, each short."""
    return {
        name: value if isinstance(value, bool | int | float) else str(value)[:40]
        for name, value in without_secrets(dict(run.settings)).items()
    }
