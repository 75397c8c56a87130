"""How many requests a check may send: said beforehand, and kept."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

from tesseract_flow.client import own_requests


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

    @contextlib.contextmanager
    def spending(self, price: Price, n_runs: int = 1) -> Iterator[None]:
        """Inside, `n_runs` runs of what has this price are made. Taken note of is what they really cost.

        Raises:
            Spent: there is no room for what they cost as far as that is known; nothing is sent then.
        """
        expected = n_runs * price.of_a_run
        self.spend(expected)
        sent = 0
        try:
            with own_requests() as requests:
                try:
                    yield
                finally:
                    sent = requests.n_solves
        finally:
            with self._lock:
                self.spent += sent - expected
            price.of_a_run = max(price.of_a_run, math.ceil(sent / n_runs))


class Price:
    """Requests of a run: what can be read off a plan, and more once one was seen, as only a run knows how often its
    loops go round and what is made of differences."""

    def __init__(self, of_a_run: int):
        self.of_a_run = of_a_run
