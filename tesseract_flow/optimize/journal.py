"""The journal: after every step, everything needed to go on from it is on disk.

A folder holds

* `step-00000042.ckpt`, the last few checkpoints: a line of JSON (which arrays, how long, their digest), then raw bytes;
* `history.jsonl`, a line per step, append-only; each checkpoint knows length and digest of the history up to its step;
* `fingerprint.json`, what the run was about; another problem in the same folder is refused with a difference to read;
* `lock`, held by the kernel on behalf of the running process, hence released even by `kill -9`.

A checkpoint is written aside, synced, and renamed, so at every instant the folder describes some finished step
completely. No pickle anywhere: a journal is data, and reading one runs nothing. What the arrays mean is in `state`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import JournalError
from tesseract_flow.optimize.fingerprint import differences

_FORMAT = "tesseract-flow checkpoint"
_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after a step, as named arrays."""

    step: int
    arrays: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Resumption:
    """Where an earlier run stopped: its last intact checkpoint, the history up to it, and what was wrong, if at all."""

    checkpoint: Checkpoint
    history: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...] = ()


class AbstractJournal(abc.ABC):
    """Where finished steps are kept. To add behaviour (a Prefect task around `save`), wrap one."""

    @abc.abstractmethod
    def open(self, fingerprint: Mapping[str, Any]) -> Resumption | None:
        """Take possession, and return where to go on, or `None` for a fresh start.

        Raises:
            JournalError: it belongs to another problem, is in use, or nothing in it is intact.
        """

    @abc.abstractmethod
    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        """Keep a finished step: its state, and its line of history. Durable on return."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up possession. Harmless when not open."""


class FileJournal(AbstractJournal):
    """A journal in a folder.

    Attributes:
        directory: the folder; made if missing.
        keep: how many checkpoints to keep. More than one, so that a damaged file costs a step and not the run.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        at: Callable[[str], None] = lambda moment: None,
    ):
        """`at` is told each moment of a write just before it happens; tests pull the plug there."""
        if keep < 1:
            raise JournalError(f"A journal keeps at least one checkpoint, asked to keep {keep}.")
        self.directory = pathlib.Path(directory)
        self.keep = keep
        self._at = at
        self._lock: int | None = None
        self._history_digest = hashlib.sha256()
        self._history_length = 0

    def __repr__(self) -> str:
        return f"FileJournal({str(self.directory)!r}, keep={self.keep})"

    def open(self, fingerprint: Mapping[str, Any]) -> Resumption | None:
        with self._translated("opened"):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._acquire()
            try:
                self._check_fingerprint(fingerprint)
                return self._resume()
            except BaseException:
                self.close()
                raise

    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        if self._lock is None:
            raise JournalError(f"Journal {self.directory} is not open, so step {checkpoint.step} cannot be saved.")
        with self._translated("written"):
            # History first: a line without its checkpoint is cut off on resumption, a checkpoint without its line is
            # not usable.
            self._append_history(json.dumps(dict(record), sort_keys=True, allow_nan=False).encode() + b"\n")
            data = encode_checkpoint(checkpoint, self._history_length, self._history_digest.hexdigest())
            self._write_aside(self._path(checkpoint.step), data)
            self._prune(checkpoint.step)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- writing

    def _append_history(self, line: bytes) -> None:
        self._at("history")
        with open(self.directory / "history.jsonl", "ab") as file:
            file.write(line)
            file.flush()
            self._at("history sync")
            os.fsync(file.fileno())
        self._history_digest.update(line)
        self._history_length += len(line)

    def _write_aside(self, path: pathlib.Path, data: bytes) -> None:
        aside = path.with_name(path.name + ".aside")
        self._at("aside")
        with open(aside, "wb") as file:
            file.write(data[: len(data) // 2])
            self._at("aside half")
            file.write(data[len(data) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        self._at("rename")
        os.replace(aside, path)
        self._at("sync folder")
        _sync_folder(self.directory)

    def _prune(self, step: int) -> None:
        self._at("prune")
        for number, path in self._checkpoints():
            if number <= step - self.keep:
                path.unlink()

    # -- reading

    def _resume(self) -> Resumption | None:
        for leftover in self.directory.glob("*.aside"):
            leftover.unlink()
        history = self._history_bytes()
        notes, damaged = [], []
        for step, path in sorted(self._checkpoints(), reverse=True):
            try:
                checkpoint, length, digest = decode_checkpoint(path.read_bytes())
                records = _history_up_to(checkpoint.step, history[:length], length, digest)
            except _Damaged as damage:
                notes.append(f"checkpoint {path.name} was damaged ({damage}); went back to the one before")
                damaged.append(path)
                continue
            if checkpoint.step != step:
                raise JournalError(f"{path} says that it is step {checkpoint.step}. Restore its name, or remove it.")
            for spoilt in damaged:
                # Kept under another name: it is evidence, and must not be taken for the newest again.
                os.replace(spoilt, spoilt.with_name(spoilt.name + ".damaged"))
            self._cut_history(history[:length])
            return Resumption(checkpoint, records, tuple(notes))
        if notes:
            raise JournalError(
                f"Journal {self.directory} has no intact checkpoint: {'; '.join(notes)}.\n"
                "Restore the folder from a backup, or remove it to start again."
            )
        self._cut_history(b"")
        return None

    def _checkpoints(self) -> Iterator[tuple[int, pathlib.Path]]:
        for path in list(self.directory.iterdir()):
            if match := _NAME.fullmatch(path.name):
                yield int(match[1]), path

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"step-{step:08d}.ckpt"

    def _history_bytes(self) -> bytes:
        path = self.directory / "history.jsonl"
        return path.read_bytes() if path.exists() else b""

    def _cut_history(self, kept: bytes) -> None:
        with open(self.directory / "history.jsonl", "ab") as file:
            file.truncate(len(kept))
            os.fsync(file.fileno())
        self._history_digest = hashlib.sha256(kept)
        self._history_length = len(kept)

    # -- identity and possession

    def _check_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        path = self.directory / "fingerprint.json"
        text = json.dumps(fingerprint, indent=1, sort_keys=True, allow_nan=False)
        if not path.exists():
            if any(self._checkpoints()):
                raise JournalError(
                    f"Journal {self.directory} has checkpoints but no fingerprint.json, so nobody can tell whose they "
                    "are.\nRestore that file, or use another folder."
                )
            self._write_aside(path, text.encode())
            return
        try:
            known = json.loads(path.read_text())
        except ValueError as error:
            raise JournalError(f"{path} is damaged: {error}. Restore it, or use another folder.") from error
        if lines := differences(known, json.loads(text)):
            raise JournalError(
                f"Journal {self.directory} belongs to another run. What changed (journal -> now):\n"
                + "".join(f"  {line}\n" for line in lines)
                + "Undo these changes to go on from it, use another folder (another key) for the changed run, or "
                "remove the folder if its run is no longer wanted."
            )

    def _acquire(self) -> None:
        # Imported here: the module exists on POSIX only, and only journals need it.
        import fcntl

        if self._lock is not None:
            raise JournalError(f"Journal {self.directory} is already open here; one run at a time.")
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise JournalError(
                f"Journal {self.directory} is in use by {holder}.\n"
                "Wait for that run, stop it, or use another folder (another key)."
            ) from error
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._lock = lock

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"Journal {self.directory} cannot be {what}: {error}.\n"
                "Steps already finished are safe. Make the folder usable, and run again."
            ) from error


def as_journal(journal: AbstractJournal | str | os.PathLike[str]) -> AbstractJournal:
    """A journal, or the folder for one."""
    return journal if isinstance(journal, AbstractJournal) else FileJournal(journal)


class _Damaged(Exception):
    """A checkpoint that is not what was once written."""


def encode_checkpoint(checkpoint: Checkpoint, history_length: int, history_digest: str) -> bytes:
    """One line of JSON, then the arrays' bytes. The digest covers both."""
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    payload = b"".join(array.tobytes() for array in arrays.values())
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": checkpoint.step,
        "byteorder": sys.byteorder,
        "length": len(payload),
        "history_length": history_length,
        "history_sha256": history_digest,
        "arrays": [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()],
    }
    header["sha256"] = _digest(header, payload)
    return json.dumps(header).encode() + b"\n" + payload


