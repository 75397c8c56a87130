"""The store keeps its bounds, forgets the least recently used, and counts what it does."""

from __future__ import annotations

import logging
import threading
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.recipes import ResidualCache

OPERATIONS = st.lists(
    st.one_of(
        *[st.tuples(st.just("get"), st.integers(0, 5), st.just(0))] * 3,
        *[st.tuples(st.just("put"), st.integers(0, 5), st.integers(0, 6))] * 3,
        st.tuples(st.just("make_room"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("clear"), st.just(0), st.just(0)),
    ),
    min_size=20,
    max_size=60,
)


@given(OPERATIONS, st.integers(1, 4), st.integers(1, 20))
def test_store_agrees_with_a_list(operations: list[tuple[str, int, int]], max_entries: int, max_bytes: int) -> None:
    cache = ResidualCache(max_entries, max_bytes)
    kept: list[tuple[int, object, int]] = []  # least recently used first
    hits = misses = oversized = evictions = 0
    for operation, key, size in operations:
        same = [entry for entry in kept if entry[0] == key]
        others = [entry for entry in kept if entry[0] != key]
        if operation == "get":
            found = cache.get(key)
            assert found is (same[0][1] if same else None)
            hits, misses = hits + len(same), misses + (not same)
            kept = others + same
        elif operation == "clear":
            cache.clear()
            kept = []
        else:
            value = object()
            kept = others
            if operation == "put" and size > max_bytes:
                oversized += 1
            else:
                while kept and (len(kept) >= max_entries or sum(entry[2] for entry in kept) + size > max_bytes):
                    kept, evictions = kept[1:], evictions + 1
                if operation == "put":
                    kept = [*kept, (key, value, size)]
            if operation == "put":
                cache.put(key, value, size)
            else:
                cache.make_room(key)
        n_bytes = sum(entry[2] for entry in kept)
        assert n_bytes <= max_bytes
        assert cache.stats() == {
            "hits": hits,
            "misses": misses,
            "evictions": evictions,
            "oversized": oversized,
            "entries": len(kept),
            "bytes": n_bytes,
        }
        attributes = cache.hits, cache.misses, cache.evictions, cache.oversized, len(cache), cache.bytes
        assert attributes == tuple(cache.stats().values())


def test_least_recently_used_goes_first() -> None:
    cache = ResidualCache(max_entries=2)
    cache.put("a", 1, 1)
    cache.put("b", 2, 1)
    assert cache.get("a") == 1
    cache.put("c", 3, 1)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_what_is_too_large_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = ResidualCache(max_bytes=10)
    with caplog.at_level(logging.WARNING, logger="tesseract_flow"):
        cache.put("a", 1, 11)
        cache.put("a", 1, 12)
    (record,) = caplog.records
    assert "11 bytes, more than max_bytes=10" in record.getMessage()
    assert cache.stats()["oversized"] == 2


@pytest.mark.parametrize("bounds", [{"max_entries": 0}, {"max_bytes": 0}])
def test_bounds_without_room_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="use residual_cache=False"):
        ResidualCache(**bounds)


def test_threads_share_it() -> None:
    cache = ResidualCache(max_entries=3, max_bytes=50)
    barrier = threading.Barrier(8)
    wrong: list[int] = []

    def work(seed: int) -> None:
        barrier.wait()
        for i in range(300):
            key = (i * (seed + 1)) % 7
            found = cache.get(key)
            if found is None:
                cache.make_room(key)
                cache.put(key, str(key), 10 + key)
            elif found != str(key):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    assert wrong == []
    assert stats["hits"] + stats["misses"] == 8 * 300
    assert stats["entries"] <= 3
    assert stats["bytes"] <= 50
    left = [key for key in range(7) if cache.get(key) is not None]
    assert stats["bytes"] == sum(10 + key for key in left)


def test_the_most_recent_is_found_without_a_hash() -> None:
    """A pullback follows its own `apply`, and digests of arrays take longer than comparisons."""

    class Key(str):
        __slots__ = ()
        hashed: ClassVar[list[str]] = []

        def __hash__(self) -> int:
            self.hashed.append(str(self))
            return super().__hash__()

        def __eq__(self, other: object) -> bool:
            return str(self) == str(other)

    cache = ResidualCache()
    for name in ("first", "second"):
        cache.put(name, name.upper(), 1)
    assert cache.get(Key("second")) == "SECOND"
    assert Key.hashed == []
    assert cache.get(Key("first")) == "FIRST"
    assert set(Key.hashed) == {"first"}
