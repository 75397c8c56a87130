"""Counting requests, so that "no solver runs twice" is a number and not a hope.

Every handle reports each request it sends. `count_requests()` counts all that this process sends while it is open, and
`own_requests()` what is caused from inside its block, wherever it is sent from. For that a request must know whose it
is: the thread that opened the block carries an `Account`, and whatever takes work to another thread (the executor in
its nodes, requests made at once, compiled code in its callbacks) takes the account with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

from tesseract_flow.errors import CallReleased

_lock = threading.Lock()
_open: list[RequestCounts] = []


class RequestCounts(Counter[str]):
    """Requests by `"tesseract.endpoint"`, such as `{"fem.apply": 12}`."""

    @property
    def n_total(self) -> int:
        return sum(n for _, n in self._copied())

    @property
    def n_solves(self) -> int:
        """All but questions for shapes, which no solver runs for."""
        return self.n_total - self.n_of("abstract_eval")

    def n_of(self, endpoint: str) -> int:
        """Requests to one endpoint, over all Tesseracts."""
        return sum(n for key, n in self._copied() if key.rpartition(".")[2] == endpoint)

    def _copied(self) -> list[tuple[str, int]]:
        with _lock:  # other threads may be counting, and to copy a dictionary is not one step
            return list(self.items())


@contextlib.contextmanager
def count_requests() -> Iterator[RequestCounts]:
    """Count the requests that this process sends to Tesseracts while the block is open, whoever causes them.

    Attempts count, not successes: a request that fails and is repeated counts twice.
    """
    counts = RequestCounts()
    with _lock:
        _open.append(counts)
    try:
        yield counts
    finally:
        with _lock:
            # By identity: two blocks with equal counts are equal as mappings.
            _open[:] = [other for other in _open if other is not counts]


# --- whose a request is -----------------------------------------------------------------------------------------------


class Recalled(Exception):
    """What ends a call that is not to be waited for any longer. Of no kind that means silence or a lost connection."""


class Recall:
    """By which whoever waits for calls of an account can be told to wait no longer.

    Attributes:
        is_possible: somebody may do so, and calls look out for it.
        n: how often those under way were given up.
        is_final: no call is to begin any more.
    """

    def __init__(self) -> None:
        self.is_possible = False
        self.n = 0
        self.is_final = False

    def give_up(self, *, for_good: bool = False) -> None:
        """Wait no longer for the calls that are under way; and `for_good`: begin no other."""
        self.is_final |= for_good
        self.n += 1


def look_out() -> Callable[[], None] | None:
    """For a call that begins now: what raises `Recalled` when it is to be given up. None where nobody can want that."""
    account = _account.get()
    watched = [recall for recall in (() if account is None else account.recalls) if recall.is_possible]
    if not watched:
        return None
    before = [recall.n for recall in watched]

    def check() -> None:
        if any(recall.is_final or recall.n != n for recall, n in zip(watched, before, strict=True)):
            raise Recalled

    return check


@dataclasses.dataclass(frozen=True, eq=False)
class Account:
    """To whom a request is charged.

    Attributes:
        number: a small one that no other open account has.
        counts: of the block that opened it, and of those around that.
        recalls: of the same blocks, in the same order.
    """

    number: int
    counts: tuple[RequestCounts, ...]
    recalls: tuple[Recall, ...] = ()

    @property
    def own(self) -> RequestCounts:
        """Of the block that opened it."""
        return self.counts[0]


_NOBODY = Account(0, ())
_accounts: dict[int, Account] = {}  # those that are open, by number
_account: ContextVar[Account | None] = ContextVar("account", default=None)
_is_counted: ContextVar[bool] = ContextVar("is_counted", default=True)


@contextlib.contextmanager
def own_requests() -> Iterator[RequestCounts]:
    """Count the requests that are caused from inside the block, and no others.

    A thread that somebody else starts inside does not belong to it, unless it runs in a copy of the context
    (`contextvars.copy_context().run(...)`).
    """
    counts, outer = RequestCounts(), _account.get() or _NOBODY
    with _lock:
        number = next(n for n in itertools.count(1) if n not in _accounts)
        recalls = Recall(), *outer.recalls
        account = _accounts[number] = Account(number, (counts, *outer.counts), recalls)
    try:
        with charged_to(account):
            yield counts
    finally:
        with _lock:
            del _accounts[number]


@contextlib.contextmanager
def charged_to(account: Account | None) -> Iterator[None]:
    """Requests of this thread are this account's; None: nobody's."""
    token = _account.set(account or _NOBODY)
    try:
        yield
    finally:
        _account.reset(token)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Requests of this thread are nobody's: they serve one that was counted where it was sent."""
    token = _is_counted.set(False)
    try:
        yield
    finally:
        _is_counted.reset(token)


def current_account() -> Account | None:
    """The one that this thread's requests are charged to."""
    return _account.get()


def open_account(number: int) -> Account | None:
    """The account that has this number now."""
    with _lock:
        return _accounts.get(number)


def record_request(tesseract: str, endpoint: str) -> None:
    """Report one request to every open `count_requests()` block, and to those whose it is.

    Raises:
        CallReleased: no call of this account is to begin any more.
    """
    account = _account.get()
    if account is not None and any(recall.is_final for recall in account.recalls):
        raise CallReleased(
            f"{endpoint!r} of Tesseract {tesseract!r} was not asked, as the run is being stopped.",
            tesseract=tesseract,
            endpoint=endpoint,
        )
    if not _is_counted.get():
        return
    with _lock:
        charged = list(_open)
        if account is not None:
            charged += account.counts
        elif _is_of_no_known_thread():
            charged += {id(counts): counts for other in _accounts.values() for counts in other.counts}.values()
        for counts in charged:
            counts[f"{tesseract}.{endpoint}"] += 1


def charge(account: Account | None, requests: Mapping[str, int] | None) -> None:
    """Report requests that another process has sent for this account: to it, and to every `count_requests()` block."""
    if not requests:
        return
    with _lock:
        for counts in [*_open, *(() if account is None else account.counts)]:
            counts.update(requests)


def _is_of_no_known_thread() -> bool:
    """Whether Python did not start this thread: XLA's, in which somebody's own host callback calls a component. One of
    those who count has caused it, and a limit must not be passed unseen, so it counts for each of them."""
    return isinstance(threading.current_thread(), threading._DummyThread)
