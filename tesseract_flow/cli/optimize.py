"""`tesseract-flow optimize`: a problem, optimised in this process, without Prefect."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments, at_least_one
from tesseract_flow.errors import OptionError

GO_ON = 75  # the exit code of a run that is to be started again, EX_TEMPFAIL of sysexits.h


def add(commands: Commands) -> None:
    parser = commands.add_parser("optimize", help="optimise a problem in this process")
    parser.add_argument("problem", help=PROBLEM)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    add_run_options(parser)
    parser.add_argument(
        "--schedule",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="other values for a number that the problem schedules: 1,4,16 (one for each phase), 1,4,16@40 (40 steps "
        "each), or 16, which stays",
    )
    parser.add_argument("--start-from", metavar="FOLDER", help="start from the design in another run's journal")
    parser.add_argument("--start-design", choices=["best", "last"], default="best", help="which (default best)")
    parser.add_argument(
        "--until",
        type=moment,
        metavar="WHEN",
        help="end in time before this moment: 2026-05-01T08:00, +3600 (seconds from now), seconds since 1970, or slurm "
        f"(SLURM_JOB_END_TIME); the exit code is then {GO_ON}, and the same command goes on with --journal",
    )
    parser.add_argument("--out", type=Path, help="folder for result.json, design.npz, history.csv, report.html")
    parser.add_argument(
        "--pictures",
        type=at_least_one,
        metavar="STEPS",
        help="draw the problem's picture every so many steps, into the folder pictures of --out",
    )
    parser.set_defaults(run=run)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What a run takes, alone or one of many."""
    parser.add_argument(
        "--driver",
        default="auto",
        help="slsqp, l-bfgs-b, trust-constr, of NLopt mma, ccsaq, ld_slsqp, for least squares gauss-newton, "
        "levenberg-marquardt, dogleg, cma-es (no gradients), or an Optax optimiser by name (default auto: "
        "slsqp with constraints, unless there are many, else adam)",
    )
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--driver-set", action="append", default=[], metavar="NAME=VALUE", help="a driver's setting")
    parser.add_argument(
        "--on-failure",
        choices=["shrink", "skip", "stop", "raise"],
        default="shrink",
        help="when an evaluation fails: shorten the step (default), drop it, stop with the best so far, or fail",
    )
    parser.add_argument(
        "--failure-set", action="append", default=[], metavar="NAME=VALUE", help="such as retries=2, patience=3600"
    )
    parser.add_argument(
        "--objective-scale",
        type=_scale,
        metavar="SIZE",
        help="what the objective is divided by for the driver: start (its size there) or a number "
        "(default: start with constraints, 1 without)",
    )
    parser.add_argument("--max-steps", type=int, default=None)
    parser.add_argument(
        "--stop-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another limit, such as gradient_tolerance=1e-9 (default 1e-6), wall_time=3600, max_requests=500",
    )
    parser.add_argument(
        "--journal", metavar="FOLDER", help="folder or URL of checkpoints; run again to go on where it stopped"
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="go on in --journal although the problem is another one now"
    )
    parser.add_argument(
        "--recheck", action="store_true", help="evaluate the last point of --journal again before going on, and compare"
    )
    parser.add_argument(
        "--verify-gradients",
        type=_verify,
        default="start",
        metavar="WHEN",
        help="whether gradients fit the values, by an evaluation more: start (default), a number of steps, or never",
    )


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same for `optimize`."""
    return {
        "driver": arguments.driver,
        "learning_rate": arguments.learning_rate,
        "driver_settings": assignments(arguments.driver_set),
        "stop": _stop(arguments),
        "on_failure": {"action": arguments.on_failure, **assignments(arguments.failure_set)},
        "accept_changes": arguments.accept_changes,
        "recheck": arguments.recheck,
        "verify_gradients": arguments.verify_gradients,
        "objective_scale": arguments.objective_scale,
    }


def _stop(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Settings as `optimize` takes them; None where nothing was said."""
    given = assignments(arguments.stop_set)
    if arguments.max_steps is not None:
        given["max_steps"] = arguments.max_steps
    return given or None


