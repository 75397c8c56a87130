"""The log of a run: how it goes, a line now and then; our own warnings; and not a line per call.

The library speaks to Python's logger `tesseract_flow`, from whatever thread it is in, and Prefect listens to its own
loggers, on threads that know their run. Between the two stands a handler for as long as the flow goes.
"""

import contextlib
import contextvars
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler

from tesseract_flow.optimize import AbstractObserver, Evaluation, Problem, Result, StepRecord
from tesseract_flow.report.tables import duration, number
from tesseract_flow.storage import without_secrets

_LOGGER = "tesseract_flow"
_ROUTINE = ("Finished in state Completed", "Created task run")
_IN_FULL = 50  # lines from one place in the code
_EVERY = 60.0  # seconds between two of them after that, and between two equal lines


def run_logger() -> Any:
    """The log of the current run; outside of one, the library's own logger."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(_LOGGER)


class ProgressLog(AbstractObserver):
    """How a run goes, as lines of its log: often at first, then every half minute.

    Args:
        clock: seconds from any origin.
        first, longest: seconds between two lines, at first and later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, first: float = 1.0, longest: float = 30.0):
        self._clock = clock
        self._first, self._longest = first, longest

    def on_start(self, problem: Problem, history: Sequence[StepRecord]) -> None:
        self._logger = run_logger()
        self._pause, self._next = self._first, -float("inf")
        self._held_back: StepRecord | None = None
        if history:
            self._logger.info("Going on after step %d: %s", history[-1].step, _as_words(history[-1]))
            self._next = self._clock() + self._pause

    def on_step(self, record: StepRecord, design: Any, evaluation: Evaluation) -> None:
        self._held_back = record
        if (now := self._clock()) >= self._next:
            self._say()
            self._next = now + self._pause
            self._pause = min(2 * self._pause, self._longest)

    def on_finish(self, result: Result) -> None:
        if self._held_back is not None:
            self._say()

    def _say(self) -> None:
        record, self._held_back = self._held_back, None
        assert record is not None
        self._logger.info("Step %d: %s", record.step, _as_words(record))


def _as_words(record: StepRecord) -> str:
    return (
        f"value {number(record.value)}, best {number(record.best_value)}, violation {number(record.violation, 3)}, "
        f"{duration(record.seconds)}"
    )


@contextlib.contextmanager
def own_log() -> Iterator[None]:
    """While open, the current flow run's log has what the library warns of, and no line per task that went well."""
    with warnings_in_run_log(), quiet_tasks():
        yield


@contextlib.contextmanager
def quiet_tasks() -> Iterator[None]:
    """While open, the tasks of the current flow run say nothing in its log when all is well: each would at its end.

    Failures and repetitions are said as ever, and all of it is where the log is set to DEBUG.
    """
    context = FlowRunContext.get()
    logger = logging.getLogger("prefect.task_runs")
    if context is None or context.flow_run is None or logger.isEnabledFor(logging.DEBUG):
        yield
        return
    run = str(context.flow_run.id)

    def is_news(record: logging.LogRecord) -> bool:
        is_routine = record.levelno <= logging.INFO and record.getMessage().startswith(_ROUTINE)
        return not (is_routine and str(getattr(record, "flow_run_id", "")) == run)

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


@contextlib.contextmanager
def warnings_in_run_log(clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """While open, what the library warns of goes to the log of the current flow run: without secrets, once.

    Of equal lines, and of very many from one place, one a minute gets through, and says how many were left out.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:  # called as a plain function: warnings go where Python sends them
        yield
        return
    logger = logging.getLogger(_LOGGER)
    handler = _RunLogHandler(context.flow_run.id, get_run_logger(), clock)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.say_what_was_left_out()


class _RunLogHandler(logging.Handler):
    def __init__(self, flow_run_id: object, run_logger: Any, clock: Callable[[], float]):
        super().__init__(logging.WARNING)
        self._flow_run_id = flow_run_id
        self._run_logger = run_logger
        self._context = contextvars.copy_context()  # with the run's settings, which other threads do not have
        self._clock = clock
        self._guard = threading.Lock()
        self._said_at: dict[str, float] = {}
        self._n_from: Counter[tuple[str, int]] = Counter()
        self._left_out: Counter[tuple[str, int]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._is_elsewhere():
                return
            text = str(without_secrets(record.getMessage()))
            place = record.pathname, record.lineno
            with self._guard:
                if not self._may_say(text, place):
                    self._left_out[place] += 1
                    return
                n_left_out = self._left_out.pop(place, 0)
            if n_left_out:
                text += f" ({n_left_out} more like this were left out before)"
            self._say(record.levelno, text)
        except Exception:
            self.handleError(record)

    def say_what_was_left_out(self) -> None:
        if n := sum(self._left_out.values()):
            self._say(logging.WARNING, f"{n} more warnings like those above were left out of this log.")

    def _say(self, level: int, text: str) -> None:
        # A copy of the context each time: one cannot be entered by two threads at once.
        self._context.copy().run(self._run_logger.log, level, "%s", text)

    def _is_elsewhere(self) -> bool:
        """Whether the line is another run's, or comes to Prefect by itself (`PREFECT_LOGGING_EXTRA_LOGGERS`)."""
        flow, task = FlowRunContext.get(), TaskRunContext.get()
        run = flow.flow_run.id if flow is not None and flow.flow_run is not None else None
        run = task.task_run.flow_run_id if task is not None else run
        if run is None:
            return False
        handlers = logging.getLogger(_LOGGER).handlers
        return run != self._flow_run_id or any(isinstance(handler, APILogHandler) for handler in handlers)

    def _may_say(self, text: str, place: tuple[str, int]) -> bool:
        now = self._clock()
        last = self._said_at.get(text, -float("inf"))
        self._n_from[place] += 1
        if self._n_from[place] > _IN_FULL:
            last = max(last, self._said_at.get(str(place), -float("inf")))
        if now - last < _EVERY:
            return False
        if len(self._said_at) > 10 * _IN_FULL:
            self._said_at.clear()
        self._said_at[text] = self._said_at[str(place)] = now
        return True
