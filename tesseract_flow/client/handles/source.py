"""What a component's folder holds: its code, which makes a component what it is, and all the rest.

Two digests. `code_of` is that of the code, and part of a handle's identity: other code is another component. `build_of`
is that of everything that is there, for caches that outlive the process. The one idea: content is compared, as a copy
may keep size and time of what it replaces (`cp -p`, `rsync -a`, `tar x`, two versions checked out in one second).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_CODE = frozenset({".py", ".yaml", ".yml", ".toml"})  # and configuration
_REQUIREMENTS = "tesseract_requirements.txt"
_SHORT = 2**20  # bytes up to which code is read each time that it is asked for
_MOST = 2**28  # bytes of a folder's other files that are read


def code_of(path: Path) -> str:
    """A digest of the code beside a `tesseract_api.py`, as it is now; empty if there is none.

    Other files are left out: a component may write some, and would be another one after each call.
    """
    digest = hashlib.sha256()
    for file in _files(path.parent):
        if _is_code(file):
            with contextlib.suppress(OSError):
                status = file.stat()
                is_short = status.st_size <= _SHORT
                content = _sha256(file) if is_short else _read_once(file, _state(status))
                _add(digest, file.relative_to(path.parent), content)
    return digest.hexdigest() if path.is_file() else ""


def build_of(folder: Path) -> str:
    """A digest of a component's folder: content of all files, up to a quarter of a GiB besides its code.

    What is beyond counts by its size, its times and its place on the disk.
    """
    digest, left = hashlib.sha256(), _MOST
    for file in _files(folder):
        with contextlib.suppress(OSError):
            status = file.stat()
            size = 0 if _is_code(file) else status.st_size
            is_read = stat.S_ISREG(status.st_mode) and size <= left  # from a pipe nothing might come
            left -= size if is_read else 0
            _add(digest, file.relative_to(folder), _sha256(file) if is_read else repr(_state(status)).encode())
    return digest.hexdigest()


def _sha256(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


@functools.lru_cache(maxsize=64)
def _read_once(file: Path, state: tuple[int, ...]) -> bytes:
    """The digest of a long file: code is asked for at every call that names its component by a path."""
    return _sha256(file)


def _state(status: os.stat_result) -> tuple[int, ...]:
    """What no copy keeps: when the file's entry was changed last cannot be set."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def forget_bytecode(folder: Path) -> None:
    """Remove what Python would take for code that has changed: it tells that by size and second of the source.

    Of the folder's own modules those whose source has changed since they were compiled.
    """
    for place in {file.parent for file in _files(folder) if file.suffix == ".py"}:
        for compiled in (place / "__pycache__").glob("*.pyc"):
            source = place / f"{compiled.name.partition('.')[0]}.py"
            with contextlib.suppress(OSError):  # its source is gone, or it is somebody else's
                if compiled.stat().st_mtime_ns <= source.stat().st_ctime_ns:
                    compiled.unlink()


def _add(digest: hashlib._Hash, name: Path, content: bytes) -> None:
    digest.update(f"{name}\0{len(content)}\0".encode(errors="replace"))
    digest.update(content)


def _is_code(file: Path) -> bool:
    return file.suffix in _CODE or file.name == _REQUIREMENTS


def _files(folder: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(folder):
        # Hidden folders, what Python has compiled, and environments say nothing about the component.
        own = {name for name in folders if not Path(top, name, "pyvenv.cfg").exists()} - {"__pycache__"}
        folders[:] = sorted(name for name in own if name[0] != ".")
        yield from (Path(top, name) for name in sorted(files))
