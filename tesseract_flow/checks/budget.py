"""How many requests a check may send: said beforehand, and kept."""

from __future__ import annotations

import threading


class Spent(Exception):
    """The next questions would cost more than is left."""


class Budget:
    """Requests that are left. Thread-safe."""

    def __init__(self, most: int):
        self.most = most
        self.spent = 0
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        return self.most - self.spent

    def spend(self, n: int) -> None:
        """Take note of `n` requests that are about to be sent.

        Raises:
            Spent: there is no room for them; nothing is sent then.
        """
        with self._lock:
            if n > self.left:
                raise Spent(f"The budget of {self.most} requests is spent (max_requests=...).")
            self.spent += n
