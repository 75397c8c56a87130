"""Files that are written again and again, for the arrays of one call after the other.

The one idea: the first write to a file in memory costs three times as much as the second, as the system has to find
and clear each page of it. So files are kept, mapped once, and lent to one call at a time. A file of which the other
side may still read is never lent again: it is deleted.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import uuid
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tesseract_flow.errors import WireError
from tesseract_flow.wire._common import as_bytes
from tesseract_flow.wire._owned import CAN_LOCK, lock, locked
from tesseract_flow.wire.binref import ALIGNMENT

_PAGE = mmap.PAGESIZE
_PREFIX = "tesseract-flow-warm-"


class BinrefPool:
    """Lends files below `directory` to calls, one each.

    Args:
        directory: what the other side knows as its input folder.
        max_bytes: the most that idle files may hold together; a file that does not fit is deleted instead of kept.
        mode: permissions of the files. The other side may be another user.

    Safe to use from several threads. Idle files are deleted with the pool or by `close`; if this process is killed,
    by the next pool of that folder.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_bytes: int = 2**29, mode: int = 0o644):
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self.mode = mode
        self._lock = threading.Lock()
        self._idle: list[_Slot] = []
        self._is_closed = False
        self._has_swept = False
        weakref.finalize(self, _delete_all, self._idle, os.getpid())

    def writer(self, n_bytes: int = 0) -> PooledWriter:
        """What one call writes to, `n_bytes` in all as far as is known."""
        return PooledWriter(self, n_bytes)

    def close(self) -> None:
        """Delete what is idle; what is lent follows when it comes back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle[:] = list(self._idle), []
        _delete_all(idle, os.getpid())

    def take(self, n_bytes: int) -> _Slot:
        """The smallest idle file that is large enough, else the largest, else a new one."""
        while True:
            with self._lock:
                if not self._idle:
                    break
                fitting = [slot for slot in self._idle if slot.capacity >= n_bytes]
                slot = min(fitting, key=_capacity) if fitting else max(self._idle, key=_capacity)
                self._idle.remove(slot)
            if slot.is_in_place():
                return slot
            slot.delete()  # somebody has tidied up: the other side would not find it
        if not self._has_swept:
            self._has_swept = True
            _sweep(self.directory)
        while True:
            slot = _Slot(self.directory / f"{_PREFIX}{uuid.uuid4().hex}.bin", self.mode)
            # So that nobody takes it for one whose owner is dead. Somebody may have, until now.
            if slot.lock() or not CAN_LOCK:
                return slot
            slot.delete()

    def give_back(self, slot: _Slot) -> None:
        """Keep a file that nobody reads any more, if there is room."""
        with self._lock:
            is_kept = not self._is_closed and sum(map(_capacity, self._idle)) + slot.capacity <= self.max_bytes
            if is_kept:
                self._idle.append(slot)
        if not is_kept:
            slot.delete()


class PooledWriter:
    """Writes the buffers of one call into one file of a pool.

    Leaving the context deletes the file, unless `release` was called before: only then is it known that nobody reads
    it any more. Not for several threads, as a call is put into words by one.
    """

    def __init__(self, pool: BinrefPool, n_bytes: int):
        self._pool = pool
        self._n_bytes = n_bytes
        self._slot: _Slot | None = None
        self._end = 0

    def write(self, buffer: bytes | memoryview, *, compressed: bool = False) -> str:
        """Add a C-contiguous `buffer` and return its reference, with its size if it is `compressed`.

        Raises:
            WireError: the folder is missing, full or not writable.
        """
        data = as_bytes(buffer)
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        try:
            if self._slot is None:
                self._slot = self._pool.take(self._n_bytes)
            self._slot.write(data, offset, max(self._n_bytes, offset + data.nbytes))
        except OSError as error:
            raise WireError(f"cannot write a binref buffer below {self._pool.directory}: {error}") from error
        self._end = offset + data.nbytes
        name = self._slot.path.name
        return f"{name}:{offset}:{data.nbytes}" if compressed else f"{name}:{offset}"

    def release(self) -> None:
        """The other side has read everything and will not come back to it."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._pool.give_back(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.delete()


class _Slot:
    """One file, mapped as far as it goes."""

    def __init__(self, path: Path, mode: int):
        self.path = path
        self.capacity = 0
        self._map: mmap.mmap | None = None
        # A name that somebody has already taken was put there to be written through.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, mode)
        self._inode = os.fstat(self._descriptor).st_ino

    def lock(self) -> bool:
        return lock(self._descriptor) and self.is_in_place()

    def is_in_place(self) -> bool:
        """Whether the other side will find it, under its name and as long as it was."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return status.st_ino == self._inode and status.st_size == self.capacity

    def write(self, data: memoryview, offset: int, room: int) -> None:
        if room > self.capacity:
            self._grow(-(-room // _PAGE) * _PAGE)
        if not data.nbytes:
            return
        if self._map is not None:
            # By NumPy, as it lets other threads run while it copies.
            target = np.frombuffer(self._map, np.uint8, data.nbytes, offset)
            np.copyto(target, np.frombuffer(data, np.uint8))
            return
        n_written = 0
        while n_written < data.nbytes:  # one system call writes at most 2 GiB
            n_written += os.pwrite(self._descriptor, data[n_written:], offset + n_written)

    def delete(self) -> None:
        """The file goes; whoever has it open can read on."""
        self._unmap()
        # Of no use any more. An error here would hide the one that led here.
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _grow(self, capacity: int) -> None:
        self._unmap()
        if not hasattr(os, "posix_fallocate"):
            os.ftruncate(self._descriptor, capacity)
            self.capacity = capacity
            return
        # Not `ftruncate`: to write into a mapping for which the disk has no room is no error, but a signal that kills.
        os.posix_fallocate(self._descriptor, self.capacity, capacity - self.capacity)
        self._map = mmap.mmap(self._descriptor, capacity)
        self.capacity = capacity

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None


def _capacity(slot: _Slot) -> int:
    return slot.capacity


def _sweep(directory: Path) -> None:
    """Delete what pools of dead processes have left."""
    for path in directory.glob(f"{_PREFIX}*.bin"):
        descriptor = locked(path)
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _delete_all(slots: list[_Slot], pid: int) -> None:
    if os.getpid() == pid:  # a forked child has no say in its parent's files
        for slot in slots:
            slot.delete()
