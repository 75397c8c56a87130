"""The live line: how often it draws, what it says, and that it leaves terminals and logs in order."""

from __future__ import annotations

import gc
import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from tesseract_flow.report import TerminalProgress
from tests.report.helpers import Finished, Step, history_of


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Named:
    name = "beam [bold]"


def start(*, terminal: bool = False, width: int = 200, **facts):
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    progress = TerminalProgress(console, clock=clock, live_every=0.1, line_every=5.0)
    progress.on_start(Named(), **facts)
    return progress, clock, out


def run(progress, clock, n, seconds, first=1):
    for i in range(first, first + n):
        clock.now += seconds
        progress.on_step(Step(i, 10.0 / i, 10.0 / i, gradient_norm=0.5, violation=1e-3, requests=3 * i), None, None)


def lines(out: io.StringIO) -> list[str]:
    return [line for line in out.getvalue().splitlines() if line.startswith("step")]


def test_log_gets_a_line_every_few_seconds_and_the_last_step():
    progress, clock, out = start(max_steps=1000)
    run(progress, clock, 97, seconds=0.5)
    progress.on_finish(Finished(design={}))
    told = [int(line.split("/")[0].removeprefix("step ")) for line in lines(out)]
    assert told == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 97]
    assert "\x1b" not in out.getvalue()


def test_line_says_everything():
    progress, clock, out = start(max_steps=100)
    run(progress, clock, 1, seconds=600.0)
    run(progress, clock, 1, seconds=300.0, first=2)
    assert "left" not in out.getvalue() and "/step" not in out.getvalue()  # what compiles says nothing of what follows
    run(progress, clock, 2, seconds=6.0, first=3)
    first, *_, last = lines(out)
    assert first == "step 1/100  value 10  best 10  violation 0.001  |gradient| 0.5  requests 3"
    assert last.startswith("step 4/100  value ") and last.endswith("  6 s/step  at most 9 min 36 s")


def test_bar_may_be_given_at_construction_and_a_resumed_run_says_so():
    clock, out = Clock(), io.StringIO()
    progress = TerminalProgress(Console(file=out, width=200), max_steps=10, clock=clock)
    progress.on_start(Named(), history_of([3.0, 2.0, 1.0]))
    for step, seconds in ((3, 200.0), (4, 100.0), (5, 6.0), (6, 6.0)):
        clock.now += seconds
        progress.on_step(Step(step, 1.0, 1.0))
    assert "going on after step 2" in out.getvalue()
    assert lines(out)[-1].startswith("step 6/10") and lines(out)[-1].endswith("at most 24 s")


def test_pace_forgets_a_slow_start():
    progress, clock, out = start(max_steps=1000)
    run(progress, clock, 1, seconds=500.0)
    run(progress, clock, 1, seconds=30.0, first=2)
    run(progress, clock, 2, seconds=1.0, first=3)
    run(progress, clock, 1, seconds=5.0, first=5)
    assert "  3 s/step" in lines(out)[-1]


def test_without_a_known_end_there_is_no_forecast():
    progress, clock, out = start(driver="adam", rate=1e-3)
    run(progress, clock, 1, seconds=1.0)
    assert "left" not in out.getvalue() and "step 1 " in out.getvalue()
    assert "optimising beam [bold]  driver adam, rate 0.001" in out.getvalue()


def test_values_that_are_missing_or_not_finite():
    progress, _, out = start()
    progress.on_step(Step(1, math.nan, math.inf, gradient_norm=None, violation=math.nan))
    assert "value nan  best inf  violation nan  |gradient| -" in lines(out)[0]


def test_terminal_draws_at_most_ten_times_a_second():
    progress, clock, out = start(terminal=True, max_steps=2000)
    run(progress, clock, 1000, seconds=0.001)
    frames = len(re.findall(r"(?<!/)step \d", out.getvalue()))
    assert 9 <= frames <= 12
    progress.on_finish(Finished(design={}))
    assert "1000/2000" in out.getvalue()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # cursor hidden, and shown again


def test_cursor_comes_back_when_the_loop_dies():
    progress, clock, out = start(terminal=True)
    run(progress, clock, 3, seconds=1.0)
    assert "\x1b[?25h" not in out.getvalue()
    del progress
    gc.collect()
    assert "\x1b[?25h" in out.getvalue()


def test_narrow_terminal_wraps_rather_than_hides():
    progress, clock, out = start(terminal=True, width=30, max_steps=9)
    run(progress, clock, 4, seconds=1.0)
    assert "most" in out.getvalue()


def test_bar_and_words_stand_on_lines_of_their_own():
    progress, clock, out = start(terminal=True, max_steps=9)
    run(progress, clock, 1, seconds=1.0)
    bar, words = out.getvalue().splitlines()[-2:]
    assert "━" in bar and "step" not in bar
    assert words.startswith("step 1/9")


def test_prints_to_a_pipe_are_left_alone(capsys):
    progress, clock, out = start(terminal=True)
    run(progress, clock, 1, seconds=1.0)
    print("a result for the next program")
    progress.close()
    assert capsys.readouterr().out == "a result for the next program\n"
    assert "next program" not in out.getvalue()


def test_close_twice_and_start_again():
    progress, clock, out = start()
    run(progress, clock, 3, seconds=0.1)
    progress.close()
    progress.close()
    assert [line[:6] for line in lines(out)] == ["step 1", "step 3"]
    progress.on_start(object())
    run(progress, clock, 1, seconds=0.1, first=7)
    assert lines(out)[-1].startswith("step 7")
    assert "optimising design" in out.getvalue()


def test_steps_without_a_start():
    out = io.StringIO()
    progress = TerminalProgress(Console(file=out, width=200), clock=Clock())
    progress.on_step(Step(1, 1.0, 1.0), None, None)
    progress.on_finish(Finished(design={}))
    assert "step 1" in out.getvalue()


@pytest.mark.parametrize("converged", [True, False])
def test_summary(converged):
    progress, _, out = start()
    progress.on_finish(
        Finished(
            design={},
            value=23762.153678,
            reason="step limit [red]",
            converged=converged,
            constraints={"volume": 0.25, "stress [x]": np.array([-1.0, 2.0])},
            requests={"fem.apply": 12, "fem.vector_jacobian_product": 11},
            history=history_of([2.0, 1.0]),
        )
    )
    text = out.getvalue()
    assert ("not converged" in text) != converged
    for word in ("23762.153678", "step limit [red]", "volume", "0.25", "stress [x]", "-1 to 2", "12 apply",
                 "11 vector_jacobian_product", "23"):  # fmt: skip
        assert word in text, word


def test_a_log_without_unicode_does_not_stop_a_run():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=200)
    progress = TerminalProgress(console, clock=Clock())
    progress.on_start(Named(), max_steps=5)
    progress.on_step(Step(1, 1.0, 1.0))
    progress.on_finish(Finished(design={}, constraints={"volume": [1.0, 2.0]}, requests={"fem.apply": 1}))
    assert b"step 1/5" in raw.getvalue() and b"+--" in raw.getvalue()
