"""The result cache in a folder: answers that outlive the process, shared by several.

Here: the file of one answer (`write_entry`, `read_entry`), the folder (`DirectoryCache`), its inventory for the command
line (`Inventory`). The one idea: a file is there as a whole or not at all, and is believed only if its checksum and the
whole question in it are right. Everything else is a miss, which costs a request and never a wrong answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import re
import stat
import struct
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tesseract_flow.client.base import Tree
from tesseract_flow.client.caches.base import MISS, AbstractCache, RequestKey, Traffic, checked_max_bytes
from tesseract_flow.errors import OptionError
from tesseract_flow.exact import pack, unpack

DEFAULT_MAX_BYTES = 2**32
# The format's version is in the folder's name: another version neither reads these files nor removes them.
FOLDER = "tesseract-flow-cache-v1"
_ENTRY = re.compile(r"[0-9a-f]{64}\.answer")
_ASIDE = re.compile(r"\.[0-9a-f]{64}\.answer\.[0-9a-f]{32}\.tmp")
_MAGIC = b"tesseract-flow\x001"
_HEAD = struct.Struct("<16s32sQQ")  # magic, checksum, lengths of question and answer
_PIECE = 2**16
_ABANDONED = 3600.0  # seconds after which a file that was never finished belongs to nobody

_log = logging.getLogger("tesseract_flow")


def name_of(key: RequestKey) -> str:
    return f"{key.digest.hex()}.answer"


def write_entry(key: RequestKey, answer: Tree) -> bytes:
    """The bytes of one entry.

    Raises:
        TypeError: the answer has a leaf that cannot be written, such as an enumeration.
    """
    packed = pack(answer, in_order=True)
    checksum = _checksum(key, packed)
    return b"".join([_HEAD.pack(_MAGIC, checksum, len(key.packed), len(packed)), key.packed, packed])


def read_entry(file: BinaryIO, key: RequestKey) -> Tree:
    """The answer in an entry, with arrays that are the caller's.

    Raises:
        ValueError: it is damaged, or the answer to something else.
    """
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise ValueError("it is cut off")
    magic, checksum, n_question, n_answer = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise ValueError("it is no entry of this cache")
    n_left = file.seek(0, os.SEEK_END) - _HEAD.size
    if n_question != len(key.packed) or n_question + n_answer != n_left:
        raise ValueError("its length is wrong")
    file.seek(_HEAD.size)
    question = memoryview(key.packed)
    for start in range(0, n_question, _PIECE):  # piece by piece, as fresh memory takes longer than the comparison
        piece = question[start : start + _PIECE]
        if file.read(len(piece)) != piece:
            raise ValueError("it answers another question")
    answer = bytearray(n_answer)
    if file.readinto(answer) != n_answer or _checksum(key, answer) != checksum:  # type: ignore[attr-defined]
        raise ValueError("its checksum is wrong")
    return unpack(answer)


def _checksum(key: RequestKey, answer: bytes | bytearray) -> bytes:
    """Of question and answer; the former by its digest, which is known."""
    checksum = hashlib.sha256(key.digest)
    checksum.update(answer)
    return checksum.digest()


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What is in the folder of a cache now.

    Attributes:
        entries: (path, bytes, seconds since the epoch of its last use), the longest unused first.
        abandoned: files that some process began and did not finish, or others of the same kind.
    """

    entries: list[tuple[Path, int, float]]
    abandoned: list[Path]

    @property
    def n_bytes(self) -> int:
        return sum(n_bytes for _, n_bytes, _ in self.entries)

    @classmethod
    def of(cls, folder: Path, now: float) -> Inventory:
        """Of the folder of the entries. Files that are none of ours are not looked at."""
        entries, abandoned = [], []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for found in os.scandir(folder):
                with contextlib.suppress(OSError):  # removed by another process in the meantime
                    if not found.is_file(follow_symlinks=False):
                        continue
                    status = found.stat(follow_symlinks=False)
                    if _ENTRY.fullmatch(found.name):
                        entries.append((Path(found.path), status.st_size, status.st_mtime))
                    elif _ASIDE.fullmatch(found.name) and now - status.st_mtime > _ABANDONED:
                        abandoned.append(Path(found.path))
        return cls(sorted(entries, key=lambda entry: (entry[2], entry[0].name)), abandoned)


