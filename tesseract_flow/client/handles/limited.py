"""A bound on the calls to one component that are in flight at once, for licences and for servers that must not be
pressed.

The one idea: equal handles of a process share a number of places, and whoever has waited longest gets the next one.
Other processes have places of their own, unless all of them name a folder, where the places then are (`licences`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import weakref
from collections import deque
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.handles.licences import Licences
from tesseract_flow.client.handles.wrapper import AbstractWrapper, unlabelled
from tesseract_flow.errors import NotServed, OptionError


class Places:
    """A semaphore that is fair: first come, first served. `threading.Semaphore` lets newcomers overtake.

    A context: inside it a place is taken. `licences` has the places that other processes share, if there are such.
    """

    def __init__(self, n_places: int, licences: Licences | None = None):
        self.licences = licences
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
        max_in_flight: over all equal handles of this process, or over all handles that name the folder.
        folder: where the places are that several processes share, and several components if they name the same one.
    """

    tesseract: AbstractTesseract
    max_in_flight: int
    folder: Path | None = None

    def __post_init__(self) -> None:
        n = self.max_in_flight
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise OptionError(f"max_in_flight is {n!r}; expected a whole number of at least 1, or None for no limit.")
        if self.folder is not None:
            if "://" in (text := os.fspath(self.folder)) or not text:
                raise OptionError(f"limit_folder is {text!r}; expected a folder that all who share the limit see.")
            object.__setattr__(self, "folder", Path(text).expanduser().resolve())  # other processes start elsewhere

    def __repr__(self) -> str:
        folder = "" if self.folder is None else f", {str(self.folder)!r}"
        return f"LimitedTesseract({self.tesseract!r}, {self.max_in_flight}{folder})"

    @property
    def n_lanes(self) -> int:  # type: ignore[override]
        return min(self.tesseract.n_lanes, self.max_in_flight)

    def elsewhere(self) -> AbstractTesseract:
        if self.folder is None:
            raise NotServed(
                f"At most {self.max_in_flight} calls to Tesseract {self.name!r} may be under way (max_in_flight), "
                "which is counted within one process, so they cannot leave it.\n"
                "Name a folder where all processes count (limit_folder=), or run the flow's calls on threads, as it "
                "does unless told otherwise (task_runner=)."
            )
        return super().elsewhere()

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        places = self._places
        with places, contextlib.nullcontext() if places.licences is None else places.licences.taken():
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
    n, folder = handle.max_in_flight, handle.folder
    # A folder is for all who name it, whichever component they call.
    # As little does a label: the licences are the component's.
    key = (os.getpid(), unlabelled(handle.tesseract) if folder is None else folder, n)
    with _shared_lock:
        if (places := _shared.get(key)) is None:
            places = _shared[key] = Places(n, None if folder is None else Licences(folder, n))
        return places
