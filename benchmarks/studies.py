"""Many runs at once: 64 starts on a component that sleeps, by one worker and by four."""

from __future__ import annotations

import time
from typing import Any

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
