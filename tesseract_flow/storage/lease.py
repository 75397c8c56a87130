"""Possession where no kernel keeps it: a lease, renewed while its owner lives, lost when it does not.

Each possession of a store is a file of its own, `lease-00000007.json`; the highest number owns the store. Taking over
means creating the next number, exclusively, which the store decides for exactly one of those who try. The owner writes
its own file again every quarter of the lease's length; whoever wants the store watches, and takes it when nothing has
changed for the whole length. Watching needs no clocks that agree, only clocks that run at one speed. An owner that
could not renew in time (it was suspended, or the store out of reach) knows it by its own clock, and writes no more.
What it may still have on its way carries its number, so that readers can tell (`AbstractPossession.generation`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from tesseract_flow.errors import StorageError
from tesseract_flow.storage.base import AbstractPossession

_log = logging.getLogger("tesseract_flow")
_NAME = re.compile(r"lease-(\d{8,})\.json")
LENGTH = 60.0  # seconds
# By more than this, clocks of two machines do not differ: what ran out longer ago needs no watching.
_SKEW = 300.0


class LeaseStore(Protocol):
    """What a lease asks of a store."""

    address: str

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> None: ...
    def remove(self, name: str) -> None: ...


def ticks() -> float:
    """Seconds that also pass while the machine is suspended, where the system has such a clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class Lease(AbstractPossession):
    """A lease on a store, taken at construction.

    Args:
        store: what to possess.
        length: seconds for which it holds without being renewed.
        clock: a clock on the wall, for those who read.
        ticks: a clock that only goes on.
        wait: `wait(seconds)`, for watching and between renewals; true when the lease was given up meanwhile.

    Raises:
        StorageError: the store belongs to somebody who renews his lease.
    """

    def __init__(
        self,
        store: LeaseStore,
        *,
        length: float = LENGTH,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = ticks,
        wait: Callable[[float], bool] | None = None,
        renews: bool = True,
    ):
        self._store, self._length, self._clock, self._ticks = store, length, clock, ticks
        self._released = threading.Event()
        self._wait = wait or self._released.wait
        self._nonce = uuid.uuid4().hex
        self._lost: str | None = None
        self._renewed_at = 0.0
        self.generation = self._take()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True) if renews else None
        if self._thread is not None:
            self._thread.start()

    def check(self) -> None:
        if self._lost is None and self._ticks() - self._renewed_at >= self._length:
            self._lost = f"it could not be renewed within {self._length:g} s"
        if self._lost is not None:
            raise StorageError(
                f"This run lost its lease on {self._store.address}: {self._lost}. Another run may possess it now, so "
                "nothing more is written"
            )

    def release(self) -> None:
        if self._released.is_set():
            return
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.check()
            self._write(released=True)
        except OSError as error:  # it runs out by itself
            _log.info("The lease on %s was not given back: %s", self._store.address, error)

    def renew(self) -> None:
        """Renew it now, unless it was lost."""
        began = self._ticks()
        number, content = self._newest()
        if number != self.generation or content is None or content.get("nonce") != self._nonce:
            self._lost = f"{_owner(content)} took it over"
        self.check()
        self._write()
        self._renewed_at = began

    # -- taking

    def _take(self) -> int:
        watched, since = None, 0.0
        while True:
            number, content = self._newest()
            if self._is_free(content) or (watched == (number, content) and self._ticks() - since >= self._length):
                if self._create(number + 1):
                    return number + 1
                watched = None
                continue
            if watched is None:
                watched, since = (number, content), self._ticks()
                _log.info(
                    "%s belongs to %s; waiting up to %g s to see whether that run is alive",
                    *(self._store.address, _owner(content), self._length),
                )
            elif watched != (number, content):
                raise StorageError(f"{self._store.address} is in use by {_owner(content)}, which renews its lease")
            self._wait(min(1.0, self._length / 10))

    def _is_free(self, content: dict[str, Any] | None) -> bool:
        if content is None or content.get("released"):
            return True
        expires = content.get("expires")
        return isinstance(expires, int | float) and self._clock() > expires + _SKEW

    def _create(self, number: int) -> bool:
        name = _name(number)
        began = self._ticks()
        self.generation = number
        try:
            self._store.create(name, self._content())
            # Read back: a store that knows no exclusive creation has let the last writer win.
            if json.loads(self._store.read(name)).get("nonce") != self._nonce:
                return False
        except (FileExistsError, ValueError):
            return False
        self._renewed_at = began
        if number > 1:
            self._store.remove(_name(number - 1))
        return True

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        """The highest number and what is in its file; `None` if there is none yet."""
        numbers = [int(match[1]) for name in self._store.names() if (match := _NAME.fullmatch(name))]
        if not numbers:
            return 0, None
        try:
            content = json.loads(self._store.read(_name(max(numbers))))
        except FileNotFoundError:  # removed meanwhile by the next owner
            return self._newest()
        except ValueError:
            content = {}
        return max(numbers), content if isinstance(content, dict) else {}

    # -- keeping

    def _keep_renewing(self) -> None:
        while not self._wait(self._length / 4) and self._lost is None:
            try:
                self.renew()
            except Exception as error:  # a store that is away may come back before the lease has run out
                _log.warning("The lease on %s could not be renewed: %s", self._store.address, error)

    def _write(self, released: bool = False) -> None:
        self._store.write(_name(self.generation), self._content(released))

    def _content(self, released: bool = False) -> bytes:
        content = {
            "owner": f"process {os.getpid()} on {socket.gethostname()}",
            "nonce": self._nonce,
            "renewal": uuid.uuid4().hex,  # so that no two writes are alike to those who watch
            "expires": self._clock() + self._length,
            "released": released,
        }
        return json.dumps(content).encode()


def _name(number: int) -> str:
    return f"lease-{number:08d}.json"


def _owner(content: dict[str, Any] | None) -> str:
    return str((content or {}).get("owner") or "another process")
