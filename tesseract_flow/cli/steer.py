"""`tesseract-flow steer`: a run that is under way pauses, goes on, stops, gives up a call, or changes."""

from __future__ import annotations

import argparse
import contextlib
import os
import uuid
from collections.abc import Sequence
from typing import Any

from tesseract_flow.cli.arguments import Commands, assignments
from tesseract_flow.errors import JournalError


def add(commands: Commands) -> None:
    parser = commands.add_parser("steer", help="pause, go on, stop or change a run that is under way")
    parser.add_argument(
        "place",
        metavar="RUN",
        help="folder or URL of a journal, a run or a study; the run key of one in --folder; name or id of a flow run",
    )
    parser.add_argument(
        "do",
        nargs="?",
        choices=["pause", "go-on", "stop", "release"],
        help="pause before the next evaluation; go on; stop with the best so far; wait no longer for calls under way",
    )
    parser.add_argument("--again", action="store_true", help="with release: make the calls again")
    parser.add_argument("--learning-rate", type=float, help="from the next step on")
    for name, metavar, text in (
        ("stop", "NAME=VALUE", "a stop rule, such as max_steps=500; None takes it away"),
        ("bounds", "LEAF=[LOWER,UPPER]", "of a leaf of the design, in its units; null is unbounded"),
        ("schedule", "NAME=VALUE", "a scheduled number, which stays like this"),
    ):
        parser.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=text)
    parser.add_argument("--folder", default="runs", help="where runs are found by their keys (default runs)")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds to wait for the run to do it (default 10)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tesseract_flow.optimize import steer

    asked = steer(
        run_at(arguments.place, arguments.folder),
        arguments.do,
        learning_rate=arguments.learning_rate,
        stop=_given(arguments.stop),
        bounds=_given(arguments.bounds),
        schedule=_given(arguments.schedule),
        again=arguments.again,
        wait=arguments.wait,
        by="command line",
    )
    if asked.refused:
        print(f"Refused by the run after step {asked.step}: {asked.refused}")
        return 1
    if asked.step is None and asked.is_heard:
        print(f"The study was asked to {asked.command}, and so are its runs.")
    elif asked.step is None:
        print(
            f"Asked for: {asked.command}. The run has not looked at it yet: it is in the middle of a step, or not "
            "under way; then it does so when it is started again."
        )
    else:
        print(f"After step {asked.step}: {asked.command}")
    return 0


def run_at(name: str, folder: str) -> str:
    """The folder of a run: itself, that of a run key, or that of a flow run.

    Raises:
        JournalError: there is no such run.
    """
    from tesseract_flow.optimize import read_contents
    from tesseract_flow.optimize.asking import is_study
    from tesseract_flow.storage import folder_name, place_in

    looked_at = [name, place_in(folder, folder_name(name))]
    for place in looked_at:
        if is_study(place):
            return place
        with contextlib.suppress(JournalError):
            read_contents(place)
            return place
    if os.environ.get("PREFECT_API_URL") or _is_id(name):
        from tesseract_flow.tasks.run_folder import folder_of_flow_run

        return folder_of_flow_run(name, folder)
    raise JournalError(
        f"There is no run at {' or '.join(looked_at)}.\n"
        "Name the folder of its journal, or its run key and --folder; for a flow run set PREFECT_API_URL."
    )


def _is_id(name: str) -> bool:
    try:
        return bool(uuid.UUID(name))
    except ValueError:
        return False


def _given(pairs: Sequence[str]) -> dict[str, Any] | None:
    return assignments(pairs) or None
