"""Questions that need no solve have an end, whatever a server does; calls that last are spoken of."""

from __future__ import annotations

import math
import threading
import time

import pytest

from tesseract_flow.client import HttpTesseract
from tesseract_flow.client.http.patience import Patience
from tesseract_flow.errors import CallTimeout
from tests.client.helpers import Line

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(patience: Patience, silence: float | None, clock: Clock, longest: float = math.inf) -> list[float]:
    """How long a socket waits that never gets a byte."""
    found: list[float] = []
    wait = patience.wait(silence)
    while sum(found) < longest:
        try:
            seconds = wait.seconds()
        except TimeoutError:
            break
        assert seconds is not None and seconds > 0
        found.append(seconds)
        clock.now += seconds
    return found


def test_silence_ends_a_wait():
    clock = Clock()
    assert waits(Patience(clock=clock), 7.0, clock) == [7.0]


def test_a_byte_now_and_then_does_not_put_off_the_end_of_the_whole():
    clock = Clock()
    patience = Patience(10.0, clock=clock)
    for _ in range(3):
        assert patience.wait(5.0).seconds() == pytest.approx(min(5.0, 1010.0 - clock.now))
        clock.now += 3.0
    clock.now += 1.0
    with pytest.raises(TimeoutError):
        patience.wait(5.0).seconds()


def test_without_a_limit_there_is_none():
    assert Patience(clock=Clock()).wait(None).seconds() is None


def test_words_come_after_twice_as_long_each_time():
    clock, said = Clock(), []
    patience = Patience(says=said.append, first_word=60.0, clock=clock)
    assert waits(patience, None, clock, longest=500.0) == [60.0, 60.0, 120.0, 240.0, 480.0]
    assert said == [60.0, 120.0, 240.0, 480.0]


def test_words_come_in_spite_of_bytes():
    clock, said = Clock(), []
    patience = Patience(says=said.append, first_word=60.0, clock=clock)
    for _ in range(30):
        clock.now += 9.0
        patience.wait(None).seconds()
    assert said == [63.0, 126.0, 243.0]


def frozen(line: Line) -> None:
    line.read_request()
    line.wait_for_end()


def dripping(line: Line) -> None:
    line.read_request()
    line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    pause = threading.Event()
    while not pause.wait(0.01):
        line.send(b" ")


def promising(line: Line) -> None:
    line.read_request()
    pause = threading.Event()
    while not pause.wait(0.01):
        line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


def deaf(line: Line) -> None:
    """Takes the connection and reads nothing."""
    threading.Event().wait(3.0)


@pytest.mark.parametrize("script", [frozen, dripping, promising, deaf])
@pytest.mark.parametrize("read_timeout", [None, 0.25])
def test_the_schema_is_not_waited_for_for_ever(line_server, script, read_timeout):
    start = time.monotonic()
    handle = HttpTesseract(line_server(script), question_timeout=0.5, read_timeout=read_timeout)
    with pytest.raises(CallTimeout, match=r"question_timeout=") as caught:
        _ = handle.schema
    assert time.monotonic() - start < 3.0
    assert "still be running" not in str(caught.value)


@pytest.mark.parametrize("script", [frozen, dripping, promising])
def test_nor_are_shapes(line_server, script):
    handle = HttpTesseract(line_server(script), question_timeout=0.5)
    with pytest.raises(CallTimeout, match="needs no solve"):
        handle.request("abstract_eval", {"inputs": {}})


def test_a_call_takes_its_time_and_says_so(line_server, caplog, monkeypatch):
    monkeypatch.setattr("tesseract_flow.client.http.handle.FIRST_WORD", 0.1)

    def slow(line: Line) -> None:
        while line.read_request():
            threading.Event().wait(0.5)
            line.send(OK)

    handle = HttpTesseract(line_server(slow), question_timeout=0.05)
    assert handle.request("apply", {"inputs": {}}) == {}
    said = [record.message for record in caplog.records]
    assert len(said) == 3 and all("read_timeout=SECONDS" in line for line in said)
    # What has always taken long is no news.
    caplog.clear()
    assert handle.request("apply", {"inputs": {}}) == {}
    assert not caplog.records
