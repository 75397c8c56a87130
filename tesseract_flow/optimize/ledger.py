"""Whose a journal is: the identity of its run, and every later one under which it went on, in `identity.json`.

Kept twice, with a checksum in each, so that one damaged file costs nothing. Journals of older versions have one
identity with less in it, in `fingerprint.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tesseract_flow.errors import JournalError
from tesseract_flow.optimize.identity import digest_of
from tesseract_flow.storage import AbstractStore

_FORMAT = "tesseract-flow identity"
# Of a run that was never steered, and of one that was: a version that knows nothing of it would go on without.
_VERSIONS = (2, 3)
_FILES = ("identity.json", "identity-copy.json")
_OLD_FILE = "fingerprint.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """An identity under which a run went on.

    Attributes:
        because: `"started"`; `"compared"`, its last point was evaluated again and is the same; `"accepted"`, in spite
            of changes; `"old"`, from a `fingerprint.json`; `"unknown"`, nobody could tell.
        step: the last finished step at that time.
        changes: what was accepted.
    """

    identity: Mapping[str, Any]
    because: str = "started"
    step: int = 0
    changes: tuple[str, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        return digest_of(self.identity)

    def varies_like(self, other: Entry) -> bool:
        """Whether what varies has the same names and shapes, without which no design of the one is one of the other."""
        if "varying" not in self.identity or "varying" not in other.identity:
            return True
        mine, yours = (
            {name: text.partition("]")[0].partition("[")[2] for name, text in one.identity["varying"].items()}
            for one in (self, other)
        )
        return mine == yours


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The identities of a run, in order, and what it was told by hand (`steering`), which is part of what it is."""

    entries: tuple[Entry, ...] = ()
    actions: tuple[Mapping[str, Any], ...] = ()

    @property
    def last(self) -> Entry:
        return self.entries[-1]

    @property
    def digest(self) -> str:
        """What a checkpoint that is written now carries."""
        return _digest(self.last, self.actions)

    def knows(self, run: str | None) -> bool:
        """Whether a checkpoint that carries `run` is of this run. An old one carries nothing."""
        if any(entry.because == "unknown" for entry in self.entries):
            return True
        if run is None:
            return any(entry.because == "old" for entry in self.entries)
        return self._position(run) is not None

    def accepted_since(self, run: str | None) -> tuple[str, ...]:
        """Changes that were accepted after a checkpoint was written that carries `run`."""
        position = None if run is None else self._position(run)
        return tuple(line for entry in self.entries[(position or 0) + 1 :] for line in entry.changes)

    def _position(self, run: str) -> int | None:
        """The last identity under which a checkpoint can have carried `run`."""
        for k in reversed(range(len(self.entries))):
            if any(_digest(self.entries[k], self.actions[:n]) == run for n in range(len(self.actions) + 1)):
                return k
        return None

    def with_entry(self, entry: Entry) -> Ledger:
        return Ledger((*self.entries, entry), self.actions)

    def with_action(self, action: Mapping[str, Any]) -> Ledger:
        return Ledger(self.entries, (*self.actions, dict(action)))

    def write(self, store: AbstractStore) -> None:
        document: dict[str, Any] = {"runs": [dataclasses.asdict(entry) for entry in self.entries]}
        if self.actions:
            document["actions"] = list(self.actions)
        head = {"format": _FORMAT, "version": _VERSIONS[bool(self.actions)], "sha256": _checksum(document)}
        data = json.dumps(head | document, indent=1, ensure_ascii=False, allow_nan=False).encode()
        for name in _FILES:
            store.write(name, data)


def _digest(entry: Entry, actions: Sequence[Mapping[str, Any]]) -> str:
    if not actions:
        return entry.digest
    return hashlib.sha256((entry.digest + json.dumps(list(actions), sort_keys=True)).encode()).hexdigest()[:32]


def read_ledger(store: AbstractStore, names: Sequence[str]) -> tuple[Ledger | None, str, list[str]]:
    """The ledger in a store; or `None`, and what is wrong. And what one should know.

    Raises:
        JournalError: another version wrote it.
    """
    troubles = []
    for name in _FILES:
        if name not in names:
            troubles.append(f"{name} is not there")
            continue
        try:
            ledger = _decoded(store.read(name))
        except (OSError, ValueError, KeyError, TypeError) as error:
            troubles.append(f"{name} is damaged ({error})")
        else:
            return ledger, "", [f"{trouble}; its copy was used" for trouble in troubles]
    if not set(_FILES).intersection(names) and _OLD_FILE in names:
        try:
            return Ledger((Entry(json.loads(store.read(_OLD_FILE)), because="old"),)), "", []
        except (OSError, ValueError) as error:
            troubles = [f"{_OLD_FILE} is damaged ({error})"]
    return None, " and ".join(troubles), []


def _decoded(data: bytes) -> Ledger:
    document = json.loads(data)
    if document["format"] != _FORMAT:
        raise ValueError("it is something else")
    if document["version"] not in _VERSIONS:
        raise JournalError(
            f"A journal has format version {document['version']}; this tesseract-flow reads version {_VERSIONS[-1]}.\n"
            "Go on with the version that wrote it, or use another folder."
        )
    if document["sha256"] != _checksum({key: document[key] for key in ("runs", "actions") if key in document}):
        raise ValueError("its checksum does not match")
    runs = tuple(Entry(**{**run, "changes": tuple(run["changes"])}) for run in document["runs"])
    return Ledger(runs, tuple(document.get("actions", ())))


def _checksum(document: Mapping[str, Any]) -> str:
    # That of the identities alone is of the same text as ever.
    what = document if "actions" in document else document["runs"]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
