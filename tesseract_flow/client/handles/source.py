"""What a component's folder holds: its code, which makes a component what it is, and all the rest.

Two digests. `code_of` is that of the code, and part of a handle's identity: other code is another component. `build_of`
is that of everything that is there, for caches that outlive the process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_CODE = frozenset({".py", ".yaml", ".yml", ".toml"})  # and configuration
_REQUIREMENTS = "tesseract_requirements.txt"


def code_of(path: Path) -> str:
    """A digest of the code beside a `tesseract_api.py`, as it is now; empty if there is none.

    Other files are left out: a component may write some, and would be another one after each call.
    """
    found = []
    for file in _files(path.parent):
        if _is_code(file):
            with contextlib.suppress(OSError):
                status = file.stat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
    return _digest_of(path.parent, tuple(found)) if path.is_file() else ""


@functools.lru_cache(maxsize=256)
def _digest_of(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """By size and time, so that it is read once: this is asked at every call that names its component by a path."""
    digest = hashlib.sha256()
    for name, _, _ in files:
        with contextlib.suppress(OSError):
            content = Path(name).read_bytes()
            digest.update(f"{os.path.relpath(name, folder)}\0{len(content)}\0".encode(errors="replace"))
            digest.update(content)
    return digest.hexdigest()


def build_of(folder: Path) -> str:
    """A digest of a component's folder: text of its code and configuration, size and time of what else it may read."""
    digest = hashlib.sha256()
    for path in _files(folder):
        with contextlib.suppress(OSError):
            status = path.stat()
            content = path.read_bytes() if _is_code(path) else str(status.st_mtime_ns).encode()
            digest.update(f"{path.relative_to(folder)}\0{len(content)}\0{status.st_size}\0".encode(errors="replace"))
            digest.update(content)
    return digest.hexdigest()


def _is_code(file: Path) -> bool:
    return file.suffix in _CODE or file.name == _REQUIREMENTS


def _files(folder: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(folder):
        # Hidden folders, what Python has compiled, and environments say nothing about the component.
        own = {name for name in folders if not Path(top, name, "pyvenv.cfg").exists()} - {"__pycache__"}
        folders[:] = sorted(name for name in own if name[0] != ".")
        yield from (Path(top, name) for name in sorted(files))
