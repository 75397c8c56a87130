"""What a result cache is: keys of requests, the meeting of equal calls in flight, counters.

Here: `AbstractCache`. Not here: the kinds of cache (`memory`, `directory`), the handle that asks a cache before its
component (`handles.cached`). The one idea: a key is the whole question, a digest only shortens the search, and equality
decides. Endpoints are pure functions of their inputs, so an answer never goes out of date; a failure is no answer.
"""

from __future__ import annotations

import abc
import collections
import copy
import dataclasses
import enum
import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal

import numpy as np

from tesseract_flow.client.base import AbstractTesseract, Tree
from tesseract_flow.client.caches.components import Component
from tesseract_flow.client.retry import is_transient
from tesseract_flow.errors import CallError, OptionError
from tesseract_flow.exact import InputKey, copied, pack

Mode = Literal["use", "record", "replay"]

_log = logging.getLogger("tesseract_flow")
MISS = object()
_PER_LEAF = 100  # bytes that a number, a text or an array's description takes in memory, roughly


@dataclasses.dataclass(frozen=True)
class RequestKey:
    """One call, to the last bit.

    Attributes:
        handle: who is asked. A cache that outlives the process goes by the question alone.
        question: name, version, schema and build of the component, the endpoint, and the whole payload.
    """

    handle: Hashable
    question: InputKey

    @functools.cached_property
    def digest(self) -> bytes:
        """Of the question, for a cache outside of this process.

        Raises:
            TypeError: something in it has no bytes of its own.
        """
        # SHA-256, because processors have instructions for it: faster than BLAKE2 where it matters.
        return hashlib.sha256(pack(self.question.tree)).digest()

    def kept(self) -> RequestKey:
        """The same with arrays of its own, for a key that outlives the call."""
        own = RequestKey(self.handle, InputKey(self.question.tree, copy=True))
        if "digest" in vars(self):
            vars(own)["digest"] = self.digest
        return own

    @property
    def n_bytes(self) -> int:
        return self.question.n_bytes + _PER_LEAF * self.question.n_leaves


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an answer comes from.

    Attributes:
        whom: who was asked, as the handle prints itself (never with credentials).
        at: when, in seconds since the epoch.
        seconds: how long it took, attempts included.
    """

    whom: str = "?"
    at: float = 0.0
    seconds: float = 0.0


class Flight:
    """A call that is on its way, and what came of it for those who wait."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: Tree = MISS
        self.error: CallError | None = None


class Traffic:
    """Calls in flight and counters of one cache, for all threads. Its lock is never held during a request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[RequestKey, Flight] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self.n_landed = 0
        self.n_waiting = 0  # now, for a flight of somebody else

    def count(self, what: str, n: int = 1) -> None:
        with self._lock:
            self._counts[what] += n

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {name: self._counts[name] for name in ("hits", "misses", "merged", "evicted", "skipped")}

    def board(self, key: RequestKey) -> tuple[Flight, bool]:
        """The flight of this call, and whether the caller is the one who has to fly it."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def wait_for(self, flight: Flight) -> None:
        with self._lock:
            self.n_waiting += 1
        try:
            flight.done.wait()
        finally:
            with self._lock:
                self.n_waiting -= 1

    def land(self, key: RequestKey, flight: Flight) -> None:
        with self._lock:
            del self._flights[key]
            self.n_landed += 1
        flight.done.set()


