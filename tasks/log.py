"""Our own warnings in the run's log: what the library says about a run is the run's business.

The library speaks to Python's logger `tesseract_flow`, from whatever thread it is in, and Prefect listens to its own
loggers, on threads that know their run. Between the two stands a handler for as long as the flow goes.
"""

import contextlib
import contextvars
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler

from tesseract_flow.storage import without_secrets

_LOGGER = "tesseract_flow"
_IN_FULL = 50  # lines from one place in the code
_EVERY = 60.0  # seconds between two of them after that, and between two equal lines


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
