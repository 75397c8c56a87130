"""Array bytes in files that client and server both see: `name[:offset[:compressed_size]]`.

Here are files and references to them, as plain bytes; dtypes, shapes and compression are `arrays.py`'s. The one idea:
a reference comes from the other side, so it names something *inside* the agreed folder or it is refused, and the
file must really hold what the reference says.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import numpy as np

from tesseract_flow.errors import WireError
from tesseract_flow.wire._common import abridged, as_bytes

# A reader that maps the file wants each array at an address fit for any dtype and for vector instructions.
ALIGNMENT = 64

# 18 digits fit into 64 bits. [0-9], as \d would also match the digits of other scripts.
_REFERENCE = re.compile(r"(?P<name>.+?)(?::(?P<offset>[0-9]{1,18})(?::(?P<size>[0-9]{1,18}))?)?", re.DOTALL)


class BufferWriter(Protocol):
    """What takes the bytes of arrays: a `BinrefWriter`, or a `PooledWriter` of `pool.py`."""

    def write(self, buffer: bytes | memoryview, *, compressed: bool = False) -> str: ...


class BinrefWriter:
    """Writes buffers below `directory` and hands out references to them, relative to it.

    All buffers go into one file, made by the first `write`. Leaving the context (or `close`) deletes it, so leave
    only when the other side has read everything. Safe to use from several threads.

    >>> with BinrefWriter("/dev/shm/inputs") as writer:  # doctest: +SKIP
    ...     body = dumps({"inputs": inputs}, "binref", binref=writer)
    ...     answer = post(body)
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        self._name = f"tesseract-flow-{uuid.uuid4().hex}.bin"
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._end = 0
        self._is_closed = False

    @property
    def path(self) -> Path:
        """The file that holds the buffers, once there are any."""
        return self.directory / self._name

    def write(self, buffer: bytes | memoryview, *, compressed: bool = False) -> str:
        """Append a C-contiguous `buffer` and return its reference, with its size if it is `compressed`.

        Raises:
            WireError: the folder is missing, full or not writable, or the writer is closed.
        """
        with self._lock:
            if self._is_closed:
                raise WireError(f"this binref writer is closed; its file in {self.directory} is gone.")
            try:
                offset, size = self._append(buffer)
            except OSError as error:
                raise WireError(f"cannot write a binref buffer below {self.directory}: {error}") from error
        return f"{self._name}:{offset}:{size}" if compressed else f"{self._name}:{offset}"

    def close(self) -> None:
        """Delete what was written. Does nothing the second time."""
        with self._lock:
            self._is_closed = True
            if self._file is None:
                return
            try:
                self._file.close()
            finally:
                self._file = None
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, buffer: bytes | memoryview) -> tuple[int, int]:
        if self._file is None:
            # "x": the name is fresh, so something that already bears it was put there to be written through.
            # Unbuffered, as a buffer that failed to reach the disk would be tried again by every later call.
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - closed, and deleted, by close()
        data = as_bytes(buffer)
        # An empty buffer gets no padding: it would point behind the end of the file.
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT if data.nbytes else self._end
        self._file.seek(offset)
        n_written = 0
        while n_written < data.nbytes:  # one system call writes at most 2 GiB
            n_written += self._file.write(data[n_written:])
        self._end = offset + n_written
        return offset, n_written


def read_binref(
    reference: object, n_bytes: int | None, root: str | os.PathLike[str] | None, *, max_bytes: int
) -> np.ndarray:
    """The bytes that `reference` points at, as a fresh uint8 array that no longer needs the file.

    `n_bytes` is how many there must be; `None` takes the compressed size from the reference, at most `max_bytes`.

    Raises:
        WireError: no `root`, a malformed reference, one that leaves `root` (by `..`, an absolute path, a symbolic
            link or as an URL), a file that is missing, not a regular one, or too short.
    """
    if root is None:
        raise WireError(
            "the array is binref-encoded, but no folder to read from was given. Pass binref_root=, the folder that "
            "this process shares with the Tesseract, or ask for base64."
        )
    name, offset, size = _parse(reference)
    if n_bytes is None:
        if size is None:
            raise WireError(f"expected 'path:offset:compressed_size', received {abridged(reference)}.")
        if size > max_bytes:
            raise WireError(f"{abridged(reference)} names {size} bytes; at most {max_bytes} are accepted (max_bytes).")
        n_bytes = size
    elif size not in (None, n_bytes):
        raise WireError(f"{abridged(reference)} names {size} bytes, but shape and dtype make {n_bytes}.")
    path = _inside(name, root)
    try:
        return _read(path, offset, n_bytes, name)
    except OSError as error:
        raise WireError(f"cannot read the binref file {abridged(name)}: {error}") from error


def _parse(reference: object) -> tuple[str, int, int | None]:
    found = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if found is None:
        raise WireError(f"expected a binref buffer 'path[:offset[:compressed_size]]', received {abridged(reference)}.")
    size = found["size"]
    return found["name"], int(found["offset"] or 0), None if size is None else int(size)


def _inside(name: str, root: str | os.PathLike[str]) -> Path:
    if "://" in name:
        raise WireError(f"binref file {abridged(name)} is an URL; only files below binref_root are read.")
    try:
        base = Path(root).resolve(strict=True)
        path = (base / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # no such root, a NUL in the name, a ring of links
        raise WireError(f"cannot resolve the binref file {abridged(name)} below {root}: {error}") from error
    if not path.is_relative_to(base):
        raise WireError(f"binref file {abridged(name)} leaves {root}; refused.")
    return path


def _read(path: Path, offset: int, n_bytes: int, name: str) -> np.ndarray:
    # NOFOLLOW: all links are resolved, so one that is there now was put there since. NONBLOCK: opening a pipe that
    # nobody writes to would wait for ever.
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, flag, 0)
    # By way of an opener, as `open(descriptor)` leaves the descriptor open when it finds a folder behind it.
    with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise WireError(f"binref file {abridged(name)} is not a regular file; refused.")
        if offset + n_bytes > status.st_size:
            raise WireError(
                f"binref file {abridged(name)} has {status.st_size} bytes; expected {n_bytes} bytes from {offset} on."
            )
        data = np.empty(n_bytes, dtype=np.uint8)
        file.seek(offset)
        n_read = 0
        while n_read < n_bytes:  # one system call reads at most 2 GiB
            n = file.readinto(data[n_read:].data)
            if not n:
                raise WireError(f"binref file {abridged(name)} shrank while it was read.")
            n_read += n
    return data
