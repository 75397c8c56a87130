"""Where a study keeps its runs: a folder or a URL, with a journal for each and `study.json` for what they share.

One study at a time has the place. What is written there says what the runs have in common: for a multi-start the whole
identity but for the start, so that a start that joins later is one of the same problem. All else is in the journals.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tesseract_flow.errors import JournalError, OtherRun, StorageError
from tesseract_flow.optimize.commands import COMMAND
from tesseract_flow.optimize.contents import STUDY, shown, translated
from tesseract_flow.optimize.identity import compare
from tesseract_flow.optimize.journal import refusal
from tesseract_flow.storage import folder_name, open_store, place_in

_ABOUT = STUDY


class Place:
    """The folder of a study, in possession.

    Args:
        about: what kind of study it is; another kind has another folder.
        shares_problem: whether all runs are one problem's, and their identities alike but for the start.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        about: Mapping[str, Any],
        *,
        shares_problem: bool,
        accept_changes: bool = False,
    ):
        self.address = shown(address)
        self._address = address
        self._about = dict(about)
        self._shares_problem, self._accept_changes = shares_problem, accept_changes
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        with translated(self.address, "opened"):
            self._store = open_store(address)

    @property
    def folder(self) -> str:
        """The address, for another process."""
        return os.fspath(self._address)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Possess it.

        Raises:
            OtherRun: it is another study's.
            JournalError: it is in use, is the journal of a run, or cannot be written.
        """
        with translated(self.address, "opened"):
            names = self._store.names()
            if "identity.json" in names:
                raise JournalError(
                    f"{self.address} is the journal of a single run, and a study has a folder of its own, with a "
                    "journal for each run in it.\nUse another folder."
                )
            self._store.make()
            try:
                possession = self._store.possess()
            except StorageError as error:
                raise JournalError(f"Study {error}.\nWait for it, stop it, or use another folder.") from error
        try:
            self._known = self._read(names)
            changed = [
                f"{name}: {self._known[name]!r} -> {value!r}"
                for name, value in self._about.items()
                if self._known.get(name, value) != value
            ]
            if changed:
                raise OtherRun(
                    f"Folder {self.address} belongs to another study. What is another one (there -> now):\n"
                    + "".join(f"  {line}\n" for line in changed)
                    + "Use another folder.",
                    changed,
                )
            yield
        finally:
            possession.release()

    @property
    def glance(self) -> float:
        """Seconds after which it is worth looking for requests again."""
        return 0.25 if self._store.can_append else 5.0

    def requests(self) -> list[tuple[str, bytes]]:
        """What somebody asks of the study, the oldest first."""
        found = []
        with translated(self.address, "read"):
            for name in self._store.names():
                if COMMAND.fullmatch(name):
                    with contextlib.suppress(OSError):  # what is no file is nobody's request
                        found.append((name, self._store.read(name)))
        return found

    def dismiss(self, name: str, *, is_bad: bool = False) -> None:
        """Take out what was looked at; what `is_bad` is set aside."""
        with translated(self.address, "written"):
            if is_bad:
                self._store.set_aside(name, "refused")
            else:
                self._store.remove(name)

    def journal_of(self, key: str) -> str:
        """The address of a run's journal: in a folder that no other key has."""
        return place_in(self._address, folder_name(key), "journal")

    def n_others(self, keys: Iterable[str]) -> int:
        """How many runs are there that have none of these keys."""
        known = {folder_name(key) for key in keys}
        n = 0
        for name in self._store.names():
            if "." not in name and name not in known:
                with contextlib.suppress(OSError):  # no folder
                    n += "journal" in open_store(place_in(self._address, name)).names()
        return n

    def admit(self, identity: Mapping[str, Any]) -> None:
        """Let a run begin or go on, if it is one of this study.

        Raises:
            OtherRun: the study is about another problem.
        """
        with self._lock, translated(self.address, "written"):
            known = self._known.get("identity")
            shared = {name: value for name, value in identity.items() if name != "varying"}
            shared = json.loads(json.dumps(shared)) if self._shares_problem else None
            if shared is not None and known is not None:
                changes = compare(known, shared).changes
                if changes and not self._accept_changes:
                    raise OtherRun(refusal(self.address, changes), changes)
            if known != shared or not self._known:
                self._known = {**self._about, **({} if shared is None else {"identity": shared})}
                self._store.write(_ABOUT, json.dumps(self._known, ensure_ascii=False).encode())

    def _read(self, names: list[str]) -> dict[str, Any]:
        if _ABOUT not in names:
            return {}
        try:
            found = json.loads(self._store.read(_ABOUT))
        except (OSError, ValueError):
            found = None
        # Each journal knows whose it is; what is lost is only which problem new starts have to be of.
        return found if isinstance(found, dict) and isinstance(found.get("identity", {}), dict) else {}
