"""The journal: after every step, everything needed to go on from it is kept.

A folder, or a place at a URL, holds

* `step-00000042.ckpt`, the last few checkpoints: state, the end of the history, and whose it is (`checkpoint`);
* `history-00000255.part`, what came before that end, in files that are written once (`history`);
* `identity.json` (and a copy of it), what the run is about (`identity`), and every change that was accepted since;
* `answers-00000042.part`, what the driver's library was told in a step, if it has one that owns its loop (`answers`);
* `history.jsonl`, a line per step, for people and their tools; made again where it is damaged;
* `about.json`, `about.bin` and `outcome.json`, for readers only (`afterwards`);
* `steer-....json`, what somebody asks of the run, until it has looked at it (`commands`);
* `lock`, or at a URL a lease: one run at a time.

A checkpoint is written aside, synced, and renamed, so at every instant the journal describes some finished step
completely, and it can be read at any time, without asking anybody (`contents`). A damaged file costs a step at most.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tesseract_flow.errors import JournalError, OtherRun, StorageError
from tesseract_flow.optimize.answers import ANSWERS, AnswersLink, read_answers, write_answers
from tesseract_flow.optimize.checkpoint import Checkpoint, encode_checkpoint
from tesseract_flow.optimize.commands import COMMAND
from tesseract_flow.optimize.contents import Found, history_alone, look, shown, translated
from tesseract_flow.optimize.history import HISTORY, PART, History
from tesseract_flow.optimize.identity import compare
from tesseract_flow.optimize.ledger import Entry, Ledger
from tesseract_flow.storage import AbstractPossession, AbstractStore, open_store

_LINES_EVERY = 50  # steps at least, where a file cannot be appended to


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
        answers: what the driver's library was told up to the checkpoint, step by step, the last one first.
        actions: what the run was told by hand, in order, also after the checkpoint.
    """

    checkpoint: Checkpoint
    history: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    answers: Callable[[], Iterator[bytes]] = lambda: iter(())
    actions: tuple[Mapping[str, Any], ...] = ()


