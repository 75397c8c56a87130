"""Waiting for other threads: no wait is so long that a signal which came just before it is overlooked."""

from __future__ import annotations

import queue
from typing import Any

from tesseract_flow.execute.waiting import next_of


class Slow:
    """A queue that has something at the third look."""

    def __init__(self) -> None:
        self.looks: list[float | None] = []

    def get(self, *, timeout: float | None = None) -> Any:
        self.looks.append(timeout)
        if len(self.looks) < 3:
            raise queue.Empty
        return "here"


def test_each_look_ends_and_the_last_one_finds_it() -> None:
    events: Any = Slow()
    assert next_of(events) == "here"
    assert len(events.looks) == 3 and all(look is not None and look <= 1.0 for look in events.looks)


def test_what_is_there_is_had_at_once() -> None:
    events: queue.SimpleQueue[int] = queue.SimpleQueue()
    events.put(1)
    events.put(2)
    assert [next_of(events), next_of(events)] == [1, 2]
