"""The probes of one derived call, in flight at once.

Here: a pool of threads with a window, run ids, which probe an error belongs to. Not here: what is asked (`derived`).
The one idea: answers are handed out in order while later probes are under way, and no more of them wait than the
window has places, so a Jacobian of thousands of columns never holds thousands of answers.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

P = TypeVar("P")
T = TypeVar("T")


class Flight:
    """A context in which `map` makes probes, at most `n_in_flight` at once.

    The first failure keeps the others from starting; what runs is waited for. An error says in a note which probe it
    was, and is otherwise the one that was raised.

    Attributes:
        n_made: probes so far; those that `map` was given.
    """

    def __init__(self, n_in_flight: int, run_id: str | None = None):
        self.n_in_flight = n_in_flight
        self.n_made = 0
        self._run_id = run_id
        self._current = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def run_id(self) -> str | None:
        """That of the probe which this thread is making: the call's own with a number."""
        number = getattr(self._current, "number", None)
        return self._run_id if self._run_id is None or number is None else f"{self._run_id}-{number:04d}"

    def map(self, fn: Callable[[P], T], probes: Sequence[P]) -> Iterator[T]:
        """`fn` of each probe, in their order."""
        n, n_before = len(probes), self.n_made
        self.n_made += n

        def run(k: int) -> T:
            self._current.number = n_before + k + 1
            try:
                return fn(probes[k])
            except Exception as error:
                error.add_note(f"This was probe {k + 1} of {n} ({probes[k]}).")
                raise
            finally:
                self._current.number = None

        if min(n, self.n_in_flight) <= 1:
            yield from (run(k) for k in range(n))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.n_in_flight, thread_name_prefix="tesseract-probe")
        window: dict[int, Future[T]] = {}
        remaining = iter(range(n))
        for k in range(n):
            for later in itertools.islice(remaining, 2 * self.n_in_flight - len(window)):
                window[later] = self._pool.submit(run, later)
            _wait_for(k, window)
            yield window.pop(k).result()


def _wait_for(k: int, window: Mapping[int, Future[Any]]) -> None:
    """Until probe k is there, or any probe has failed, which is then raised."""
    pending = set(window.values())
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        if window[k].done():
            return
