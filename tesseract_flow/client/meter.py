"""Counting requests, so that "no solver runs twice" is a number and not a hope.

Every handle reports each request it sends; every open `count_requests()` block sees it, whatever thread it came from
(host callbacks inside jitted code run on threads of their own, so context variables would miss them).
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

_lock = threading.Lock()
_open: list[RequestCounts] = []


class RequestCounts(Counter[str]):
    """Requests by `"tesseract.endpoint"`, such as `{"fem.apply": 12}`."""

    @property
    def n_total(self) -> int:
        return sum(n for _, n in self._copied())

    def n_of(self, endpoint: str) -> int:
        """Requests to one endpoint, over all Tesseracts."""
        return sum(n for key, n in self._copied() if key.rpartition(".")[2] == endpoint)

    def _copied(self) -> list[tuple[str, int]]:
        with _lock:  # other threads may be counting, and to copy a dictionary is not one step
            return list(self.items())


@contextlib.contextmanager
def count_requests() -> Iterator[RequestCounts]:
    """Count the requests that this process sends to Tesseracts while the block is open.

    Attempts count, not successes: a request that fails and is repeated counts twice.
    """
    counts = RequestCounts()
    with _lock:
        _open.append(counts)
    try:
        yield counts
    finally:
        with _lock:
            # By identity: two blocks with equal counts are equal as mappings.
            _open[:] = [other for other in _open if other is not counts]


def record_request(tesseract: str, endpoint: str) -> None:
    """Report one request to every open `count_requests()` block."""
    with _lock:
        for counts in _open:
            counts[f"{tesseract}.{endpoint}"] += 1
