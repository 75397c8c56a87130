"""The results as Markdown and JSON: machine, versions, table, notes on what is not met, and plots."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.curves import Chart
from benchmarks.measuring import Row
from benchmarks.notes import NOTES

SHOWN = ("tesseract-flow", "tesseract-core", "jax", "httpx", "numpy", "prefect")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where and when the figures were taken. `load` is the average of a minute, at the start and at the end."""

    date: str
    processor: str
    n_cores: int
    system: str
    python: str
    versions: dict[str, str]
    load: tuple[float, float]

    @classmethod
    def here(cls, load_at_start: float, peers: dict[str, str]) -> Machine:
        return cls(
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            processor=_processor(),
            n_cores=os.cpu_count() or 1,
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            versions={name: version(name) for name in SHOWN} | {f"{name} (peer)": v for name, v in peers.items()},
            load=(load_at_start, load_now()),
        )


def load_now() -> float:
    """How busy the machine is; NaN where nobody knows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(path: Path, rows: Sequence[Row], charts: Sequence[Chart], machine: Machine, *, is_quick: bool) -> str:
    """Leave Markdown at `path` and JSON beside it; the Markdown."""
    text = markdown(rows, charts, machine, is_quick=is_quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    document = {
        "machine": dataclasses.asdict(machine),
        "is_quick": is_quick,
        "rows": [row.to_json() for row in rows],
        "charts": [_rounded(dataclasses.asdict(chart)) for chart in charts],
    }
    path.with_suffix(".json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return text


def markdown(rows: Sequence[Row], charts: Sequence[Chart], machine: Machine, *, is_quick: bool) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    lines = [
        "# Ours against the peers",
        "",
        'Written by `make bench ARGS="--results benchmarks/RESULTS.md"`. Each row is measured in one run, ours and the '
        "peer in turn, and gives medians; a goal is the largest ratio of ours to the peer that we accept.",
        "",
        f"{machine.date}. {machine.processor}, {machine.n_cores} cores, {machine.system}; load average "
        f"{machine.load[0]:.2f} at the start, {machine.load[1]:.2f} at the end (of which the benchmark itself is a "
        f"part). Python {machine.python}, {versions}.",
        "",
    ]
    if is_quick:
        lines += ["**A quick run: it shows that everything works, and no figure here is to be relied on.**", ""]
    if rows:
        lines += [
            "| work | ours | peer | | ratio | goal | met |",
            "|---|---|---|---|---|---|---|",
            *(_line(row, is_quick) for row in rows),
            "",
        ]
        if not is_quick:
            lines += [f"{sum(row.is_met for row in rows)} of {len(rows)} goals are met.", "", *_notes(rows)]
    if charts:
        lines += ["## How cost grows", ""]
        for chart in charts:
            lines += [f"![{chart.title}](plots/{chart.name}.svg)", ""]
    return "\n".join(lines).rstrip() + "\n"


def _line(row: Row, is_quick: bool) -> str:
    verdict = "–" if is_quick else "yes" if row.is_met else "**no**"

    def with_unit(value: float) -> str:
        return f"{value:.3g} {row.unit}" if row.unit else f"{value:.6g}"  # a count is exact

    return (
        f"| {row.work} | {with_unit(row.ours)} | {with_unit(row.peer)} | {row.peer_name} | {row.ratio:.3g} "
        f"| ≤ {row.goal:.3g} | {verdict} |"
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    """A paragraph for each kind of row that is not met."""
    missed: dict[str, Row] = {}
    for row in rows:
        if not row.is_met:
            missed.setdefault(row.key, row)
    if not missed:
        return []
    lines = ["## What is not met, and why", ""]
    said = set()
    for key, row in missed.items():
        note = NOTES.get(key, "Not looked into yet.")
        lines += [f"**{row.work}, against {row.peer_name}.** {'As above.' if note in said else note}", ""]
        said.add(note)
    return lines


def _rounded(value: Any) -> Any:
    """With five digits, which is more than any of them deserves."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
