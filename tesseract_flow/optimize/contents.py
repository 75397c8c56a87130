"""What a journal holds, read at any time: without a lock, while a run writes it, by whoever wants to know."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from tesseract_flow.errors import JournalError
from tesseract_flow.optimize.checkpoint import Checkpoint, Decoded, decode_checkpoint
from tesseract_flow.optimize.history import HISTORY, Damaged, History, closed_lines
from tesseract_flow.optimize.identity import digest_of
from tesseract_flow.optimize.ledger import Ledger, read_ledger
from tesseract_flow.storage import AbstractStore, open_store, place_in, without_secrets

STUDY = "study.json"  # in the folder of many runs
_NAME = re.compile(r"step-(\d{8,})(?:-(\d{4,}))?\.ckpt")


class HasStore(Protocol):
    """A journal of files."""

    store: AbstractStore


Source = AbstractStore | HasStore | str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What a journal holds, as of some finished step.

    Attributes:
        address: where it is, without credentials.
        checkpoint: the last intact one; `None` if no step was finished yet.
        history: one record per step, as `StepRecord.to_json` wrote it.
        identity: what the run is about; of several, because changes were accepted, the last.
        accepted: changes that were accepted on the way, as (step, line).
        notes: what was damaged, if anything.
        actions: what the run was told by hand, in order.
    """

    address: str
    checkpoint: Checkpoint | None
    history: tuple[Mapping[str, Any], ...]
    identity: Mapping[str, Any] | None
    accepted: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    actions: tuple[Mapping[str, Any], ...] = ()

    @property
    def step(self) -> int:
        """The last finished step; -1 if there is none."""
        return -1 if self.checkpoint is None else self.checkpoint.step

    @property
    def best(self) -> dict[str, np.ndarray]:
        """The varying part of the best design, by name, in the design's own units."""
        return {} if self.checkpoint is None else self.checkpoint.best

    @property
    def last(self) -> dict[str, np.ndarray]:
        """The varying part of the design at the last finished step."""
        return {} if self.checkpoint is None else dict(self.checkpoint.design)

    @property
    def run(self) -> str | None:
        """A short name for the run: equal for equal identities."""
        return None if self.identity is None else digest_of(self.identity)


def read_contents(journal: Source) -> Contents:
    """What a journal holds. Takes no lock and changes nothing, so it may be read while it is being written.

    Args:
        journal: it, or its folder or URL, or that of a flow's run, which has it in `journal`.

    Raises:
        JournalError: there is no journal, or nothing in it can be read.
    """
    source = source_of(journal)
    address = shown(source)
    with translated(address, "read"):
        store = store_of(source)
        for _ in range(20):
            found = look(store)
            # Between the listing and the reading, the run may have finished some steps and removed those listed.
            if not found.vanished or found.best is not None:
                break
    if found.ledger is None and not found.candidates:
        raise JournalError(f"There is no journal at {address}.")
    if found.candidates and found.best is None:
        raise JournalError(f"Journal {address} has no intact checkpoint ({'; '.join([*found.damaged, *found.notes])}).")
    ledger = found.ledger or Ledger()
    alone = [] if found.candidates else history_alone(store, found)
    alone = alone if len(alone) > 1 else []  # of the first step, a checkpoint may be on its way
    gone = f"the checkpoints of {len(alone)} finished steps are gone, and their designs with them; the history is left"
    return Contents(
        address=address,
        checkpoint=found.best.checkpoint if found.best else None,
        history=tuple(found.records if found.best else alone),
        identity=ledger.last.identity if ledger.entries else None,
        accepted=tuple((entry.step, line) for entry in ledger.entries for line in entry.changes),
        notes=(
            *found.notes,
            *([gone] if alone else ()),
            *found.damaged,
            *(f"{name} {why}" for name, why in found.foreign.items()),
        ),
        actions=ledger.actions,
    )


def source_of(journal: Source) -> AbstractStore | str | os.PathLike[str]:
    return journal if isinstance(journal, AbstractStore | str | os.PathLike) else journal.store


