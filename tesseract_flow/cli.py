"""The `tesseract-flow` command: look at a Tesseract, serve components here, optimise without Prefect, tidy up a
folder of kept answers.

Each command is a few lines around the library. Errors that we raise on purpose end with their message and exit code 1;
anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tesseract_flow.errors import TesseractFlowError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except TesseractFlowError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            if not note.startswith("---"):  # JAX's remark on shortened tracebacks; none is shown
                print(note, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tesseract-flow",
        description="Design optimisation through Tesseracts: differentiable, concurrent, resumable.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    inspect = commands.add_parser("inspect", help="show what a Tesseract takes, gives and offers")
    inspect.add_argument("tesseract", help="URL, or path of a tesseract_api.py or its folder")
    inspect.add_argument("--token", help="sent as Authorization: Bearer (better: TESSERACT_FLOW_TOKEN)")
    inspect.set_defaults(run=_inspect)

    serve = commands.add_parser("serve", help="serve components on this machine until interrupted")
    serve.add_argument("paths", nargs="+", type=Path, help="paths of tesseract_api.py files or their folders")
    serve.add_argument("--workers", type=int, default=1, help="processes per component (default 1)")
    serve.set_defaults(run=_serve)

    optimize = commands.add_parser("optimize", help="optimise a problem in this process")
    optimize.add_argument("problem", help="folder/problem.py:factory or package.module:factory")
    optimize.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    optimize.add_argument("--driver", default="adam", help="an Optax optimiser by name (default adam)")
    optimize.add_argument("--learning-rate", type=float)
    optimize.add_argument("--driver-set", action="append", default=[], metavar="NAME=VALUE", help="a driver's setting")
    optimize.add_argument("--max-steps", type=int, default=None)
    optimize.add_argument("--journal", type=Path, help="folder of checkpoints; run again to go on where it stopped")
    optimize.add_argument("--out", type=Path, help="folder for result.json, design.npz, history.csv, report.html")
    optimize.set_defaults(run=_optimize)

    cache = commands.add_parser("cache", help="look at a folder of kept answers, or make room in it")
    actions = cache.add_subparsers(title="actions", required=True, metavar="ACTION")
    stats = actions.add_parser("stats", help="how many answers a cache holds, how large and how old")
    stats.add_argument("folder", type=Path, help="the folder that was given as cache=")
    stats.set_defaults(run=_cache_stats)
    prune = actions.add_parser("prune", help="remove answers, the longest unused first; other files stay")
    prune.add_argument("folder", type=Path, help="the folder that was given as cache=")
    how_much = prune.add_mutually_exclusive_group(required=True)
    how_much.add_argument("--max-bytes", type=_n_bytes, metavar="N", help="keep at most this much, such as 500M or 2G")
    how_much.add_argument("--older-than", type=_days, metavar="DAYS", help="remove what was not used for so many days")
    how_much.add_argument("--all", action="store_true", help="remove all answers")
    prune.set_defaults(run=_cache_prune)
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    import os

    from rich.console import Console

    from tesseract_flow.client import open_tesseract
    from tesseract_flow.report.schema import schema_tables

    options: dict[str, Any] = {}
    token = arguments.token or os.environ.get("TESSERACT_FLOW_TOKEN")
    if token and "://" in arguments.tesseract:
        options["token"] = token
    console = Console()
    for part in schema_tables(open_tesseract(arguments.tesseract, **options).schema):
        console.print(part)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from tesseract_flow.client import ServedTesseract, open_tesseract

    handles = [open_tesseract(path, n_workers=arguments.workers) for path in arguments.paths]
    with ThreadPoolExecutor(len(handles)) as pool:  # starting one takes seconds, so together
        for handle, name in zip(handles, pool.map(lambda handle: handle.name, handles), strict=True):
            assert isinstance(handle, ServedTesseract)
            print(f"{name}: {handle.url}", flush=True)
    print("Serving until interrupted (Ctrl-C).", flush=True)
    while True:
        time.sleep(3600)


def _optimize(arguments: argparse.Namespace) -> int:
    from tesseract_flow.optimize import DEFAULT_MAX_STEPS, load_problem, optimize
    from tesseract_flow.report import TerminalProgress, write_result

    problem = load_problem(arguments.problem, _assignments(arguments.set))
    stop = None if arguments.max_steps is None else {"max_steps": arguments.max_steps, "gradient_tolerance": 1e-6}
    result = optimize(
        problem,
        arguments.driver,
        learning_rate=arguments.learning_rate,
        driver_settings=_assignments(arguments.driver_set),
        stop=stop,
        journal=arguments.journal,
        observers=[TerminalProgress(max_steps=arguments.max_steps or DEFAULT_MAX_STEPS)],
    )
    if arguments.out is not None:
        figures = {}
        if problem.picture is not None:
            figures["Design"] = problem.picture(result.design, result.evaluation)
        write_result(arguments.out, result, problem, figures=figures)
        print(f"Written to {arguments.out}: result.json, design.npz, history.csv, report.html")
    return 0


def _cache_stats(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client.directory import Inventory, existing

    cache = existing(arguments.folder)
    now = time.time()
    found = Inventory.of(cache.folder, now)
    print(f"{cache.path}: {_counted(len(found.entries), 'answer')}, {_size(found.n_bytes)}")
    if found.entries:
        oldest, newest = found.entries[0][2], found.entries[-1][2]
        print(f"last used: {_ago(now - oldest)} (the longest unused) to {_ago(now - newest)}")
        print(f"largest: {_size(max(n_bytes for _, n_bytes, _ in found.entries))}")
    if found.abandoned:
        print(f"{_counted(len(found.abandoned), 'file')} never finished; prune removes them")
    return 0


def _cache_prune(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client.directory import existing

    cache = existing(arguments.folder)
    if arguments.older_than is not None:
        n_removed, n_bytes = cache.prune(unused_since=time.time() - arguments.older_than * 86400.0)
    else:
        n_removed, n_bytes = cache.prune(0 if arguments.all else arguments.max_bytes)
    left = cache.size()
    print(f"{cache.path}: removed {_counted(n_removed, 'answer')}, {_size(n_bytes)}")
    print(f"left: {_counted(left['entries'], 'answer')}, {_size(left['bytes'])}")
    return 0


_UNITS = ("B", "kB", "MB", "GB", "TB")


def _n_bytes(text: str) -> int:
    """`500M`, `2GB` or `1000000` → bytes."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 500M, 2G or 1000000, got {text!r}")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 1e6:  # NaN is neither
        raise argparse.ArgumentTypeError(f"expected a number of days, such as 30 or 0.5, got {text!r}")
    return days


def _size(n_bytes: float) -> str:
    unit = 0
    while n_bytes >= 999.5 and unit < len(_UNITS) - 1:
        n_bytes, unit = n_bytes / 1000, unit + 1
    return f"{n_bytes:.3g} {_UNITS[unit]}"


def _ago(seconds: float) -> str:
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{_counted(int(seconds // length), name)} ago"
    return "just now"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` → a dict; values are JSON where they can be, and text otherwise."""
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise SystemExit(f"tesseract-flow: expected NAME=VALUE, got {pair!r}")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings
