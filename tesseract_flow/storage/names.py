"""Names of folders made of what people call their runs: readable, and different for different keys."""

from __future__ import annotations

import hashlib
import re

_DIGITS = 10
_LONGEST = 80
# Windows keeps these for devices.
_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d")


def slug(name: str) -> str:
    """`name` in lowercase letters, numbers and dashes, empty if there are none in it; different names may share one."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def folder_name(key: str) -> str:
    """A folder's name that no other key has, on file systems that do not tell capital letters either.

    A key that is a good name stays what it is; any other is made one, with a digest of the key at its end.

    >>> folder_name("wing-3"), folder_name("aoa=2"), folder_name("aoa=-2")
    ('wing-3', 'aoa-2-7617ced463', 'aoa-2-d01597f661')
    """
    plain = slug(key)
    # One that looks as if it had such an ending gets one, too: it could be that of another key.
    has_ending = re.search(rf"-[0-9a-f]{{{_DIGITS}}}$", plain)
    if key == plain and plain and len(plain) <= _LONGEST and not has_ending and not _RESERVED.fullmatch(plain):
        return plain
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{plain[:_LONGEST].strip('-') or 'run'}-{digest}"
