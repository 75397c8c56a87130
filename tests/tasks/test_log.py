"""Warnings of the library in the log of a run: without secrets, once, and not thousands of them."""

import logging
import threading

import pytest

from tesseract_flow.tasks import log
from tesseract_flow.tasks.log import warnings_in_run_log

LOGGER = logging.getLogger("tesseract_flow")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.fixture
def told():
    """A handler as a flow installs it, and the lines that reach the run's log."""
    lines, clock = Lines(), Clock()
    run_logger = logging.getLogger("tests.run")
    run_logger.propagate = False
    run_logger.addHandler(lines)
    handler = log._RunLogHandler("a run", logging.LoggerAdapter(run_logger, {}), clock)
    LOGGER.addHandler(handler)
    yield lines.texts, clock, handler
    LOGGER.removeHandler(handler)
    run_logger.removeHandler(lines)


def test_from_any_thread_warnings_and_what_is_worse(told):
    texts, _, _ = told
    LOGGER.info("nobody wants to know")
    thread = threading.Thread(target=lambda: LOGGER.warning("component %s exited", "fem"))
    thread.start()
    thread.join()
    LOGGER.getChild("part").error("worse")
    assert texts == ["component fem exited", "worse"]


def test_secrets_stay_out(told):
    texts, _, _ = told
    LOGGER.warning("no connection to %s", "http://bob:hidden@solver:8000/apply?token=hidden")
    assert "solver:8000" in texts[0] and "hidden" not in texts[0]


def test_an_equal_line_comes_once_a_minute(told):
    texts, clock, handler = told
    for second in range(130):
        clock.now = float(second)
        LOGGER.warning("the same")
    more = " (59 more like this were left out before)"
    assert texts == ["the same", "the same" + more, "the same" + more]
    handler.say_what_was_left_out()
    assert texts[-1] == "9 more warnings like those above were left out of this log."


def test_of_very_many_from_one_place_some_are_shown(told):
    texts, clock, _ = told
    for k in range(1000):
        clock.now = k / 10
        LOGGER.warning("evaluation %d failed", k)
    assert len(texts) == 51 and texts[49] == "evaluation 49 failed"
    assert texts[50] == "evaluation 649 failed (599 more like this were left out before)"
    LOGGER.warning("something else")
    assert texts[-1] == "something else"


def test_outside_of_a_flow_warnings_go_where_python_sends_them(caplog):
    before = list(LOGGER.handlers)
    with warnings_in_run_log():
        assert LOGGER.handlers == before
        LOGGER.warning("seen")
    assert "seen" in caplog.text
