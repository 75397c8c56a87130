"""Arrays on their way into and out of components in this process: each side has its own."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.client import CoreTesseract, MemoryCache
from tesseract_flow.execute import InlineSubmitter
from tesseract_flow.testing import FunctionTesseract

BUFFERS = Path(__file__).parents[1] / "components" / "buffers" / "tesseract_api.py"
X = np.array([1.0, 2.0, 3.0])
VECTOR = np.array([1.0, -1.0, 0.5])


@pytest.fixture(scope="module")
def buffers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core import Tesseract

        return Tesseract.from_tesseract_api(BUFFERS)


# What each endpoint is asked at x, and the right answer.
ASKED = {
    "apply": (lambda h, x: h.apply({"x": x})["y"], lambda x: x**2),
    "a view of a buffer": (lambda h, x: h.apply({"x": x})["part"], lambda x: x[1:] ** 2),
    "vector_jacobian_product": (
        lambda h, x: h.vector_jacobian_product({"x": x}, ["x"], ["y"], {"y": VECTOR.copy()})["x"],
        lambda x: 2 * x * VECTOR,
    ),
    "jacobian_vector_product": (
        lambda h, x: h.jacobian_vector_product({"x": x}, ["x"], ["y"], {"x": VECTOR.copy()})["y"],
        lambda x: 2 * x * VECTOR,
    ),
    "jacobian": (lambda h, x: h.jacobian({"x": x}, ["x"], ["y"])["y"]["x"], lambda x: np.diag(2 * x)),
}


@pytest.mark.parametrize("endpoint", ASKED)
def test_an_answer_stays_as_it_is_when_the_component_is_asked_again(buffers, endpoint):
    handle, (ask, truth) = CoreTesseract(buffers), ASKED[endpoint]
    first, second = ask(handle, X.copy()), ask(handle, 2 * X)
    np.testing.assert_array_equal(first, truth(X))
    np.testing.assert_array_equal(second, truth(2 * X))


@pytest.mark.parametrize("endpoint", ASKED)
def test_a_component_that_writes_into_its_inputs_has_its_own(buffers, endpoint):
    x = X.copy()
    ASKED[endpoint][0](CoreTesseract(buffers), x)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(VECTOR, [1.0, -1.0, 0.5])


def test_a_component_that_keeps_its_inputs_keeps_its_own(buffers):
    x = X.copy()
    CoreTesseract(buffers).apply({"x": x})
    buffers._client.api_module.write_into(buffers._client.api_module.kept[-1])
    np.testing.assert_array_equal(x, X)


def test_a_component_in_this_process_is_asked_one_question_at_a_time(buffers):
    handle = CoreTesseract(buffers)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda k: handle.apply({"x": k * X})["y"], range(40)))
    np.testing.assert_array_equal(answers, [(k * X) ** 2 for k in range(40)])
    assert buffers._client.api_module.most == [1]


def test_what_the_caller_does_with_an_answer_is_nothing_to_a_cache(buffers):
    handle = tf.open_tesseract(buffers, cache=MemoryCache())
    x = X.copy()
    first = handle.apply({"x": x})
    first["y"][:] = x[:] = 7.0
    hit = handle.apply({"x": X})
    hit["y"][:] = 8.0
    np.testing.assert_array_equal(handle.apply({"x": X})["y"], X**2)
    assert handle.cache.stats()["hits"] == 2  # type: ignore[attr-defined]


def twice(handle: Any) -> Any:
    def fn(x: Any) -> Any:
        y = lambda x: tf.apply_tesseract(handle, {"x": x})["y"]  # noqa: E731
        return jnp.sum(y(x) + 10 * y(2 * x))

    return fn


WAYS = {
    "eager": lambda fn: fn,
    "jit": jax.jit,
    "concurrent": tf.concurrent,
    "in order": lambda fn: tf.concurrent(fn, submitter=InlineSubmitter()),
}


@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients_are_right(buffers, way):
    value, gradient = WAYS[way](jax.value_and_grad(twice(buffers)))(jnp.asarray(X))
    assert value == 574.0
    np.testing.assert_array_equal(gradient, [82.0, 164.0, 246.0])


@pytest.mark.parametrize("way", WAYS)
def test_batches_and_jacobians_are_right(buffers, way):
    def y(x):
        return tf.apply_tesseract(buffers, {"x": x}, materialize_jacobian=False)["y"]

    np.testing.assert_array_equal(WAYS[way](jax.vmap(y))(jnp.stack([X, 2 * X])), [X**2, 4 * X**2])
    np.testing.assert_array_equal(WAYS[way](jax.jacrev(y))(jnp.asarray(X)), np.diag(2 * X))
    np.testing.assert_array_equal(WAYS[way](jax.jacfwd(y))(jnp.asarray(X)), np.diag(2 * X))


def test_an_optimisation_starts_at_the_right_value(buffers):
    fn = twice(buffers)
    problem = tf.Problem({"x": jnp.asarray(X)}, lambda design: fn(design["x"]))
    result = tf.optimize(problem, "sgd", learning_rate=1e-12, stop=[tf.optimize.MaxSteps(1)])
    assert result.history[0].value == 574.0


# --- arrays of the caller ---------------------------------------------------------------------------------------------


@pytest.fixture
def product() -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": i["x"] * i["w"], "x": i["x"]}, {"x": np.ones(3), "w": np.ones(3)})


def test_a_pullback_takes_the_primals_as_they_were(product):
    w = np.full(3, 2.0)
    _, pullback = jax.vjp(lambda x: tf.apply_tesseract(product, {"x": x, "w": w})["y"], jnp.ones(3))
    w[:] = 100.0
    np.testing.assert_array_equal(pullback(jnp.ones(3))[0], [2.0, 2.0, 2.0])


def test_a_trace_takes_arrays_as_they_were(product):
    w = np.full(3, 2.0)
    fn = tf.concurrent(jax.grad(lambda x: jnp.sum(tf.apply_tesseract(product, {"x": x, "w": w})["y"])))
    for _ in range(2):  # as under jit: what a function closes over is a constant of its trace
        np.testing.assert_array_equal(fn(jnp.ones(3)), [2.0, 2.0, 2.0])
        w[:] = 100.0


@pytest.mark.parametrize("n", [3, 4096])
def test_what_comes_back_is_not_what_was_given(product, n):
    x = np.ones(n)
    with_handle = product.apply({"x": x, "w": x})["x"]
    eager = tf.apply_tesseract(product, {"x": x, "w": x})["x"]
    passed, concurrent = tf.concurrent(lambda x: (x, tf.apply_tesseract(product, {"x": x, "w": x})["x"]))(x)
    x[:] = 7.0
    for found in (with_handle, eager, passed, concurrent):
        np.testing.assert_array_equal(found, np.ones(n))


def test_a_function_that_answers_with_its_own_buffer_gives_it_away_once():
    buffer = np.zeros(3)

    def fn(inputs):
        buffer[:] = np.asarray(inputs["x"]) ** 2
        return {"y": buffer}

    square = FunctionTesseract(fn, {"x": np.ones(3)})
    first, second = square.apply({"x": X}), square.apply({"x": 2 * X})
    np.testing.assert_array_equal(first["y"], X**2)
    np.testing.assert_array_equal(second["y"], 4 * X**2)