def say(what: str) -> None:
    """What is under way, where nothing else is seen for a while."""
    print(what, file=sys.stderr, flush=True)


def _say_of_start(problem: object, history: Sequence[object]) -> None:
    if not history:
        say("evaluating the start")


def run(arguments: argparse.Namespace) -> int:
    if arguments.pictures and not arguments.out:
        raise OptionError("--pictures draws into the folder of --out, which is not given.")
    say(f"loading {arguments.problem}")
    from tesseract_flow.optimize import Observer, Until, load_problem, optimize
    from tesseract_flow.optimize.ends import stop_of
    from tesseract_flow.optimize.stopping import TIME_IS_UP, most_steps, rules_given
    from tesseract_flow.report import Pictures, Reporting, TerminalProgress

    problem = load_problem(arguments.problem, assignments(arguments.set))
    if arguments.schedule:
        problem = problem.with_schedule({name: _values(one) for name, one in assignments(arguments.schedule).items()})
    options = run_options(arguments)
    limits = stop_of(problem, options["stop"])
    if arguments.until is not None:
        options["stop"] = [*rules_given(limits, problem.partition.dtype), Until(arguments.until)]
    journal, out = arguments.journal, arguments.out
    if journal is None and out is not None:  # the report is made of a journal
        journal = f"memory://tesseract-flow/{uuid.uuid4()}"
    say("tracing the objective and its gradient; asking its components for shapes")
    reporting = None if out is None else Reporting(journal, out)
    n_before: list[int] = []
    with contextlib.nullcontext() if reporting is None else reporting:
        result = optimize(
            problem,
            **options,
            journal=journal,
            start_from=None if arguments.start_from is None else (arguments.start_from, arguments.start_design),
            observers=[
                TerminalProgress(max_steps=most_steps(limits)),
                Observer(on_start=_say_of_start),
                Observer(on_start=lambda problem, history: n_before.append(len(history))),
                *([] if reporting is None else [reporting]),
                *([Pictures(out / "pictures", arguments.pictures)] if out and arguments.pictures else []),
            ],
        )
    if reporting is not None:
        print(f"Written to {out}: {', '.join(reporting.written)}")
    if not result.reason.startswith(TIME_IS_UP):
        return 0
    if len(result.history) > n_before[0]:
        return GO_ON
    print(f"No step was made: {result.reason}. It needs more time at once than it was given.", file=sys.stderr)
    return 1


def _verify(text: str) -> str | int | None:
    if text in ("start", "never"):
        return None if text == "never" else text
    try:
        return at_least_one(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected start, never, or a number of steps, got {text!r}") from None


def _values(given: Any) -> Any:
    """`1,4,16@40` as a schedule takes it; what is none is said by the schedule."""
    if not isinstance(given, str):
        return given
    values, at, every = given.partition("@")
    with contextlib.suppress(ValueError):
        return {"values": [float(value) for value in values.split(",")], **({"every": int(every)} if at else {})}
    return given


def _scale(text: str) -> str | float:
    return text if text == "start" else float(text)


def moment(text: str) -> float:
    """Seconds since the epoch."""
    if text == "slurm":
        text = os.environ.get("SLURM_JOB_END_TIME", "")
        if not text:
            raise argparse.ArgumentTypeError(
                "slurm: SLURM_JOB_END_TIME is not set here. Older versions of Slurm do not set it; say when: "
                '--until "$(squeue -h -j $SLURM_JOB_ID -o %e)"'
            )
    with contextlib.suppress(ValueError, OverflowError):
        seconds = float(text)
        if math.isfinite(seconds):
            return time.time() + seconds if text.startswith("+") else seconds
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).timestamp()
    raise argparse.ArgumentTypeError(f"expected 2026-05-01T08:00, +3600, seconds since 1970, or slurm, got {text!r}")
