"""Who watches a run: terminals, artifacts, files. Observers see finished steps and change nothing.

The default of doing nothing lives in the final class `Observer`, which holds three functions; classes with state of
their own implement `AbstractObserver`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from jaxtyping import PyTree

from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.result import Result, StepRecord


class AbstractObserver(abc.ABC):
    """Told about a run as it goes; on the thread that called `optimize`, after the journal has the step."""

    @abc.abstractmethod
    def on_start(self, problem: Problem, history: Sequence[StepRecord]) -> None:
        """Before the first step of this run. `history` is empty, or what a journal brought back."""

    @abc.abstractmethod
    def on_step(self, record: StepRecord, design: PyTree, evaluation: Evaluation) -> None:
        """After a step: its record, its design (the whole tree), and what `evaluate` returned there."""

    @abc.abstractmethod
    def on_finish(self, result: Result) -> None:
        """After the last step. Not called when an exception ends the run."""


def _nothing(*_: object) -> None:
    return None


class Observer(AbstractObserver):
    """An observer from functions; those left out do nothing.

    >>> watch = Observer(on_step=lambda record, design, evaluation: print(record.step, record.value))
    """

    def __init__(
        self,
        *,
        on_start: Callable[[Problem, Sequence[StepRecord]], None] = _nothing,
        on_step: Callable[[StepRecord, PyTree, Evaluation], None] = _nothing,
        on_finish: Callable[[Result], None] = _nothing,
    ):
        self._on_start, self._on_step, self._on_finish = on_start, on_step, on_finish

    def on_start(self, problem: Problem, history: Sequence[StepRecord]) -> None:
        self._on_start(problem, history)

    def on_step(self, record: StepRecord, design: PyTree, evaluation: Evaluation) -> None:
        self._on_step(record, design, evaluation)

    def on_finish(self, result: Result) -> None:
        self._on_finish(result)
