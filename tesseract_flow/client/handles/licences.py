"""Places that several processes share, for licences that are counted over all of them: files that the kernel locks.

Here: the folder (`Licences`). Not here: whose turn it is within a process (`limited`). The one idea: a place belongs to
whoever has its file locked, and the kernel takes a lock back the moment its owner is gone, whatever ended it.

A server knows nothing of that: it goes on with what it was asked. So an owner writes down when its call began, and
takes the line back when the call is over. A place whose line still stands rests until that call is older than any that
was seen in this folder, with a margin.

One process at a time looks for a place, and all others wait for that turn, so nobody who comes back at once can
overtake those who wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import random
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tesseract_flow.errors import CallTimeout, ConnectionLost, OptionError, StorageError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05  # seconds
_MARGIN = 1.5  # times the longest call that was seen, before an unfinished one is taken for finished
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_log = logging.getLogger("tesseract_flow")


@dataclasses.dataclass(frozen=True)
class _Line:
    """What a place's file says: the longest call that has ended here, in seconds, and the one under way, if any."""

    longest: float = 0.0
    owner: str = ""
    since: float = 0.0  # of the clock's epoch

    @staticmethod
    def read(descriptor: int) -> _Line:
        text = os.pread(descriptor, 4096, 0)
        if not text:
            return _Line()
        try:
            line = _Line(**json.loads(text))
            return _Line(float(line.longest), str(line.owner), float(line.since))
        except (ValueError, TypeError):  # its writer was ended in the middle of it
            return _Line(0.0, "somebody", os.fstat(descriptor).st_mtime)

    def write(self, descriptor: int) -> None:
        text = json.dumps(dataclasses.asdict(self)).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))


class Licences:
    """`n` places in a folder, over all processes that see it; on several machines if its file system locks for all.

    Args:
        folder: made if need be, with the rights that are usual there. Those who share it write in it.
        clock: seconds since the epoch.

    The first to use the folder writes the number down.
    """

    def __init__(
        self,
        folder: Path,
        n: int,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ):
        self._folder, self._n, self._clock, self._sleep = folder, n, clock, sleep
        self._told: set[tuple[str, float]] = set()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, a place is this caller's alone.

        Raises:
            OptionError: the folder is for another number of places.
            StorageError: the folder cannot be used, or its file system does not lock.
        """
        descriptor = self._wait()
        try:
            longest, began = _Line.read(descriptor).longest, self._clock()
            _Line(longest, f"process {os.getpid()} on {socket.gethostname()}", began).write(descriptor)
            try:
                yield
            except (CallTimeout, ConnectionLost):
                raise  # the solve may be running on, and its line stays
            except Exception:
                _Line(max(longest, self._clock() - began)).write(descriptor)
                raise
            else:
                _Line(max(longest, self._clock() - began)).write(descriptor)
        finally:
            _unlock(descriptor)

    def _wait(self) -> int:
        turn = self._polled(lambda: self._locked("turn"))
        try:
            self._agree()
            return self._polled(self._free_place)
        finally:
            _unlock(turn)

    def _polled(self, attempt: Callable[[], int | None]) -> int:
        pause = _FIRST_PAUSE
        while (found := attempt()) is None:
            self._sleep(pause * random.uniform(0.75, 1.25))
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        return found

    def _agree(self) -> None:
        """On the number. It is this process's turn, so nobody else reads or writes it."""
        path = self._folder / "max_in_flight"
        try:
            text = path.read_text()
        except FileNotFoundError:
            path.write_text(f"{self._n}\n")
            return
        if (there := text.strip()[:20]) != str(self._n):
            raise OptionError(
                f"max_in_flight is {self._n}, and the folder {self._folder} is for {there or 'no number'}: all who "
                f"share it have to name the same number.\nSay max_in_flight={there or '...'}, or choose another "
                "limit_folder. To change the number, end the runs that use the folder, and remove it."
            )

    def _free_place(self) -> int | None:
        for k in range(self._n):
            name = f"place-{k + 1}"
            descriptor = self._locked(name)
            if descriptor is None:
                continue
            if not self._rests(name, descriptor):
                return descriptor
            _unlock(descriptor)
        return None

    def _rests(self, name: str, descriptor: int) -> bool:
        """Whether the call of an owner that is gone may still be solved."""
        line = _Line.read(descriptor)
        if not line.owner:
            return False
        longest = max(self._longest(), line.longest)
        left = line.since + _MARGIN * longest - self._clock()
        if (name, line.since) not in self._told:
            self._told.add((name, line.since))
            if left > 0:
                then = (
                    f"in {left:.1f} s, when that call has had {_MARGIN:g} times as long as any before it, or at once "
                    f"if you remove {name} there"
                )
            else:
                then = "now, " + ("as that call is old" if longest > 0 else "as nobody knows yet how long calls take")
            _log.warning(
                "%s was ended, or gave up, in the middle of a call in %s, which may still be solved. Its place is "
                "given again %s.",
                *(line.owner, self._folder, then),
            )
        return left > 0

    def _longest(self) -> float:
        longest = 0.0
        for k in range(self._n):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # it is being written
                longest = max(longest, float(json.loads((self._folder / f"place-{k + 1}").read_bytes())["longest"]))
        return longest

    def _locked(self, name: str) -> int | None:
        """The file of this name, open and locked; None if somebody else has it locked."""
        try:
            import fcntl  # exists on POSIX only
        except ImportError:
            raise OptionError(
                "limit_folder needs a system that locks files as POSIX has it; this one does not."
            ) from None
        descriptor = self._opened(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink > 0:
                return descriptor
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise StorageError(
                    f"{self._folder / name} cannot be locked: {error.strerror or error}.\n"
                    "Choose a limit_folder on a file system that locks files for all who share it."
                ) from error
        os.close(descriptor)  # somebody else has it, or the folder was removed meanwhile
        return None

    def _opened(self, name: str) -> int:
        path = self._folder / name
        try:
            try:
                descriptor = os.open(path, _FLAGS, 0o666)
            except FileNotFoundError:
                self._folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            raise StorageError(
                f"The limit_folder {self._folder} cannot be used: {error.strerror or error} ({name}).\n"
                "All who share it have to be allowed to write in it: choose such a folder, or mend its rights."
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StorageError(f"{path} is no file. Choose a limit_folder of its own, with nothing else in it.")
        return descriptor


def _unlock(descriptor: int) -> None:
    import fcntl

    # By name, and not only by closing it: a forked child may have it open as well.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
