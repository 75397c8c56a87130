"""The journal: after every step, everything needed to go on from it is kept.

A folder, or a place at a URL, holds

* `step-00000042.ckpt`, the last few checkpoints, each whole in itself: state, history, and whose it is (`checkpoint`);
* `identity.json` (and a copy of it), what the run is about (`identity`), and every change that was accepted since;
* `history.jsonl`, a line per step, for people and their tools: the checkpoints have it too, so it can be made again;
* `about.json`, `about.bin` and `outcome.json`, for readers only (`afterwards`);
* `lock`, or at a URL a lease: one run at a time.

A checkpoint is written aside, synced, and renamed, so at every instant the journal describes some finished step
completely, and `read_contents` can read it at any time, without asking anybody. A damaged file costs a step at most.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.errors import JournalError, OtherRun, StorageError
from tesseract_flow.optimize.checkpoint import (
    Checkpoint,
    Damaged,
    Decoded,
    History,
    decode_checkpoint,
    encode_checkpoint,
)
from tesseract_flow.optimize.identity import compare, digest_of
from tesseract_flow.optimize.ledger import Entry, Ledger, read_ledger
from tesseract_flow.storage import AbstractPossession, AbstractStore, open_store, place_in, without_secrets

_NAME = re.compile(r"step-(\d{8,})(?:-(\d{4,}))?\.ckpt")
HISTORY = "history.jsonl"
_HISTORY_EVERY = 50  # steps, where a file cannot be appended to


@dataclasses.dataclass(frozen=True, eq=False)
class Resumption:
    """Where an earlier run stopped, and what has to be settled before it goes on.

    Attributes:
        checkpoint: the last intact one.
        history: the records up to it.
        notes: what was wrong, if anything.
        doubts: what cannot be told from the text of the identities; the last finished point has to be compared.
        changes: changes of the problem that were accepted since the checkpoint was written, so that the evaluations
            in it are those of another problem.
    """

    checkpoint: Checkpoint
    history: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


class AbstractJournal(abc.ABC):
    """Where finished steps are kept. To add behaviour (a Prefect task around `save`), wrap one."""

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """Where it is, without credentials."""

    @abc.abstractmethod
    def open(self, identity: Mapping[str, Any], *, accept_changes: bool = False) -> Resumption | None:
        """Take possession, and return where to go on, or `None` for a fresh start.

        Args:
            identity: of the run that asks, as `identity_of` makes it.
            accept_changes: whether to go on in spite of differences.

        Raises:
            OtherRun: it belongs to another run; the message shows the difference, and the ways on.
            JournalError: it is in use, or nothing in it is intact.
        """

    @abc.abstractmethod
    def confirm(self, changes: Sequence[str] = ()) -> None:
        """Write down that the run goes on under the identity that it was opened with.

        Called when the doubts are settled, before the first step.

        Args:
            changes: what turned out to be another one, and was accepted.
        """

    @abc.abstractmethod
    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        """Keep a finished step: its state, and its line of history. Durable on return."""

    @abc.abstractmethod
    def attach(self, name: str, data: bytes) -> None:
        """Put a file beside the steps, over an older one of that name: what readers want to know, and no run needs."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up possession. Harmless when not open."""


