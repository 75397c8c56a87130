"""A folder on this machine: files of the user's own, written aside, synced and renamed, and a lock of the kernel's."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import stat
from collections.abc import Callable

from tesseract_flow.errors import StorageError
from tesseract_flow.storage.base import AbstractPossession, AbstractStore

ASIDE = ".aside"
_PRIVATE = 0o600
# Links are not followed: a name in here means a file in here. And opening a pipe must not wait for who writes to it.
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class FolderStore(AbstractStore):
    """A folder; made readable for its owner alone, as are the files in it."""

    can_append = True

    def __init__(self, path: str | os.PathLike[str], moments: Callable[[str], None] = lambda moment: None):
        self.path = pathlib.Path(path)
        self.address = str(self.path)
        self.moments = moments

    def __repr__(self) -> str:
        return f"FolderStore({self.address!r})"

    def make(self) -> None:
        missing = [self.path, *self.path.parents]
        # From the outermost inwards; `mkdir` with `parents` would leave the outer ones open to everybody.
        for folder in reversed([folder for folder in missing if not folder.exists()]):
            with contextlib.suppress(FileExistsError):  # somebody was faster
                folder.mkdir(mode=0o700)
        if not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", self.address)

    def possess(self) -> AbstractPossession:
        # Imported here: the module exists on POSIX only.
        import fcntl

        lock = self._opened("lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise StorageError(f"{self.address} is in use by {holder}") from error
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return _Lock(lock)

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        with os.fdopen(self._opened(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        aside = name + ASIDE
        self.moments("aside")
        self._clear(aside)  # left by a crash, perhaps with other rights
        with os.fdopen(self._opened(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data[: len(data) // 2])
            self.moments("aside half")
            file.write(data[len(data) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        self.moments("rename")
        try:
            os.replace(self.path / aside, self.path / name)
        except IsADirectoryError:
            self._clear(name)
            os.replace(self.path / aside, self.path / name)
        self.moments("sync folder")
        self._sync()

    def append(self, name: str, data: bytes) -> None:
        self.moments("history")
        with os.fdopen(self._opened(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
            file.write(data)
            file.flush()
            self.moments("history sync")
            os.fsync(file.fileno())

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path / name)

    def set_aside(self, name: str, ending: str) -> str:
        new, k = f"{name}.{ending}", 1
        while os.path.lexists(self.path / new):
            k += 1
            new = f"{name}.{ending}-{k}"
        os.rename(self.path / name, self.path / new)
        return new

    def _clear(self, name: str) -> None:
        """Make room for a file of this name; a folder in its place is somebody's, and only moved."""
        try:
            os.unlink(self.path / name)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # the second is what macOS says
            self.set_aside(name, "displaced")

    def _opened(self, name: str, flags: int) -> int:
        descriptor = os.open(self.path / name, flags | _CAREFUL, _PRIVATE)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a file", name)
        return descriptor

    def _sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class _Lock(AbstractPossession):
    """Held by the kernel on behalf of this process, hence released even by `kill -9`, and never lost before."""

    def __init__(self, descriptor: int):
        self._descriptor: int | None = descriptor

    def check(self) -> None:
        return None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
