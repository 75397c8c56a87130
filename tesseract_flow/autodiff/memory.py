"""What components said about the form of their outputs, once per structure of their inputs.

The one idea: a memory hangs weakly on what a handle is anchored in (a server's connections, a component in this
process), so that it lives as long as somebody uses the component, and keeps nothing alive.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesseract_flow.client import AbstractTesseract

_REMEMBERED = 1024  # structures per component; an entry is a few kilobytes at most
_memories: weakref.WeakKeyDictionary[Any, OrderedDict[Any, Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def recall(handle: AbstractTesseract, key: Any) -> Any:
    """What was remembered, or None."""
    with _lock:
        entries = _memories.get(handle.anchor)
        if entries is None or key not in entries:
            return None
        entries.move_to_end(key)
        return entries[key]


def remember(handle: AbstractTesseract, key: Any, value: Any) -> None:
    """Keep `value`, which must not refer to the handle."""
    with _lock:
        entries = _memories.setdefault(handle.anchor, OrderedDict())
        entries[key] = value
        while len(entries) > _REMEMBERED:
            entries.popitem(last=False)


def forget(handle: AbstractTesseract) -> None:
    """Drop all that was remembered of a component, because it contradicts itself."""
    with _lock:
        _memories.pop(handle.anchor, None)
