"""Requests that go wrong: repeated only where nothing can have started, and what real sockets do on the way."""

from __future__ import annotations

import threading

import httpx
import numpy as np
import pytest

from tesseract_flow.client import HttpTesseract, RetryPolicy
from tesseract_flow.client.retry import somebody_else
from tesseract_flow.errors import (
    AccessDenied,
    CallTimeout,
    ComponentFailed,
    ConnectionLost,
    EndpointNotFound,
    TesseractFlowError,
    TransientError,
    Unreachable,
)
from tests.client.helpers import Mock, Reply, document, mocked

X = np.array([1.0, 2.0, 3.0])
ONCE = RetryPolicy(n_retries=0)


# What is sent again, and what is not.


TRANSIENT = [
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.WriteError,
    httpx.PoolTimeout,
    httpx.ReadError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
    httpx.DecodingError,
]


@pytest.mark.parametrize("raised", TRANSIENT)
def test_what_may_pass_is_repeated_by_the_policy_of_the_handle(raised):
    fake = mocked(raised("gone"))
    with pytest.raises(TransientError, match="It was tried 3 times"):
        fake.handle(retry=RetryPolicy(n_retries=2, jitter=0.0)).request("apply", {"inputs": {"x": X}})
    assert len(fake.requests) == 3
    assert fake.sleeps == [0.5, 1.0]


@pytest.mark.parametrize("raised", TRANSIENT)
def test_what_may_pass_is_left_to_whoever_repeats_it(raised):
    fake = mocked(raised("gone"))
    with pytest.raises(TransientError) as caught, somebody_else():
        fake.handle().request("apply", {"inputs": {"x": X}})
    assert len(fake.requests) == 1 and fake.sleeps == []
    assert "tried" not in str(caught.value)  # as that is not known here


def test_the_second_attempt_may_succeed():
    def answer(request: httpx.Request) -> httpx.Response:
        if len(fake.requests) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, content=b'{"y": 1}')

    fake = Mock(answer)
    assert fake.handle().request("apply", {"inputs": {"x": X}}) == {"y": 1}
    first, second = fake.requests
    assert first.content == second.content
    assert first.url.params["run_id"] != second.url.params["run_id"]  # the first may still be writing there


@pytest.mark.parametrize("raised", [httpx.ReadTimeout, httpx.WriteTimeout])
def test_a_timeout_is_not_repeated(raised):
    fake = mocked(raised("gone"))
    with pytest.raises(CallTimeout):
        fake.handle().request("apply", {"inputs": {"x": X}})
    assert len(fake.requests) == 1
    assert fake.sleeps == []


@pytest.mark.parametrize("status", [307, 401, 404, 422, 500])
def test_what_will_not_pass_is_not_repeated(status):
    fake = mocked(b"", status=status, headers={"Retry-After": "1", "Location": "http://elsewhere"})
    with pytest.raises(TesseractFlowError):
        fake.handle().request("apply", {"inputs": {"x": X}})
    assert len(fake.requests) == 1
    assert fake.sleeps == []


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(
    "ask", [lambda handle: handle.schema, lambda handle: handle.request("apply", {"inputs": {"x": X}})]
)
def test_a_busy_server_is_asked_again_when_it_says(status, ask):
    def answer(request: httpx.Request) -> httpx.Response:
        if len(fake.requests) == 1:
            return httpx.Response(status, headers={"Retry-After": "7"})
        return httpx.Response(200, content=document())

    fake = Mock(answer)
    ask(fake.handle())
    assert len(fake.requests) == 2 and fake.sleeps == [7.0]


def test_an_answer_that_breaks_off_may_be_whole_the_next_time():
    fake = mocked((b'{"y": ', httpx.ReadError("reset")))
    with pytest.raises(ConnectionLost, match="It was tried 4 times"):
        fake.handle().request("apply", {"inputs": {"x": X}})
    assert len(fake.requests) == 4


# Servers on real sockets.


def test_nobody_listens(refused_url):
    sleeps: list[float] = []
    with pytest.raises(Unreachable, match="Nothing was started"):
        HttpTesseract(refused_url, sleep=sleeps.append).request("apply", {"inputs": {"x": X}})
    assert len(sleeps) == 3


def test_a_slow_server_runs_into_the_read_timeout(line_server):
    asked: list[bytes] = []

    def script(line):
        asked.append(line.read_request())
        line.read_request()  # until the client hangs up

    with pytest.raises(CallTimeout, match="may still be running"):
        HttpTesseract(line_server(script), read_timeout=0.1).request("apply", {"inputs": {"x": X}})
    assert len(asked) == 1


