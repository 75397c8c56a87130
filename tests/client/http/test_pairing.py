"""An answer belongs to its question, or it is none: surplus, early and shifted answers, and what caches keep."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tesseract_flow.client import HttpTesseract, RetryPolicy
from tesseract_flow.errors import ConnectionLost, InvalidAnswer
from tests.client.helpers import Line, Reply, mocked

ONCE = RetryPolicy(n_retries=0)


def ok(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Script:
    """A server that answers the k-th request with `{"y": k}`, and with whatever else a test wants."""

    def __init__(self, answer: Callable[[Line, int, int], None]):
        self._answer = answer
        self.n_asked = 0
        self.n_lines = 0

    def __call__(self, line: Line) -> None:
        self.n_lines += 1
        n_here = 0
        while line.read_request():
            self.n_asked += 1
            n_here += 1
            self._answer(line, self.n_asked, n_here)
        line.close()


def right(k: int) -> bytes:
    return ok(b'{"y": %d}' % k)


def asked(handle: HttpTesseract, script: Script) -> None:
    """The answer is that of the request which the server saw last."""
    for _ in range(6):
        answer = handle.request("apply", {"inputs": {}})
        assert answer == {"y": script.n_asked}


def test_a_surplus_answer_in_the_same_piece(line_server):
    script = Script(lambda line, k, n_here: line.send(right(k) + right(k)))
    asked(HttpTesseract(line_server(script), sleep=lambda seconds: None), script)
    assert script.n_lines == 6 and script.n_asked == 6


def test_a_surplus_answer_after_a_while(line_server, caplog):
    is_read, has_come = threading.Semaphore(0), threading.Semaphore(0)

    def answer(line: Line, k: int, n_here: int) -> None:
        line.send(right(k))
        is_read.acquire(timeout=5)
        line.send(right(k))
        has_come.release()

    script = Script(answer)
    handle = HttpTesseract(line_server(script))
    for _ in range(4):
        assert handle.request("apply", {"inputs": {}}) == {"y": script.n_asked}
        is_read.release()
        assert has_come.acquire(timeout=5)
    assert script.n_asked == 4
    assert "nobody had asked for" in caplog.text


def test_an_answer_before_the_question_has_gone(line_server):
    def answer(line: Line, k: int, n_here: int) -> None:
        if n_here == 1 and k == 1:
            line.send(right(k))
            # The head of the next question, and before its body the answer to nobody.
            line.read_head()
            line.send(ok(b'{"y": 99}'))
            line.wait_for_end()
        else:
            line.send(right(k))

    script = Script(answer)
    big = "x" * 64_000_000  # more than the sockets hold, so it cannot have gone before the surplus comes
    handle = HttpTesseract(line_server(script), sleep=lambda seconds: None)
    assert handle.request("apply", {"inputs": {}}) == {"y": 1}
    assert handle.request("apply", {"inputs": {"x": big}}) == {"y": 2}


def test_two_answers_of_which_one_is_somebody_elses(line_server):
    def answer(line: Line, k: int, n_here: int) -> None:
        line.send(right(k) if n_here == 1 else ok(b'{"y": 99}') + right(k))

    script = Script(answer)
    handle = HttpTesseract(line_server(script), sleep=lambda seconds: None)
    for _ in range(4):
        assert handle.request("apply", {"inputs": {}})["y"] != 99
    lonely = HttpTesseract(line_server(Script(answer)), retry=ONCE)
    assert lonely.request("apply", {"inputs": {}}) == {"y": 1}
    with pytest.raises(ConnectionLost, match="two answers came"):
        lonely.request("apply", {"inputs": {}})


def test_a_length_told_in_two_ways_is_refused_before_the_body(line_server):
    """The size of the first chunk never comes to its end, and there is no limit to how long a body may take."""

    def script(line):
        line.read_request()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1")
        line.wait_for_end()

    with pytest.raises(InvalidAnswer, match="in two ways"):
        HttpTesseract(line_server(script)).request("apply", {"inputs": {}})


def test_a_length_told_in_two_ways(line_server):
    def answer(line: Line, k: int, n_here: int) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")

    script = Script(answer)
    handle = HttpTesseract(line_server(script))
    for _ in range(2):
        with pytest.raises(InvalidAnswer, match="in two ways"):
            handle.request("apply", {"inputs": {}})
    assert script.n_lines == 2 and script.n_asked == 2


def test_lengths_that_contradict_each_other(line_server):
    script = Script(lambda line, k, n_here: line.send(ok(b"{}", b"Content-Length: 40\r\n")))
    with pytest.raises(ConnectionLost):
        HttpTesseract(line_server(script), retry=ONCE).request("apply", {"inputs": {}})


def test_a_length_that_is_too_short(line_server):
    script = Script(lambda line, k, n_here: line.send(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"y": 1}'))
    handle = HttpTesseract(line_server(script))
    for _ in range(3):
        assert handle.request("apply", {"inputs": {}}) == {}  # the rest is part of no answer
    assert script.n_lines == 3


def test_interim_answers_are_passed_over(line_server):
    script = Script(lambda line, k, n_here: line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 3 + right(k)))
    asked(HttpTesseract(line_server(script)), script)
    assert script.n_lines == 1


def test_what_a_cache_has_kept_is_no_answer(local_server):
    local_server.answer = lambda request: Reply(200, b'{"y": 1}', {"Age": "12"})
    with pytest.raises(InvalidAnswer, match="out of a cache"):
        HttpTesseract(local_server.url).request("apply", {"inputs": {}})
    assert {request.headers["Cache-Control"] for request in local_server.asked} == {"no-store"}


@pytest.mark.parametrize("status", [101, 203, 204, 206, 301, 307, 308])
def test_what_is_no_answer_to_a_call(status):
    fake = mocked(b'{"y": 1}', status=status, headers={"Location": "http://elsewhere"})
    with pytest.raises(InvalidAnswer, match=str(status)):
        fake.handle().request("apply", {"inputs": {}})
    assert len(fake.requests) == 1


def test_an_answer_that_is_not_understood_costs_the_connection(line_server):
    script = Script(lambda line, k, n_here: line.send(ok(b"<html>", b"X: y\r\n") if k == 1 else right(k)))
    handle = HttpTesseract(line_server(script))
    with pytest.raises(InvalidAnswer, match="not understood"):
        handle.request("apply", {"inputs": {}})
    assert handle.request("apply", {"inputs": {}}) == {"y": 2}
    assert script.n_lines == 2


def test_after_a_timeout_the_late_answer_is_nobodys(line_server):
    late = threading.Event()

    def answer(line: Line, k: int, n_here: int) -> None:
        if k == 1:
            late.wait(5)
        line.send(right(k))

    script = Script(answer)
    handle = HttpTesseract(line_server(script), read_timeout=0.2)
    with pytest.raises(TimeoutError):
        handle.request("apply", {"inputs": {}})
    late.set()
    assert handle.request("apply", {"inputs": {}}) == {"y": 2}
    assert script.n_lines == 2
