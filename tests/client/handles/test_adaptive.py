"""A bound that finds itself: nearly all of what the server can do, no call lost, and the server's word respected."""

from __future__ import annotations

import heapq
import itertools
import pickle
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tesseract_flow.client import HttpTesseract, RetryPolicy, open_tesseract
from tesseract_flow.client.handles.adaptive import AdaptiveTesseract, Line, Sent, Window
from tesseract_flow.errors import ComponentFailed, OptionError, Overloaded
from tests.client.helpers import Asked, LocalServer, Reply, wait_until


def simulated(capacity: Any, n_calls: int, seconds: Any, retry_after: float = 0.0) -> tuple[float, int]:
    """How long a server that takes `capacity(now)` calls at once needs for all of them, and how often it refused."""
    window, now, closed_until, n_refused, order = Window(), 0.0, 0.0, 0, itertools.count()
    waiting = deque(range(n_calls))
    ends: list[tuple[float, int, Sent | None, int]] = []  # an answer, or without a call the end of a pause
    while waiting or ends:
        while waiting and window.has_room and now >= closed_until:
            call = waiting.popleft()
            n_before = sum(sent is not None for _, _, sent, _ in ends)
            sent = window.send()
            if n_before < capacity(now):
                heapq.heappush(ends, (now + seconds(call), next(order), sent, call))
            else:
                n_refused += 1
                assert window.refused(sent)
                if retry_after:
                    closed_until = now + retry_after
                    heapq.heappush(ends, (now + retry_after, next(order), None, call))
                else:
                    waiting.appendleft(call)
        now, _, sent, call = heapq.heappop(ends)
        if sent is None:
            waiting.appendleft(call)
        else:
            closed_until = 0.0
            window.answered(sent)
    return now, n_refused


@pytest.mark.parametrize("retry_after", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("is_even", [True, False], ids=["equal", "mixed"])
@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8, 17, 40, 64])
def test_at_least_95_percent_of_the_best_fixed_setting(capacity, is_even, retry_after):
    def seconds(call: int) -> float:
        return 1.0 if is_even else 0.5 + (call * 0.6180339887) % 1.0

    n_calls = 200 * capacity
    best = sum(seconds(call) for call in range(n_calls)) / capacity  # which no setting can beat
    needed, n_refused = simulated(lambda now: capacity, n_calls, seconds, retry_after)
    assert best / needed >= 0.95
    assert n_refused <= 0.1 * n_calls + 2


def test_it_follows_a_server_that_changes():
    n_calls = 6000
    needed, n_refused = simulated(lambda now: 40 if now < 50 else 10, n_calls, lambda call: 1.0)
    assert needed <= 1.1 * (50 + (n_calls - 50 * 40) / 10) and n_refused < 0.05 * n_calls
    needed, _ = simulated(lambda now: 10 if now < 50 else 40, n_calls, lambda call: 1.0)
    assert needed <= 1.6 * (50 + (n_calls - 50 * 10) / 40)  # one more per round


def test_a_bound_that_is_not_reached_does_not_grow():
    window = Window()
    for _ in range(100):
        window.answered(window.send())
    assert window.limit <= 101
    window = Window()
    window.limit = 50.0
    for _ in range(100):
        window.answered(window.send())
    assert window.limit == 50.0


class Busy:
    """A server that takes `capacity` calls at once and refuses all others."""

    def __init__(self, server: LocalServer, capacity: int, status: int = 429, retry_after: str | None = None):
        server.answer = self.answer
        self.capacity, self.status, self.retry_after = capacity, status, retry_after
        self.lock = threading.Lock()
        self.n_now = self.n_most = self.n_refused = self.n_served = 0
        self.pause = threading.Event()

    def answer(self, asked: Asked) -> Reply:
        if asked.method == "GET":  # a new lane asks whether it is answered
            return Reply()
        with self.lock:
            if self.n_now >= self.capacity:
                self.n_refused += 1
                headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
                return Reply(self.status, headers=headers)
            self.n_now += 1
            self.n_most = max(self.n_most, self.n_now)
        self.pause.wait(0.01)
        with self.lock:
            self.n_now -= 1
            self.n_served += 1
        return Reply(headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(("status", "retry_after"), [(429, None), (503, "0")])
def test_every_call_is_answered_and_the_server_is_full(local_server, status, retry_after):
    busy = Busy(local_server, 3, status, retry_after)
    handle = open_tesseract(local_server.url, label="fem", max_in_flight="auto", retry=RetryPolicy(n_retries=0))
    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(handle.request, "apply", {"inputs": {}}) for _ in range(120)]
        assert [call.result(30) for call in calls] == [{}] * 120
    assert busy.n_served == 120 and busy.n_most == 3
    assert 0 < busy.n_refused < 60


def test_a_call_that_is_refused_alone_is_a_matter_of_retries(local_server):
    Busy(local_server, 0)
    pauses: list[float] = []
    retry = RetryPolicy(n_retries=2, first_delay=1.0, jitter=0.0)
    handle = open_tesseract(local_server.url, max_in_flight="auto", label="fem", retry=retry, sleep=pauses.append)
    with pytest.raises(Overloaded, match="tried 3 times"):
        handle.request("apply", {"inputs": {}})
    assert len(local_server.asked) == 3 and pauses == [1.0, 2.0]


def test_a_refused_call_waits_as_it_was_told_and_for_room():
    now, pauses, asked = [0.0], [], []
    go = {name: threading.Event() for name in "abc"}

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    line = Line(lambda: now[0])
    line.window.limit = 2.0

    def ask(name: str, refusals: list[float]) -> Any:
        def once() -> str:
            asked.append((name, now[0]))
            go[name].wait(10)
            if refusals:
                raise Overloaded("busy", retry_after=refusals.pop(), status=429)
            return name

        return once

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(line.send, ask("a", [7.0]), 600.0, sleep)]
        wait_until(lambda: len(asked) == 1)
        calls.append(pool.submit(line.send, ask("b", []), 600.0, sleep))
        wait_until(lambda: len(asked) == 2)
        go["a"].set()
        wait_until(lambda: pauses == [7.0])
        assert len(asked) == 2  # the bound has fallen to what is under way
        go["b"].set()
        assert [call.result(10) for call in calls] == ["a", "b"]
    assert pauses == [7.0] and asked[2] == ("a", 7.0)


def test_what_fails_otherwise_frees_its_place_and_says_nothing():
    line = Line(lambda: 0.0)

    def fail() -> None:
        raise ComponentFailed("no")

    for _ in range(3):
        with pytest.raises(ComponentFailed):
            line.send(fail, 0.0, print)
    with pytest.raises(Overloaded):
        line.send(lambda: (_ for _ in ()).throw(Overloaded("bad gateway", status=502)), 600.0, print)
    assert line.window.n_under_way == 0 and line.window.limit == 1.0


def test_handles_are_values_and_travel():
    handle = open_tesseract("http://solver", max_in_flight="auto")
    assert handle == AdaptiveTesseract(HttpTesseract("http://solver", n_lanes=64))
    assert pickle.loads(pickle.dumps(handle.elsewhere())) == handle
    assert handle._line is open_tesseract("http://solver", max_in_flight="auto")._line  # type: ignore[attr-defined]
    assert open_tesseract(handle, max_in_flight=2).max_in_flight == 2  # type: ignore[attr-defined]
    assert open_tesseract("http://solver", n_lanes=4, max_in_flight="auto").n_lanes == 4
    with pytest.raises(OptionError, match="needs no limit_folder"):
        open_tesseract("http://solver", max_in_flight="auto", limit_folder="x")
