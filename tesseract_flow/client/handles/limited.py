"""A bound on the calls to one component that are in flight at once, for licences and for servers that must not be
pressed.

The one idea: equal handles of a process share a number of places, and whoever has waited longest gets the next one.
Other processes have places of their own.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.errors import NotServed, OptionError


class Places:
    """A semaphore that is fair: first come, first served. `threading.Semaphore` lets newcomers overtake.

    A context: inside it a place is taken.
    """

    def __init__(self, n_places: int):
        self._n_free = n_places
        self._queue: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @property
    def n_waiting(self) -> int:
        return len(self._queue)

    def __enter__(self) -> None:
        with self._lock:
            if self._n_free > 0:  # then nobody waits
                self._n_free -= 1
                return
            turn = threading.Event()
            self._queue.append(turn)
        try:
            turn.wait()
        except BaseException:  # Ctrl-C
            with self._lock:
                if turn.is_set():
                    self._pass_on()
                else:
                    self._queue.remove(turn)
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._pass_on()

    def _pass_on(self) -> None:
        if self._queue:
            self._queue.popleft().set()
        else:
            self._n_free += 1


@dataclasses.dataclass(frozen=True)
class LimitedTesseract(AbstractWrapper):
    """A handle that has at most `max_in_flight` requests under way; further ones wait their turn.

    Attributes:
        tesseract: the handle to the component itself.
        max_in_flight: over all equal handles of this process.
    """

    tesseract: AbstractTesseract
    max_in_flight: int

    def __post_init__(self) -> None:
        n = self.max_in_flight
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise OptionError(f"max_in_flight is {n!r}; expected a whole number of at least 1, or None for no limit.")

    def __repr__(self) -> str:
        return f"LimitedTesseract({self.tesseract!r}, {self.max_in_flight})"

    @property
    def n_lanes(self) -> int:  # type: ignore[override]
        return min(self.tesseract.n_lanes, self.max_in_flight)

    def elsewhere(self) -> AbstractTesseract:
        raise NotServed(
            f"At most {self.max_in_flight} calls to Tesseract {self.name!r} may be under way (max_in_flight), which is "
            "counted within one process, so they cannot leave it.\n"
            "Run the flow's calls on threads, as it does unless told otherwise (task_runner=)."
        )

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        with self._places:
            return self.tesseract.request(endpoint, payload, run_id=run_id)

    @property
    def _places(self) -> Places:
        pid, places = self.__dict__.get("_own_places", (None, None))
        if pid != os.getpid() or places is None:  # a forked child would wait for calls of its parent
            places = _places_of(self)
            object.__setattr__(self, "_own_places", (os.getpid(), places))
        return places


_shared: weakref.WeakValueDictionary[Hashable, Places] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def _places_of(handle: LimitedTesseract) -> Places:
    with _shared_lock:
        return _shared.setdefault((os.getpid(), handle.tesseract, handle.max_in_flight), Places(handle.max_in_flight))
