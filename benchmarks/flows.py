"""Calls as Prefect tasks: the same graph, what a task costs, and whether a pullback finds its residuals.

The measurements are in `in_flow`, which runs in a process with a Prefect of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.measuring import Bench, Row, one_server, run_python


def flow_rows(bench: Bench) -> list[Row]:
    """The rows of "How good" that are about a flow."""
    n_workers, n_runs, n_steps = (2, 20, 2) if bench.is_quick else (4, 2000, 10)
    folder = Path(tempfile.mkdtemp(prefix="tesseract-flow-bench-"))
    settings = {
        "urls": bench.urls,
        "delay": bench.delay,
        "repeat": bench.repeat(7),
        "n_runs": n_runs,
        "n_steps": n_steps,
        "folder": str(folder),
    }
    given, found = folder / "settings.json", folder / "answers.json"
    try:
        with one_server("heat", n_workers) as heat_url:
            given.write_text(json.dumps({**settings, "heat_url": heat_url}))
            run_python("-m", "benchmarks.in_flow", str(given), str(found), env=_own_prefect(folder))
        answers = json.loads(found.read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    graph = f"the same graph as Prefect tasks in a flow ({bench.delay} s per call)"
    task = "a Prefect task around a cached call, with its hashing"
    misses = {name: own.count("miss") for name, own in answers["hits"].items()}
    n_pullbacks = len(answers["hits"]["ours"])
    ms = {name: 1e3 * seconds for name, seconds in answers.items() if name.startswith("task")}
    drift = ms["task_plain_last"] / ms["task_plain_first"]
    return [
        Row("graph", graph, "s", answers["graph"], 2 * bench.delay, "critical path", 1.08),
        Row("graph-by-hand", graph, "s", answers["graph"], answers["graph_by_hand"], "tasks written by hand", 1.0),
        Row("task", task, "ms", ms["task"], 4.4, "the goal itself", 1.0),
        Row("task-plain", task, "ms", ms["task"], ms["task_plain"], "a plain uncached task around it", 1.0),
        Row(
            "task-flat", f"the same, the last tenth of {n_runs} runs", "ms", ms["task_last"], ms["task_first"],
            f"the first tenth (of plain tasks: {drift:.3g} ×)", 1.1,
        ),
        Row(
            "hits", f"pullbacks without their residuals, of {n_pullbacks} ({n_workers} workers, a task per call)", "",
            misses["ours"], misses["naive"], "tesseract-core SDK, a handle per task", 0.0,
        ),
    ]  # fmt: skip


def _own_prefect(folder: Path) -> dict[str, str]:
    """An environment with nobody's Prefect profile or database, from which nothing reaches outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
