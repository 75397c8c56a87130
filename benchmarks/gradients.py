"""Gradients and batches through several components: does everything overlap that can?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tesseract_flow as tf
from benchmarks.measuring import Bench, Row, component, median_seconds
from tesseract_flow.client import HttpTesseract, ServedTesseract, count_requests
from tesseract_flow.testing import FunctionTesseract


def gradient_rows(bench: Bench) -> list[Row]:
    """`value_and_grad` over independent components, against the critical path and against tesseract-jax."""
    tesseracts = [tf.open_tesseract(url) for url in bench.urls]
    fn = tf.concurrent(jax.value_and_grad(independent(tesseracts, bench.delay)))
    x = jnp.arange(3.0)
    (ours,) = median_seconds([lambda: jax.block_until_ready(fn(x))], bench.repeat(7))
    work = f"`value_and_grad`, {len(tesseracts)} independent components of {bench.delay} s"
    rows = [Row("gradient", work, "s", ours, 2 * bench.delay, "critical path", 1.05)]
    if bench.peer_python is not None:
        peers = bench.peer("gradient", bench.delay, bench.repeat(3), *bench.urls)
        rows += [
            Row("gradient", work, "s", ours, seconds, f"tesseract-jax, {name}", 1.05 / 4)
            for name, seconds in peers.items()
        ]
    return [*rows, _request_row(bench)]


def independent(tesseracts: list[Any], delay: float) -> Any:
    """A loss with one call to each, none of which needs another's answer."""

    def loss(x: Any) -> Any:
        calls = [tf.apply_tesseract(t, {"x": x * (k + 1.0), "delay": delay})["y"] for k, t in enumerate(tesseracts)]
        return sum(jnp.sum(y**2) for y in calls)

    return loss


def _request_row(bench: Bench) -> Row:
    tesseract = tf.open_tesseract(bench.urls[0])
    step = jax.value_and_grad(lambda x: jnp.sum(tf.apply_tesseract(tesseract, {"x": x})["y"] ** 2))
    step(jnp.arange(3.0))
    with count_requests() as requests:
        step(jnp.arange(3.0))
    work = "requests per gradient step of one component, eager"
    return Row("requests", work, "", requests.n_total, 4, "tesseract-jax (read from its code)", 0.5)


def vmap_rows(bench: Bench) -> list[Row]:
    """`vmap` of four calls on four workers, against one call and against tesseract-jax."""
    served = ServedTesseract(component("doubler"), label="workers", n_workers=4)
    one = HttpTesseract(bench.urls[0])

    def double(x: Any) -> Any:
        return tf.apply_tesseract(served, {"x": x, "delay": bench.delay}, vmap_method="concurrent")["y"]

    fn = tf.concurrent(jax.vmap(double))
    xs = jnp.arange(12.0).reshape(4, 3)
    for _ in range(2):  # opens the connections to the workers
        fn(xs)
    ours, single = median_seconds(
        [lambda: jax.block_until_ready(fn(xs)), lambda: one.apply({"x": [0.0, 1.0, 2.0], "delay": bench.delay})],
        bench.repeat(7),
    )
    work = f"`vmap` of 4 calls of {bench.delay} s on 4 workers"
    rows = [Row("vmap", work, "s", ours, single, "one call", 1.15)]
    if bench.peer_python is not None:
        peer = bench.peer("vmap", bench.delay, bench.repeat(3), served.url)["sequential"]
        rows.append(Row("vmap", work, "s", ours, peer, "tesseract-jax, sequential", 1.15 / 4.2))
    served.stop()
    return rows


def cut_rows(_: Bench) -> list[Row]:
    """Runs of a pipeline for one gradient, by differences of the whole and of each component: 11 inputs, a field of
    3000 values, and one output; no component has derivatives."""
    n_inputs, n_field = 11, 3000
    shapes = np.linspace(0.0, 1.0, n_inputs * n_field).reshape(n_field, n_inputs)
    has: dict[str, Any] = {"endpoints": ["apply", "abstract_eval"]}
    wide = FunctionTesseract(
        lambda i: {"field": jnp.sin(jnp.asarray(shapes) @ i["x"])}, {"x": np.ones(n_inputs)}, name="wide", **has
    )
    narrow = FunctionTesseract(
        lambda i: {"y": jnp.sum(i["field"] ** 2)}, {"field": np.ones(n_field)}, name="narrow", **has
    )

    def pipeline(first: Any, second: Any) -> Any:
        return lambda x: tf.apply_tesseract(second, tf.apply_tesseract(first, {"x": x}))["y"]

    x = jnp.linspace(0.1, 0.5, n_inputs)
    of_each = (
        tf.open_tesseract(one, derive=tf.Derive(tf.Differences("central"), max_requests=10_000))
        for one in (wide, narrow)
    )
    with count_requests() as by_each:
        expected = tf.concurrent(jax.grad(pipeline(*of_each)))(x)
    with count_requests() as by_whole:
        gradient = tf.concurrent(jax.grad(tf.differences(pipeline(wide, narrow))))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    work = f"gradient of {n_inputs} inputs through a field of {n_field} values, by differences"
    peer = "differences of each component"
    goal = 2 * (2 * n_inputs + 1) / by_each.n_total
    return [Row("cut", work, "requests", by_whole.n_total, by_each.n_total, peer, goal)]
