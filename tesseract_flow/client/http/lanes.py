"""Lanes: the kept connections to one server, and which call goes down which of them.

A server may have several workers. Each answers one request at a time, has residuals of its own, and a kept connection
stays with one of them. The one idea: keep one lane per worker, in a fixed order, and send a pullback down the lane
whose apply saw the same primals. Here: the order, the queue, the memory. Not here: sockets (`session`), messages
(`http`), several servers (`replicas`).

Nothing tells a client which worker it talks to. But a busy worker does not take new connections. So a lane is added
only while all others are in use, and only if somebody answers on it: that is a worker without a lane, and there is none
such if nobody answers. Calls then wait here, for the first worker that is done, and not there, behind one of them.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

from tesseract_flow.client.http.lane import Connection, Lane

# A request that is sent is in work this much later, and its worker deaf to new connections.
_SETTLED = 0.005
# Where calls are shorter than this, lanes are added unasked: two on one worker do no harm then.
_SHORT = 0.02
# How long a new lane may take to be answered: the least, the most, and in units of the fastest answer so far.
_LEAST_PATIENCE, _MOST_PATIENCE, _PATIENCE = 0.05, 1.0, 4.0
# Between attempts to add a lane while nobody has answered: the first wait, and the longest.
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 5.0
# Calls of one input per lane that has seen it, running or waiting, before further ones go to a lane that is free.
_QUEUE_OF_ONE_INPUT = 2
_REMEMBERED = 1024  # inputs; a worker keeps fewer residuals
# Servers close idle connections, and with them the way to the residuals, after a minute as tesseract-core runs them.
# Solvers of a pipeline take longer, so lanes that have seen something are kept in use: after so many seconds of rest,
# and for so many after their last call.
_REST, _KEPT_FOR = 35.0, 12 * 3600.0
_ROUND = 10.0  # seconds between two looks
_MOST_IDLE = 256  # connections of one process, to all of its servers; more are closed, the longest unused first
_GREETING = "health"


class _Waiter:
    """A call that waits for a lane."""

    __slots__ = ("endpoint", "is_patient", "key", "lane", "woken")

    def __init__(self, endpoint: str, key: Hashable, is_patient: bool):
        self.endpoint = endpoint
        self.key = key
        self.is_patient = is_patient
        self.lane: Lane | None = None
        self.woken = threading.Event()


class Lanes:
    """At most `n_lanes` lanes to one server, added when they are needed.

    Args:
        n_lanes: the most that are open at once.
        connect: makes what carries the requests of a new lane; nothing is sent yet.
        is_answered: (lane, seconds or None) -> whether the server answers on it in that time. None: there is nothing
            to ask, and a lane is added whenever one is missing.
        expiry: seconds after which an idle lane is not used any more.
    """

    def __init__(
        self,
        n_lanes: int,
        connect: Callable[[], Connection],
        is_answered: Callable[[Lane, float | None], bool] | None = None,
        *,
        expiry: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.n_lanes = n_lanes
        self._connect = connect
        self._is_answered = is_answered
        self._expiry = expiry
        self._clock = clock
        # Once more by the same thread: the garbage collector may close a session wherever it sets in.
        self._lock = threading.RLock()
        self._open: list[Lane] = []  # in the order in which they were added; the first that is free is taken
        self._queue: deque[_Waiter] = deque()
        # Which lanes have seen an input, the latest last.
        self._seen: OrderedDict[Hashable, tuple[Lane, ...]] = OrderedDict()
        self._seconds: dict[str, float] = {}  # by endpoint, of late
        self._fastest = float("inf")
        self._n_returned = 0
        self._is_adding = False
        self._next_attempt = 0.0
        self._wait = _FIRST_WAIT

    def take(self, endpoint: str = "", key: Hashable = None, *, is_patient: bool = False) -> Lane:
        """A lane for one call, which gives it back; waits until there is one.

        Args:
            endpoint: what is called: calls of one endpoint take similar times.
            key: stands for the primals. The lane that has seen them is preferred.
            is_patient: whether to wait for that lane if it is in use, as elsewhere the call would cost a solve more.
        """
        waiter = _Waiter(endpoint, key, is_patient)
        with self._lock:
            expired = self._take_out_expired()
            lane = self._choose(waiter)
            if lane is None and self._may_add_unasked(waiter):
                lane = self._add()
            if lane is not None:
                self._give(lane, waiter)
            else:
                self._queue.append(waiter)
        _close(expired)
        return lane if lane is not None else self._wait_for_lane(waiter)

    def sent(self, lane: Lane) -> None:
        """The call that has the lane is on its way, to the last byte."""
        lane.sent_at = self._clock()
        if self._queue:
            with self._lock:
                self._wake_one()

    def give_back(self, lane: Lane, *, has_seen: bool = False) -> None:
        """The call is over.

        Args:
            has_seen: the worker behind the lane has worked at the primals of the call.
        """
        with self._lock:
            now = self._clock()
            self._n_returned += 1
            seconds, lane.used_at = now - lane.taken_at, now
            self._fastest = min(self._fastest, seconds)
            self._seconds[lane.endpoint] = max(seconds, self._seconds.get(lane.endpoint, 0.0) / 2)
            out = [lane] if lane.is_lost or not lane.is_open else []
            if lane.is_renewed:
                # The server has closed the old connection, and maybe all that are idle. One that is not might lead to
                # the worker that has taken this one in.
                out += [other for other in self._open if other.is_free]
            self._take_out(out)
            if lane.is_open:
                lane = self._succeeded(lane) if lane.is_renewed else lane
                if has_seen and lane.key is not None:
                    self._remember(lane.key, lane)
                    lane.worked_at = now
                self._hand_on(lane)
            self._wake_one()
        _close(out)
        if self._is_answered is not None:
            _keep(self)

    def distrust(self, lane: Lane) -> None:
        """What came this way was no answer to what was asked, so nothing that comes after it can be believed."""
        with self._lock:
            out = [lane] if lane.is_free else []  # a call that has it gives it back, and it is closed then
            self._take_out([lane])
        _close(out)

    def retire(self, lane: Lane) -> None:
        """Close a lane, unless somebody has taken it in the meantime."""
        with self._lock:
            out = [lane] if lane.is_free else []
            self._take_out(out)
        _close(out)

    def idle(self) -> list[Lane]:
        """The lanes that nobody uses, without those that have rested for too long, which are closed."""
        with self._lock:
            expired = self._take_out_expired()
            found = [lane for lane in self._open if lane.is_free]
        _close(expired)
        return found

    def greet(self) -> list[threading.Thread]:
        """Use the lanes that have rested for long, so that the server does not close them; on threads of their own,
        as a worker that is busy with another client's call keeps a greeting waiting."""
        with self._lock:
            now = self._clock()
            rested = [
                lane
                for lane in self._open
                if lane.is_free and now - lane.used_at > _REST and now - lane.worked_at < _KEPT_FOR
            ]
            for lane in rested:
                self._give(lane, _Waiter(_GREETING, None, False))
        threads = [threading.Thread(target=self._greet, args=(lane,), daemon=True) for lane in rested]
        for thread in threads:
            thread.start()
        return threads

    def _greet(self, lane: Lane) -> None:
        assert self._is_answered is not None
        try:
            lane.is_lost = not self._is_answered(lane, None)
        finally:
            self.give_back(lane)

    def close(self) -> None:
        """Close all connections, also those in use."""
        with self._lock:
            out = list(self._open)
            self._take_out(out)
        _close(out)

    def has_lasted_since(self, then: float) -> bool:
        """Whether there is a connection that was there at a time of the monotonic clock, and without a break since."""
        with self._lock:
            lanes = list(self._open)
        return any(lane.connection.alive_since() <= then for lane in lanes)

    def has_seen(self, key: Hashable) -> bool:
        """Whether an open lane has seen these primals."""
        with self._lock:
            return bool(self._liked(key))

    # Which lane. The lock is held.

    def _liked(self, key: Hashable) -> list[Lane]:
        if key is None or key not in self._seen:
            return []
        return [lane for lane in self._seen[key] if lane.is_open]

    def _is_bound(self, waiter: _Waiter, liked: list[Lane]) -> bool:
        """Whether it waits for the lanes that it likes and for no other."""
        if not waiter.is_patient or not liked:
            return False
        n_ahead = sum(lane.key == waiter.key for lane in liked if not lane.is_free)
        for other in self._queue:
            if other is waiter:
                break
            n_ahead += other.key == waiter.key
        # Many pullbacks at one point (a Jacobian, row by row) would otherwise leave all other workers idle.
        return n_ahead < _QUEUE_OF_ONE_INPUT * len(liked)

    def _suits(self, waiter: _Waiter, lane: Lane) -> bool:
        liked = self._liked(waiter.key)
        if lane in liked:
            return True
        # One that leads to residuals is not replaced (`_spare`), so it has to serve, whoever its worker is.
        is_good = lane.is_proven or self._has_residuals(lane) or self._is_short(waiter.endpoint)
        return is_good and not self._is_bound(waiter, liked)

    def _choose(self, waiter: _Waiter) -> Lane | None:
        for lane in reversed(self._liked(waiter.key)):
            if lane.is_free:
                return lane
        return next((lane for lane in self._open if lane.is_free and self._suits(waiter, lane)), None)

    def _is_short(self, endpoint: str) -> bool:
        return self._seconds.get(endpoint, float("inf")) < _SHORT

    def _give(self, lane: Lane, waiter: _Waiter) -> None:
        lane.is_free = False
        lane.endpoint, lane.key = waiter.endpoint, waiter.key
        lane.taken_at, lane.sent_at, lane.is_ahead = self._clock(), None, False
        waiter.lane = lane

    def _hand_on(self, lane: Lane) -> None:
        """To whoever has waited for it longest, if anybody has."""
        lane.is_free = True
        for waiter in self._queue:
            if self._suits(waiter, lane):
                self._queue.remove(waiter)
                self._give(lane, waiter)
                waiter.woken.set()
                return

    def _remember(self, key: Hashable, lane: Lane) -> None:
        others = (other for other in self._liked(key) if other is not lane)
        self._seen[key] = (*others, lane)
        self._seen.move_to_end(key)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    # Adding lanes and taking them out.

    def _may_add_unasked(self, waiter: _Waiter) -> bool:
        if len(self._open) >= self.n_lanes or self._is_bound(waiter, self._liked(waiter.key)):
            return False
        return not self._open or self._is_answered is None or self._is_short(waiter.endpoint)

    def _add(self) -> Lane:
        lane = Lane(self._connect(), is_proven=not self._open or self._is_answered is None)
        self._open.append(lane)
        return lane

    def _succeeded(self, lane: Lane) -> Lane:
        """A new lane for what is another connection now, perhaps to a worker that has seen nothing."""
        new = Lane(lane.connection, lane.is_proven)
        new.stream, new.used_at, new.endpoint, new.key = lane.stream, lane.used_at, lane.endpoint, lane.key
        self._open[self._open.index(lane)] = new
        lane.is_open = False
        for waiter in self._queue:
            waiter.woken.set()
        return new

    def _take_out(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            lane.is_open = lane.is_free = False
        if lanes:
            self._open = [lane for lane in self._open if lane.is_open]
            for waiter in self._queue:  # those that were bound to them are free to go elsewhere
                waiter.woken.set()

    def _take_out_expired(self) -> list[Lane]:
        oldest = self._clock() - self._expiry
        expired = [lane for lane in self._open if lane.is_free and lane.used_at < oldest]
        self._take_out(expired)
        return expired

    def _wait_for_lane(self, waiter: _Waiter) -> Lane:
        try:
            while True:
                with self._lock:
                    if waiter.lane is None and (lane := self._choose(waiter) or self._add_if_allowed(waiter)):
                        self._queue.remove(waiter)
                        self._give(lane, waiter)
                    if waiter.lane is not None:
                        self._wake_one()  # who then sees to the next lane
                        return waiter.lane
                    pause = self._pause(waiter)
                    self._is_adding |= pause == 0.0
                if pause == 0.0:
                    self._try_to_add()
                else:
                    waiter.woken.wait(pause)
                    waiter.woken.clear()
        except BaseException:
            with self._lock:
                if waiter.lane is not None:
                    self._hand_on(waiter.lane)
                else:
                    self._queue.remove(waiter)
                self._wake_one()
            raise

    def _add_if_allowed(self, waiter: _Waiter) -> Lane | None:
        return self._add() if self._may_add_unasked(waiter) else None

    def _pause(self, waiter: _Waiter) -> float | None:
        """Seconds until this call should try to add a lane. None: it is not its turn, news will come."""
        if self._is_adding or self._is_answered is None or self._is_bound(waiter, self._liked(waiter.key)):
            return None
        if len(self._open) >= self.n_lanes and not self._spare():
            return None
        moments = [self._next_attempt]
        for lane in self._open:
            if lane.is_free:
                continue
            if lane.sent_at is None:
                return None
            moments.append(lane.sent_at + _SETTLED)
        return max(0.0, max(moments) - self._clock())

    def _spare(self) -> list[Lane]:
        """Lanes that were added unasked and are idle, while calls that are not short wait."""
        return [lane for lane in self._open if lane.is_free and not lane.is_proven and not self._has_residuals(lane)]

    def _has_residuals(self, lane: Lane) -> bool:
        """Whether the way to what its worker keeps would be lost with it."""
        return self._clock() - lane.worked_at < _KEPT_FOR

    def _wake_one(self) -> None:
        if not self._is_adding and (len(self._open) < self.n_lanes or self._spare()):
            for waiter in self._queue:
                if not self._is_bound(waiter, self._liked(waiter.key)):
                    waiter.woken.set()
                    return

    def _try_to_add(self) -> None:
        assert self._is_answered is not None
        with self._lock:
            out = self._spare()[:1] if len(self._open) >= self.n_lanes else []
            self._take_out(out)
            n_before = self._n_returned
            seconds = min(max(_LEAST_PATIENCE, _PATIENCE * self._fastest), _MOST_PATIENCE)
        _close(out)
        lane, is_answered = None, False
        try:
            lane = Lane(self._connect(), is_proven=True)
            is_answered = self._is_answered(lane, seconds)
        finally:
            with self._lock:
                self._is_adding = False
                # A worker that was done in the meantime may be the one that has answered.
                has_room = len(self._open) < self.n_lanes  # still
                if lane is not None and is_answered and has_room and self._n_returned == n_before:
                    self._wait, self._next_attempt = _FIRST_WAIT, 0.0
                    lane.used_at = self._clock()
                    self._open.append(lane)
                    self._hand_on(lane)
                    lane = None
                else:
                    self._next_attempt = self._clock() + self._wait
                    self._wait = min(2 * self._wait, _LONGEST_WAIT)
            if lane is not None:
                lane.connection.close()


def _close(lanes: list[Lane]) -> None:
    for lane in lanes:
        lane.connection.close()


_kept: weakref.WeakSet[Lanes] = weakref.WeakSet()
_kept_lock = threading.Lock()
_keeper_pid = 0


def _keep(lanes: Lanes) -> None:
    """Have idle lanes greeted from now on, by one thread for all of this process."""
    global _keeper_pid
    if lanes in _kept and _keeper_pid == os.getpid():
        return
    with _kept_lock:
        _kept.add(lanes)
        if _keeper_pid != os.getpid():  # a fork takes no threads along
            _keeper_pid = os.getpid()
            threading.Thread(target=_greet_all, name="tesseract-lanes", daemon=True).start()


def _greet_all() -> None:
    pause = threading.Event()
    while not pause.wait(_ROUND):
        with _kept_lock:
            kept = list(_kept)
        close_surplus(kept)
        while kept:  # and none is held when this rests
            kept.pop().greet()


def close_surplus(kept: list[Lanes], most: int = _MOST_IDLE) -> None:
    """Close what is idle for too long, and the longest unused of what is too many."""
    idle = [(lane.used_at, k, lane) for k, lanes in enumerate(kept) for lane in lanes.idle()]
    surplus = sorted(idle, key=lambda item: item[:2])[: max(0, len(idle) - most)]
    for _, k, lane in surplus:
        kept[k].retire(lane)