class AbstractCache(abc.ABC):
    """Answers by the whole question, bounded by bytes, for all threads. Caches are values, as handles are.

    Attributes:
        is_lasting: whether what it keeps outlives this process.
        mode: `"use"`: what is kept is no request. `"record"`: every request is sent, and what comes is kept, failures
            of the component included. `"replay"`: nothing is sent.
    """

    is_lasting: bool = False
    mode: Mode = "use"

    @property
    @abc.abstractmethod
    def traffic(self) -> Traffic:
        """Of this cache and all equal ones in this process."""

    @abc.abstractmethod
    def get(self, key: RequestKey) -> Tree:
        """A copy of the answer to an equal call, or `MISS`. Trouble with the store is a miss."""

    @abc.abstractmethod
    def put(self, key: RequestKey, answer: Tree, origin: Origin) -> None:
        """Keep an answer, which is the cache's own from now on; `key` has arrays of its own as well."""

    def put_failure(self, key: RequestKey, error: CallError, origin: Origin) -> None:  # noqa: B027
        """Keep what came instead of an answer. Nothing does, unless it records."""

    def skip(self, why: str) -> None:
        """Something cannot be kept, and is simply sent."""
        self.traffic.count("skipped")

    def component(self, tesseract: AbstractTesseract) -> Component:
        """What the component is, as far as answers depend on it: as it says itself, or as it was recorded."""
        return Component.of(tesseract)

    def anchor(self, tesseract: AbstractTesseract) -> object:
        """What is remembered of the component hangs on this."""
        return tesseract.anchor

    @abc.abstractmethod
    def drop(self, key: RequestKey) -> None:
        """Let go of an answer that turned out to be none. Where that cannot be, the next `put` writes over it."""

    @abc.abstractmethod
    def size(self) -> dict[str, int]:
        """What is kept now: `entries` and `bytes`, as far as that is known."""

    def stats(self) -> dict[str, int]:
        """Counters of this process, and the size.

        `hits`: answered from the cache. `misses`: sent. `merged`: answered by an equal call that was in flight.
        `evicted`: answers that made room for others. `skipped`: calls or answers that cannot be kept.
        """
        return {**self.traffic.counts(), **self.size()}

    def answer(
        self, key: RequestKey, ask: Callable[[], Tree], check: Callable[[Tree], object] = lambda answer: None
    ) -> Tree:
        """The answer to a call: one that is kept, or the one that an equal call is waiting for, or that of `ask()`.

        `check` raises a `CallError` for an answer that cannot be one: a fresh one is then not kept, and a kept one is
        let go of and asked for again.

        While it is recorded, every call is sent. Whether two equal ones meet is a matter of time, and a replay, which
        counts each of them, would be another run.

        If an equal call fails, its error is the answer to this one, too: a component that raised will raise again.
        Errors that have nothing to do with the question (transient ones, an interrupt) are left to whoever met them,
        and one of those who waited asks again.
        """
        traffic = self.traffic
        if self.mode == "record":
            return self._ask(key, ask, check)[0]
        while True:
            n_landed = traffic.n_landed
            if (kept := self._kept(key, check)) is not MISS:
                traffic.count("hits")
                return kept
            flight, is_first = traffic.board(key)
            if is_first:
                return self._fly(key, flight, ask, check, n_landed)
            traffic.wait_for(flight)
            if flight.error is not None:
                traffic.count("merged")
                raise _own(flight.error) from flight.error
            if flight.answer is not MISS:
                traffic.count("merged")
                return copied(flight.answer)

    def _kept(self, key: RequestKey, check: Callable[[Tree], object]) -> Tree:
        kept = self.get(key)
        if kept is MISS:
            return MISS
        try:
            check(kept)
        except CallError as error:
            if self.mode == "replay":
                raise
            _log.warning("%r has kept what is no answer. It is let go of, and asked for again. %s", self, error)
            self.drop(key)
            return MISS
        return kept

    def _fly(
        self,
        key: RequestKey,
        flight: Flight,
        ask: Callable[[], Tree],
        check: Callable[[Tree], object],
        n_landed: int,
    ) -> Tree:
        traffic = self.traffic
        try:
            # An equal call may have landed between the look into the cache and now.
            if traffic.n_landed != n_landed and (kept := self._kept(key, check)) is not MISS:
                traffic.count("hits")
                flight.answer = copied(kept)
                return kept
            answer, flight.answer = self._ask(key, ask, check)
            return answer
        except CallError as error:
            if not is_transient(error):
                flight.error = _own(error)
            raise
        finally:
            traffic.land(key, flight)

    def _ask(self, key: RequestKey, ask: Callable[[], Tree], check: Callable[[Tree], object]) -> tuple[Tree, Tree]:
        """The answer, and what is kept of it, or `MISS`."""
        self.traffic.count("misses")
        own = key.kept()  # before the request: a component in this process may write into its inputs
        at, start = time.time(), time.monotonic()
        try:
            answer = ask()
            check(answer)
        except CallError as error:
            self.put_failure(own, error, Origin(repr(key.handle), at, time.monotonic() - start))
            raise
        origin = Origin(repr(key.handle), at, time.monotonic() - start)
        if not is_plain(answer):
            self.skip("something in the answer may be changed by others")
            return answer, MISS
        keeps = copied(answer)
        self.put(own, keeps, origin)
        return answer, keeps


def is_plain(tree: Tree) -> bool:
    """Whether a copy of the tree's arrays is a copy of the tree: nothing else in it can change."""
    if type(tree) is dict:
        return all(type(key) is str and is_plain(value) for key, value in tree.items())
    if type(tree) in (list, tuple):
        return all(is_plain(item) for item in tree)
    if type(tree) is np.ndarray or isinstance(tree, np.generic):
        return not tree.dtype.hasobject
    return tree is None or type(tree) in (bool, int, float, complex, str, bytes) or isinstance(tree, enum.Enum)


def size_of(tree: Tree) -> int:
    """Bytes that a tree takes in memory, roughly."""
    return sum(_PER_LEAF + (leaf.nbytes if hasattr(leaf, "nbytes") else len(str(leaf))) for leaf in _leaves(tree))


def _leaves(tree: Tree) -> Iterator[Any]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _leaves(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree


def _own(error: CallError) -> CallError:
    """A copy for one thread: raising writes a traceback into an error, and others add notes to it."""
    twin = copy.copy(error)
    if notes := getattr(error, "__notes__", None):
        twin.__notes__ = list(notes)
    return twin


def checked_max_bytes(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(
            f"{what}: max_bytes is {value!r}; expected a whole number of at least 1. To keep nothing, use cache=None."
        )
    return value
