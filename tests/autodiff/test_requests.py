"""How many requests things cost, and what these ask for. Solves are expensive, so the numbers are exact."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close

A, B = np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.5, 4.0])


@pytest.fixture
def tesseract() -> Watched:
    """Two inputs, two outputs, each output of both inputs."""

    def fn(i: Any) -> Any:
        return {"out": {"product": i["a"] * i["b"]}, "total": jnp.sum(i["a"]) + jnp.sum(i["b"] ** 2)}

    return Watched(FunctionTesseract(fn, {"a": A, "b": B}))


def asked(tesseract: Watched) -> dict[str, int]:
    """Requests since the last time, by endpoint."""
    counts = Counter(endpoint for endpoint, _ in tesseract.requests)
    tesseract.requests.clear()
    return dict(counts)


def product(tesseract: Watched, a: Any, b: Any = B) -> Any:
    return apply_tesseract(tesseract, {"a": a, "b": b})["out"]["product"]


def loss_of(tesseract: Watched) -> Any:
    return lambda a, b: jnp.sum(product(tesseract, a, b) ** 2)


APPLY, PUSH, PULL, SHAPES = "apply", "jacobian_vector_product", "vector_jacobian_product", "abstract_eval"


def test_eager_apply_is_one_request(tesseract: Watched):
    product(tesseract, A)
    assert asked(tesseract) == {APPLY: 1}


def test_eager_gradient_step_is_two_requests_and_shapes_once_ever(tesseract: Watched):
    step = jax.value_and_grad(loss_of(tesseract))
    step(A, B)
    assert asked(tesseract) == {SHAPES: 1, APPLY: 1, PULL: 1}
    step(2.0 * A, B)
    jax.value_and_grad(lambda a: loss_of(tesseract)(a, B))(A)
    assert asked(tesseract) == {APPLY: 2, PULL: 2}
    step(A[:2], B[:2])  # another shape
    assert asked(tesseract) == {SHAPES: 1, APPLY: 1, PULL: 1}
    jax.jit(step)(A[:2], B[:2])
    assert asked(tesseract) == {APPLY: 1, PULL: 1}


@pytest.mark.parametrize("outer", [jax.jit, concurrent], ids=["jit", "concurrent"])
def test_compiled_functions_ask_for_what_they_need(tesseract: Watched, outer: Any):
    loss = loss_of(tesseract)
    step = outer(jax.value_and_grad(loss))
    step(A, B)
    assert asked(tesseract) == {SHAPES: 1, APPLY: 1, PULL: 1}
    step(2.0 * A, B)
    assert asked(tesseract) == {APPLY: 1, PULL: 1}
    outer(loss)(A, B)
    assert asked(tesseract) == {APPLY: 1}
    outer(lambda a, b: jax.jvp(loss, (a, b), (a, b)))(A, B)
    assert asked(tesseract) == {APPLY: 1, PUSH: 1}
    outer(jax.grad(lambda a: jnp.sum(product(tesseract, a))))(A)  # linear: the gradient needs no value
    assert asked(tesseract) == {PULL: 1}


@pytest.mark.parametrize("outer", [jax.jit, concurrent], ids=["jit", "concurrent"])
def test_equal_calls_are_one_request(tesseract: Watched, outer: Any):
    twin = Watched(tesseract.tesseract, requests=tesseract.requests)
    assert twin is not tesseract

    def loss(a: Any) -> Any:
        first = jnp.sum(product(tesseract, a) ** 2)
        second = jax.jit(lambda v: jnp.sum(product(twin, v) ** 2))(a)
        return first * second

    got = outer(jax.value_and_grad(loss))(A)
    assert asked(tesseract) == {SHAPES: 1, APPLY: 1, PULL: 1}
    assert_close(got, jax.value_and_grad(lambda a: jnp.sum((a * B) ** 2) ** 2)(A))


@pytest.mark.parametrize("outer", [jax.jit, concurrent], ids=["jit", "concurrent"])
def test_different_calls_are_not_merged(outer: Any):
    power = Watched(
        FunctionTesseract(lambda i: {"y": i["a"] ** i["n"] * (2.0 if i["n"] is True else 1.0)}, {"a": A, "n": 1})
    )

    def run(a: Any) -> Any:
        return [apply_tesseract(power, {"a": a, "n": n})["y"] for n in (1, 1.0, True, 2, -1, -2)]

    got = outer(run)(A)
    assert asked(power) == {SHAPES: 6, APPLY: 6}
    assert_close(got, [jnp.asarray(y) for y in (A, A, 2.0 * A, A**2, 1.0 / A, A**-2.0)])


@pytest.mark.parametrize("outer", [jax.jit, concurrent], ids=["jit", "concurrent"])
def test_unused_calls_are_no_request(tesseract: Watched, outer: Any):
    def run(a: Any) -> Any:
        product(tesseract, a)
        return 2.0 * a

    outer(run)(A)
    assert asked(tesseract) == {SHAPES: 1}


def test_no_pullback_where_nothing_flows_back(tesseract: Watched):
    jax.grad(lambda a: jnp.sum(jax.lax.stop_gradient(product(tesseract, a)) * a))(A)
    assert asked(tesseract) == {SHAPES: 1, APPLY: 1}


# ---------------------------------------------------------------------------------- payloads: only what is needed


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit, concurrent], ids=["eager", "jit", "concurrent"])
@pytest.mark.parametrize(
    ("argnums", "outputs", "inputs_asked", "outputs_asked"),
    [
        (0, ("product",), ["a"], ["out.product"]),
        (1, ("product",), ["b"], ["out.product"]),
        ((0, 1), ("product",), ["a", "b"], ["out.product"]),
        (0, ("total",), ["a"], ["total"]),
        ((0, 1), ("product", "total"), ["a", "b"], ["out.product", "total"]),
    ],
)
def test_only_active_paths_are_asked_for(
    tesseract: Watched, outer: Any, argnums: Any, outputs: Any, inputs_asked: Any, outputs_asked: Any
):
    def loss(a: Any, b: Any) -> Any:
        out = apply_tesseract(tesseract, {"a": a, "b": b})
        values = {"product": jnp.sum(out["out"]["product"] ** 2), "total": out["total"] ** 2}
        return sum(values[name] for name in outputs)

    outer(jax.grad(loss, argnums=argnums))(A, B)
    (payload,) = tesseract.payloads(PULL)
    assert payload["vjp_inputs"] == inputs_asked
    assert sorted(payload["vjp_outputs"]) == outputs_asked
    assert sorted(payload["cotangent_vector"]) == outputs_asked
    np.testing.assert_array_equal(payload["inputs"]["a"], A)
    np.testing.assert_array_equal(payload["inputs"]["b"], B)


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_pushforwards_carry_the_tangents_that_there_are(tesseract: Watched, outer: Any):
    outer(lambda a: jax.jvp(lambda a: apply_tesseract(tesseract, {"a": a, "b": B})["total"], (a,), (2.0 * a,)))(A)
    (payload,) = tesseract.payloads(PUSH)
    assert payload["jvp_inputs"] == ["a"]
    assert list(payload["tangent_vector"]) == ["a"]
    np.testing.assert_array_equal(payload["tangent_vector"]["a"], 2.0 * A)


def test_what_travels_is_numpy_in_the_schemas_dtypes(tesseract: Watched):
    jax.jit(jax.grad(loss_of(tesseract)))(A.astype(np.float32), B)
    for _, payload in tesseract.requests[1:]:
        arrays = [payload["inputs"][k] for k in "ab"] + list(payload.get("cotangent_vector", {}).values())
        assert all(type(x) is np.ndarray and x.dtype == np.float64 for x in arrays)


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.everything_saveable], ids=["recompute", "save"])
def test_checkpoint_in_concurrent_never_solves_twice(tesseract: Watched, policy: Any):
    """Recomputation is for pure JAX: the second apply equals the first, and equal calls are one request."""

    @jax.checkpoint
    def block(a: Any) -> Any:
        return jnp.sin(product(tesseract, jnp.cos(a)))

    loss = jax.checkpoint(lambda a: jnp.sum(block(a) ** 2), policy=policy)
    got = concurrent(jax.value_and_grad(loss))(A)
    assert asked(tesseract) == {SHAPES: 1, APPLY: 1, PULL: 1}
    assert_close(got, jax.value_and_grad(lambda a: jnp.sum(jnp.sin(jnp.cos(a) * B) ** 2))(A))
