"""A bounded store of what forward passes keep for their pullbacks.

Here: least recently used goes first, bounds on entries and on bytes, counters, one lock. Not here: keys (`exact`) and
residuals themselves (`jax_recipe`). The one idea: a lookup is answered by equality; hashes only shorten the search.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Hashable
from typing import Any

_log = logging.getLogger("tesseract_flow")


class ResidualCache:
    """Residuals by their whole input, at most `max_entries` of them and at most `max_bytes` altogether.

    It may be used from several threads. What it holds lives in this process: a server with several workers has one
    for each.

    Attributes:
        max_entries, max_bytes: the bounds.
        hits, misses: lookups that found something, and those that did not.
        evictions: entries that made room for others.
        oversized: entries that were not kept, because one alone is beyond `max_bytes`.
        bytes: what the entries take now, inputs included.
    """

    def __init__(self, max_entries: int = 8, max_bytes: int = 2**30):
        if max_entries < 1 or max_bytes < 1:
            raise ValueError(
                f"ResidualCache(max_entries={max_entries}, max_bytes={max_bytes}): expected at least 1 of each. "
                "To keep no residuals, use residual_cache=False."
            )
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.oversized = 0
        self.bytes = 0
        # Each with its own key, which is found again by identity where an equal one takes a comparison of arrays.
        self._entries: collections.OrderedDict[Hashable, tuple[Hashable, Any, int]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Any | None:
        """What is kept for the key, which stays and is now the most recently used; None if there is nothing."""
        with self._lock:
            # A pullback mostly follows its own `apply`, and to compare takes less than to make a digest of arrays.
            last = next(reversed(self._entries), None)
            found = self._entries.get(last if last == key else key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            kept_key, value, _ = found
            self._entries.move_to_end(kept_key)
            return value

    def put(self, key: Hashable, value: Any, n_bytes: int) -> None:
        """Keep a value, in place of an older one of the same key, and let go of the least recently used for it."""
        with self._lock:
            self._drop(key)
            if n_bytes > self.max_bytes:
                self.oversized += 1
                if self.oversized == 1:
                    _log.warning(
                        "The residuals of one apply take %d bytes, more than max_bytes=%d: they are not kept, and "
                        "each pullback solves the forward problem again.",
                        n_bytes,
                        self.max_bytes,
                    )
                return
            self._make_room(n_bytes)
            self._entries[key] = key, value, n_bytes
            self.bytes += n_bytes

    def make_room(self, key: Hashable) -> None:
        """Let go of what a `put` of this key would push out, as far as that is known before the value is.

        To be called before residuals are computed, so that no more than `max_entries` of them exist at a time.
        """
        with self._lock:
            self._drop(key)
            self._make_room(0)

    def _drop(self, key: Hashable) -> None:
        self.bytes -= self._entries.pop(key, (None, None, 0))[2]

    def _make_room(self, n_bytes: int) -> None:
        while self._entries and (len(self._entries) >= self.max_entries or self.bytes + n_bytes > self.max_bytes):
            _, (_, _, freed) = self._entries.popitem(last=False)
            self.bytes -= freed
            self.evictions += 1

    def clear(self) -> None:
        """Let go of everything. Counters go on."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def stats(self) -> dict[str, int]:
        """All counters at one moment."""
        with self._lock:
            return {
                "hits": self.hits,
                "misses": self.misses,
                "evictions": self.evictions,
                "oversized": self.oversized,
                "entries": len(self._entries),
                "bytes": self.bytes,
            }
