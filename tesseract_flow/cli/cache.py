"""`tesseract-flow cache`: look at a folder of kept answers, or make room in it."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tesseract_flow.cli.arguments import PROBLEM, Commands, assignments

_UNITS = ("B", "kB", "MB", "GB", "TB")


def add(commands: Commands) -> None:
    parser = commands.add_parser("cache", help="look at a folder of kept answers, or make room in it")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    stats = actions.add_parser("stats", help="how many answers a cache holds, how large and how old")
    stats.add_argument("folder", type=Path, help="the folder that was given as cache=")
    stats.set_defaults(run=_stats)
    prune = actions.add_parser("prune", help="remove answers, the longest unused first; other files stay")
    prune.add_argument("folder", type=Path, help="the folder that was given as cache=")
    how_much = prune.add_mutually_exclusive_group(required=True)
    how_much.add_argument("--max-bytes", type=_n_bytes, metavar="N", help="keep at most this much, such as 500M or 2G")
    how_much.add_argument("--older-than", type=_days, metavar="DAYS", help="remove what was not used for so many days")
    how_much.add_argument("--all", action="store_true", help="remove all answers")
    prune.set_defaults(run=_prune)
    export = actions.add_parser("export", help="all answers as one archive, with where they come from")
    export.add_argument("folder", type=Path, help="the folder that was given as cache=")
    export.add_argument("archive", type=Path, help="the file to write, such as answers.zip")
    export.set_defaults(run=_export)
    bring_in = actions.add_parser("import", help="bring the answers of an archive into a folder, once all is verified")
    bring_in.add_argument("archive", type=Path)
    bring_in.add_argument("folder", type=Path, help="a folder for cache=; what is there already stays")
    bring_in.set_defaults(run=_import)
    verify = actions.add_parser("verify", help="read and check every answer, and say where each comes from")
    verify.add_argument("source", type=Path, help="an archive, or a folder that was given as cache=")
    verify.set_defaults(run=_verify)
    trace = actions.add_parser("trace", help="of which kept answers the numbers of a run are made")
    trace.add_argument("problem", help=PROBLEM)
    trace.add_argument("journal", help="folder or URL of the run's journal")
    trace.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the factory")
    trace.add_argument("--json", action="store_true", help="print JSON")
    trace.set_defaults(run=_trace)


def _stats(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client.caches.directory import existing
    from tesseract_flow.client.caches.files import Inventory

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


def _prune(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client.caches.directory import existing

    cache = existing(arguments.folder)
    if arguments.older_than is not None:
        n_removed, n_bytes = cache.prune(unused_since=time.time() - arguments.older_than * 86400.0)
    else:
        n_removed, n_bytes = cache.prune(0 if arguments.all else arguments.max_bytes)
    left = cache.size()
    print(f"{cache.path}: removed {_counted(n_removed, 'answer')}, {_size(n_bytes)}")
    print(f"left: {_counted(left['entries'], 'answer')}, {_size(left['bytes'])}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client.caches.archive import export
    from tesseract_flow.client.caches.directory import existing

    rows = export(existing(arguments.folder), arguments.archive)
    print(f"{arguments.archive}: {_counted(len(rows), 'answer')}, {_size(arguments.archive.stat().st_size)}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client.caches.archive import bring_in
    from tesseract_flow.client.caches.directory import DirectoryCache

    n_new, n_there = bring_in(arguments.archive, DirectoryCache(arguments.folder))
    print(f"{arguments.folder}: {_counted(n_new, 'answer')} more, {n_there} were there already")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from tesseract_flow.client.caches.archive import origins, verified
    from tesseract_flow.client.caches.directory import existing

    source = arguments.source
    rows = origins(existing(source)) if source.is_dir() else verified(source)[1]
    for row in rows:
        print(_line(row))
    print(f"{source}: {_counted(len(rows), 'answer')}, all as they were written")
    return 0


def _line(row: Mapping[str, Any]) -> str:
    of, asked = row["component"], row["asked"]
    image = f", image {of['image']}" if of["image"] else ""
    return (
        f"{asked['at']}  {asked['seconds']:8.3f} s  {row['endpoint']:<24} {of['name']} {of['version']} "
        f"(schema {of['schema'][:12]}{image}) from {asked['whom']}{', a failure' if row['is_failure'] else ''}"
    )


def _trace(arguments: argparse.Namespace) -> int:
    """0 if the kept answers give the numbers of the run, 1 otherwise."""
    from tesseract_flow.checks.provenance import provenance
    from tesseract_flow.optimize import load_problem

    found = provenance(load_problem(arguments.problem, assignments(arguments.set)), arguments.journal)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=2))
        return 0 if found.ok else 1
    for row in found.answers:
        print(f"{row['file']}\n  {_line(row)}")
    for name, (said, given) in found.numbers.items():
        print(f"{name}: {_number(said)} in the run, {_number(given)} from these answers")
    print(found.headline)
    return 0 if found.ok else 1


def _number(value: Any) -> str:
    return f"{float(value):.17g}" if value.ndim == 0 else f"array {value.shape}"


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
