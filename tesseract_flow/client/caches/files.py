"""The files in the folder of a cache: which there are, and how one is read.

The one idea: only files of our own names are looked at, and only if they are files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import stat
from pathlib import Path

from tesseract_flow.client.caches.entries import ARRAYS, NAME

COMPONENT = re.compile(r"[a-z0-9-]{1,40}\.[0-9a-f]{32}\.component\.json")
_ASIDE = re.compile(r"\.(?P<name>[a-z0-9-]{1,40}\.[a-z0-9_.]{32,90})\.[0-9a-f]{32}\.tmp")
_ABANDONED = 3600.0  # seconds after which a file that was never finished belongs to nobody


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What is in the folder of a cache now.

    Attributes:
        entries: (path, bytes with those of its arrays, seconds since the epoch of its last use), the longest unused
            first.
        arrays: files of long arrays, by the stem of the entry that they belong to.
        components: what is known of components.
        abandoned: files that some process began and did not finish, or whose entry is gone.
    """

    entries: list[tuple[Path, int, float]]
    arrays: dict[str, list[Path]]
    components: list[Path]
    abandoned: list[Path]

    @property
    def n_bytes(self) -> int:
        return sum(n_bytes for _, n_bytes, _ in self.entries)

    @classmethod
    def of(cls, folder: Path, now: float) -> Inventory:
        """Of the folder of the entries. Files that are none of ours are not looked at."""
        texts: dict[str, tuple[Path, int, float]] = {}
        arrays: dict[str, list[tuple[Path, int, float]]] = {}
        components, abandoned = [], []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for found in os.scandir(folder):
                with contextlib.suppress(OSError):  # removed by another process in the meantime
                    if not found.is_file(follow_symlinks=False):
                        continue
                    status = found.stat(follow_symlinks=False)
                    file = Path(found.path), status.st_size, status.st_mtime
                    if text := NAME.fullmatch(found.name):
                        texts[text["stem"]] = file
                    elif beside := ARRAYS.fullmatch(found.name):
                        arrays.setdefault(beside["stem"], []).append(file)
                    elif COMPONENT.fullmatch(found.name):
                        components.append(file[0])
                    elif _ASIDE.fullmatch(found.name) and now - status.st_mtime > _ABANDONED:
                        abandoned.append(file[0])
        entries = [
            (path, n_bytes + sum(beside[1] for beside in arrays.get(stem, ())), last_use)
            for stem, (path, n_bytes, last_use) in texts.items()
        ]
        # The arrays are written before the entry that makes them part of something.
        abandoned += [
            path
            for stem, files in arrays.items()
            for path, _, written in files
            if stem not in texts and now - written > _ABANDONED
        ]
        return cls(
            sorted(entries, key=lambda entry: (entry[2], entry[0].name)),
            {stem: [path for path, *_ in files] for stem, files in arrays.items()},
            sorted(components),
            abandoned,
        )


def content_of(file: Path, most: int, n_bytes: int | None = None) -> bytearray:
    """All of a file, in memory that is the caller's.

    Args:
        most: bytes that may be read.
        n_bytes: its length, where that is known.

    Raises:
        ValueError: it is no file, or a link to one, or of another length.
    """
    with open(_regular(file), "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > most or n_bytes not in (None, size):
            raise ValueError("its length is wrong")
        content = bytearray(size)
        if opened.readinto(content) != size or opened.read(1):  # type: ignore[attr-defined]
            raise ValueError("its length is wrong")
        return content


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
