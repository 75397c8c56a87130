"""Single requests: over HTTP, through shared memory, and what our own layers add to them."""

from __future__ import annotations

import compileall
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox
import httpx
import jax
import numpy as np
import orjson
import pybase64
import tesseract_core

import tesseract_flow as tf
from benchmarks.measuring import Bench, Row, component, median_difference, median_seconds, run_python
from tesseract_flow.client import HttpTesseract, ServedTesseract

SDK = "tesseract-core SDK"
BARE = "httpx + orjson + pybase64"


def call_rows(bench: Bench) -> list[Row]:
    """One `apply` over HTTP with base64, against tesseract-core's own client and against its bare ingredients."""
    rows = []
    for n, repeat, goal in ((100, 600, 0.8), (10_000, 600, 0.8), (1_000_000, 21, 0.7)):
        ours, sdk, bare = median_seconds(callers(bench.urls[0], n), bench.repeat(repeat))
        work = f"one HTTP call, {n} float64, base64"
        rows.append(Row(f"http-{n}", work, "ms", 1e3 * ours, 1e3 * sdk, SDK, goal))
        if n == 1_000_000:
            rows.append(Row("http-bare", work, "ms", 1e3 * ours, 1e3 * bare, BARE, 1.05))
    return rows


def callers(url: str, n: int) -> list[Callable[[], Any]]:
    """One call of n numbers by our client, by the SDK, and by hand."""
    ours = HttpTesseract(url)
    sdk = tesseract_core.Tesseract.from_url(url).with_encoding(output_format="json+base64")
    bare = httpx.Client(headers={"Accept": "application/json+base64", "Content-Type": "application/json"}, timeout=None)
    inputs = {"x": np.random.default_rng(0).normal(size=n)}

    def by_hand() -> np.ndarray:
        data = {"encoding": "base64", "buffer": pybase64.b64encode_as_string(inputs["x"].data)}
        x = {"object_type": "array", "shape": [n], "dtype": "float64", "data": data}
        answer = bare.post(
            f"{url}/apply", content=orjson.dumps({"inputs": {"x": x}}), params={"run_id": uuid.uuid4().hex}
        )
        y = orjson.loads(answer.content)["y"]
        return np.frombuffer(pybase64.b64decode(y["data"]["buffer"]), y["dtype"]).reshape(y["shape"])

    return [lambda: ours.apply(inputs), lambda: sdk.apply(inputs), by_hand]


def shared_memory_rows(bench: Bench) -> list[Row]:
    """Arrays in files in memory, against the SDK's pool of them. Each answer is read once, from start to end.

    Ours twice: asking the SDK's server, and asking one that we have started.
    """
    rows = []
    served = ServedTesseract(component("doubler"), label="served here")
    with tempfile.TemporaryDirectory(prefix="tesseract-flow-bench-", dir=_memory()) as folder:
        inputs, outputs = Path(folder, "inputs"), Path(folder, "outputs")
        inputs.mkdir()
        outputs.mkdir()
        sdk = tesseract_core.Tesseract.from_source(
            component("doubler"),
            input_path=inputs,
            output_path=outputs,
            output_format="json+binref",
            python_executable=sys.executable,
            experimental_binref_pool=True,
        )
        with sdk:
            url = sdk._client.url  # type: ignore[union-attr]
            ours = HttpTesseract(url, encoding="binref", input_dir=inputs, output_dir=outputs)
            for n, repeat in ((1_000_000, 31), (4_000_000, 15)):
                x = np.random.default_rng(0).normal(size=n)
                # A virtual machine's memory may be as slow as a disk where nobody has touched it for seconds.
                seconds = median_seconds(
                    [lambda t=t, x=x: t.apply({"x": x})["y"].sum() for t in (served, ours, sdk)],
                    bench.repeat(repeat),
                    n_warm_up=bench.repeat(15),
                )
                here, there, theirs = (1e3 * s for s in seconds)
                work, peer = f"one call through shared memory, {n} float64", f"{SDK}, pooled binref"
                rows += [
                    Row("shared-memory", f"{work}, served by us", "ms", here, theirs, peer, 0.9),
                    Row("shared-memory", f"{work}, the same server", "ms", there, theirs, peer, 0.9),
                ]
    served.stop()
    return rows


def _memory() -> str | None:
    """A folder in memory, where the system has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def layer_rows(bench: Bench) -> list[Row]:
    """What JAX, the plan and the threads add to the bare client, per call, without Prefect."""
    tesseract = HttpTesseract(bench.urls[0])
    x = np.arange(100.0)
    fn = tf.concurrent(lambda x: tf.apply_tesseract(tesseract, {"x": x})["y"])
    seconds = median_difference(
        lambda: jax.block_until_ready(fn(x)), lambda: tesseract.apply({"x": x}), bench.repeat(600)
    )
    work = "our layer per call beyond the bare client, no Prefect"
    return [Row("layer", work, "ms", 1e3 * seconds, 0.3, "the goal itself", 1.0)]


def import_rows(bench: Bench) -> list[Row]:
    """A fresh process that imports us, with the names that bring JAX, against one that imports JAX and Equinox.

    Both as they are once installed: compiled to bytecode, also where the environment keeps Python from writing it.
    """
    for package in (tf, jax, equinox):
        compileall.compile_dir(str(Path(package.__file__ or "").parent), quiet=2)
    ours, peer = median_seconds(
        [
            lambda: run_python("-c", "import tesseract_flow as tf; tf.apply_tesseract"),
            lambda: run_python("-c", "import jax, equinox"),
        ],
        bench.repeat(7),
    )
    return [Row("import", "`import tesseract_flow`, with `apply_tesseract`", "s", ours, peer, "jax + equinox", 1.1)]