class FileJournal(AbstractJournal):
    """A journal of files, in a folder or at a URL.

    Attributes:
        store: where the files are.
        keep: how many checkpoints to keep. More than one, so that a damaged file costs a step and not the run.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | AbstractStore,
        *,
        keep: int = 3,
        at: Callable[[str], None] = lambda moment: None,
    ):
        """`at` is told each moment of a write just before it happens; tests pull the plug there."""
        if keep < 1:
            raise JournalError(f"A journal keeps at least one checkpoint, asked to keep {keep}.")
        with _translated(_shown(address), "opened"):
            self.store = address if isinstance(address, AbstractStore) else open_store(address, at)
        self.keep = keep
        self._at = at
        self._possession: AbstractPossession | None = None
        self._history = History()
        self._names: list[str] = []  # of the checkpoints that are kept, oldest first
        self._ledger = Ledger()
        self._entry: Entry | None = None  # what `confirm` will write down
        self._written = 0

    def __repr__(self) -> str:
        return f"FileJournal({self.store.address!r}, keep={self.keep})"

    @property
    def address(self) -> str:
        """Where it is, without credentials."""
        return self.store.address

    def open(self, identity: Mapping[str, Any], *, accept_changes: bool = False) -> Resumption | None:
        if self._possession is not None:
            raise JournalError(f"Journal {self.address} is already open here; one run at a time.")
        with _translated(self.address, "opened"):
            self.store.make()
            try:
                self._possession = self.store.possess()
            except StorageError as error:
                raise JournalError(
                    f"Journal {error}.\nWait for that run, stop it, or use another folder (another key)."
                ) from error
            try:
                return self._opened(json.loads(json.dumps(identity)), accept_changes)
            except BaseException:
                self.close()
                raise

    def confirm(self, changes: Sequence[str] = ()) -> None:
        entry = self._entry
        if changes:
            step = len(self._history.records) - 1
            entry = dataclasses.replace(self._ledger.last, step=step) if entry is None else entry
            entry = dataclasses.replace(entry, because="accepted", changes=(*entry.changes, *changes))
        if entry is not None:
            with _translated(self.address, "written"):
                self._ledger = self._ledger.with_entry(entry)
                self._ledger.write(self.store)
        self._entry = None

    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        if self._possession is None:
            raise JournalError(f"Journal {self.address} is not open, so step {checkpoint.step} cannot be saved.")
        with _translated(self.address, "written"):
            self._possession.check()
            # History first: a line without its checkpoint is cut off on resumption.
            line = self._history.add(record)
            if self.store.can_append:
                self.store.append(HISTORY, line)
            name = _name(checkpoint.step, self._possession.generation)
            self.store.write(name, encode_checkpoint(checkpoint, self._ledger.digest, self._history.packed))
            self._names = [*(known for known in self._names if known != name), name]
            self._at("prune")
            while len(self._names) > self.keep:
                self.store.remove(self._names.pop(0))
            if not self.store.can_append and len(self._history.records) - self._written >= _HISTORY_EVERY:
                self._write_history()

    def attach(self, name: str, data: bytes) -> None:
        if self._possession is None:
            raise JournalError(f"Journal {self.address} is not open, so {name} cannot be written.")
        with _translated(self.address, "written"):
            self._possession.check()
            self.store.write(name, data)

    def close(self) -> None:
        possession, self._possession = self._possession, None
        if possession is None:
            return
        with contextlib.suppress(OSError):  # what matters is in the checkpoints
            if not self.store.can_append and len(self._history.records) > self._written:
                possession.check()
                self._write_history()
        possession.release()

    # -- opening

    def _opened(self, identity: dict[str, Any], accept_changes: bool) -> Resumption | None:
        found = _look(self.store)
        ledger = found.ledger
        now = Entry(identity)
        if not found.candidates:
            lost = _history_alone(self.store, found)
            if len(lost) > 1:
                raise JournalError(
                    f"Journal {self.address} has no checkpoint, but the history of {len(lost)} finished steps: their "
                    "checkpoints are gone, so nothing can go on from them.\n"
                    "Restore the step-*.ckpt files, use another folder (another key), or remove this one to start "
                    "afresh."
                )
            # Nothing was ever finished here, so it belongs to nobody yet, whatever was tried before.
            return self._fresh(now, found)
        if ledger is None and found.best is not None and found.best.run == now.digest:
            ledger = Ledger((now,))  # a checkpoint says whose it is, even if the file that says so is gone
        if ledger is None:
            if not accept_changes:
                raise JournalError(
                    f"Journal {self.address} has checkpoints, but {found.trouble}, so nobody can tell whose they are.\n"
                    "Restore that file, use another folder (another key), or say that they are this run's: "
                    "accept_changes=True (--accept-changes)."
                )
            ledger = Ledger((Entry({}, because="unknown"),))
        doubts, changes = self._compared(ledger, now, accept_changes)
        self._ledger = ledger
        if found.best is None:
            if found.damaged:
                raise JournalError(
                    f"Journal {self.address} has no intact checkpoint ({'; '.join(found.damaged)}).\n"
                    "Restore the folder from a backup, or use another folder (another key) to start afresh."
                )
            return self._fresh(now, found)
        last = found.best.checkpoint.step
        if now.digest != ledger.digest:
            because = "accepted" if changes else "compared"
            self._entry = dataclasses.replace(now, because=because, step=last, changes=tuple(changes))
        notes = [*found.notes, *self._tidied(found)]
        self._take(found)
        if found.notes:
            self._ledger.write(self.store)
        return Resumption(
            found.best.checkpoint,
            list(self._history.records),
            tuple(notes),
            tuple(doubts),
            (*ledger.accepted_since(found.best.run), *changes),
        )

    def _compared(self, ledger: Ledger, now: Entry, accept_changes: bool) -> tuple[list[str], list[str]]:
        if ledger.last.because == "unknown":
            return [], ["whose the checkpoints are, which the journal no longer says"]
        compared = compare(ledger.last.identity, now.identity)
        if compared.changes and not accept_changes:
            raise OtherRun(refusal(self.address, compared.changes), compared.changes)
        return list(compared.doubts), list(compared.changes)

    def _fresh(self, now: Entry, found: _Found) -> None:
        # History first: with the checkpoints out of the way, it would look like that of a run which lost them.
        if HISTORY in found.names:
            self.store.remove(HISTORY)
        self._tidied(found)
        self._history, self._names, self._written = History(), [], 0
        self._ledger = Ledger((now,))
        self._entry = None
        self._ledger.write(self.store)

    def _take(self, found: _Found) -> None:
        """Make history and list of checkpoints those of the one to go on from."""
        assert found.best is not None
        self._history = History(found.best.history or ())
        self._names = found.intact
        self._written = len(self._history.records)
        try:
            is_right = self.store.read(HISTORY) == self._history.lines
        except OSError:
            is_right = False
        if not is_right:
            self._write_history()

    def _write_history(self) -> None:
        self.store.write(HISTORY, self._history.lines)
        self._written = len(self._history.records)

    def _tidied(self, found: _Found) -> list[str]:
        """Move aside what is in the way: damaged checkpoints, those of other runs, things that only look like files."""
        notes = []
        for name, why in [*found.bad.items(), *found.foreign.items()]:
            ending = "damaged" if name in found.bad else "foreign"
            with contextlib.suppress(FileNotFoundError):
                notes.append(f"{name} {why}; it was set aside as {self.store.set_aside(name, ending)}")
        for name in found.names:
            if name.endswith(".aside"):
                with contextlib.suppress(OSError):
                    self.store.remove(name)
        return notes


def as_journal(journal: AbstractJournal | str | os.PathLike[str]) -> AbstractJournal:
    """A journal, or the path or URL for one."""
    return journal if isinstance(journal, AbstractJournal) else FileJournal(journal)


def refusal(address: str, changes: Sequence[str]) -> str:
    """What is said to a run that is not the one of a journal: the difference, and the ways on."""
    return (
        f"Journal {address} belongs to another run. What changed (journal -> now):\n"
        + "".join(f"  {line}\n" for line in changes)
        + "Undo these changes to go on from it, or choose:\n"
        "  - another folder (another key), for a run of its own; or remove this one, if its run is no longer wanted;\n"
        f"  - start_from={address!r} (--start-from) with another folder, for a fresh run from the best design here;\n"
        "  - accept_changes=True (--accept-changes), to go on here in spite of them, which history and report will say."
    )


# --- reading, at any time ---------------------------------------------------------------------------------------------


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
    """

    address: str
    checkpoint: Checkpoint | None
    history: tuple[Mapping[str, Any], ...]
    identity: Mapping[str, Any] | None
    accepted: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()

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