class AbstractJournal(abc.ABC):
    """Where finished steps are kept. To add behaviour (a Prefect task around `save`), wrap one.

    Attributes:
        glance: seconds after which it is worth looking into the inbox again.
    """

    glance: float = 0.25

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
            OtherRun: it belongs to another run; the message shows the difference, and the ways on. Also where changes
                are accepted, if what varies has other names or shapes.
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

    def inbox(self) -> dict[str, bytes]:
        """What a run was asked to do and has not looked at yet: files by name, the oldest first (`commands`)."""
        return {}

    def act(self, action: Mapping[str, Any]) -> None:
        """Write down what the run is about to do because it was asked to. Durable on return."""
        raise NotImplementedError

    def waiting(self, why: str | None) -> None:
        """Told again and again while the run waits for somebody, and with None when it goes on; for who shows that."""
        return None

    def dismiss(self, name: str, *, is_bad: bool = False) -> None:
        """Take out of the inbox what was looked at; what `is_bad` is set aside."""
        raise NotImplementedError


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
        with translated(shown(address), "opened"):
            self.store = address if isinstance(address, AbstractStore) else open_store(address, at)
        self.keep = keep
        self.glance = 0.25 if self.store.can_append else 5.0  # a look at a bucket takes time, and may cost
        self._at = at
        self._possession: AbstractPossession | None = None
        self._history = History()
        self._names: list[str] = []  # of the checkpoints that are kept, oldest first
        self._ledger = Ledger()
        self._entry: Entry | None = None  # what `confirm` will write down
        self._written = 0
        self._answers: AnswersLink | None = None

    def __repr__(self) -> str:
        return f"FileJournal({self.store.address!r}, keep={self.keep})"

    @property
    def address(self) -> str:
        """Where it is, without credentials."""
        return self.store.address

    def open(self, identity: Mapping[str, Any], *, accept_changes: bool = False) -> Resumption | None:
        if self._possession is not None:
            raise JournalError(f"Journal {self.address} is already open here; one run at a time.")
        with translated(self.address, "opened"):
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
            step = self._history.n_records - 1
            entry = dataclasses.replace(self._ledger.last, step=step) if entry is None else entry
            entry = dataclasses.replace(entry, because="accepted", changes=(*entry.changes, *changes))
        if entry is not None:
            with translated(self.address, "written"):
                self._ledger = self._ledger.with_entry(entry)
                self._ledger.write(self.store)
        self._entry = None

    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        if self._possession is None:
            raise JournalError(f"Journal {self.address} is not open, so step {checkpoint.step} cannot be saved.")
        with translated(self.address, "written"):
            self._possession.check()
            # History first: a line without its checkpoint is cut off on resumption.
            line = self._history.add(record)
            if self.store.can_append:
                self.store.append(HISTORY, line)
            generation = self._possession.generation
            if self._history.is_full:
                self._history.close_part(self.store, generation)
            if checkpoint.is_new:
                self._answers = None
            if checkpoint.answers:
                self._answers = write_answers(
                    self.store, checkpoint.step, generation, checkpoint.answers, self._answers
                )
            name = _name(checkpoint.step, generation)
            encoded = encode_checkpoint(
                checkpoint, self._ledger.digest, self._history.end, self._history.link, self._answers
            )
            self.store.write(name, encoded)
            self._names = [*(known for known in self._names if known != name), name]
            self._at("prune")
            while len(self._names) > self.keep:
                self.store.remove(self._names.pop(0))
            # By a part of what is there, so that all of this is in proportion to the length of the run.
            n_more = self._history.n_records - self._written
            if not self.store.can_append and n_more >= max(_LINES_EVERY, self._written // 10):
                self._write_lines()

    def attach(self, name: str, data: bytes) -> None:
        if self._possession is None:
            raise JournalError(f"Journal {self.address} is not open, so {name} cannot be written.")
        with translated(self.address, "written"):
            self._possession.check()
            self.store.write(name, data)

    def inbox(self) -> dict[str, bytes]:
        found = {}
        with translated(self.address, "read"):
            for name in self.store.names():
                if COMMAND.fullmatch(name):
                    with contextlib.suppress(OSError):  # what is no file is nobody's request
                        found[name] = self.store.read(name)
        return found

    def act(self, action: Mapping[str, Any]) -> None:
        if self._possession is None:
            raise JournalError(f"Journal {self.address} is not open, so nothing can be done in it.")
        with translated(self.address, "written"):
            self._possession.check()
            self._ledger = self._ledger.with_action(action)
            self._ledger.write(self.store)

    def dismiss(self, name: str, *, is_bad: bool = False) -> None:
        with translated(self.address, "written"):
            if is_bad:
                self.store.set_aside(name, "refused")
            else:
                self.store.remove(name)

    def close(self) -> None:
        possession, self._possession = self._possession, None
        if possession is None:
            return
        with contextlib.suppress(OSError):  # what matters is in the checkpoints
            if not self.store.can_append and self._history.n_records > self._written:
                possession.check()
                self._write_lines()
        possession.release()

    # -- opening

    def _opened(self, identity: dict[str, Any], accept_changes: bool) -> Resumption | None:
        found = look(self.store)
        ledger = found.ledger
        now = Entry(identity)
        if not found.candidates:
            lost = history_alone(self.store, found)
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
        if now.digest != ledger.last.digest:
            because = "accepted" if changes else "compared"
            self._entry = dataclasses.replace(now, because=because, step=last, changes=tuple(changes))
        notes = [*found.notes, *self._tidied(found)]
        self._take(found)
        if found.notes:
            self._ledger.write(self.store)
        return Resumption(
            found.best.checkpoint,
            found.records,
            tuple(notes),
            tuple(doubts),
            (*ledger.accepted_since(found.best.run), *changes),
            functools.partial(read_answers, self.store, found.best.answers),
            ledger.actions,
        )

    def _compared(self, ledger: Ledger, now: Entry, accept_changes: bool) -> tuple[list[str], list[str]]:
        if ledger.last.because == "unknown":
            return [], ["whose the checkpoints are, which the journal no longer says"]
        compared = compare(ledger.last.identity, now.identity)
        can_go_on = ledger.last.varies_like(now)
        if compared.changes and not (accept_changes and can_go_on):
            raise OtherRun(refusal(self.address, compared.changes, can_go_on=can_go_on), compared.changes)
        return list(compared.doubts), list(compared.changes)

    def _fresh(self, now: Entry, found: Found) -> None:
        # History first: with the checkpoints out of the way, it would look like that of a run which lost them.
        for name in found.names:
            if name == HISTORY or PART.fullmatch(name) or ANSWERS.fullmatch(name):
                self.store.remove(name)
        self._tidied(found)
        self._history, self._names, self._written, self._answers = History(), [], 0, None
        self._ledger = Ledger((now,))
        self._entry = None
        self._ledger.write(self.store)

    def _take(self, found: Found) -> None:
        """Make history and list of checkpoints those of the one to go on from."""
        assert found.best is not None
        self._history = found.history
        self._names = found.intact
        self._answers = found.best.answers
        self._written = self._history.n_records
        try:
            is_right = self.store.read(HISTORY) == self._history.lines
        except OSError:
            is_right = False
        if not is_right:
            self._write_lines()

    def _write_lines(self) -> None:
        self.store.write(HISTORY, self._history.lines)
        self._written = self._history.n_records

    def _tidied(self, found: Found) -> list[str]:
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


def refusal(address: str, changes: Sequence[str], *, can_go_on: bool = True) -> str:
    """What is said to a run that is not the one of a journal: the difference, and the ways on.

    Args:
        can_go_on: what varies is the same, so its design may be one of this run.
    """
    ways = ["another folder (another key), for a run of its own; or remove this one, if its run is no longer wanted"]
    if can_go_on:
        ways += [
            f"start_from={address!r} (--start-from) with another folder, for a fresh run from the best design here",
            "accept_changes=True (--accept-changes), to go on here in spite of them, which history and report will say",
        ]
    return (
        f"Journal {address} belongs to another run. What changed (journal -> now):\n"
        + "".join(f"  {line}\n" for line in changes)
        + ("" if can_go_on else "What varies has other names or shapes, so its designs are none of this problem.\n")
        + "Undo these changes to go on from it, or choose:\n"
        + ";\n".join(f"  - {way}" for way in ways)
        + "."
    )


def _name(step: int, generation: int) -> str:
    """At a URL the name tells which possession wrote it: a run that lost its lease, and has something on its way still,
    cannot replace what its successor wrote."""
    return f"step-{step:08d}-{generation:04d}.ckpt" if generation else f"step-{step:08d}.ckpt"
