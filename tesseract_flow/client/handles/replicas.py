"""Several equal servers as one Tesseract.

Here: which server gets a call, which is left out after a failure and for how long, that all serve the same component.
Not here: the connections to each of them (`session`, `lanes`), repeating a call that may have started (the retry
policy's affair). The one idea: a call that cannot have started goes on to the next server at once; any other failure is
told, and keeps the next attempt away from the server that failed.

Nobody is asked whether he is well. A busy server does not answer such questions, and a dead one shows soon enough.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, ByFields, Endpoint, Tree
from tesseract_flow.client.handles.process import ServedProcess
from tesseract_flow.client.http import HttpTesseract, primals_key
from tesseract_flow.client.retry import DEFAULT_RETRY, RetryPolicy, somebody_else
from tesseract_flow.client.translate import Question
from tesseract_flow.errors import CallError, CallTimeout, ConnectionLost, OptionError, SchemaError, Unreachable
from tesseract_flow.schema import TesseractSchema

_log = logging.getLogger("tesseract_flow")
T = TypeVar("T")

# Once one replica has told its schema, the others have this long. Busy ones are asked again before their first call.
_SCHEMA_PATIENCE = 5.0
# Calls of one input per replica that has seen it, before further ones go elsewhere.
_QUEUE_OF_ONE_INPUT = 2
_REMEMBERED = 4096  # inputs


@dataclasses.dataclass(frozen=True)
class ReplicatedTesseract(ByFields, AbstractTesseract):
    """Several servers of one component. The least busy one gets a call; a pullback goes where its apply went.

    Attributes:
        replicas: handles to the servers.
        label: what to call it; default the name in its schema.
        first_pause, longest_pause: seconds for which a replica that failed is left out, the first time and at most;
            twice as long after each failure in a row. If all have failed, all are tried.
        retry: what happens after transient errors, where nobody else repeats the call. Each attempt goes to the replica
            that is best then; policies of the replicas' own are not used.
        clock, sleep: seams for tests.

    Raises:
        OptionError: no replicas, or the same one twice.
    """

    replicas: tuple[AbstractTesseract, ...]
    label: str | None = None
    first_pause: float = 1.0
    longest_pause: float = 60.0
    retry: RetryPolicy = DEFAULT_RETRY
    clock: Callable[[], float] = dataclasses.field(default=time.monotonic, repr=False)
    sleep: Callable[[float], object] = dataclasses.field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "replicas", tuple(self.replicas))
        if not self.replicas:
            raise OptionError("A Tesseract with replicas needs at least one address; got an empty list.")
        if twice := [replica for replica, n in Counter(self.replicas).items() if n > 1]:
            raise OptionError(f"{place_of(twice[0])} is in the list of replicas twice; give each server once.")
        if not 0 < self.first_pause <= self.longest_pause:
            raise OptionError(
                f"first_pause is {self.first_pause} and longest_pause {self.longest_pause}; expected seconds, with "
                "0 < first_pause <= longest_pause."
            )

    def __repr__(self) -> str:
        places = ", ".join(map(place_of, self.replicas))
        return f"ReplicatedTesseract({self.label + ': ' if self.label else ''}{places})"

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        return "replicas" if self.schema.name in GENERIC_NAMES else self.schema.name

    @property
    def build(self) -> str | None:  # type: ignore[override]
        builds = [replica.build for replica in self.replicas]
        return None if None in builds else " ".join(sorted(set(filter(None, builds))))

    @property
    def n_lanes(self) -> int:  # type: ignore[override]
        return sum(replica.n_lanes for replica in self.replicas)

    @property
    def schema(self) -> TesseractSchema:
        group = self._group
        with group.schema_lock:
            if group.schema is None:
                self._repeated("openapi.json", lambda: self._read_schemas(group))
            assert group.schema is not None
            return group.schema

    @property
    def anchor(self) -> object:
        return self._group

    @property
    def known_schema(self) -> TesseractSchema | None:
        return self._group.schema

    def elsewhere(self) -> AbstractTesseract:
        return dataclasses.replace(self, replicas=tuple(replica.elsewhere() for replica in self.replicas))

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        _ = self.schema
        key = primals_key(endpoint, payload)
        return self._repeated(endpoint, lambda: self._ask(endpoint, payload, run_id, key))

    def _repeated(self, endpoint: str, ask: Callable[[], T]) -> T:
        whom = self.label or "replicas" if self._group.schema is None else self.name
        return self.retry.run(ask, label=f"{whom}.{endpoint}", sleep=self.sleep)

    def _ask(self, endpoint: Endpoint, payload: Mapping[str, Any], run_id: str | None, key: Hashable) -> Tree:
        """`request`, once."""
        group = self._group
        refusals: dict[int, Unreachable] = {}
        while (trip := group.set_out(endpoint, key, refusals)) is not None:
            replica = self.replicas[trip.index]
            try:
                self._check(group, trip.index)
                if isinstance(replica, HttpTesseract | ServedProcess):
                    answer = replica.ask(endpoint, payload, run_id, key)
                else:
                    answer = replica.request(endpoint, payload, run_id=run_id)
            except Unreachable as error:
                refusals[trip.index] = error
                group.come_back(trip, error)
            except ConnectionLost as error:
                group.come_back(trip, error)  # not sent elsewhere: the solve may still be running there
                raise
            except BaseException as error:
                group.come_back(trip, None, has_answered=_is_answer(error))
                raise
            else:
                group.come_back(trip, None, has_answered=True, has_seen=True)
                return answer
        raise self._out_of_reach(endpoint, refusals)

    def _out_of_reach(self, endpoint: str, errors: Mapping[int, Exception]) -> Unreachable:
        whom = self.name if self.label is not None or self._group.schema is not None else "replicas"
        reasons = [(self.replicas[k], error) for k, error in sorted(errors.items())]
        lines = "\n".join(f"  {place_of(replica)}: {_reason(replica, error)}" for replica, error in reasons)
        return Question(endpoint, whom).error(
            Unreachable,
            f"none of its {len(self.replicas)} replicas can be reached. Nothing was started.\n{lines}\n"
            "Are the servers running, and are the addresses right? Try: tesseract-flow inspect URL.",
        )

    # One schema

    def _read_schemas(self, group: _Group) -> None:
        """Ask all at once, for the first answer and then those of a few seconds."""
        answers: queue.SimpleQueue[tuple[int, TesseractSchema | Exception]] = queue.SimpleQueue()

        def read(k: int) -> None:
            try:
                with somebody_else():  # a thread does not know that there is an owner of its retries
                    answers.put((k, self.replicas[k].schema))
            except Exception as error:
                answers.put((k, error))

        for k in range(len(self.replicas)):
            threading.Thread(target=read, args=(k,), name="tesseract-schema", daemon=True).start()
        schemas: dict[int, TesseractSchema] = {}
        errors: dict[int, Exception] = {}
        deadline = None
        while len(schemas) + len(errors) < len(self.replicas):
            try:
                k, answer = answers.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(answer, Exception):
                errors[k] = answer
            else:
                schemas[k] = answer
                deadline = deadline or time.monotonic() + _SCHEMA_PATIENCE
        for k, error in errors.items():
            if not isinstance(error, Unreachable | ConnectionLost):
                raise error
            group.leave_out(k, error)
        if not schemas:
            raise self._out_of_reach("openapi.json", errors)
        first = min(schemas)
        for k, schema in schemas.items():
            self._compare(schemas[first], first, schema, k)
        group.checked |= set(schemas)
        group.first, group.schema = first, schemas[first]

    def _check(self, group: _Group, k: int) -> None:
        """Before its first call: that it serves what the others do."""
        if k in group.checked:
            self._refresh(group, [k])
            return
        try:
            schema = self.replicas[k].schema
        except ConnectionLost as error:  # where nothing but a schema was asked for, nothing was started
            raise Unreachable(str(error), tesseract=error.tesseract, endpoint=error.endpoint) from error
        assert group.schema is not None
        self._compare(group.schema, group.first, schema, k)
        group.checked.add(k)

    def refresh(self) -> None:
        group = self._group
        self._refresh(group, sorted(group.checked))

    def _refresh(self, group: _Group, which: Sequence[int]) -> None:
        """Ask those again that may be others by now; if one is, all of them."""
        for k in which:
            replica = self.replicas[k]
            known = replica.known_schema
            replica.refresh()
            if replica.known_schema is not known and known is not None:
                for other in self.replicas:
                    other.refresh()
                group.schema = None
                group.checked.clear()
                _ = self.schema
                return

    def _compare(self, expected: TesseractSchema, first: int, schema: TesseractSchema, k: int) -> None:
        for what in ("name", "version", "digest"):
            mine, theirs = getattr(expected, what), getattr(schema, what)
            if mine != theirs:
                differs = "other inputs, outputs or endpoints than" if what == "digest" else f"{what} {theirs!r},"
                raise SchemaError(
                    f"The replicas do not serve the same component: {place_of(self.replicas[k])} has {differs} "
                    f"{place_of(self.replicas[first])}{'' if what == 'digest' else f' has {mine!r}'}.\n"
                    "Serve the same image at all of them, or open them as separate Tesseracts."
                )

    @property
    def _group(self) -> _Group:
        group = self.__dict__.get("_own_group")
        if group is None or group.pid != os.getpid():
            group = _group_of(self)
            object.__setattr__(self, "_own_group", group)
        return group


@dataclasses.dataclass
class _Standing:
    """What is known of one replica.

    Attributes:
        calls: those that are under way, by what stands for their primals.
        last_turn: of the call that it was given last; with equally many calls under way, who rested longest is next.
        reason: why it is left out.
        out_until: when it is tried again.
        out_since: the turn at which it failed; calls of earlier turns tell nothing new.
    """

    calls: Counter[Hashable] = dataclasses.field(default_factory=Counter)
    last_turn: int = 0
    reason: str | None = None
    pause: float = 0.0
    out_until: float = 0.0
    out_since: int = 0

    @property
    def n_calls(self) -> int:
        return self.calls.total()


@dataclasses.dataclass(frozen=True)
class _Trip:
    """One call at one replica, which is due unless it was left out and had to serve for want of another."""

    index: int
    key: Hashable
    turn: int
    is_due: bool


class _Group:
    """The state that equal handles of one process share."""

    def __init__(self, handle: ReplicatedTesseract):
        self.pid = os.getpid()
        self.schema_lock = threading.Lock()
        self.schema: TesseractSchema | None = None
        self.first = 0
        self.checked: set[int] = set()
        self._replicas = handle.replicas
        self._pauses = handle.first_pause, handle.longest_pause
        self._clock = handle.clock
        self._standings = [_Standing() for _ in handle.replicas]
        self._seen: OrderedDict[Hashable, tuple[int, ...]] = OrderedDict()
        self._turn = 0
        self._lock = threading.Lock()
        self._is_free = threading.Condition(self._lock)
        self._waiting: Counter[tuple[int, Hashable]] = Counter()  # by the replica that they would like, and their key

    def set_out(self, endpoint: str, key: Hashable, tried: Collection[int]) -> _Trip | None:
        """Choose a replica for one call, and wait for it if all are busy; None if all were tried."""
        with self._lock:
            while True:
                left = [k for k in range(len(self._standings)) if k not in tried]
                if not left:
                    return None
                now = self._clock()
                ready = [k for k in left if self._standings[k].out_until <= now]
                # Where all are out there is nothing to lose: the one whose pause ends first.
                k = self._best(endpoint, key, ready) if ready else min(left, key=lambda k: self._standings[k].out_until)
                standing = self._standings[k]
                # Here and not in the queue of one of them, as nobody knows which is done first.
                if standing.n_calls < self._replicas[k].n_lanes:
                    break
                self._waiting[k, key] += 1
                try:
                    self._is_free.wait()
                finally:
                    self._waiting[k, key] -= 1
                    self._waiting += Counter()  # without those that are zero
            self._turn += 1
            standing.last_turn = self._turn
            standing.calls[key] += 1
            is_due = bool(ready)
            if standing.reason is not None and is_due:
                standing.out_until = now + standing.pause  # one call finds out whether it is back, not all of them
            return _Trip(k, key, self._turn, is_due)

    def _best(self, endpoint: str, key: Hashable, ready: Iterable[int]) -> int:
        standings = self._standings
        least_busy = min(ready, key=lambda k: (standings[k].n_calls, standings[k].last_turn))
        liked = [k for k in self._seen.get(key, ()) if k in ready] if key is not None else []
        if not liked:
            return least_busy
        best = min(reversed(liked), key=lambda k: standings[k].calls[key])
        if endpoint == "apply":  # gains nothing by waiting
            return best if standings[best].n_calls < self._replicas[best].n_lanes else least_busy
        # Many pullbacks at one point would otherwise leave the other replicas idle.
        is_crowded = standings[best].calls[key] + self._waiting[best, key] >= _QUEUE_OF_ONE_INPUT
        return least_busy if is_crowded and standings[least_busy].n_calls == 0 else best

    def come_back(
        self, trip: _Trip, error: Exception | None, *, has_answered: bool = False, has_seen: bool = False
    ) -> None:
        """The call is over."""
        with self._lock:
            self._is_free.notify_all()  # each knows which of them it waits for
            standing = self._standings[trip.index]
            standing.calls[trip.key] -= 1
            if not standing.calls[trip.key]:
                del standing.calls[trip.key]
            if error is not None and (trip.is_due or standing.reason is None):
                self._leave_out(trip.index, error, trip.turn)
            elif error is None and has_answered and standing.reason is not None:
                _log.info("Replica %s answers again.", place_of(self._replicas[trip.index]))
                standing.reason, standing.out_until = None, 0.0
            if has_seen and trip.key is not None:
                others = (k for k in self._seen.get(trip.key, ()) if k != trip.index)
                self._seen[trip.key] = (*others, trip.index)
                self._seen.move_to_end(trip.key)
                while len(self._seen) > _REMEMBERED:
                    self._seen.popitem(last=False)

    def leave_out(self, k: int, error: Exception) -> None:
        with self._lock:
            self._turn += 1
            self._leave_out(k, error, self._turn)

    def _leave_out(self, k: int, error: Exception, turn: int) -> None:
        standing = self._standings[k]
        if standing.reason is not None and turn <= standing.out_since:
            return  # several calls were under way there when it failed; that is one failure
        first, longest = self._pauses
        standing.pause = first if standing.reason is None else min(2 * standing.pause, longest)
        standing.reason = _reason(self._replicas[k], error)
        standing.out_until = self._clock() + standing.pause
        standing.out_since = self._turn
        if len(self._standings) > 1:
            place, reason = place_of(self._replicas[k]), standing.reason
            _log.warning("Replica %s is left out for %.0f s: %s", place, standing.pause, reason)


_groups: weakref.WeakValueDictionary[Hashable, _Group] = weakref.WeakValueDictionary()
_groups_lock = threading.Lock()


def _group_of(handle: ReplicatedTesseract) -> _Group:
    # Not the handle itself, which holds the group that holds its place here.
    key = (os.getpid(), *(getattr(handle, field.name) for field in dataclasses.fields(handle)))
    with _groups_lock:
        group = _groups.get(key)
        if group is None:
            group = _groups[key] = _Group(handle)
        return group


def place_of(replica: AbstractTesseract) -> str:
    """How messages name a replica; asks nobody."""
    return replica.url if isinstance(replica, HttpTesseract) else repr(replica)


def _reason(replica: AbstractTesseract, error: Exception) -> str:
    """What went wrong, without where, which is said before."""
    line = str(error).partition("\n")[0]
    return line.partition(f" at {place_of(replica)}: ")[2] or line


def _is_answer(error: BaseException) -> bool:
    return isinstance(error, CallError) and not isinstance(error, CallTimeout)
