"""The result cache in memory: answers for this process, the least recently used of which make room for others."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import threading
import uuid
import weakref
from typing import Any

from tesseract_flow.client.base import Tree
from tesseract_flow.client.caches.base import (
    MISS,
    AbstractCache,
    Origin,
    RequestKey,
    Traffic,
    checked_max_bytes,
    size_of,
)
from tesseract_flow.exact import copied

DEFAULT_MAX_BYTES = 2**29

_log = logging.getLogger("tesseract_flow")


class MemoryCache(AbstractCache):
    """Answers in the memory of this process, the least recently used of which make room for others.

    A copy, and one that was pickled and comes back to the same process, is the cache itself.

    Args:
        max_bytes: what questions and answers may take together.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES):
        self.max_bytes = checked_max_bytes(max_bytes, "MemoryCache")
        self._traffic = Traffic()
        self._entries: collections.OrderedDict[RequestKey, tuple[Tree, int]] = collections.OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()
        self._token = uuid.uuid4().hex
        _memory_caches[self._token] = self

    def __repr__(self) -> str:
        return f"MemoryCache(max_bytes={self.max_bytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _memory_cache, (self._token, self.max_bytes)

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def get(self, key: RequestKey) -> Tree:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return MISS
            self._entries.move_to_end(key)
        return copied(found[0])  # outside of the lock: nobody writes into what is kept

    def put(self, key: RequestKey, answer: Tree, origin: Origin) -> None:
        n_bytes = key.n_bytes + size_of(answer)
        n_evicted = 0
        if n_bytes > self.max_bytes:
            self._traffic.count("skipped")
            _log.info("An answer of %d bytes is more than %r holds; it is not kept.", n_bytes, self)
            return
        with self._lock:
            self._n_bytes -= self._entries.pop(key, (None, 0))[1]
            while self._n_bytes + n_bytes > self.max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._n_bytes -= freed
                n_evicted += 1
            self._entries[key] = answer, n_bytes
            self._n_bytes += n_bytes
        self._traffic.count("evicted", n_evicted)

    def drop(self, key: RequestKey) -> None:
        with self._lock:
            self._n_bytes -= self._entries.pop(key, (None, 0))[1]

    def size(self) -> dict[str, int]:
        with self._lock:
            return {"entries": len(self._entries), "bytes": self._n_bytes}

    def clear(self) -> None:
        """Let go of everything. Counters go on."""
        with self._lock:
            self._entries.clear()
            self._n_bytes = 0


_memory_caches: weakref.WeakValueDictionary[str, MemoryCache] = weakref.WeakValueDictionary()
_memory_caches_lock = threading.Lock()


def _memory_cache(token: str, max_bytes: int) -> MemoryCache:
    """The cache that was pickled, or in another process an empty one, the same for all that come from it."""
    with _memory_caches_lock:
        cache = _memory_caches.get(token)
        if cache is None:
            cache = MemoryCache(max_bytes)
            with contextlib.suppress(KeyError):
                del _memory_caches[cache._token]
            cache._token = token
            _memory_caches[token] = cache
        return cache


@functools.cache
def shared_cache() -> MemoryCache:
    """The one that `cache=True` means, in this process."""
    return MemoryCache()