def store_of(source: AbstractStore | str | os.PathLike[str]) -> AbstractStore:
    if isinstance(source, AbstractStore):
        return source
    store = open_store(source)
    if "journal" in store.names():
        inner = open_store(place_in(source, "journal"))
        return inner if inner.names() else store
    return store


def read_attached(journal: Source, name: str) -> bytes | None:
    """A file beside the steps of a journal; `None` if there is none that can be read."""
    try:
        return store_of(source_of(journal)).read(name)
    except OSError:
        return None


@dataclasses.dataclass
class Found:
    """What is in a store."""

    names: list[str]
    ledger: Ledger | None
    trouble: str = ""
    candidates: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)  # (generation, step, name)
    best: Decoded | None = None
    records: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)  # up to the best one
    history: History = dataclasses.field(default_factory=History)
    intact: list[str] = dataclasses.field(default_factory=list)  # up to the best one, oldest first
    bad: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> what is wrong
    foreign: dict[str, str] = dataclasses.field(default_factory=dict)
    vanished: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def damaged(self) -> list[str]:
        return [f"{name} {why}" for name, why in self.bad.items()]


def look(store: AbstractStore) -> Found:
    names = store.names()
    ledger, trouble, notes = read_ledger(store, names)
    found = Found(names, ledger, trouble, notes=notes)
    found.candidates = sorted(
        (int(match[2] or 0), int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))
    )
    for k in reversed(range(len(found.candidates))):
        _, step, name = found.candidates[k]
        try:
            decoded = decode_checkpoint(store.read(name))
            if decoded.checkpoint.step != step:
                raise Damaged(f"says that it is step {decoded.checkpoint.step}")
            if ledger is not None and not ledger.knows(decoded.run):
                found.foreign[name] = "belongs to another run"
                continue
            found.records, found.history = _with_history(store, decoded)
            found.best = decoded
        except FileNotFoundError:
            found.vanished = True
        except (Damaged, OSError) as error:
            found.bad[name] = f"was damaged ({getattr(error, 'strerror', None) or error})"
        else:
            found.intact = [name for _, _, name in found.candidates[: k + 1]]
            break
    return found


def history_alone(store: AbstractStore, found: Found) -> list[Mapping[str, Any]]:
    """The steps in `history.jsonl`, where no checkpoint vouches for them.

    A run writes the line of a step before its checkpoint, so one that died in its first step leaves step 0 here, maybe
    torn, or twice if the write was tried again. A second step means that there was a checkpoint of the first.
    """
    if HISTORY not in found.names:
        return []
    steps: dict[int, Mapping[str, Any]] = {}
    for line in store.read(HISTORY).splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            steps[int(record["step"])] = record
    return [steps[step] for step in sorted(steps)]


def _with_history(store: AbstractStore, decoded: Decoded) -> tuple[list[Mapping[str, Any]], History]:
    """The records up to a checkpoint, and the history to go on with.

    Raises:
        Damaged: they do not lead up to it.
    """
    link, closed = decoded.link, b""
    records: list[Mapping[str, Any]] = list(decoded.records)
    if link is not None:
        closed, is_in_parts = closed_lines(store, link)
        if not is_in_parts:  # what is left of it is not relied upon any more
            link = None
    before = [json.loads(line) for line in closed.splitlines()]
    history = History([*before, *records]) if link is None else History(records, closed, link)
    records = [*before, *records]
    if [record.get("step") for record in records] != list(range(decoded.checkpoint.step + 1)):
        raise Damaged("its history does not lead up to that step")
    return records, history


def shown(address: Any) -> str:
    return address.address if isinstance(address, AbstractStore) else str(without_secrets(os.fspath(address)))


@contextlib.contextmanager
def translated(address: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"Journal {address} cannot be {what}: {error}.\n"
            "Steps that were finished before are safe, if there were any. Make the place usable, and run again."
        ) from error
