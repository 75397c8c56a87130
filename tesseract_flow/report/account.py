"""The files of a run, made from its journal: of one that is finished, ended early, or is still going.

One function for all of them, the run's own report included, so a report that is made again later says the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from tesseract_flow.errors import OtherRun
from tesseract_flow.optimize import AbstractObserver, Evaluation, FileJournal, Problem, Result, StepRecord, read_account
from tesseract_flow.report.files import write_result
from tesseract_flow.storage import local_folder, place_in

_log = logging.getLogger("tesseract_flow")


def report(
    journal: FileJournal | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    figures: Mapping[str, Figure] | None = None,
) -> dict[str, str]:
    """Write `result.json`, `design.npz`, `design.json`, `history.csv` and `report.html` of a run; their addresses by
    name.

    Takes no lock, so the run may be going on: what is written is the last finished step.

    Args:
        journal: a journal, its folder or URL, or the folder of a run with the journal in it.
        out: where to write, a folder or URL; default what was given as the journal.
        extra: goes into `result.json` under that name, and on the page.
        figures: are added to the page.

    Raises:
        JournalError: there is no journal, or nothing in it can be read.
    """
    if out is None:
        out = journal.address if isinstance(journal, FileJournal) else journal
    account = read_account(journal)
    about = _About(account.problem, account.start)
    with local_folder(out) as folder:
        written = write_result(folder, account.result, about, extra=extra, figures=figures)
    return {name: place_in(out, name) for name in written}


class Reporting(AbstractObserver):
    """Writes the report of a run when it is over, however it ends: an observer, and the block around `optimize`.

    >>> with Reporting("runs/beam/journal", "runs/beam") as reporting:
    ...     optimize(problem, journal="runs/beam/journal", observers=[reporting])

    Nothing is written of a run that never began, as its journal may be another one's. Where an error ends the run, it
    is not hidden by one that comes of writing.

    Args:
        journal, out: as for `report`.
        extra: asked at the end.
    """

    def __init__(
        self,
        journal: FileJournal | str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        extra: Callable[[], Mapping[str, Any]] = dict,
    ):
        self.journal, self.out, self.extra = journal, out, extra
        self.written: dict[str, str] = {}
        self._problem: Problem | None = None
        self._figures: dict[str, Figure] = {}

    def on_start(self, problem: Problem, history: Sequence[StepRecord]) -> None:
        self._problem = problem

    def on_step(self, record: StepRecord, design: Any, evaluation: Evaluation) -> None:
        return None

    def on_finish(self, result: Result) -> None:
        if self._problem is not None and self._problem.picture is not None:
            self._figures["Design"] = self._problem.picture(result.design, result.evaluation)

    def __enter__(self) -> Reporting:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._problem is None or isinstance(error, OtherRun):
            return
        try:
            self.written = report(self.journal, self.out, extra=self.extra(), figures=self._figures)
        except Exception as trouble:
            if error is None:
                raise
            _log.warning("The results in %s could not be written: %s", self.out, trouble)


class _About:
    """What `write_result` wants to know of a problem."""

    def __init__(self, name: str, design: Any):
        self.name, self.design = name, design
