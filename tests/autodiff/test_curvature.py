"""Hessian-vector products against those of plain JAX, and what they cost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract, hvp
from tesseract_flow.client import count_requests
from tesseract_flow.errors import OptionError, SecondDerivative
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close, inner

X = {"a": np.array([0.5, -1.5, 0.0]), "n": 3, "name": "wing", "b": np.array(2.0)}
V = {"a": np.array([1.0, 2.0, -3.0]), "n": 0, "name": "", "b": np.array(-0.5)}
OUTER = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}


def fn(i: Any) -> Any:
    return {"y": jnp.sin(i["a"]) * i["b"] ** 2 + i["a"] ** 3}


@pytest.fixture
def wing() -> FunctionTesseract:
    return FunctionTesseract(fn, {"a": X["a"], "b": X["b"]}, name="wing")


def plain(x: Any) -> Any:
    return jnp.sum(fn(x)["y"] ** 2) * x["n"]


def through(tesseract: Any) -> Any:
    return lambda x: jnp.sum(apply_tesseract(tesseract, {"a": x["a"], "b": x["b"]})["y"] ** 2) * x["n"]


def exact(x: Any, v: Any) -> Any:
    def gradient(a: Any, b: Any) -> Any:
        return jax.grad(lambda a, b: plain({**x, "a": a, "b": b}), (0, 1))(a, b)

    a, b = jax.jvp(gradient, (jnp.asarray(x["a"]), jnp.asarray(x["b"])), (v["a"], v["b"]))[1]
    return {"a": a, "b": b, "n": None, "name": None}


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
@pytest.mark.parametrize(("method", "rtol"), [("central", 1e-8), ("forward", 1e-6)])
def test_equals_plain_jax(method: Any, rtol: float, outer: Any, wing: FunctionTesseract):
    def run(a: Any, b: Any) -> Any:
        return hvp(through(wing), {**X, "a": a, "b": b}, V, method=method)

    with count_requests() as requests:
        got = outer(run)(X["a"], X["b"])
    assert_close(got, exact(X, V), rtol)
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 2


def test_symmetric_and_linear_up_to_its_error(wing: FunctionTesseract):
    u = {**V, "a": np.array([-1.0, 0.3, 0.7]), "b": np.array(1.0)}
    hu, hv = hvp(through(wing), X, u), hvp(through(wing), X, V)
    arrays = lambda tree: {name: tree[name] for name in ("a", "b")}  # noqa: E731
    assert inner(arrays(u), arrays(hv)) == pytest.approx(inner(arrays(V), arrays(hu)), rel=1e-8)
    assert_close(hvp(through(wing), X, {**V, "a": 5.0 * V["a"], "b": 5.0 * V["b"]})["a"], 5.0 * hv["a"], 1e-8)


def test_nothing_along_nothing(wing: FunctionTesseract):
    zero = {**V, "a": np.zeros(3), "b": np.zeros(())}
    assert_close(hvp(through(wing), X, zero), {"a": jnp.zeros(3), "b": jnp.zeros(()), "n": None, "name": None})


def test_at_the_origin_the_step_does_not_vanish(wing: FunctionTesseract):
    origin = {**X, "a": np.zeros(3)}
    got, expected = hvp(through(wing), origin, V), exact(origin, V)
    np.testing.assert_allclose(got["a"], expected["a"], rtol=1e-8)
    np.testing.assert_allclose(got["b"], expected["b"], atol=1e-7)


def test_noisy_gradients_want_a_longer_step():
    rng = np.random.default_rng(0)

    def noisy(endpoint: str, answer: Any) -> Any:
        if endpoint != "vector_jacobian_product":
            return answer
        return {path: c * (1.0 + 1e-6 * rng.normal(size=c.shape)) for path, c in answer.items()}

    wing = Watched(FunctionTesseract(fn, {"a": X["a"], "b": X["b"]}, name="wing"), noisy)
    expected = exact(X, V)["a"]
    error = {
        noise: float(jnp.max(jnp.abs(hvp(through(wing), X, V, noise=noise)["a"] - expected))) for noise in (None, 1e-6)
    }
    assert error[1e-6] < 1e-2 * float(jnp.max(jnp.abs(expected))) < error[None] * 10.0


def test_single_precision_stays_single():
    wing = FunctionTesseract(lambda i: {"y": i["x"] ** 4}, {"x": np.ones(2, np.float32)}, name="single")
    x = jnp.array([1.0, 2.0], np.float32)
    got = hvp(lambda x: jnp.sum(apply_tesseract(wing, {"x": x})["y"]), x, jnp.ones(2, np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, 12.0 * np.asarray(x) ** 2, rtol=1e-3)


def test_no_floating_point_leaves_is_no_direction():
    with count_requests() as requests:
        assert hvp(lambda x: 1.0, {"n": 3}, {"n": 0}) == {"n": None}
    assert requests.n_total == 0


def test_it_cannot_be_differentiated_itself(wing: FunctionTesseract):
    with pytest.raises(SecondDerivative, match=r"tesseract_flow\.hvp"):
        jax.grad(lambda a: jnp.sum(hvp(through(wing), {**X, "a": a}, V)["a"]))(jnp.asarray(X["a"]))


@pytest.mark.parametrize(
    ("v", "options", "message"),
    [
        ({"a": V["a"]}, {}, "v must be a tree like x"),
        ({**V, "a": np.zeros(2)}, {}, "same shapes"),
        (V, {"method": "centre"}, "expected 'central' or 'forward'"),
        (V, {"noise": 0.0}, "between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused_before_any_request(wing: FunctionTesseract, v: Any, options: Any, message: str):
    with count_requests() as requests, pytest.raises(OptionError, match=message):
        hvp(through(wing), X, v, **options)
    assert requests.n_total == 0


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit, concurrent], ids=["eager", "jit", "concurrent"])
def test_a_step_that_an_entry_does_not_feel_is_refused(outer: Any):
    """The second derivative by b was 0 where it is 6e9."""
    x = {"a": jnp.asarray(1e-9), "b": jnp.asarray(1e9)}

    def cubes(d: Any) -> Any:
        return d["a"] ** 3 + d["b"] ** 3

    both, alone = ({"a": jnp.asarray(a), "b": jnp.asarray(1.0)} for a in (1.0, 0.0))
    with pytest.raises(Exception, match="such different size"):
        jax.block_until_ready(outer(lambda x, v: hvp(cubes, x, v))(x, both))
    assert_close(outer(lambda x, v: hvp(cubes, x, v))(x, alone)["b"], 6e9, 1e-6)
