"""What components said about the form of their outputs, once per structure of their inputs.

The one idea: a memory hangs weakly on what a handle is anchored in (a server's connections, a component in this
process), so that it lives as long as somebody uses the component, and keeps nothing alive.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesseract_flow.client import AbstractTesseract

_REMEMBERED = 1024  # structures per component; an entry is a few kilobytes at most
# Seconds. A trace that fails on a wrong shape asks for no answer that could contradict it, and the next one should not
# fail on it for ever; tracing one program, which may ask for the same shapes many times, takes less.
_CREDIT = 30.0
_lock = threading.Lock()


class _Memory:
    """What one component said."""

    def __init__(self) -> None:
        self.entries: OrderedDict[Any, Any] = OrderedDict()
        self.unconfirmed: dict[Any, float] = {}  # when it was said

    def drop(self, key: Any) -> None:
        self.entries.pop(key, None)
        self.unconfirmed.pop(key, None)

    def is_stale(self, key: Any) -> bool:
        said = self.unconfirmed.get(key)
        return said is not None and _now() - said > _CREDIT


_memories: weakref.WeakKeyDictionary[Any, _Memory] = weakref.WeakKeyDictionary()


def recall(handle: AbstractTesseract, key: Any) -> Any:
    """What was remembered, or None; also where it was only said, and in `_CREDIT` seconds no answer agreed with it."""
    with _lock:
        memory = _memories.get(handle.anchor)
        if memory is None or key not in memory.entries:
            return None
        if memory.is_stale(key):
            memory.drop(key)
            return None
        memory.entries.move_to_end(key)
        return memory.entries[key]


def remember(handle: AbstractTesseract, key: Any, value: Any, *, confirmed: bool = False) -> None:
    """Keep `value`, which must not refer to the handle.

    Args:
        confirmed: whether it was seen in an answer, and not only said beforehand.
    """
    with _lock:
        memory = _memories.setdefault(handle.anchor, _Memory())
        memory.entries[key] = value
        memory.unconfirmed.pop(key, None)
        if not confirmed:
            memory.unconfirmed[key] = _now()
        while len(memory.entries) > _REMEMBERED:
            memory.drop(next(iter(memory.entries)))


def confirm(handle: AbstractTesseract, value: Any) -> None:
    """An answer has agreed with what is remembered as `value`."""
    memory = _memories.get(handle.anchor)
    if memory is None or not memory.unconfirmed:  # as nearly always
        return
    with _lock:
        for key in list(memory.unconfirmed):
            if memory.entries[key] == value:
                del memory.unconfirmed[key]
            elif memory.is_stale(key):
                memory.drop(key)


def forget(handle: AbstractTesseract) -> None:
    """Drop all that was remembered of a component, because it contradicts itself."""
    with _lock:
        _memories.pop(handle.anchor, None)


def _now() -> float:
    return time.monotonic()
