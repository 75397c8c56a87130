"""The measurements, one function per row: each gives our figure, the peer's, and what the ratio should be."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tesseract_core

import tesseract_flow as tf
from tesseract_flow.client import HttpTesseract, ServedTesseract, count_requests

HERE = Path(__file__).resolve().parent
DELAY = 0.2  # seconds per call, for rows about overlap


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. `ours` and `peer` are in `unit`; `goal` is the largest ratio that we accept."""

    work: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    goal: float

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


def median_seconds(fns: Sequence[Callable[[], Any]], repeat: int) -> list[float]:
    """Median wall time of each function, measured in turn so that a slow moment hits them all alike."""
    for fn in fns:
        fn()
    times: list[list[float]] = [[] for _ in fns]
    for _ in range(repeat):
        for fn, own in zip(fns, times, strict=True):
            start = time.perf_counter()
            fn()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def gradient_rows(urls: Sequence[str], peer_python: Path | None) -> list[Row]:
    """`value_and_grad` over independent components, against the critical path and against tesseract-jax."""
    tesseracts = [tf.open_tesseract(url) for url in urls]

    def loss(x: Any) -> Any:
        calls = [tf.apply_tesseract(t, {"x": x * (k + 1.0), "delay": DELAY})["y"] for k, t in enumerate(tesseracts)]
        return sum(jnp.sum(y**2) for y in calls)

    fn = tf.concurrent(jax.value_and_grad(loss))
    x = jnp.arange(3.0)
    (ours,) = median_seconds([lambda: jax.block_until_ready(fn(x))], 5)
    work = f"value_and_grad, {len(urls)} independent components of {DELAY} s"
    rows = [Row(work, "s", ours, 2 * DELAY, "critical path", 1.05)]
    if peer_python is not None:
        command = [str(peer_python), str(HERE / "peer_tesseract_jax.py"), str(DELAY), *urls]
        peer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows += [Row(work, "s", ours, seconds, f"tesseract-jax, {name}", 1.05 / 4) for name, seconds in peer.items()]
    return rows


def request_row(url: str) -> Row:
    """Requests per eager gradient step of one component."""
    tesseract = tf.open_tesseract(url)
    step = jax.value_and_grad(lambda x: jnp.sum(tf.apply_tesseract(tesseract, {"x": x})["y"] ** 2))
    step(jnp.arange(3.0))
    with count_requests() as requests:
        step(jnp.arange(3.0))
    return Row("requests per gradient step, eager", "requests", requests.n_total, 4, "tesseract-jax (read)", 0.5)


def call_rows(url: str) -> list[Row]:
    """One `apply` over HTTP, against tesseract-core's own client, both with base64."""
    rows = []
    ours = HttpTesseract(url)
    peer = tesseract_core.Tesseract.from_url(url).with_encoding(output_format="json+base64")
    for n, repeat, goal in ((100, 100, 0.8), (10_000, 100, 0.8), (1_000_000, 7, 0.7)):
        inputs = {"x": np.random.default_rng(0).normal(size=n)}
        mine, theirs = median_seconds([lambda i=inputs: ours.apply(i), lambda i=inputs: peer.apply(i)], repeat)
        rows.append(
            Row(f"one HTTP call, {n} float64, base64", "ms", 1e3 * mine, 1e3 * theirs, "tesseract-core SDK", goal)
        )
    return rows


def layer_row(url: str) -> Row:
    """What JAX, the plan and the threads add to the bare client, per call, without Prefect."""
    tesseract = HttpTesseract(url)
    x = np.arange(100.0)
    fn = tf.concurrent(lambda x: tf.apply_tesseract(tesseract, {"x": x})["y"])
    whole, bare = median_seconds([lambda: jax.block_until_ready(fn(x)), lambda: tesseract.apply({"x": x})], 200)
    return Row("our layer per call beyond the bare client", "ms", 1e3 * (whole - bare), 0.3, "the goal itself", 1.0)


def import_row() -> Row:
    """A fresh process that imports us, with the names that bring JAX, against one that imports JAX and Equinox."""

    def importing(code: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    ours, peer = median_seconds(
        [importing("import tesseract_flow as tf; tf.apply_tesseract"), importing("import jax, equinox")], 5
    )
    return Row("import tesseract_flow, with apply_tesseract", "s", ours, peer, "import jax, equinox", 1.1)


def serve(n: int) -> list[ServedTesseract]:
    """`n` processes of the benchmark's component."""
    path = HERE / "component" / "tesseract_api.py"
    return [ServedTesseract(path, label=f"component-{k}") for k in range(n)]
