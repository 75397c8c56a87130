"""Files and folders that end with their owner.

The one idea: an owner holds a lock, which the system takes away however the owner ends. What nobody has locked belongs
to nobody, and may be removed by whoever comes next.
"""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on this platform: nothing is ever locked, and nothing is taken for abandoned
    fcntl = None

CAN_LOCK = fcntl is not None


def locked(path: Path) -> int | None:
    """A descriptor that holds the lock of what is at `path`; None if somebody else holds it, or nothing is there."""
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, flag, 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return None
    try:
        # A new one could have taken the place of what was opened.
        if lock(descriptor) and os.stat(path, follow_symlinks=False).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def lock(descriptor: int) -> bool:
    """Lock an open file, until it is closed."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