def decode_checkpoint(data: bytes) -> tuple[Checkpoint, int, str]:
    """The checkpoint, and length and digest of the history that belongs to it."""
    line, _, payload = data.partition(b"\n")
    try:
        header = json.loads(line)
        digest = header.pop("sha256")
        if header["format"] != _FORMAT:
            raise _Damaged("not a checkpoint")
        version, length = header["version"], header["length"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged("unreadable header") from error
    if version != _VERSION:
        raise JournalError(
            f"A checkpoint has format version {version}; this tesseract-flow reads version {_VERSION}.\n"
            "Go on with the version that wrote it, or use another folder."
        )
    if len(payload) != length:
        raise _Damaged(f"{len(payload)} bytes instead of {length}")
    if digest != _digest(header, payload):
        raise _Damaged("digest does not match")
    if header["byteorder"] != sys.byteorder:
        raise JournalError(f"A checkpoint was written on a {header['byteorder']}-endian machine; this one is not.")
    arrays, offset = {}, 0
    for name, dtype_name, shape in header["arrays"]:
        dtype = jnp.dtype(dtype_name)  # knows bfloat16 and its kin, where NumPy alone does not
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(payload[offset : offset + size], dtype).reshape(shape)
        offset += size
    return Checkpoint(header["step"], arrays), header["history_length"], header["history_sha256"]


def _digest(header: Mapping[str, Any], payload: bytes) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(payload)
    return digest.hexdigest()


def _history_up_to(step: int, kept: bytes, length: int, digest: str) -> list[dict[str, Any]]:
    if len(kept) != length or hashlib.sha256(kept).hexdigest() != digest:
        raise _Damaged("history.jsonl is not what it was at that step")
    records = [json.loads(line) for line in kept.splitlines()]
    if [record.get("step") for record in records] != list(range(step + 1)):
        raise _Damaged("history.jsonl does not lead up to that step")
    return records


def _sync_folder(directory: pathlib.Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
