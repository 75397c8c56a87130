"""The problem's own picture over the steps of a run, as files: an observer."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize import AbstractObserver, Evaluation, Problem, Result, StepRecord
from tesseract_flow.report.atomic import write_aside
from tesseract_flow.report.plots import figure_to_png

_log = logging.getLogger(__name__)


class Pictures(AbstractObserver):
    """Draws the start, every so many steps, and the result: `step-00012.png` and `result.png` in a folder.

    A picture that cannot be drawn is a warning, and the run goes on.

    Args:
        folder: where to.
        every: steps.

    `on_start` raises ProblemError for a problem that has no picture.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 10):
        if every < 1:
            raise ProblemError(f"Pictures: every must be a number of steps, 1 or more, received {every}.")
        self.folder, self.every = Path(folder), every
        self._problem: Problem | None = None

    def on_start(self, problem: Problem, history: Sequence[StepRecord]) -> None:
        if problem.picture is None:
            raise ProblemError(
                f"Problem {problem.name!r} has no picture to draw.\n"
                "Problem(picture=...) takes a function (design, evaluation) -> matplotlib Figure."
            )
        self._problem = problem

    def on_step(self, record: StepRecord, design: Any, evaluation: Evaluation) -> None:
        if record.step % self.every == 0:
            self._draw(f"step-{record.step:05d}.png", design, evaluation)

    def on_finish(self, result: Result) -> None:
        self._draw("result.png", result.design, result.evaluation)

    def _draw(self, name: str, design: Any, evaluation: Evaluation) -> None:
        assert self._problem is not None and self._problem.picture is not None
        try:
            write_aside(self.folder / name, figure_to_png(self._problem.picture(design, evaluation)))
        except Exception as error:  # of the problem's own code, mostly
            _log.warning("The picture %s could not be drawn: %s", name, error)
