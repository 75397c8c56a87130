"""No more requests under way than allowed, over all equal handles, in the order in which they came."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tesseract_flow.client import (
    CoreTesseract,
    DerivedTesseract,
    HttpTesseract,
    LimitedTesseract,
    ServedTesseract,
    open_tesseract,
)
from tesseract_flow.client.handles.limited import Places
from tesseract_flow.errors import OptionError, Unreachable
from tests.client.helpers import PROBE, Mock, document, wait_until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


class Gate:
    """A solver that answers when told, and knows how many it has been asked at once."""

    def __init__(self) -> None:
        self.n_now = self.n_most = 0
        self.lock = threading.Lock()
        self.may_go = threading.Semaphore(0)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.n_now += 1
            self.n_most = max(self.n_most, self.n_now)
        assert self.may_go.acquire(timeout=10)
        with self.lock:
            self.n_now -= 1
        return httpx.Response(200, content=b"{}")


def test_no_more_than_allowed(pool):
    gate = Gate()
    plain = Mock(gate).handle(n_lanes=8)
    handles = [open_tesseract(plain, max_in_flight=2), LimitedTesseract(plain, 2)]
    calls = [pool.submit(handles[k % 2].request, "apply", {"inputs": {}}) for k in range(10)]
    wait_until(lambda: gate.n_now == 2 and LimitedTesseract(plain, 2)._places.n_waiting == 8)  # type: ignore[attr-defined]
    for _ in calls:
        gate.may_go.release()
    assert [call.result(10) for call in calls] == [{}] * 10
    assert gate.n_most == 2


def test_a_failure_frees_its_place():
    fake = Mock(lambda request: httpx.Response(500, content=b"text"))
    handle = open_tesseract(fake.handle(), max_in_flight=1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="text"):
            handle.request("apply", {"inputs": {}})
    assert len(fake.requests) == 3


def test_first_come_first_served(pool):
    places, order = Places(1), []

    def work(k: int) -> None:
        with places:
            order.append(k)

    with places:
        for k in range(8):
            pool.submit(work, k)
            wait_until(lambda k=k: places.n_waiting == k + 1)
        assert order == []
    wait_until(lambda: len(order) == 8)
    assert order == list(range(8))


def test_who_gives_up_takes_no_place(pool, monkeypatch):
    places = Places(1)

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    with places:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Event", Interrupted)
            with pytest.raises(KeyboardInterrupt), places:
                pass
        assert places.n_waiting == 0
    with places:
        pass


def test_lanes_of_a_limited_handle(in_process):
    assert open_tesseract("http://solver", max_in_flight=3).n_lanes == 3
    assert open_tesseract("http://solver", n_lanes=2, max_in_flight=3).n_lanes == 2
    assert open_tesseract(["http://a", "http://b"], n_lanes=2, max_in_flight=3).n_lanes == 3
    assert open_tesseract(["http://a", "http://b"], n_lanes=2, max_in_flight=9).n_lanes == 4
    assert open_tesseract(PROBE, n_workers=4, max_in_flight=3).n_lanes == 3
    assert open_tesseract(in_process, max_in_flight=1).n_lanes == 1


def test_every_source_takes_it(in_process):
    plain = HttpTesseract("http://solver")
    assert open_tesseract("http://solver", max_in_flight=2) == LimitedTesseract(plain, 2)
    assert open_tesseract(plain, max_in_flight=2) == LimitedTesseract(plain, 2)
    assert open_tesseract(PROBE, max_in_flight=2) == LimitedTesseract(ServedTesseract(PROBE), 2)
    assert open_tesseract(in_process, max_in_flight=2) == LimitedTesseract(CoreTesseract(in_process), 2)
    derived = open_tesseract("http://solver", derive=True)
    assert isinstance(derived, DerivedTesseract)
    # Below what multiplies calls or spares them, and in place of another limit.
    limited = open_tesseract(open_tesseract(derived, max_in_flight=5), max_in_flight=2)
    assert limited == DerivedTesseract(LimitedTesseract(plain, 2), derived.settings)
    assert open_tesseract(limited) is limited


def test_a_cache_is_asked_before_the_limit():
    handle = open_tesseract("http://solver", cache=True, max_in_flight=2)
    assert handle.tesseract == LimitedTesseract(HttpTesseract("http://solver"), 2)  # type: ignore[attr-defined]


def test_limited_handles_are_values():
    handle = open_tesseract("http://solver", label="fem", max_in_flight=2)
    assert repr(handle) == "LimitedTesseract(HttpTesseract(fem: http://solver), 2)"
    _ = handle._places  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(handle))
    assert again == handle and hash(again) == hash(handle) and again._places is handle._places  # type: ignore[attr-defined]
    assert handle != open_tesseract("http://solver", label="fem", max_in_flight=3)
    assert handle.name == "fem" and handle.url == "http://solver"  # type: ignore[attr-defined]


def test_it_is_the_component_that_is_limited():
    fake = Mock(lambda request: httpx.Response(200, content=document("fem")))
    handle = open_tesseract(fake.handle(), max_in_flight=1)
    assert handle.schema.name == handle.name == "fem"


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "2"])
def test_limits_without_sense(n: Any):
    with pytest.raises(OptionError, match="max_in_flight is"):
        open_tesseract("http://solver", max_in_flight=n)


def test_the_error_is_the_component_s_own(refused_url):
    handle = open_tesseract(refused_url, max_in_flight=1, sleep=lambda seconds: None)
    with pytest.raises(Unreachable, match="Nothing was started"):
        handle.request("apply", {"inputs": {}})
