"""Random graphs of pure steps and Tesseract calls: the dataflow run equals plain JAX, forward and backward."""

from __future__ import annotations

import random

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract

N = 3
MAPS = {
    "sine": lambda a, b: jnp.sin(a) + 0.5 * b,
    "product": lambda a, b: a * b / (1.0 + a**2),
    "mixed": lambda a, b: jnp.tanh(a + b[::-1]),
}
PURE = {
    "cos": lambda a, b: jnp.cos(a) * b,
    "jitted": jax.jit(lambda a, b: a - 0.3 * b),
    "roll": lambda a, b: jnp.roll(a, 1) + b.sum() * 0.1,
    "remat": jax.checkpoint(lambda a, b: jnp.sin(a * b)),
    "constant": lambda a, b: jnp.arange(1.0, N + 1.0) + a * 0.0,
}
delays = random.Random(0)


def _linger(endpoint: str, inputs: object) -> None:
    import time

    if endpoint != "abstract_eval":
        time.sleep(delays.choice([0.0, 0.0, 0.001, 0.003]))


TESSERACTS = {
    name: FunctionTesseract(
        lambda i, fn=fn: {"y": fn(i["a"], i["b"])}, {"a": np.ones(N), "b": np.ones(N)}, name=name, before=_linger
    )
    for name, fn in MAPS.items()
}

# A node: what it computes, and which two of the values before it go in.
nodes = st.tuples(st.sampled_from([*MAPS, *PURE]), st.integers(0, 100), st.integers(0, 100))
graphs = st.lists(nodes, min_size=1, max_size=9)


def evaluate(graph, x, remote):
    values = [x, x**2]
    for kind, i, j in graph:
        a, b = values[i % len(values)], values[j % len(values)]
        if kind in PURE:
            values.append(PURE[kind](a, b))
        elif remote:
            values.append(apply_tesseract(TESSERACTS[kind], {"a": a, "b": b})["y"])
        else:
            values.append(MAPS[kind](a, b))
    return jnp.sum(values[-1] ** 2) + jnp.sum(values[len(values) // 2])


@settings(max_examples=40, deadline=None)
@given(graphs)
def test_dataflow_equals_plain_jax(graph):
    x = jnp.array([0.4, -0.7, 1.1])
    value, gradient = concurrent(jax.value_and_grad(lambda x: evaluate(graph, x, remote=True)))(x)
    expected_value, expected_gradient = jax.value_and_grad(lambda x: evaluate(graph, x, remote=False))(x)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    scale = np.abs(expected_gradient).max() + 1.0
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-13 * scale)
