"""What somebody asks of a study as a whole while it goes (`steer`), and until when it may: whether a run may begin.

Requests are files beside `study.json`, as those to a run are beside its journal. They are passed on to the runs that
are under way, each of which writes into its own journal what it does; what has not begun waits, or does not begin. A
run that was stopped stays so, whenever the study is started again, until the study is asked to go on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from tesseract_flow.errors import JournalError, SteeringError
from tesseract_flow.optimize import steer
from tesseract_flow.optimize.commands import Command
from tesseract_flow.optimize.stopping import TIME_IS_UP
from tesseract_flow.study.place import Place

_log = logging.getLogger("tesseract_flow")
_RESERVE = 30.0  # seconds for writing results, as `Until` keeps


class Orders:
    """Heard while it is entered.

    Args:
        place: beside whose files requests are; None: there are none.
        until: seconds since the epoch, after which no run begins.
        on_wait: told, again and again, that the study waits for somebody; and with None that it goes on.
    """

    def __init__(
        self,
        place: Place | None,
        until: float | None = None,
        on_wait: Callable[[str | None], None] = lambda why: None,
        clock: Callable[[], float] = time.time,
    ):
        self._place, self._until, self._clock, self._on_wait = place, until, clock, on_wait
        self._lock = threading.Lock()
        self._under_way: dict[str, Command | None] = {}  # by journal: what it is still to be told
        self._stopped = self._paused = self._goes_on = False
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Orders:
        if self._place is not None:
            self._hear()  # what was asked while nobody was there
            self._thread = threading.Thread(target=self._listen, name="tesseract-flow study", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def why_not(self, sleep: Callable[[float], None]) -> str:
        """Why no run may begin; empty if one may. Waits while the study is paused."""
        while True:
            if self._stopped:
                return "the study was stopped by hand"
            if (late := self.time_is_up()) or not self._paused:
                return late
            sleep(0.1)

    def time_is_up(self) -> str:
        """Why nothing may go on for want of time; empty if there is some."""
        if self._until is None or self._clock() <= self._until - _RESERVE:
            return ""
        return f"{TIME_IS_UP}; start the study again to go on"

    @contextlib.contextmanager
    def reaching(self, journal: str | None) -> Iterator[None]:
        """Let a run that is under way be told what is asked."""
        if journal is None:
            yield
            return
        if self._goes_on:
            with contextlib.suppress(JournalError):  # it has not begun
                steer(journal, "go-on", by="the study")
        with self._lock:  # what was asked for between its permission and here
            said = "stop" if self._stopped else "pause" if self._paused else None
            self._under_way[journal] = None if said is None else Command(do=said, by="the study")
        try:
            yield
        finally:
            with self._lock:
                self._under_way.pop(journal, None)

    # --- parts

    def _listen(self) -> None:
        assert self._place is not None
        was_paused = False
        while not self._is_over.wait(self._place.glance):
            try:
                self._hear()
                self._tell()
            except (JournalError, OSError) as error:
                _log.debug("Requests to the study could not be read, and are looked for again: %s", error)
            if self._paused or was_paused:
                self._on_wait("The study is paused." if self._paused else None)
            was_paused = self._paused

    def _hear(self) -> None:
        assert self._place is not None
        for name, data in self._place.requests():
            try:
                command = Command.decoded(data)
                if command.do not in ("pause", "go-on", "stop"):
                    raise SteeringError("a study can be asked to pause, go on and stop")
            except SteeringError as error:
                _log.warning("%s was set aside, as %s", name, error)
                self._place.dismiss(name, is_bad=True)
                continue
            with self._lock:
                self._stopped = command.do == "stop"
                self._paused = command.do == "pause"
                self._goes_on |= command.do == "go-on"
                for journal in self._under_way:
                    self._under_way[journal] = command
            _log.warning("The study was asked to %s (%s, %s).", command, command.by, command.at)
            self._place.dismiss(name)

    def _tell(self) -> None:
        with self._lock:
            untold = [(journal, command) for journal, command in self._under_way.items() if command is not None]
        for journal, command in untold:
            try:
                steer(journal, command.do, by=command.by)
            except JournalError:  # its first step is being made: once more, when there is a journal
                continue
            except SteeringError as error:
                _log.warning("A run was not told to %s: %s", command, error)
            with self._lock:
                if self._under_way.get(journal) is command:
                    self._under_way[journal] = None
