"""Loops of JAX with calls in them, and loops of components that need each other."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse.linalg

import tesseract_flow as tf
from benchmarks.measuring import Bench, Row, component, median_seconds
from tesseract_flow.client import ServedTesseract, count_requests
from tesseract_flow.compose import Gmres
from tesseract_flow.optimize import Observer
from tesseract_flow.testing import FunctionTesseract


def loop_rows(bench: Bench) -> list[Row]:
    """Value and gradient of a `lax.map` whose calls may all run at once, and of a `scan` of two components."""
    served = ServedTesseract(component("doubler"), label="lanes", n_workers=8)

    def double(tesseract: Any, x: Any) -> Any:
        return tf.apply_tesseract(tesseract, {"x": x, "delay": bench.delay})["y"]

    def mapped(xs: Any) -> Any:
        return jnp.sum(jax.lax.map(lambda x: double(served, x), xs) ** 2)

    def one(x: Any) -> Any:
        return jnp.sum(double(served, x) ** 2)

    of_map, of_one = tf.concurrent(jax.value_and_grad(mapped)), tf.concurrent(jax.value_and_grad(one))
    xs = jnp.arange(24.0).reshape(8, 3)
    for _ in range(2):  # opens the connections to the workers
        of_map(xs)
    ours, single = median_seconds(
        [lambda: jax.block_until_ready(of_map(xs)), lambda: jax.block_until_ready(of_one(xs[0]))], bench.repeat(7)
    )
    served.stop()
    work = f"`lax.map` of 8 calls of {bench.delay} s on 8 lanes, forward and backward"
    rows = [Row("loops", work, "s", ours, single, "one call each way", 1.15)]

    first, second = (tf.open_tesseract(url) for url in bench.urls[:2])
    n_steps = 10

    def scanned(x: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            a, b = carry
            return (jnp.sin(double(first, a)), jnp.sin(double(second, b))), None

        (a, b), _ = jax.lax.scan(body, (x, -x), None, length=n_steps)
        return jnp.sum(a * b)

    step = tf.concurrent(jax.value_and_grad(scanned))
    (ours,) = median_seconds([lambda: jax.block_until_ready(step(xs[0]))], bench.repeat(3))
    work = f"`scan` of {n_steps} steps with two independent components of {bench.delay} s, value and gradient"
    return [*rows, Row("loops", work, "s", ours, 2 * n_steps * bench.delay, "critical path", 1.05)]


def coupled_rows(bench: Bench) -> list[Row]:
    """Calls for a fixed point with loop gain above 1 and its adjoint, over the designs of an optimisation; by hand each
    design begins where the one before has ended, too."""
    n = 8
    matrix = np.random.default_rng(0).normal(size=(n, n))
    matrix *= 1.8 / np.max(np.abs(np.linalg.eigvals(matrix)))
    start = np.linspace(-1.0, 1.0, n)
    loop = FunctionTesseract(
        lambda i: {"y": i["x"] + jnp.asarray(matrix) @ jnp.tanh(i["T"])}, {"x": start, "T": start}, name="loop"
    )

    def state(x: Any) -> Any:
        return tf.fixed_point(lambda T, x: tf.apply_tesseract(loop, {"T": T, "x": x})["y"], jnp.zeros(n), x)

    problem = tf.Problem(jnp.asarray(start), lambda x: jnp.sum((state(x) - 0.3) ** 2))
    designs: list[np.ndarray] = []
    seen = Observer(on_step=lambda record, design, evaluation: designs.append(np.asarray(design)))
    ours = tf.optimize(problem, "adam", learning_rate=0.02, stop={"max_steps": 10}, observers=[seen])
    by_hand = sum(_by_hand(loop, designs))
    work = f"coupled loop with gain 1.8, state and adjoint at {len(designs)} designs"
    # One evaluation more at the start tells whether gradients may be believed.
    calls = ours.requests * len(designs) / ours.evaluations
    return [Row("coupled", work, "calls", calls, by_hand, "SciPy's `newton_krylov` and `gmres` by hand", 1.2)]


def _by_hand(loop: FunctionTesseract, designs: list[np.ndarray]) -> list[int]:
    """Calls at each design."""
    T, counts = np.zeros_like(designs[0]), []
    rtol = float(np.finfo(np.float64).eps) ** (2 / 3)
    for x in designs:
        with count_requests() as requests:
            T = scipy.optimize.newton_krylov(
                lambda T, x=x: loop.apply({"T": T, "x": x})["y"] - T,
                T,
                method="gmres",
                f_tol=rtol * float(np.sqrt(np.mean(T**2)) or 1.0),
            )

            pull = functools.partial(_pulled, loop, x, T)
            system = scipy.sparse.linalg.LinearOperator((T.size, T.size), lambda price, pull=pull: price - pull(price))
            price, info = scipy.sparse.linalg.gmres(
                system, 2.0 * (T - 0.3), rtol=Gmres().tolerance(np.dtype(np.float64)), restart=40
            )
            assert info == 0
            pull(price)
        counts.append(requests.n_solves)
    return counts


def _pulled(loop: FunctionTesseract, x: np.ndarray, T: np.ndarray, price: np.ndarray) -> np.ndarray:
    return np.asarray(loop.vector_jacobian_product({"T": T, "x": x}, ["T", "x"], ["y"], {"y": price})["T"])
