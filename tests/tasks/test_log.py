"""Warnings of the library in the log of a run: without secrets, once, and not thousands of them."""

import logging
import threading
from types import SimpleNamespace

import pytest

from tesseract_flow.optimize import StepRecord
from tesseract_flow.tasks import log
from tesseract_flow.tasks.log import ProgressLog, warnings_in_run_log

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


def record(step, **changes):
    return StepRecord(
        step=step,
        value=2.0 - step,
        gradient_norm=1.0,
        violation=0.0,
        residual=0.0,
        feasible=True,
        best_value=1.0,
        best_step=1,
        best_feasible=True,
        move=0.1,
        changes=0,
        evaluations=1,
        requests=2,
        seconds=61.0 + step,
        **changes,
    )


def test_progress_is_said_often_at_first_and_then_rarely(caplog):
    clock = Clock()
    told = ProgressLog(clock, first=1.0, longest=30.0)
    with caplog.at_level(logging.INFO, "tesseract_flow"):
        told.on_start(None, [record(152)])
        for second in range(100):
            clock.now = float(second)
            told.on_step(record(153 + second), None, None)
        told.on_finish(None)
    lines = [line.getMessage() for line in caplog.records]
    assert lines[0] == "Going on after step 152: value -150, best 1, violation 0, 3 min 33 s"
    said = [int(line.split(":")[0].removeprefix("Step ")) - 153 for line in lines[1:]]
    assert said == [1, 2, 4, 8, 16, 32, 62, 92, 99]


def test_tasks_that_went_well_say_nothing_and_failures_do():
    logger, lines = logging.getLogger("prefect.task_runs"), Lines()
    run = SimpleNamespace(flow_run=SimpleNamespace(id="this run"))
    logger.addHandler(lines)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(log.FlowRunContext, "get", lambda: run)
            patch.setattr(logger, "level", logging.INFO)
            with log.quiet_tasks():
                for of in ("this run", "another run"):
                    logger.info("Finished in state Completed()", extra={"flow_run_id": of})
                logger.error("Finished in state Failed('gone')", extra={"flow_run_id": "this run"})
                logger.info("Task run failed: it is tried again", extra={"flow_run_id": "this run"})
        logger.info("Finished in state Completed()", extra={"flow_run_id": "this run"})
    finally:
        logger.removeHandler(lines)
    assert len(lines.texts) == 4
    assert lines.texts[1] == "Finished in state Failed('gone')"
