"""Asking a run to do something: `steer`. What its journal tells is refused here, before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from tesseract_flow.errors import JournalError, SteeringError, did_you_mean
from tesseract_flow.optimize.commands import Command, Do, require_inside
from tesseract_flow.optimize.contents import STUDY, Contents, Source, read_contents, source_of, store_of, translated
from tesseract_flow.optimize.drivers.optax.named import LEARNING_RATES
from tesseract_flow.storage import AbstractStore, open_store, place_in


@dataclasses.dataclass(frozen=True)
class Asked:
    """What has come of a request so far.

    Attributes:
        command: what was asked.
        step: after which step the run did it; None if it has not looked at it yet, as it is in the middle of a step or
            not under way.
        refused: why it did not.
        is_heard: it was looked at: by a run, or by a study, which passes it on to its runs.
    """

    command: Command
    step: int | None = None
    refused: str = ""
    is_heard: bool = False


def steer(
    run: Source,
    do: Do | None = None,
    *,
    learning_rate: float | None = None,
    stop: Mapping[str, Any] | None = None,
    bounds: Mapping[str, Any] | None = None,
    schedule: Mapping[str, float] | None = None,
    again: bool = False,
    wait: float = 0.0,
    by: str = "Python",
    sleep: Callable[[float], object] = time.sleep,
) -> Asked:
    """Ask a run to pause, to go on, to stop with the best so far, to wait no longer for a call, or to change.

    The run does it within one call: it stops at once, and pauses before its next evaluation; changes hold from the next
    step on. What it did and after which step is in its journal, so that a run that is killed and started again does the
    same. A run that is not under way does it when it is started again.

    Args:
        run: its journal (folder, URL, or the folder of a flow's run). The folder of a study: all of its runs, which can
            be asked to pause, to go on and to stop; what has not begun does not begin.
        do: `"pause"`, `"go-on"`, `"stop"` or `"release"`; None if something is to change, and nothing else.
        learning_rate: of a driver of Optax by name.
        stop: settings of stop rules, such as `{"max_steps": 500}`; None as a value takes the rule away.
        bounds: by name of the leaf `(lower, upper)`, in the design's units; None is unbounded. The present design has
            to lie inside. The scaled units in which the driver moves stay as they are.
        schedule: scheduled numbers, which stay as they are from now on.
        again: of a release: make the calls once more. Else the evaluation counts as failed, and the run does what its
            failure policy says.
        wait: seconds to wait for the run to look at it.

    Raises:
        JournalError: there is no journal.
        SteeringError: it cannot be done; the run does not hear of it.
    """
    changes = {"learning_rate": learning_rate, "stop": stop, "bounds": bounds, "schedule": schedule}
    command = Command(
        do=do, changes={name: value for name, value in changes.items() if value is not None}, again=again, by=by
    )
    study = _study_at(run)
    if study is None:
        contents = read_contents(run)
        check_fits(command, contents)
        store, address = store_of(source_of(run)), contents.address
    else:
        store, address = study, study.address
        if command.changes or command.do == "release":
            raise SteeringError(
                f"{address} is the folder of a study, which can be asked to pause, to go on and to stop. Ask a run of "
                "it for anything else: each has a folder in there."
            )
    name = command.name
    with translated(address, "written"):
        try:
            store.write(name, command.encoded())
        except FileNotFoundError:  # a run that was just starting has tidied up
            store.write(name, command.encoded())
    end = time.monotonic() + wait
    while True:
        if study is None:
            asked = _answer(command, run)
        else:
            asked = Asked(command, is_heard=name not in study.names())
        if asked.is_heard or time.monotonic() >= end:
            return asked
        sleep(0.05)


def is_study(place: Source) -> bool:
    """Whether `steer` would ask a study."""
    return _study_at(place) is not None


def _study_at(run: Source) -> AbstractStore | None:
    """The store of a study, given by its folder or by that of its flow's run; None if there is none."""
    source = source_of(run)
    for store in (source,) if isinstance(source, AbstractStore) else (source, place_in(source, "runs")):
        store = store if isinstance(store, AbstractStore) else open_store(store)
        with contextlib.suppress(OSError):
            if STUDY in store.names():
                return store
    return None


def _answer(command: Command, run: Source) -> Asked:
    with contextlib.suppress(JournalError):  # it is being written
        for action in read_contents(run).actions:
            if action.get("id") == command.id:
                return Asked(command, int(action["step"]), str(action.get("refused", "")), is_heard=True)
    return Asked(command)


def check_fits(command: Command, contents: Contents) -> None:
    """Refuse what the run of a journal cannot do, as far as its journal tells.

    Raises:
        SteeringError: the message says why.
    """
    identity, changes = contents.identity or {}, command.changes
    phases = identity.get("phases", {})
    if "learning_rate" in changes:
        drivers = [identity.get("driver", {}), *(phase.get("driver", {}) for phase in phases.values())]
        names = [driver.get("name") for driver in drivers if driver]
        if names and not any(name in LEARNING_RATES for name in names):
            raise SteeringError(f"Driver {names[0]!r} of this run has no learning rate that could be changed.")
    if "schedule" in changes:
        known = list(identity.get("schedule", {}))
        for name in changes["schedule"]:
            if name not in known:
                there_are = f"Scheduled are: {', '.join(known)}." if known else "Nothing is."
                raise SteeringError(f"{name!r} is not scheduled in this run.{did_you_mean(name, known)} {there_are}")
    if "bounds" in changes and contents.checkpoint is not None and contents.last:
        for name, pair in changes["bounds"].items():
            require_inside(name, pair, contents.last)
