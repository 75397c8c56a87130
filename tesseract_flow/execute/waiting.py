"""Waiting for what other threads put, so that an interrupt is not overlooked."""

from __future__ import annotations

import queue
from typing import TypeVar

T = TypeVar("T")

_LOOK = 0.5  # seconds


def next_of(events: queue.SimpleQueue[T]) -> T:
    """The next thing in a queue, whenever it comes.

    A signal between Python's last look for one and the wait interrupts nothing, and is seen when the wait is over: so
    no wait is long.
    """
    while True:
        try:
            return events.get(timeout=_LOOK)
        except queue.Empty:
            continue