def read_contents(journal: AbstractStore | FileJournal | str | os.PathLike[str]) -> Contents:
    """What a journal holds. Takes no lock and changes nothing, so it may be read while it is being written.

    Args:
        journal: its folder or URL, or that of a flow's run, which has it in `journal`.

    Raises:
        JournalError: there is no journal, or nothing in it can be read.
    """
    if isinstance(journal, FileJournal):
        journal = journal.store
    address = journal.address if isinstance(journal, AbstractStore) else _shown(journal)
    with _translated(address, "read"):
        store = journal if isinstance(journal, AbstractStore) else _store_at(journal)
        for _ in range(20):
            found = _look(store)
            # Between the listing and the reading, the run may have finished some steps and removed those listed.
            if not found.vanished or found.best is not None:
                break
    if found.ledger is None and not found.candidates:
        raise JournalError(f"There is no journal at {address}.")
    if found.candidates and found.best is None:
        raise JournalError(f"Journal {address} has no intact checkpoint ({'; '.join([*found.damaged, *found.notes])}).")
    ledger = found.ledger or Ledger()
    alone = [] if found.candidates else _history_alone(store, found)
    alone = alone if len(alone) > 1 else []  # of the first step, a checkpoint may be on its way
    gone = f"the checkpoints of {len(alone)} finished steps are gone, and their designs with them; the history is left"
    return Contents(
        address=address,
        checkpoint=found.best.checkpoint if found.best else None,
        history=tuple(found.best.history or ()) if found.best else tuple(alone),
        identity=ledger.last.identity if ledger.entries else None,
        accepted=tuple((entry.step, line) for entry in ledger.entries for line in entry.changes),
        notes=(
            *found.notes,
            *([gone] if alone else ()),
            *found.damaged,
            *(f"{name} {why}" for name, why in found.foreign.items()),
        ),
    )


