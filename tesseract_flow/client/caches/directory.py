"""The result cache in a folder, for later processes and several at once; and recordings, which are the same.

Here: the folder (`DirectoryCache`). Not here: what is in it (`files`), the files of one answer (`entries`), what is
known of the components (`components`). The one idea: a file is there as a whole or not at all.
What cannot be believed is a miss, which costs a request, or in a replay an error, and never a wrong answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from tesseract_flow.client.base import AbstractTesseract, Tree
from tesseract_flow.client.caches.base import (
    MISS,
    AbstractCache,
    Mode,
    Origin,
    RequestKey,
    Traffic,
    checked_max_bytes,
)
from tesseract_flow.client.caches.components import Component, recorded
from tesseract_flow.client.caches.entries import Entry, is_failure, parsed, read_entry, short, stem_of, write_entry
from tesseract_flow.client.caches.files import Inventory, content_of
from tesseract_flow.client.caches.nearest import nearest
from tesseract_flow.errors import CallError, NotRecorded, OptionError, StorageError

DEFAULT_MAX_BYTES = 2**32
# The format's version is in the folder's name: another version neither reads these files nor removes them.
FOLDER = "tesseract-flow-cache-v2"
_LONGEST_TEXT = 2**28  # bytes
_log = logging.getLogger("tesseract_flow")


class _Shared:
    """What equal caches of one process share."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.lock = threading.Lock()
        self.recording = threading.Lock()  # held while an answer is written: equal calls may have come at once
        self.n_bytes: int | None = None  # in the folder, as far as this process knows; None before the first look
        self.n_unseen = 0  # written since the last look
        self.has_warned = False
        self.introduced: set[str] = set()  # components that are written down
        self.recorded: dict[AbstractTesseract, Component] = {}  # what handles stand for in a replay
        self.anchors: dict[tuple[Mode, AbstractTesseract], _Anchor] = {}


class _Anchor:
    """What is remembered of a component in a recording or a replay hangs on this."""


