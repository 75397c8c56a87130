"""How cost grows: with the number of nodes, the size of arrays, workers and replicas, and steps.

Each function gives a `Chart`, which `plots` draws and the results keep as numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import tesseract_flow as tf
from benchmarks.calls import BARE, SDK, callers
from benchmarks.measuring import Bench, median_seconds, one_server
from tesseract_flow.client import AbstractTesseract, Endpoint, Tree, record_request
from tesseract_flow.optimize import MaxSteps, Observer, Problem, optimize
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.testing import FunctionTesseract


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve. `is_ideal`: not measured, but what would be best."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    is_ideal: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes. `log`: which of them are logarithmic."""

    x_label: str
    y_label: str
    lines: Sequence[Line]
    log: Literal["", "x", "xy"] = "xy"


@dataclasses.dataclass(frozen=True)
class Chart:
    """One figure, by name of its file."""

    name: str
    title: str
    panels: Sequence[Panel]


class _Doubler(AbstractTesseract):
    """y = 2 x in this process, after a delay and next to no work: what is left is ours."""

    def __init__(self, delay: float = 0.0):
        self._delay = delay
        self._schema = FunctionTesseract(lambda i: {"y": 2.0 * i["x"]}, {"x": np.ones(3)}, name="doubler").schema

    @property
    def name(self) -> str:
        return "doubler"

    @property
    def schema(self) -> TesseractSchema:
        return self._schema

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        record_request(self.name, endpoint)
        if endpoint == "abstract_eval":
            return {"y": payload["inputs"]["x"]}
        if self._delay:
            time.sleep(self._delay)
        if endpoint == "apply":
            return {"y": 2.0 * payload["inputs"]["x"]}
        return {"x": 2.0 * payload["cotangent_vector"]["y"]}


def nodes(bench: Bench) -> Chart:
    """A gradient step through 1 to 64 calls, all independent or each after the one before, with no server."""
    delay = 0.002 if bench.is_quick else 0.01
    numbers = [1, 4] if bench.is_quick else [1, 2, 4, 8, 16, 32, 64]
    tesseract = _Doubler(delay)

    def independent(x: Any, n: int) -> Any:
        return sum(jnp.sum(tf.apply_tesseract(tesseract, {"x": x * (k + 1.0)})["y"] ** 2) for k in range(n))

    def chain(x: Any, n: int) -> Any:
        for _ in range(n):
            x = tf.apply_tesseract(tesseract, {"x": x})["y"] / 2.0
        return jnp.sum(x**2)

    def seconds(graph: Callable[[Any, int], Any], n: int) -> float:
        fn, x = tf.concurrent(jax.value_and_grad(lambda x: graph(x, n))), jnp.arange(3.0)
        return median_seconds([lambda: jax.block_until_ready(fn(x))], bench.repeat(7 if n < 32 else 3))[0]

    flat = [seconds(independent, n) for n in numbers]
    long = [seconds(chain, n) for n in numbers]
    best_flat, best_long = [2 * delay for _ in numbers], [2 * delay * n for n in numbers]

    def overhead(ours: list[float], best: list[float]) -> list[float]:
        return [1e3 * (a - b) / (2 * n) for a, b, n in zip(ours, best, numbers, strict=True)]

    return Chart(
        "nodes",
        f"A gradient step through n nodes of {1e3 * delay:g} ms, forward and backward",
        [
            Panel(
                "nodes",
                "seconds per step",
                [
                    Line("independent", numbers, flat),
                    Line("chain", numbers, long),
                    Line("independent, ideal", numbers, best_flat, is_ideal=True),
                    Line("chain, ideal", numbers, best_long, is_ideal=True),
                ],
            ),
            Panel(
                "nodes",
                "ms beyond the ideal, per call",
                [
                    Line("independent", numbers, overhead(flat, best_flat)),
                    Line("chain", numbers, overhead(long, best_long)),
                ],
                log="x",
            ),
        ],
    )


