"""Equal calls meet in flight, failures hurt nobody else, and memory keeps to its bound."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesseract_flow.client import (
    AbstractCache,
    AbstractTesseract,
    DirectoryCache,
    MemoryCache,
    count_requests,
)
from tesseract_flow.client.caches.base import Origin, RequestKey
from tesseract_flow.errors import CallTimeout, ComponentFailed, ConnectionLost, OptionError
from tesseract_flow.exact import InputKey
from tests.client.keeping import Gate, Numbering, kept, square, wait_until_merging
from tests.helpers import Watched

X = {"x": np.array([1.0, 2.0, 3.0])}
N = 6


@pytest.fixture(params=["memory", "directory"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AbstractCache:
    return MemoryCache() if request.param == "memory" else DirectoryCache(tmp_path)


class Gated(Watched):
    """A handle that asks a gate first, whose errors reach the caller as they are."""

    def __init__(self, tesseract: AbstractTesseract, gate: Gate):
        super().__init__(tesseract)
        object.__setattr__(self, "gate", gate)

    def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
        self.gate(endpoint, payload["inputs"])  # type: ignore[attr-defined]
        return super().request(endpoint, payload, run_id=run_id)


def together(cache: AbstractCache, gate: Gate, ask: Callable[[], Any], n: int = N) -> list[Future[Any]]:
    """`n` calls at once: the first one has arrived, and all others wait for it, before the gate is opened."""
    with ThreadPoolExecutor(n) as pool:
        futures = [pool.submit(ask)]
        assert gate.arrived.wait(60)
        futures += [pool.submit(ask) for _ in range(n - 1)]
        wait_until_merging(cache, n - 1)
        gate.opened.set()
    return futures


# In flight


def test_equal_calls_in_flight_are_one_request(cache: AbstractCache) -> None:
    gate = Gate()
    handle = kept(Gated(Numbering(lambda n: {"y": X["x"] ** 2}), gate), cache)
    with count_requests() as counts:
        futures = together(cache, gate, lambda: handle.apply({"x": X["x"].copy()}))
    assert counts.n_total == gate.n_arrived == 1
    answers = [future.result() for future in futures]
    for answer in answers:  # each has its own
        np.testing.assert_array_equal(answer["y"], X["x"] ** 2)
        answer["y"][...] = 0.0
    np.testing.assert_array_equal(handle.apply(X)["y"], X["x"] ** 2)
    stats = cache.stats()
    assert (stats["misses"], stats["merged"], stats["hits"]) == (1, N - 1, 1)


def test_other_calls_do_not_wait(cache: AbstractCache) -> None:
    """No lock is held during a request: while one is held up, others come and go, also to the same cache."""
    barrier = threading.Barrier(4, timeout=60.0)
    handle = kept(square(before=lambda endpoint, inputs: barrier.wait()), cache)
    with ThreadPoolExecutor(4) as pool:  # each waits until all four are there
        futures = [pool.submit(handle.apply, {"x": np.full(3, float(i))}) for i in range(4)]
    assert [float(future.result()["y"][0]) for future in futures] == [0.0, 1.0, 4.0, 9.0]
    assert cache.stats()["merged"] == 0


def test_component_that_fails_fails_for_all_who_wait(cache: AbstractCache) -> None:
    """It would fail again, perhaps after hours. Each gets an error of its own, to raise and to add notes to."""
    error = ComponentFailed("diverged", tesseract="square", endpoint="apply")
    error.add_note("at step 7")
    gate = Gate(error)
    futures = together(cache, gate, lambda: kept(Gated(WATCHED, gate), cache).apply(X))
    assert gate.n_arrived == 1
    errors = [future.exception() for future in futures]
    assert errors[0] is error
    assert len(set(map(id, errors))) == N
    for met in errors:
        assert isinstance(met, ComponentFailed)
        assert (str(met), met.tesseract, met.endpoint) == ("diverged", "square", "apply")
        assert met.__notes__ == ["at step 7"]
        met.add_note("seen")
    # And nothing is left of it.
    gate.errors.clear()
    np.testing.assert_array_equal(kept(Gated(WATCHED, gate), cache).apply(X)["y"], X["x"] ** 2)


WATCHED = square()


@pytest.mark.parametrize("error", [ConnectionLost("reset by peer"), RuntimeError("odd"), KeyboardInterrupt()], ids=repr)
def test_trouble_on_the_way_stays_with_who_met_it(cache: AbstractCache, error: BaseException) -> None:
    gate = Gate(error)
    handle = kept(Gated(square(), gate), cache)
    futures = together(cache, gate, lambda: handle.apply(X))
    assert gate.n_arrived == 2  # one of those who waited asks again, and the rest wait for that one
    assert futures[0].exception() is error
    for future in futures[1:]:
        np.testing.assert_array_equal(future.result()["y"], X["x"] ** 2)
    stats = cache.stats()
    assert (stats["misses"], stats["merged"] + stats["hits"]) == (2, N - 2)


def test_each_attempt_that_is_lost_is_followed_by_another(cache: AbstractCache) -> None:
    gate = Gate(*(ConnectionLost(f"attempt {i}") for i in range(N)))
    handle = kept(Gated(square(), gate), cache)
    futures = together(cache, gate, lambda: handle.apply(X))
    assert sorted(str(future.exception()) for future in futures) == [f"attempt {i}" for i in range(N)]
    assert gate.n_arrived == N
    np.testing.assert_array_equal(handle.apply(X)["y"], X["x"] ** 2)


def test_time_out_is_not_tried_again_by_those_who_waited(cache: AbstractCache) -> None:
    gate = Gate(CallTimeout("no answer"))
    handle = kept(Gated(square(), gate), cache)
    futures = together(cache, gate, lambda: handle.apply(X))
    assert gate.n_arrived == 1
    assert all(isinstance(future.exception(), CallTimeout) for future in futures)


def test_answer_that_cannot_be_kept_is_asked_for_by_each(cache: AbstractCache) -> None:
    gate = Gate()
    handle = kept(Gated(Numbering(lambda n: {"n": n, "odd": {1}}), gate), cache)
    futures = together(cache, gate, lambda: handle.apply(X), 3)
    assert sorted(future.result()["n"] for future in futures) == [0, 1, 2]


def test_no_second_request_for_an_answer_that_has_just_landed() -> None:
    """Between the look into the cache and the boarding an equal call comes in."""
    handle_asked = []

    class Late(MemoryCache):
        """Lets another call through after the first look."""

        def get(self, key: RequestKey) -> Any:
            found = super().get(key)
            if not handle_asked:
                handle_asked.append(1)
                handle.apply(X)
            return found

    cache = Late()
    handle = kept(Numbering(), cache)
    assert handle.apply(X)["n"] == 0
    assert cache.stats()["misses"] == 1


def test_many_threads_and_few_questions(cache: AbstractCache) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        handle = kept(Numbering(), cache)
        rng = np.random.default_rng(0)
        order = rng.integers(0, 5, 200).tolist()
        with ThreadPoolExecutor(8) as pool:
            numbers = list(pool.map(lambda i: (i, handle.apply({"i": i})["n"]), order))
    finally:
        sys.setswitchinterval(interval)
    assert len(set(numbers)) == len(set(order)) == 5
    stats = cache.stats()
    assert stats["misses"] == stats["entries"] == 5
    assert stats["hits"] + stats["merged"] == 195


# Memory


def entry_bytes() -> int:
    cache = MemoryCache()
    kept(Numbering(lambda n: {"y": np.zeros(1000)}), cache).apply({"x": np.zeros(1000), "i": 0})
    return cache.stats()["bytes"]


def test_least_recently_used_goes_first() -> None:
    n_bytes = entry_bytes()
    assert 16_000 < n_bytes < 20_000
    cache = MemoryCache(max_bytes=3 * n_bytes)
    handle = kept(Numbering(lambda n: {"n": n, "y": np.zeros(950)}), cache)

    def ask(i: int) -> int:
        return handle.apply({"x": np.zeros(1000), "i": i})["n"]

    assert [ask(i) for i in (0, 1, 2, 0, 3)] == [0, 1, 2, 0, 3]  # 1 goes for 3
    assert [ask(i) for i in (0, 2, 3)] == [0, 2, 3]
    assert ask(1) == 4
    stats = cache.stats()
    assert (stats["evicted"], stats["entries"]) == (2, 3)
    assert stats["bytes"] <= cache.max_bytes
    cache.clear()
    assert cache.stats()["entries"] == cache.stats()["bytes"] == 0
    assert ask(1) == 5


def test_answer_beyond_the_bound_is_given_and_not_kept(cache: AbstractCache) -> None:
    small = MemoryCache(1000) if isinstance(cache, MemoryCache) else DirectoryCache(cache.path, 1000)  # type: ignore
    handle = kept(Numbering(lambda n: {"n": n, "y": np.zeros(1000)}), small)
    assert [handle.apply(X)["n"] for _ in range(2)] == [0, 1]
    stats = small.stats()
    assert (stats["skipped"], stats["entries"], stats["bytes"]) == (2, 0, 0)


def test_replacing_an_entry_counts_it_once() -> None:
    cache = MemoryCache()
    key = RequestKey("handle", InputKey({"x": np.zeros(10)}))
    cache.put(key, {"y": np.zeros(10)}, Origin())
    n_bytes = cache.stats()["bytes"]
    cache.put(key, {"y": np.zeros(10)}, Origin())
    assert cache.stats()["bytes"] == n_bytes


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None])
@pytest.mark.parametrize("kind", [MemoryCache, lambda max_bytes: DirectoryCache("somewhere", max_bytes)])
def test_bound_that_makes_no_sense(kind: Any, value: Any) -> None:
    with pytest.raises(OptionError, match=r"max_bytes is .* expected a whole number of at least 1"):
        kind(max_bytes=value)
