"""Many runs at once, and one run once more: starts on a component that sleeps, and a replay without it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

import tesseract_flow as tf
from benchmarks.measuring import Bench, Row

_N_STEPS = 2


def study_rows(bench: Bench) -> list[Row]:
    """The row of "How good" that is about many starts."""
    n = 8 if bench.is_quick else 64
    doubler = tf.open_tesseract(bench.urls, label="doubler")

    def evaluate(design: dict[str, Any]) -> Any:
        y = tf.apply_tesseract(doubler, {"x": design["x"], "delay": bench.delay})["y"]
        return jnp.sum((y - jnp.arange(1.0, 4.0)) ** 2)

    problem = tf.Problem({"x": jnp.zeros(3)}, evaluate, bounds=(-4.0, 4.0), name="doubled")
    one, four = (_seconds(problem, n, n_workers) for n_workers in (1, 4))
    work = f"{n} starts of {_N_STEPS} steps on 4 workers at once ({bench.delay} s per call)"
    return [Row("starts", work, "s", four, one, "on one worker", 1 / 3.6)]


def _seconds(problem: tf.Problem, n: int, n_workers: int) -> float:
    """From the call of a study to its end, with whatever has to be traced and compiled for it."""
    began = time.perf_counter()
    stop = tf.optimize.MaxSteps(_N_STEPS)
    study = tf.multi_start(problem, n, "adam", stop=stop, max_workers=n_workers)
    if any(run.error for run in study.runs):
        raise RuntimeError(study.table())
    return time.perf_counter() - began


def replay_rows(bench: Bench) -> list[Row]:
    """A finished run once more from what was recorded, with nobody there to ask: same bits, and what it takes."""
    n_steps = 5 if bench.is_quick else 100

    def run(url: str, folder: Path, mode: Literal["record", "replay"]) -> tuple[tf.optimize.Result, float]:
        recording = tf.DirectoryCache(folder, mode=mode)
        doubler = tf.open_tesseract(url, label="doubler", cache=recording)

        def evaluate(design: dict[str, Any]) -> Any:
            y = tf.apply_tesseract(doubler, {"x": design["x"], "delay": bench.delay})["y"]
            return jnp.sum((y - jnp.arange(1.0, 4.0)) ** 2)

        problem = tf.Problem({"x": jnp.zeros(3)}, evaluate, name="doubled")
        began = time.perf_counter()
        result = tf.optimize(problem, "adam", stop=tf.optimize.MaxSteps(n_steps))
        return result, time.perf_counter() - began

    with tempfile.TemporaryDirectory(prefix="tesseract-flow-bench-") as name:
        then, _ = run(bench.urls[0], Path(name), "record")
        now, seconds = run("http://127.0.0.1:9", Path(name), "replay")
    if now.value != then.value or now.design["x"].tobytes() != then.design["x"].tobytes():
        raise RuntimeError(
            f"The replay ended at {now.design} with {now.value}; the run at {then.design}, {then.value}."
        )
    work = f"replay of a run of {n_steps} steps, with nobody there to ask"
    return [Row("replay", work, "s", seconds, then.requests * bench.delay, "its solvers", 0.01)]