def sizes(bench: Bench) -> Chart:
    """One HTTP call of 1e2 to 1e7 numbers, base64: ours, the SDK, and the bare ingredients."""
    repeats = {100: 100, 1_000: 100, 10_000: 100, 100_000: 31, 1_000_000: 9, 10_000_000: 3}
    numbers = [100, 10_000] if bench.is_quick else list(repeats)
    seconds = [median_seconds(callers(bench.urls[0], n), bench.repeat(repeats[n])) for n in numbers]
    lines = [
        Line(name, numbers, [1e3 * of_one[k] for of_one in seconds])
        for k, name in enumerate(("tesseract-flow", SDK, BARE))
    ]
    sdk = lines[1].y
    ratios = [
        Line(line.name, numbers, [a / b for a, b in zip(line.y, sdk, strict=True)]) for line in (lines[0], lines[2])
    ]
    return Chart(
        "sizes",
        "One HTTP call there and back, base64",
        [
            Panel("float64 each way", "ms per call", lines),
            Panel(
                "float64 each way",
                f"time / that of the {SDK}",
                [*ratios, Line(SDK, numbers, [1.0 for _ in numbers], is_ideal=True)],
                log="x",
            ),
        ],
    )


def replicas(bench: Bench) -> Chart:
    """Calls per second of one component by 1 to 4 workers of a server, and by 1 to 4 servers."""
    delay, n_calls = (0.02, 8) if bench.is_quick else (0.05, 48)
    numbers = [2] if bench.is_quick else [1, 2, 3, 4]

    def rate(tesseract: AbstractTesseract) -> float:
        with ThreadPoolExecutor(16) as pool:

            def all_calls() -> None:
                list(pool.map(lambda k: tesseract.apply({"x": [float(k)], "delay": delay}), range(n_calls)))

            return n_calls / median_seconds([all_calls], bench.repeat(3))[0]

    by_workers = []
    for n in numbers:
        with one_server("doubler", n) as url:
            by_workers.append(rate(tf.open_tesseract(url)))
    by_servers = [rate(tf.open_tesseract(bench.urls[:n])) for n in numbers]
    best = [n / delay for n in numbers]
    panel = Panel(
        "workers or replicas",
        "calls per second",
        [
            Line("workers of one server", numbers, by_workers),
            Line("replicas, one worker each", numbers, by_servers),
            Line("ideal", numbers, best, is_ideal=True),
        ],
        log="",
    )
    return Chart("replicas", f"Throughput of a component of {1e3 * delay:g} ms, 16 threads asking", [panel])


def steps(bench: Bench) -> Chart:
    """An optimisation of 5000 steps with a journal: time per step, and what is on disk."""
    n_steps, every = (20, 5) if bench.is_quick else (5000, 100)
    tesseract = _Doubler()
    target = jnp.linspace(0.0, 1.0, 1000)

    def loss(x: Any) -> Any:
        return jnp.mean((tf.apply_tesseract(tesseract, {"x": x})["y"] - target) ** 2)

    ends: list[float] = []  # when each step was finished
    at: list[int] = []
    checkpoints: list[float] = []
    history: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tesseract-flow-bench-") as name:

        def on_step(record: Any, design: Any, evaluation: Any) -> None:
            if record.step % every == 0 and record.step > 0:
                at.append(record.step)
                n_bytes = {path.name: path.stat().st_size for path in Path(name).iterdir()}
                history.append(n_bytes["history.jsonl"] / 1e3)
                checkpoints.append((sum(n_bytes.values()) - n_bytes["history.jsonl"]) / 1e3)
            ends.append(time.perf_counter())

        optimize(
            Problem(jnp.zeros(1000), loss, name="steps"),
            "adam",
            learning_rate=1e-4,
            stop=[MaxSteps(n_steps)],
            journal=name,
            observers=[Observer(on_step=on_step)],
        )
    seconds = [b - a for a, b in itertools.pairwise(ends)]  # of steps 1, 2, ...
    medians = [1e3 * statistics.median(seconds[step - every : step]) for step in at]
    return Chart(
        "steps",
        f"{n_steps} steps of Adam on 1000 numbers, every step in the journal",
        [
            Panel(
                "step",
                f"ms per step, median of {every}",
                [
                    Line("measured", at, medians),
                    Line("median of all", at, [1e3 * statistics.median(seconds)] * len(at), is_ideal=True),
                ],
                log="",
            ),
            Panel(
                "step",
                "kB on disk",
                [Line("checkpoints", at, checkpoints), Line("history, a line per step", at, history)],
                log="",
            ),
        ],
    )


ALL = (nodes, sizes, replicas, steps)
