"""Several requests that belong together, in flight at once: the probes of a derived call, the elements of a batch.

Here: a pool of threads with a window, run ids, which of them an error belongs to. Not here: what is asked. The one
idea: answers are handed out in order while later requests are under way, and no more of them wait than the window has
places, so a Jacobian of thousands of columns never holds thousands of answers.
"""

from __future__ import annotations

import contextvars
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures  # loads its pools with the first of them
from typing import Any, TypeVar

P = TypeVar("P")
T = TypeVar("T")


class AtOnce:
    """A context in which `map` makes requests, at most `n_in_flight` at once.

    The first failure keeps the others from starting; what runs is waited for. An error says in a note which request it
    was, and is otherwise the one that was raised.

    Args:
        describe: (position, number of items, item) -> what the note calls it.

    Attributes:
        n_made: requests so far; those that `map` was given.
    """

    def __init__(
        self,
        n_in_flight: int,
        run_id: str | None = None,
        describe: Callable[[int, int, Any], str] = lambda k, n, item: f"probe {k + 1} of {n} ({item})",
    ):
        self.n_in_flight = n_in_flight
        self._describe = describe
        self.n_made = 0
        self._run_id = run_id
        self._current = threading.local()
        self._pool: futures.ThreadPoolExecutor | None = None

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def run_id(self) -> str | None:
        """That of the request which this thread is making: the call's own with a number."""
        number = getattr(self._current, "number", None)
        return self._run_id if self._run_id is None or number is None else f"{self._run_id}-{number:04d}"

    def map(self, fn: Callable[[P], T], items: Sequence[P]) -> Iterator[T]:
        """`fn` of each item, in their order."""
        n, n_before = len(items), self.n_made
        self.n_made += n

        def run(k: int) -> T:
            self._current.number = n_before + k + 1
            try:
                return fn(items[k])
            except Exception as error:
                error.add_note(f"This was {self._describe(k, n, items[k])}.")
                raise
            finally:
                self._current.number = None

        if min(n, self.n_in_flight) <= 1:
            yield from (run(k) for k in range(n))
            return
        if self._pool is None:
            self._pool = futures.ThreadPoolExecutor(self.n_in_flight, thread_name_prefix="tesseract-at-once")
        window: dict[int, futures.Future[T]] = {}
        remaining = iter(range(n))
        for k in range(n):
            for later in itertools.islice(remaining, 2 * self.n_in_flight - len(window)):
                # In a copy, as a context cannot be entered twice; it knows who repeats what fails.
                window[later] = self._pool.submit(contextvars.copy_context().run, run, later)
            _wait_for(k, window)
            yield window.pop(k).result()


def _wait_for(k: int, window: Mapping[int, futures.Future[Any]]) -> None:
    """Until answer k is there, or any request has failed, whose error is then raised."""
    pending = set(window.values())
    while pending:
        done, pending = futures.wait(pending, return_when=futures.FIRST_COMPLETED)
        for future in done:
            future.result()
        if window[k].done():
            return
