"""How long calls took lately: what a plan needs in order to tell how long it will take."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

_N_REMEMBERED = 1024
_WEIGHT = 0.3  # of the newest: the first calls of a component are often its slowest


class Durations:
    """A moving average of seconds per key. Thread-safe and bounded."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[Hashable, float] = OrderedDict()
        self._lock = threading.Lock()

    def record(self, key: Hashable, seconds: float) -> None:
        with self._lock:
            before = self._seconds.get(key, seconds)
            self._seconds[key] = before + _WEIGHT * (seconds - before)
            self._seconds.move_to_end(key)
            if len(self._seconds) > _N_REMEMBERED:
                self._seconds.popitem(last=False)

    def of(self, key: Hashable) -> float | None:
        with self._lock:
            return self._seconds.get(key)


durations = Durations()  # of this process
