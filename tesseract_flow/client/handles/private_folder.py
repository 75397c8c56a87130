"""Folders of this process and its servers, in memory or on disk, that do not outlive it for long.

Their owner holds a lock on them; whoever makes the next one removes those of dead owners. Not here: what is in them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from pathlib import Path

from tesseract_flow.wire import CAN_LOCK, locked

MEMORY = Path("/dev/shm")
_PREFIX = "tesseract-flow-private-"
# Less is not worth the trouble: Docker gives a container 64 MiB unless told otherwise.
_LEAST_FREE = 2**28
_TRIAL = 2**22  # bytes


class PrivateFolder:
    """A new folder below `parent` that only its owner may enter. Removes those of dead owners first.

    Raises:
        OSError: there cannot be one.
    """

    def __init__(self, parent: Path):
        self._pid = os.getpid()
        self._descriptor: int | None = None
        _remove_stale(parent)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._descriptor = locked(self.path)
            # Until now somebody may have taken it for a stale one.
            if self._descriptor is not None or not CAN_LOCK:
                return

    def remove(self) -> None:
        """With all that is in it. Does nothing in a forked child, which has no say in its parent's files."""
        if os.getpid() != self._pid:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def has_room(parent: Path) -> bool:
    """Whether there is a folder that can be written to, and enough room in it to be worth the trouble."""
    try:
        status = os.statvfs(parent)
    except (OSError, AttributeError):  # AttributeError: not on this platform
        return False
    return os.access(parent, os.W_OK | os.X_OK) and status.f_bavail * status.f_frsize >= _LEAST_FREE


@functools.cache
def quickest(memory: Path, disk: Path) -> Path:
    """Where a file that is written, read once and deleted takes less time.

    Such a file never reaches the disk: it lives and dies in the system's cache of it. Since Linux 6.16, ext4 keeps that
    cache in larger pieces than memory file systems do, and is twice as fast; elsewhere, or with a folder that is
    on a network, it may be slower by any factor. So it is tried out, in some 15 ms, once per process.
    """
    seconds: dict[Path, list[float]] = {memory: [], disk: []}
    content = bytes(_TRIAL)
    try:
        for parent in (memory, disk) * 3:
            seconds[parent].append(_trial(parent, content))
    except OSError:
        return memory
    return disk if min(seconds[disk]) < 0.8 * min(seconds[memory]) else memory


def _trial(parent: Path, content: bytes) -> float:
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=parent, buffering=0) as file:
        file.write(content)
        file.seek(0)
        file.readinto(bytearray(len(content)))
    return time.perf_counter() - start


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.stat(follow_symlinks=False).st_uid == os.getuid() and (descriptor := locked(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)