def _store_at(address: str | os.PathLike[str]) -> AbstractStore:
    store = open_store(address)
    if "journal" in store.names():
        inner = open_store(place_in(address, "journal"))
        return inner if inner.names() else store
    return store


def read_attached(journal: AbstractStore | FileJournal | str | os.PathLike[str], name: str) -> bytes | None:
    """A file beside the steps of a journal; `None` if there is none that can be read."""
    if isinstance(journal, FileJournal):
        journal = journal.store
    try:
        return (journal if isinstance(journal, AbstractStore) else _store_at(journal)).read(name)
    except OSError:
        return None


@dataclasses.dataclass
class _Found:
    """What is in a store."""

    names: list[str]
    ledger: Ledger | None
    trouble: str = ""
    candidates: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)  # (generation, step, name)
    best: Decoded | None = None
    intact: list[str] = dataclasses.field(default_factory=list)  # up to the best one, oldest first
    bad: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> what is wrong
    foreign: dict[str, str] = dataclasses.field(default_factory=dict)
    vanished: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def damaged(self) -> list[str]:
        return [f"{name} {why}" for name, why in self.bad.items()]


def _look(store: AbstractStore) -> _Found:
    names = store.names()
    ledger, trouble, notes = read_ledger(store, names)
    found = _Found(names, ledger, trouble, notes=notes)
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
            found.best = _with_history(store, decoded)
        except FileNotFoundError:
            found.vanished = True
        except (Damaged, OSError) as error:
            found.bad[name] = f"was damaged ({getattr(error, 'strerror', None) or error})"
        else:
            found.intact = [name for _, _, name in found.candidates[: k + 1]]
            break
    return found


def _history_alone(store: AbstractStore, found: _Found) -> list[Mapping[str, Any]]:
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


def _with_history(store: AbstractStore, decoded: Decoded) -> Decoded:
    """One of an old version has its history beside it, and knows what that was at its step."""
    step = decoded.checkpoint.step
    if decoded.history is None:
        try:
            kept = store.read(HISTORY)[: decoded.history_length]
        except OSError as error:
            raise Damaged(f"{HISTORY} cannot be read: {error}") from error
        if len(kept) != decoded.history_length or hashlib.sha256(kept).hexdigest() != decoded.history_digest:
            raise Damaged(f"{HISTORY} is not what it was at that step")
        decoded = dataclasses.replace(decoded, history=[json.loads(line) for line in kept.splitlines()])
    if [record.get("step") for record in decoded.history or ()] != list(range(step + 1)):
        raise Damaged("its history does not lead up to that step")
    return decoded


def _name(step: int, generation: int) -> str:
    """At a URL the name tells which possession wrote it: a run that lost its lease, and has something on its way still,
    cannot replace what its successor wrote."""
    return f"step-{step:08d}-{generation:04d}.ckpt" if generation else f"step-{step:08d}.ckpt"


def _shown(address: Any) -> str:
    return address.address if isinstance(address, AbstractStore) else str(without_secrets(os.fspath(address)))


@contextlib.contextmanager
def _translated(address: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"Journal {address} cannot be {what}: {error}.\n"
            "Steps already finished are safe. Make the place usable, and run again."
        ) from error
