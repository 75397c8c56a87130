"""A bound on the calls under way that finds itself, for servers that say when they have too much (429, 503).

Here: the handle (`AdaptiveTesseract`) and the arithmetic of its bound (`Window`). The one idea: what the server takes
is seen from what it refuses. The bound grows with each answer until the server refuses a call that was not alone; then
it falls by a tenth, and probes beyond what was refused only now and then. A refused call was not started, and is sent
again when there is room; one that was refused though it was alone has another reason, and is left to the policy of
retries.

Source of the scheme: additive increase and multiplicative decrease, Chiu & Jain (1989); slow start and one decrease for
all refusals of a round, Jacobson (1988); patience below the last ceiling, as in CUBIC, Ha, Rhee & Xu (2008).
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from tesseract_flow.client.base import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.handles.wrapper import AbstractWrapper, unlabelled
from tesseract_flow.client.retry import DEFAULT_RETRY, RetryPolicy, somebody_else
from tesseract_flow.errors import Overloaded

_DECREASE = 0.9
_COLLAPSE = 0.5  # where nothing was answered since the last decrease
_PROBING = 0.1  # of the usual increase, at the last ceiling
_REFUSALS = (429, 503)
_GLANCE = 0.5  # seconds


@dataclasses.dataclass(eq=False)
class Sent:
    """One call under way: the place it took, the round it belongs to, and whether it was ever not alone."""

    place: int
    round: int
    is_shared: bool


class Window:
    """How many calls may be under way, learnt from answers and refusals. Knows neither threads nor clocks."""

    def __init__(self) -> None:
        self.limit = 1.0
        self._under_way: set[Sent] = set()
        self._round = 0  # a new one with each decrease
        self._ceiling: int | None = None  # calls under way when one more was refused
        self._has_answered = False  # since the last decrease

    @property
    def n_under_way(self) -> int:
        return len(self._under_way)

    @property
    def has_room(self) -> bool:
        return len(self._under_way) < int(self.limit)

    def send(self) -> Sent:
        sent = Sent(len(self._under_way) + 1, self._round, is_shared=bool(self._under_way))
        if len(self._under_way) == 1:
            next(iter(self._under_way)).is_shared = True
        self._under_way.add(sent)
        return sent

    def answered(self, sent: Sent) -> None:
        self._has_answered = True
        if self._ceiling is not None and sent.place > self._ceiling:
            self._ceiling = None  # it takes more by now
        # A bound that is not reached says nothing about a higher one.
        if len(self._under_way) >= int(self.limit):
            if self._round == 0:
                self.limit += 1.0  # doubles in a round
            else:
                is_at_ceiling = self._ceiling is not None and int(self.limit) >= self._ceiling
                self.limit += (_PROBING if is_at_ceiling else 1.0) / self.limit
        self._under_way.remove(sent)

    def refused(self, sent: Sent) -> bool:
        """Whether the company it was in may be the reason, so that it may be sent again when there is room."""
        self._under_way.remove(sent)
        if sent.round == self._round:  # others of its round are refused for the same reason
            self._ceiling = max(1, sent.place - 1)
            if (
                self._round > 0
            ):  # the first time it is known how many were taken before, and nobody else has to give way
                self.limit *= _DECREASE if self._has_answered else _COLLAPSE
            self.limit = max(1.0, min(self.limit, self._ceiling))
            self._has_answered = False
            self._round += 1
        return sent.is_shared

    def failed(self, sent: Sent) -> None:
        """It ended otherwise, which says nothing."""
        self._under_way.remove(sent)


class Line:
    """Calls that wait for a window, first come, first served; those that were refused, first of all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.window = Window()
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[tuple[threading.Event, list[Sent]]] = deque()
        self._closed_until = 0.0  # as the server asked, for as long as nothing is answered

    def send(self, ask: Callable[[], Tree], patience: float, sleep: Callable[[float], object]) -> Tree:
        is_first = False
        while True:
            sent = self._enter(is_first)
            try:
                answer = ask()
            except Overloaded as error:
                pause = error.retry_after or 0.0
                if not self._refused(sent, error.status in _REFUSALS, pause, patience):
                    raise
                sleep(pause)
                is_first = True
            except BaseException:
                with self._lock:
                    self.window.failed(sent)
                    self._admit()
                raise
            else:
                with self._lock:
                    self._closed_until = 0.0
                    self.window.answered(sent)
                    self._admit()
                return answer

    def _enter(self, is_first: bool) -> Sent:
        turn, found = threading.Event(), []
        entry = (turn, found)
        with self._lock:
            self._queue.appendleft(entry) if is_first else self._queue.append(entry)
            self._admit()
        try:
            while not turn.wait(_GLANCE):  # it may have been closed for a while, and then nobody calls
                with self._lock:
                    self._admit()
        except BaseException:  # Ctrl-C
            with self._lock:
                if found:
                    self.window.failed(found[0])
                else:
                    self._queue.remove(entry)
                self._admit()
            raise
        return found[0]

    def _refused(self, sent: Sent, is_capacity: bool, pause: float, patience: float) -> bool:
        """Whether to send it again from here, `pause` seconds later."""
        with self._lock:
            if is_capacity:
                is_ours = self.window.refused(sent) and pause <= patience
            else:
                self.window.failed(sent)
                is_ours = False
            if is_ours:
                self._closed_until = max(self._closed_until, self._clock() + pause)
            self._admit()
        return is_ours

    def _admit(self) -> None:
        while self._queue and self.window.has_room and self._clock() >= self._closed_until:
            turn, found = self._queue.popleft()
            found.append(self.window.send())
            turn.set()


@dataclasses.dataclass(frozen=True)
class AdaptiveTesseract(AbstractWrapper):
    """A handle that has as many requests under way as its server takes, which it finds out.

    Equal handles of a process share what they found. Other processes find out for themselves, and leave each other
    room, as all of them give way when the server refuses.
    """

    tesseract: AbstractTesseract

    def __repr__(self) -> str:
        return f"AdaptiveTesseract({self.tesseract!r})"

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        retry: RetryPolicy = getattr(self.tesseract, "retry", DEFAULT_RETRY)

        def once() -> Tree:
            with somebody_else():  # repetitions would keep their place while they wait
                return self.tesseract.request(endpoint, payload, run_id=run_id)

        line = self._line
        sleep = getattr(self.tesseract, "sleep", time.sleep)
        return retry.run(lambda: line.send(once, retry.patience, sleep), label=f"{self.name}.{endpoint}", sleep=sleep)

    @property
    def _line(self) -> Line:
        pid, line = self.__dict__.get("_own_line", (None, None))
        if pid != os.getpid() or line is None:  # a forked child would wait for calls of its parent
            with _shared_lock:
                line = _shared.setdefault((os.getpid(), unlabelled(self.tesseract)), Line())
            object.__setattr__(self, "_own_line", (os.getpid(), line))
        return line


_shared: weakref.WeakValueDictionary[Hashable, Line] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()