def test_a_server_that_does_not_read_runs_into_the_write_timeout(line_server):
    over = threading.Event()
    url = line_server(lambda line: over.wait(10))
    with pytest.raises(CallTimeout, match=r"could not be sent within .* Nothing was started"):
        HttpTesseract(url, read_timeout=0.1).request(
            "apply", {"inputs": {"x": np.zeros(4_000_000)}}
        )  # more than sockets hold
    over.set()


def test_a_server_that_reads_slowly_gets_all_of_it(line_server):
    x = np.random.default_rng(0).normal(size=1_000_000)
    received: list[bytes] = []

    def script(line):
        received.append(line.read_request(piece=100_000))
        body = received[0].partition(b"\r\n\r\n")[2]
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    answer = HttpTesseract(line_server(script), read_timeout=5.0).request("apply", {"inputs": {"x": x}})
    assert answer["inputs"]["x"].tobytes() == x.tobytes()


def test_a_server_that_trickles_is_not_timed_out(line_server):
    def script(line):
        line.read_request()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for byte in b'{"y": 1}':
            line.send(bytes([byte]))

    assert HttpTesseract(line_server(script), read_timeout=5.0).request("apply", {"inputs": {}}) == {"y": 1}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\n", b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"y": '],
    ids=["before the answer", "in its head", "in its body"],
)
def test_a_server_that_dies_while_it_answers(line_server, said, reset):
    asked: list[bytes] = []

    def script(line):
        asked.append(line.read_request())
        line.send(said)
        if reset:
            line.reset()

    sleeps: list[float] = []
    with pytest.raises(ConnectionLost, match="may still be running"):
        HttpTesseract(line_server(script), sleep=sleeps.append, retry=ONCE).request("apply", {"inputs": {"x": X}})
    assert len(asked) == 1 and sleeps == []


def test_a_server_that_speaks_another_protocol(line_server):
    with pytest.raises(TransientError):  # nothing started if it hangs up in time
        HttpTesseract(line_server(lambda line: line.send(b"SSH-2.0-OpenSSH_9.6\r\n")), retry=ONCE).request(
            "apply", {"inputs": {"x": X}}
        )


def test_a_server_that_closes_kept_connections(line_server):
    lines: list[int] = []

    def script(line):
        lines.append(1)
        if line.read_request():
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")  # and hangs up, without a word about it
            line.close()
            closed.release()

    closed = threading.Semaphore(0)
    sleeps: list[float] = []
    handle = HttpTesseract(line_server(script), sleep=sleeps.append)
    for _ in range(3):
        assert handle.request("apply", {"inputs": {}}) == {}
        assert closed.acquire(timeout=5)
    assert len(lines) == 3 and sleeps == []


def test_a_kept_connection_that_closes_in_the_face_of_a_request(line_server):
    asked: list[bytes] = []

    def script(line):
        asked.append(line.read_request())
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        asked.append(line.read_request())

    handle = HttpTesseract(line_server(script), retry=ONCE)
    assert handle.request("apply", {"inputs": {}}) == {}
    # The server had the whole request, and may have started: not for the connection to repeat.
    with pytest.raises(ConnectionLost):
        handle.request("apply", {"inputs": {}})
    assert len(asked) == 2


@pytest.mark.parametrize("status", [401, 404])
def test_a_connection_survives_an_error(local_server, status):
    local_server.answer = lambda asked: Reply(status, b"text")
    handle = HttpTesseract(local_server.url)
    for _ in range(3):
        with pytest.raises((AccessDenied, EndpointNotFound)):
            handle.request("apply", {"inputs": {"x": X}})
    assert local_server.n_connections == 1
    local_server.answer = lambda asked: Reply()
    assert handle.request("apply", {"inputs": {"x": X}}) == {}
    assert local_server.n_connections == 1


def test_after_a_failure_of_the_component_the_connection_is_not_used_again(line_server):
    lines: list[int] = []
    second_requests: list[bytes] = []
    ended = threading.Event()

    def script(line):
        lines.append(1)
        if len(lines) == 1:
            line.read_request()
            line.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\ntext")
            # uvicorn closes the connection about now. A second request would find it open, and then lose it.
            second_requests.append(line.read_request())
            ended.set()
        while line.read_request():
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    handle = HttpTesseract(line_server(script), read_timeout=5.0)
    with pytest.raises(ComponentFailed, match="text"):
        handle.request("apply", {"inputs": {}})
    for _ in range(3):
        assert handle.request("apply", {"inputs": {}}) == {}
    assert ended.wait(5)
    assert second_requests == [b""] and len(lines) == 2