_shared: weakref.WeakValueDictionary[tuple[int, str], _Shared] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class DirectoryCache(AbstractCache):
    """Answers as files of a folder, the longest unused of which make room for others; or a recording of them.

    Several processes may share the folder. Files are private to their owner, and hold questions and answers but no
    credentials. An answer belongs to the component's name, version and schema: raise the version in the component's
    `tesseract_config.yaml` when its results change.

    Attributes:
        path: the folder; it is made with the first answer.
        max_bytes: what all files may take together. Two processes that write at once may exceed it by an eighth.
        mode: `"use"`: answers that are kept are no requests. `"record"`: every request is sent, and everything that
            comes is kept, or it is an error: schemas, shapes, values, derivatives, a component's own failures; nothing
            is ever removed. `"replay"`: the recording answers in place of the components, to the bit, and nobody is
            asked for anything. There is one answer to a question, the last one that was recorded.

    In a replay a call raises `NotRecorded` for what is not in the recording, with the difference from the nearest
    question that is, and `StaleRecording` if the component is known to have changed.
    """

    path: Path
    max_bytes: int = DEFAULT_MAX_BYTES
    mode: Mode = "use"
    _state: _Shared = dataclasses.field(init=False, repr=False, compare=False)

    is_lasting = True

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = DEFAULT_MAX_BYTES, mode: Mode = "use"):
        text = os.fspath(path)
        if mode not in get_args(Mode):
            raise OptionError(f"mode is {mode!r}; expected {', '.join(map(repr, get_args(Mode)))}.")
        if "://" in text or not text.strip():
            raise OptionError(f"A cache's folder is {text!r}; expected a path on this machine.")
        # Absolute, because the working directory may change while the handle is the same.
        absolute = Path(os.path.abspath(text))
        if absolute.exists() and not absolute.is_dir():
            raise OptionError(f"A cache's folder is {text}, which is a file.")
        if mode == "replay" and not (absolute / FOLDER).is_dir():
            raise OptionError(
                f"There is no recording in {text}: it has no folder {FOLDER}.\n"
                'Record one first, with DirectoryCache(folder, mode="record").'
            )
        object.__setattr__(self, "path", absolute)
        object.__setattr__(self, "max_bytes", checked_max_bytes(max_bytes, "DirectoryCache"))
        object.__setattr__(self, "mode", mode)
        with _shared_lock:
            # By process too: locks and flights of a parent say nothing in its forked child.
            state = _shared.setdefault((os.getpid(), str(absolute)), _Shared())
        object.__setattr__(self, "_state", state)

    def __reduce__(self) -> tuple[type[DirectoryCache], tuple[str, int, Mode]]:
        return DirectoryCache, (str(self.path), self.max_bytes, self.mode)

    def __repr__(self) -> str:
        return f"DirectoryCache({str(self.path)!r}{'' if self.mode == 'use' else f', mode={self.mode!r}'})"

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        return self.path / FOLDER

    @property
    def traffic(self) -> Traffic:
        return self._state.traffic

    def component(self, tesseract: AbstractTesseract) -> Component:
        state = self._state
        if self.mode == "replay":
            if (known := state.recorded.get(tesseract)) is None:
                known = state.recorded[tesseract] = recorded(tesseract, self.components(), str(self.path))
            return known
        component = Component.of(tesseract)
        if (digest := component.digest) not in state.introduced:
            text = json.dumps(component.to_json(), indent=1).encode() + b"\n"
            try:
                self._write(f"{short(component.name)}.{digest}.component.json", text)
                state.introduced.add(digest)
            except OSError as error:
                self._warn("write", error)
        return component

    def components(self) -> list[Component]:
        """Those whose answers are here.

        Raises:
            StorageError: a file that says it is damaged.
        """
        found = []
        for file in Inventory.of(self.folder, time.time()).components:
            try:
                found.append(Component.from_json(json.loads(content_of(file, _LONGEST_TEXT))))
            except ValueError as error:
                raise StorageError(f"{file} is damaged: {error}.\nRestore it, or record it again.") from error
        return found

    def anchor(self, tesseract: AbstractTesseract) -> object:
        if self.mode == "use":
            return tesseract.anchor
        # What this process knows already would not be asked, and so be in no recording; a replay knows nothing else.
        return self._state.anchors.setdefault((self.mode, tesseract), _Anchor())

    def get(self, key: RequestKey) -> Tree:
        if self.mode == "record":
            return MISS
        stem = stem_of(key)
        file = self.folder / f"{stem}.json"
        try:
            answer = self.read(file, key).answer
        except FileNotFoundError:
            if self.mode == "replay":
                raise self._not_recorded(key) from None
            return MISS
        except ValueError as error:
            if self.mode == "replay":
                raise NotRecorded(
                    f"{file} cannot be used: {error}.\nRestore it, or record it again.", **_whom(key)
                ) from error
            _log.warning("%s is not used and removed: %s.", file, error)
            self._remove(file)
            return MISS
        except OSError as error:
            if self.mode == "replay":
                raise StorageError(f"Cannot read {file}: {error}.") from error
            self._warn("read", error)
            return MISS
        if self.mode == "replay":
            if isinstance(answer, CallError):
                raise answer
            return answer
        if isinstance(answer, CallError):  # failures are recorded, and not kept
            return MISS
        with contextlib.suppress(OSError):
            os.utime(file)  # by which the longest unused are found
        return answer

    def entry(self, key: RequestKey) -> tuple[Path, Entry] | None:
        """The file that answers a question, and what is in it; None if there is none that can be believed."""
        file = self.folder / f"{stem_of(key)}.json"
        try:
            return file, self.read(file, key)
        except (OSError, ValueError):
            return None

    def read(self, file: Path, key: RequestKey | None = None) -> Entry:
        """An entry of this folder.

        Raises:
            ValueError: it is damaged, or does not answer `key`.
            OSError: it cannot be read.
        """
        stem = file.name.removesuffix(".json")
        text = bytes(content_of(file, _LONGEST_TEXT))
        return read_entry(text, lambda name, n: content_of(file.parent / name, self.max_bytes, n), stem, key)

    def put(self, key: RequestKey, answer: Tree, origin: Origin) -> None:
        with self._state.recording if self.mode == "record" else contextlib.nullcontext():
            self._put(key, answer, origin)

    def put_failure(self, key: RequestKey, error: CallError, origin: Origin) -> None:
        if self.mode == "record" and is_failure(error):
            with self._state.recording:
                self._put(key, error, origin)

    def _put(self, key: RequestKey, answer: Tree | CallError, origin: Origin) -> None:
        try:
            text, name, arrays = write_entry(key, answer, origin)
        except (TypeError, ValueError, RecursionError) as error:
            self.skip(f"the answer cannot be written down: {error}")
            return
        n_bytes = len(text) + len(arrays)
        if n_bytes > self.max_bytes:
            self.skip(f"an answer of {n_bytes} bytes is more than {self!r} may hold")
            return
        stem = stem_of(key)
        older = self._arrays_of(stem)
        try:
            self._make_room(n_bytes)
        except OSError as error:
            self.traffic.count("skipped")
            self._warn("write", error)
            return
        # The arrays first: without the text they are nothing.
        if (
            (not name or self._written(name, arrays))
            and self._written(f"{stem}.json", text)
            and older not in ("", name)
        ):
            with contextlib.suppress(OSError):
                (self.folder / older).unlink()

    def skip(self, why: str) -> None:
        """Something cannot be kept, which in a recording would be a hole.

        Raises:
            StorageError: this is a recording.
        """
        self.traffic.count("skipped")
        if self.mode == "record":
            raise StorageError(f"This cannot be recorded in {self.path}: {why}.")
        _log.info("Not kept: %s.", why)

    def drop(self, key: RequestKey) -> None:
        if self.mode == "use":  # a recording has what came, good or not
            self._remove(self.folder / f"{stem_of(key)}.json")

    def _arrays_of(self, stem: str) -> str:
        """The name of the file of long arrays that an entry has now."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            node = parsed(bytes(content_of(self.folder / f"{stem}.json", _LONGEST_TEXT)))
            return f"{stem}.{node['checksum'][:16]}.arrays" if node["n_bytes_beside"] else ""
        return ""

    def _remove(self, file: Path) -> None:
        arrays = self._arrays_of(file.name.removesuffix(".json"))
        for path in (file, *([self.folder / arrays] if arrays else [])):
            with contextlib.suppress(OSError):
                path.unlink()

    def _not_recorded(self, key: RequestKey) -> NotRecorded:
        """What is new about a question."""
        question: Any = key.question.tree
        name, endpoint = question["component"][0], question["endpoint"]

        def known() -> Iterator[tuple[str, Any]]:
            for file, _, _ in Inventory.of(self.folder, time.time()).entries:
                if f".{endpoint}." in file.name and file.name.startswith(f"{short(name)}."):
                    with contextlib.suppress(OSError, ValueError):
                        other = self.read(file).question
                        if other["component"] == question["component"]:
                            yield file.name, other["payload"]

        found = nearest(question["payload"], known())
        if found is None:
            lines: tuple[str, ...] = ()
            says = f"No {endpoint!r} of it was recorded."
        else:
            lines = found[1].lines
            says = f"The nearest one that was recorded is {found[0]}; it differs in\n" + "\n".join(
                f"  {line}" for line in lines
            )
        return NotRecorded(
            f"{endpoint!r} of Tesseract {name!r} is a new question, which {self.path} has no answer to.\n{says}\n"
            'Nothing was sent. Record it, with DirectoryCache(folder, mode="record"), or ask what was recorded.',
            difference=lines,
            **_whom(key),
        )

    def size(self) -> dict[str, int]:
        found = Inventory.of(self.folder, time.time())
        return {"entries": len(found.entries), "bytes": found.n_bytes}

    def prune(self, max_bytes: int = 0, *, unused_since: float | None = None) -> tuple[int, int]:
        """Remove entries, the longest unused first, until no more than `max_bytes` are left.

        Args:
            max_bytes: what may stay; 0 removes all.
            unused_since: seconds since the epoch: remove the entries not used since then, and no others.

        Returns:
            How many were removed, and their bytes. Files that are none of ours stay.
        """
        found = Inventory.of(self.folder, time.time())
        for file in found.abandoned:
            with contextlib.suppress(OSError):
                file.unlink()
        n_removed, n_left = 0, found.n_bytes
        for file, n_bytes, last_use in found.entries:
            if last_use >= unused_since if unused_since is not None else n_left <= max_bytes:
                break
            for path in (file, *found.arrays.get(file.name.removesuffix(".json"), ())):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
            n_removed += 1
            n_left -= n_bytes
        if found.entries and n_removed == len(found.entries):  # nobody is left who could be asked for an answer
            for file in found.components:
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()
            self._state.introduced.clear()
        with self._state.lock:
            self._state.n_bytes, self._state.n_unseen = n_left, 0
        return n_removed, found.n_bytes - n_left

    def _make_room(self, n_bytes: int) -> None:
        """Look at the folder when it may be full, and now and then for what others have written."""
        state = self._state
        with state.lock:
            state.n_unseen += n_bytes
            is_known = state.n_bytes is not None and state.n_unseen <= self.max_bytes // 8
            if is_known and state.n_bytes + n_bytes <= self.max_bytes:  # type: ignore[operator]
                state.n_bytes += n_bytes  # type: ignore[operator]
                return
        if self.mode == "record":
            if (n_kept := self.size()["bytes"]) + n_bytes > self.max_bytes:
                raise OSError(errno.ENOSPC, f"more than max_bytes={self.max_bytes}")
            with state.lock:
                state.n_bytes, state.n_unseen = n_kept + n_bytes, 0
            return
        n_removed, _ = self.prune(self.max_bytes - n_bytes)
        self.traffic.count("evicted", n_removed)
        with state.lock:
            state.n_bytes = (state.n_bytes or 0) + n_bytes

    def _written(self, name: str, data: bytes) -> bool:
        try:
            self._write(name, data)
            return True
        except OSError as error:
            self.traffic.count("skipped")
            self._warn("write", error)
            return False

    def _write(self, name: str, data: bytes) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise

    def _warn(self, what: str, error: OSError) -> None:
        """
        Raises:
            StorageError: this is a recording, which would have a hole.
        """
        if self.mode == "record":
            raise StorageError(f"Cannot {what} {self!r}: {error}.\nThe recording is not complete.") from error
        if not self._state.has_warned:
            self._state.has_warned = True
            _log.warning("Cannot %s %r (%s). Calls go on without it; this is said once.", what, self, error)


def _whom(key: RequestKey) -> dict[str, str]:
    question: Any = key.question.tree
    return {"tesseract": repr(key.handle), "endpoint": question["endpoint"]}


def existing(path: str | os.PathLike[str]) -> DirectoryCache:
    """The cache in a folder that is one.

    Raises:
        OptionError: there is no such folder, or it is no cache.
    """
    path = Path(path)
    # Whoever passes the inner folder means the cache.
    path = path.parent if path.name == FOLDER else path
    if not path.is_dir():
        raise OptionError(f"There is no folder {path}, so there is no cache in it.")
    if not (path / FOLDER).is_dir():
        others = sorted(_other_versions(path))
        raise OptionError(
            f"{path} is no result cache: it has no folder {FOLDER}, which the first kept answer makes."
            + (f" It has {', '.join(others)}, of another version of tesseract-flow." if others else "")
            + " Nothing was touched."
        )
    return DirectoryCache(path)


def _other_versions(path: Path) -> Iterator[str]:
    return (found.name for found in path.glob("tesseract-flow-cache-v*") if found.name != FOLDER)
