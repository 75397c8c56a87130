"""What is measured inside a Prefect flow, in a process of its own: Prefect reads its settings when it is imported.

`python -m benchmarks.in_flow SETTINGS.json ANSWERS.json`, with PREFECT_HOME and the like in the environment. The flow
has the embedded server and its SQLite database behind it. Here no `from __future__ import annotations`: Prefect reads
the annotations of flows.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tesseract_core
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

import tesseract_flow as tf
from benchmarks.gradients import independent
from benchmarks.measuring import median_seconds
from tesseract_flow.client import HttpTesseract
from tesseract_flow.tasks import PrefectSubmitter
from tesseract_flow.testing import FunctionTesseract


@flow(name="benchmark")
def measure(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **_graph(settings["urls"], settings["delay"], settings["repeat"]),
        **_task(settings["n_runs"]),
        "hits": _hits(settings["heat_url"], Path(settings["folder"]), settings["n_steps"]),
    }


def _graph(urls: list[str], delay: float, repeat: int) -> dict[str, float]:
    """Seconds per gradient: our executor with a task per call, and the tasks as one would write them by hand."""
    fn = tf.concurrent(
        jax.value_and_grad(independent([tf.open_tesseract(url) for url in urls], delay)), submitter=PrefectSubmitter()
    )
    x = jnp.arange(3.0)
    by_hand = _by_hand(urls, delay)
    ours, naive = median_seconds([lambda: jax.block_until_ready(fn(x)), lambda: by_hand(np.arange(3.0))], repeat)
    return {"graph": ours, "graph_by_hand": naive}


@task
def apply_by_hand(tesseract_url: str, inputs: dict[str, Any]) -> Any:
    return _handle(tesseract_url).apply(inputs)["y"]


@task
def pull_back_by_hand(tesseract_url: str, inputs: dict[str, Any], y: Any) -> Any:
    return _handle(tesseract_url).vector_jacobian_product(inputs, ["x"], ["y"], {"y": 2.0 * y})["x"]


_handles: dict[str, Any] = {}


def _handle(url: str) -> Any:
    return _handles.setdefault(url, tesseract_core.Tesseract.from_url(url).with_encoding(output_format="json+base64"))


def _by_hand(urls: list[str], delay: float) -> Callable[[np.ndarray], Any]:
    def step(x: np.ndarray) -> Any:
        inputs = [{"x": x * (k + 1.0), "delay": delay} for k in range(len(urls))]
        ys = [apply_by_hand.submit(url, given) for url, given in zip(urls, inputs, strict=True)]
        x_bars = [pull_back_by_hand.submit(*of) for of in zip(urls, inputs, ys, strict=True)]
        value = sum(float(np.sum(y.result() ** 2)) for y in ys)
        return value, sum((k + 1.0) * x_bar.result() for k, x_bar in enumerate(x_bars))

    return step


def _task(n_runs: int) -> dict[str, Any]:
    """Seconds per run of a call's task, and of a plain task around the same call, in turn, run by run.

    The answer is in the client's cache, so the call is all hashing and no waiting: the rest is what the task costs.
    """
    tesseract = tf.open_tesseract(
        FunctionTesseract(lambda i: {"y": 2.0 * i["x"]}, {"x": np.ones(100)}, version="1"), cache=True
    )
    x = np.arange(100.0)
    (node,) = tf.concurrent(lambda x: tf.apply_tesseract(tesseract, {"x": x})["y"]).plan(x).nodes
    submitter = PrefectSubmitter()

    @task(cache_policy=NO_CACHE, persist_result=False)
    def plain(x: Any) -> Any:
        return tesseract.apply({"x": x})["y"]

    seconds: dict[str, list[float]] = {"task": [], "task_plain": []}
    for _ in range(n_runs):
        start = time.perf_counter()
        submitter.submit(node, [x], []).result()
        middle = time.perf_counter()
        plain.submit(x).result()
        seconds["task"].append(middle - start)
        seconds["task_plain"].append(time.perf_counter() - middle)
    tenth = max(n_runs // 10, 1)
    return {
        **{name: statistics.median(own) for name, own in seconds.items()},
        **{f"{name}_first": statistics.median(own[:tenth]) for name, own in seconds.items()},
        **{f"{name}_last": statistics.median(own[-tenth:]) for name, own in seconds.items()},
    }


def _hits(url: str, folder: Path, n_steps: int) -> dict[str, list[str]]:
    """What the pullbacks of four calls at once, on four workers, have found; with our client and with a naive one."""
    random = np.random.default_rng(0)
    batches = random.normal(size=(2, n_steps, 4, 64, 64))
    records = {"ours": str(folder / "ours.txt"), "naive": str(folder / "naive.txt")}

    tesseract = HttpTesseract(url)

    def loss(xs: Any) -> Any:
        calls = [
            tf.apply_tesseract(tesseract, {"temperature": x, "record": records["ours"]})["temperature"] for x in xs
        ]
        return sum(jnp.sum(y**2) for y in calls)

    fn = tf.concurrent(jax.value_and_grad(loss), submitter=PrefectSubmitter())
    for batch in batches[0]:
        jax.block_until_ready(fn(list(batch)))

    def naive(x: np.ndarray) -> None:
        """A handle per call, as a task has one that gets an address for an argument."""
        inputs = {"temperature": x, "record": records["naive"]}
        y = tesseract_core.Tesseract.from_url(url).apply(inputs)["temperature"]
        c = {"temperature": 2.0 * y}
        tesseract_core.Tesseract.from_url(url).vector_jacobian_product(inputs, ["temperature"], ["temperature"], c)

    with ThreadPoolExecutor(4) as pool:
        for batch in batches[1]:
            list(pool.map(naive, batch))
    return {name: Path(record).read_text().split() for name, record in records.items()}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    answers = measure(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answers))
