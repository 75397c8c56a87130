"""The history of a run as a journal keeps it: a line of JSON per step.

A checkpoint holds the end of it. What came before is in closed parts, files that are written once, so that a step
costs as much at the end of a long run as at its beginning. `history.jsonl` has all lines as well, for people, and in
place of a part that is gone: the checkpoint knows the digest of all that came before its end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from tesseract_flow.storage import AbstractStore

HISTORY = "history.jsonl"
PART = re.compile(r"history-\d{8,}(?:-\d{4,})?\.part")
PART_STEPS = 256


class Damaged(Exception):
    """What was read is not what was once written."""


@dataclasses.dataclass(frozen=True)
class Link:
    """What came before the end of a history.

    Attributes:
        part: the file with the last closed part, which says what came before it.
        n_records, n_bytes, digest: of all lines up to the end of that part.
    """

    part: str
    n_records: int
    n_bytes: int
    digest: str


class History:
    """The lines of a run: added to at the end, and closed in parts.

    Compressed as streams that are flushed after each record: what a step adds is some 100 bytes, and the same bytes
    come out whether a run was interrupted or not.

    Args:
        closed: lines that are in parts already, of which `link` is the last.
        records: what came after.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = (), closed: bytes = b"", link: Link | None = None):
        self.link = link
        self.n_records = 0 if link is None else link.n_records
        self._closed = [zlib.compress(closed)] if closed else []
        self._digest = hashlib.sha256(closed)
        self._n_bytes = len(closed)
        self._begin()
        for record in records:
            self.add(record)

    def _begin(self) -> None:
        self._end = bytearray()
        self._n_end = 0
        self._compressor = zlib.compressobj(6)

    def add(self, record: Mapping[str, Any]) -> bytes:
        """Add a record; its line is returned."""
        line = json.dumps(dict(record), sort_keys=True, allow_nan=False).encode() + b"\n"
        self._end += self._compressor.compress(line) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        self._digest.update(line)
        self._n_bytes += len(line)
        self.n_records += 1
        self._n_end += 1
        return line

    @property
    def is_full(self) -> bool:
        """Whether it is time to close a part."""
        return self._n_end >= PART_STEPS

    def close_part(self, store: AbstractStore, generation: int = 0) -> None:
        """Write the end as a part of its own, and begin a new end."""
        name = f"history-{self.n_records - 1:08d}" + (f"-{generation:04d}" if generation else "") + ".part"
        before = None if self.link is None else self.link.part
        store.write(name, json.dumps({"before": before}).encode() + b"\n" + self._end)
        self.link = Link(name, self.n_records, self._n_bytes, self._digest.hexdigest())
        self._closed.append(bytes(self._end))
        self._begin()

    @property
    def end(self) -> bytes:
        """The records after the last closed part, compressed."""
        return bytes(self._end)

    @property
    def lines(self) -> bytes:
        return b"".join(_unpacked(packed) for packed in [*self._closed, self.end])


def records_of(packed: bytes) -> list[dict[str, Any]]:
    """The records of a compressed end.

    Raises:
        Damaged: it is none.
    """
    try:
        return [json.loads(line) for line in _unpacked(packed).splitlines()]
    except (zlib.error, ValueError) as error:
        raise Damaged("its history is unreadable") from error


def closed_lines(store: AbstractStore, link: Link) -> tuple[bytes, bool]:
    """The lines that are in closed parts, and whether these are all there.

    Raises:
        Damaged: neither the parts nor `history.jsonl` are what they were.
    """
    for read in (_from_parts, _from_lines):
        try:
            lines = read(store, link)
        except (OSError, ValueError, KeyError, TypeError, zlib.error):
            continue
        if hashlib.sha256(lines).hexdigest() == link.digest:
            return lines, read is _from_parts
    raise Damaged(f"its history up to step {link.n_records - 1} is whole neither in {link.part} nor in {HISTORY}")


def _from_parts(store: AbstractStore, link: Link) -> bytes:
    found: list[bytes] = []
    name: str | None = link.part
    while name is not None and len(found) <= link.n_records:  # each holds one at least
        if not PART.fullmatch(name):
            raise ValueError(name)
        head, _, packed = store.read(name).partition(b"\n")
        found.append(_unpacked(packed))
        name = json.loads(head)["before"]
    return b"".join(reversed(found))


def _from_lines(store: AbstractStore, link: Link) -> bytes:
    return store.read(HISTORY)[: link.n_bytes]


def _unpacked(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed) if packed else b""
