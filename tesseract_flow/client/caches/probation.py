"""Answers on probation: those that were kept, or found, while somebody may still find out that they are no good.

A cache cannot know that a finite answer is one that a solver gave up on, or that NaN in it is not meant. Whoever made
something of the answers can, and then lets go of all of them. Like counting requests, this hears of every call in the
process, whatever thread it came from; to let go of an answer too many costs a call, and nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tesseract_flow.client.caches.base import AbstractCache, RequestKey

_lock = threading.Lock()
_open: list[Probation] = []


class Probation:
    """Answers that caches gave or took while `on_probation()` was open."""

    def __init__(self) -> None:
        self._answers: list[tuple[AbstractCache, RequestKey]] = []

    def note(self, cache: AbstractCache, key: RequestKey) -> None:
        self._answers.append((cache, key))

    def forget(self) -> None:
        """Let go of all of them."""
        with _lock:
            answers, self._answers = self._answers, []
        for cache, key in answers:
            cache.drop(key)


@contextlib.contextmanager
def on_probation() -> Iterator[Probation]:
    """While the block is open, answers are noted, so that they can be let go of again."""
    probation = Probation()
    with _lock:
        _open.append(probation)
    try:
        yield probation
    finally:
        with _lock:
            _open.remove(probation)


def note_answer(cache: AbstractCache, key: RequestKey) -> None:
    """Tell every open `on_probation()` block that a cache gave or took an answer."""
    with _lock:
        if _open:
            key = key.kept()  # the caller may write into the arrays of this one
        for probation in _open:
            probation.note(cache, key)