class _Shared:
    """What equal caches of one process share."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.lock = threading.Lock()
        self.n_bytes: int | None = None  # in the folder, as far as this process knows; None before the first look
        self.n_unseen = 0  # written since the last look
        self.has_warned = False


_shared: weakref.WeakValueDictionary[tuple[int, str], _Shared] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class DirectoryCache(AbstractCache):
    """Answers as files of a folder, one each, the longest unused of which make room for others.

    Several processes may share the folder. Files are private to their owner, and hold questions and answers but no
    credentials. An answer belongs to the component's name, version and schema: raise the version in the component's
    `tesseract_config.yaml` when its results change.

    Attributes:
        path: the folder; it is made with the first answer.
        max_bytes: what all files may take together. Two processes that write at once may exceed it by an eighth.
    """

    path: Path
    max_bytes: int = DEFAULT_MAX_BYTES
    _state: _Shared = dataclasses.field(init=False, repr=False, compare=False)

    is_lasting = True

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES):
        text = os.fspath(path)
        if "://" in text or not text.strip():
            raise OptionError(f"A cache's folder is {text!r}; expected a path on this machine.")
        # Absolute, because the working directory may change while the handle is the same.
        absolute = Path(os.path.abspath(text))
        if absolute.exists() and not absolute.is_dir():
            raise OptionError(f"A cache's folder is {text}, which is a file.")
        object.__setattr__(self, "path", absolute)
        object.__setattr__(self, "max_bytes", checked_max_bytes(max_bytes, "DirectoryCache"))
        with _shared_lock:
            # By process too: locks and flights of a parent say nothing in its forked child.
            state = _shared.setdefault((os.getpid(), str(absolute)), _Shared())
        object.__setattr__(self, "_state", state)

    def __reduce__(self) -> tuple[type[DirectoryCache], tuple[str, int]]:
        return DirectoryCache, (str(self.path), self.max_bytes)

    def __repr__(self) -> str:
        return f"DirectoryCache({str(self.path)!r})"

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        return self.path / FOLDER

    @property
    def traffic(self) -> Traffic:
        return self._state.traffic

    def get(self, key: RequestKey) -> Tree:
        file = self.folder / name_of(key)
        try:
            with open(_regular(file), "rb") as opened:
                answer = read_entry(opened, key)
        except FileNotFoundError:
            return MISS
        except ValueError as error:
            _log.warning("%s is not used and removed: %s.", file, error)
            with contextlib.suppress(OSError):
                file.unlink()
            return MISS
        except OSError as error:
            self._warn("read", error)
            return MISS
        with contextlib.suppress(OSError):
            os.utime(file)  # by which the longest unused are found
        return answer

    def put(self, key: RequestKey, answer: Tree) -> None:
        try:
            data = write_entry(key, answer)
        except (TypeError, ValueError, RecursionError):
            self.traffic.count("skipped")
            return
        if len(data) > self.max_bytes:
            self.traffic.count("skipped")
            _log.info("An answer of %d bytes is more than %r may hold; it is not kept.", len(data), self)
            return
        try:
            self._make_room(len(data))
            self._write(name_of(key), data)
        except OSError as error:
            self.traffic.count("skipped")
            self._warn("write", error)

    def drop(self, key: RequestKey) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name_of(key)).unlink()

    def size(self) -> dict[str, int]:
        found = Inventory.of(self.folder, time.time())
        return {"entries": len(found.entries), "bytes": found.n_bytes}

    def prune(self, max_bytes: int = 0, *, unused_since: float | None = None) -> tuple[int, int]:
        """Remove entries, the longest unused first, until no more than `max_bytes` are left.

        Args:
            max_bytes: what may stay; 0 removes all.
            unused_since: seconds since the epoch: remove the entries not used since then, and no others.

        Returns:
            How many were removed, and their bytes. Files that are none of ours stay.
        """
        found = Inventory.of(self.folder, time.time())
        for file in found.abandoned:
            with contextlib.suppress(OSError):
                file.unlink()
        n_removed, n_left = 0, found.n_bytes
        for file, n_bytes, last_use in found.entries:
            if last_use >= unused_since if unused_since is not None else n_left <= max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
            n_removed += 1
            n_left -= n_bytes
        with self._state.lock:
            self._state.n_bytes, self._state.n_unseen = n_left, 0
        return n_removed, found.n_bytes - n_left

    def _make_room(self, n_bytes: int) -> None:
        """Look at the folder when it may be full, and now and then for what others have written."""
        state = self._state
        with state.lock:
            state.n_unseen += n_bytes
            is_known = state.n_bytes is not None and state.n_unseen <= self.max_bytes // 8
            if is_known and state.n_bytes + n_bytes <= self.max_bytes:  # type: ignore[operator]
                state.n_bytes += n_bytes  # type: ignore[operator]
                return
        n_removed, _ = self.prune(self.max_bytes - n_bytes)
        self.traffic.count("evicted", n_removed)
        with state.lock:
            state.n_bytes = (state.n_bytes or 0) + n_bytes

    def _write(self, name: str, data: bytes) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise

    def _warn(self, what: str, error: OSError) -> None:
        if not self._state.has_warned:
            self._state.has_warned = True
            _log.warning("Cannot %s %r (%s). Calls go on without it; this is said once.", what, self, error)


def _regular(file: Path) -> int:
    """A descriptor of a file that is one: neither a pipe, which would wait for a writer, nor a link to something else.

    Raises:
        ValueError: it is something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a link") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no file")
    return descriptor


def existing(path: str | os.PathLike[str]) -> DirectoryCache:
    """The cache in a folder that is one.

    Raises:
        OptionError: there is no such folder, or it is no cache.
    """
    path = Path(path)
    # Whoever passes the inner folder means the cache.
    path = path.parent if path.name == FOLDER else path
    if not path.is_dir():
        raise OptionError(f"There is no folder {path}, so there is no cache in it.")
    if not (path / FOLDER).is_dir():
        others = sorted(_other_versions(path))
        raise OptionError(
            f"{path} is no result cache: it has no folder {FOLDER}, which the first kept answer makes."
            + (f" It has {', '.join(others)}, of another version of tesseract-flow." if others else "")
            + " Nothing was touched."
        )
    return DirectoryCache(path)


def _other_versions(path: Path) -> Iterator[str]:
    return (found.name for found in path.glob("tesseract-flow-cache-v*") if found.name != FOLDER)
