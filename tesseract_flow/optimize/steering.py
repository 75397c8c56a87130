"""A run that listens: what it was asked is looked at between two steps, and written into the journal before it is done.

An action is a request with the step after which it is done (and, of a release, which evaluation of the next step it
ends). State and actions together decide where a run goes on: one that is taken up again does after each step what is
written down for it, so it comes to the same bits, wherever it was killed. Requests to stop, to pause and to release are
also heard while a step is made: a thread looks out for them, tells the calls that are under way, and does nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tesseract_flow.client import Recall
from tesseract_flow.errors import CallReleased, JournalError, RunStopped, SteeringError
from tesseract_flow.optimize.commands import Command
from tesseract_flow.optimize.journal import AbstractJournal

_log = logging.getLogger("tesseract_flow")


@dataclasses.dataclass(frozen=True)
class Due:
    """A change that is to be made now.

    Attributes:
        name: of the file with the request; None where the journal says that it was made here before.
    """

    action: Mapping[str, Any]
    name: str | None = None

    @property
    def changes(self) -> Mapping[str, Any]:
        return self.action["changes"]


class Steering:
    """The requests of one run. A context, in which they are heard.

    Args:
        journal: beside which they are; None: there are none.
        recall: of the run's calls.
        actions: what was done before.
        step: the last finished step.
        idle: told for how many seconds the run has waited.
        sleep: how it waits.
    """

    def __init__(
        self,
        journal: AbstractJournal | None,
        recall: Recall,
        actions: Sequence[Mapping[str, Any]],
        step: int,
        idle: Callable[[float], object],
        sleep: Callable[[float], object] = time.sleep,
    ):
        self._journal, self._recall, self._idle, self._sleep = journal, recall, idle, sleep
        self.actions = list(actions)
        self._to_do = [action for action in actions if action["step"] >= step and _is_change(action)]
        self._released = {
            (action["step"] + 1, action["evaluation"]): action
            for action in actions
            if action["step"] >= step and "evaluation" in action
        }
        self._heard: set[str] = set()  # by the thread
        self._is_asked = threading.Event()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._announced: tuple[int, str] | None = None
        self._is_waiting = False

    def __enter__(self) -> Steering:
        if self._journal is not None:
            self._recall.is_possible = True
            self._thread = threading.Thread(target=self._listen, name="tesseract-flow steering", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        self._recall.is_possible = False

    # --- between two steps

    def before(self, step: int) -> list[Mapping[str, Any]]:
        """The changes that are in force after a step."""
        return [action for action in self.actions if action["step"] < step and _is_change(action)]

    def due(self, step: int, waits_for: str = "") -> Due | None:
        """What is to be changed after a step, if anything. Waits while the run is to pause.

        Args:
            waits_for: what somebody has to approve of before the run goes on.
        """
        while True:
            if self._to_do and self._to_do[0]["step"] == step:
                return Due(self._to_do.pop(0))
            for name, command in self._inbox(quickly=False):
                if command.changes:
                    return Due(self._action(command, step), name)
                self._take(name, command, step)
            if not self._waits(step, waits_for):
                return None

    def is_stopped(self, step: int) -> bool:
        """Whether the run is to end after this step."""
        return self._last(step, "stop", "go-on") == "stop"

    def is_approved(self, step: int, what: str) -> bool:
        return any(action["step"] == step and action.get("approves") == what for action in self.actions)

    def done(self, due: Due, refused: str = "", **more: Any) -> None:
        """A change was made, or not."""
        if due.name is None:
            return
        assert self._journal is not None
        action = {**due.action, **more, **({"refused": refused} if refused else {})}
        self._write(action)
        self._journal.dismiss(due.name)
        if refused:
            _log.warning("A request to the run was refused: %s: %s", _in_words(action), refused)
        else:
            _log.warning("After step %d, as was asked for: %s", action["step"], _in_words(action))

    def events(self, step: int) -> tuple[str, ...]:
        """What was done after a step, in words that a run that is taken up again says as well."""
        return tuple(_event(action) for action in self.actions if action["step"] == step)

    # --- in a step

    def before_evaluation(self, step: int, number: int) -> None:
        """Asked before each evaluation of a step.

        Raises:
            RunStopped: there is to be no other one.
            CallReleased: the journal says that this one was given up.
        """
        if (action := self._released.get((step, number))) is not None and not action["again"]:
            raise CallReleased(f"As before, evaluation {number} of step {step} is not waited for: {_event(action)}.")
        while self._is_asked.is_set():
            self._is_asked.clear()
            for name, command in self._inbox(quickly=True):
                if not command.changes and command.do != "release":
                    self._take(name, command, step - 1)
            if self.is_stopped(step - 1):
                raise RunStopped("The run was stopped by hand.")
            if self._last(step - 1, "pause", "go-on") == "pause" and self._waits(step - 1, ""):
                self._is_asked.set()

    def is_asked_again(self, step: int, number: int) -> bool:
        """What is to become of an evaluation whose calls were given up: whether it is made once more.

        Raises:
            RunStopped: the whole run is given up.
        """
        if self._recall.is_final:
            raise RunStopped("The run was stopped by hand.")
        for name, command in self._inbox(quickly=True):
            if command.do == "release":
                self._take(name, command, step - 1, evaluation=number)
                return command.again
        return False

    # --- parts

    def _listen(self) -> None:
        assert self._journal is not None
        while not self._is_over.is_set():
            with contextlib.suppress(JournalError, OSError):  # whoever writes the next step will say so
                for _, command in self._inbox(quickly=True):
                    if command.id in self._heard:
                        continue
                    self._heard.add(command.id)
                    self._is_asked.set()
                    if command.do in ("stop", "release"):
                        self._recall.give_up(for_good=command.do == "stop")
            self._is_over.wait(self._journal.glance)

    def _inbox(self, *, quickly: bool) -> list[tuple[str, Command]]:
        """The requests that can be read. `quickly`: and nothing else is done."""
        if self._journal is None or (not quickly and self._journal.glance > 1 and not self._is_asked.is_set()):
            return []
        found = []
        known = {action["id"] for action in self.actions}
        for name, data in self._journal.inbox().items():
            try:
                command = Command.decoded(data)
            except SteeringError as error:
                if not quickly:
                    _log.warning("%s was set aside, as %s", name, error)
                    self._journal.dismiss(name, is_bad=True)
                continue
            if command.id not in known:
                found.append((name, command))
            elif not quickly:  # it was done, and the run was killed before the file was gone
                self._journal.dismiss(name)
        return found

    def _take(self, name: str, command: Command, step: int, **more: Any) -> None:
        assert self._journal is not None
        action = self._action(command, step) | more
        if command.do == "release" and "evaluation" not in more:
            action["refused"] = "no call was under way that could be given up"
        if command.do == "go-on":
            self._recall.is_final = False
            if self._announced is not None and self._announced[0] == step and self._announced[1]:
                action["approves"] = self._announced[1]
        self._write(action)
        self._journal.dismiss(name)
        _log.warning("%s", _event(action))

    def _action(self, command: Command, step: int) -> dict[str, Any]:
        return {**dataclasses.asdict(command), "step": step}

    def _write(self, action: Mapping[str, Any]) -> None:
        assert self._journal is not None
        self._journal.act(action)
        self.actions.append(action)

    def _last(self, step: int, *of: str) -> str | None:
        said = [action["do"] for action in self.actions if action["step"] == step and action["do"] in of]
        return said[-1] if said else None

    def _waits(self, step: int, waits_for: str) -> bool:
        """A moment, if the run is to wait; whether it did."""
        is_paused = self._last(step, "pause", "go-on") == "pause"
        if self.is_stopped(step) or not (is_paused or (waits_for and not self.is_approved(step, waits_for))):
            if self._is_waiting and self._journal is not None:
                self._journal.waiting(None)
            self._is_waiting = False
            return False
        assert self._journal is not None
        why = f"{waits_for} waits for approval" if waits_for else "the run is paused"
        if self._announced != (step, waits_for):
            self._announced = step, waits_for
            _log.warning("After step %d %s: tesseract-flow steer %s go-on", step, why, self._journal.address)
        self._is_waiting = True
        began = time.monotonic()
        self._journal.waiting(f"After step {step} {why}.")
        self._sleep(self._journal.glance)
        self._idle(time.monotonic() - began)
        return True


def _is_change(action: Mapping[str, Any]) -> bool:
    return bool(action["changes"]) and "refused" not in action


def _in_words(action: Mapping[str, Any]) -> str:
    known = {field.name: action[field.name] for field in dataclasses.fields(Command)}
    return str(Command(**known))


def _event(action: Mapping[str, Any]) -> str:
    what = {
        "pause": "paused",
        "go-on": f"went on, which approves of {action['approves']}" if "approves" in action else "went on",
        "stop": "stopped",
        "release": f"did not wait for evaluation {action.get('evaluation')} of the next step any longer",
        None: f"changed: {_in_words(action)}",
    }[action["do"]]
    by = f"by hand ({action['by']}, {action['at']})"
    if "refused" in action:
        return f"{by}, refused after step {action['step']}: {_in_words(action)}: {action['refused']}"
    return f"{by}, after step {action['step']}: {what}"
