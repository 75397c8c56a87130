"""The three primitives as linear algebra: identities that hold for every smooth map, over every kind of tree."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.errors import SecondDerivative
from tesseract_flow.testing import FunctionTesseract
from tests.cases import CASES, Case
from tests.helpers import assert_close, inner, magnitude, maybe_jit

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
eager_and_jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


def pushforward(fn: Any, x: Any, x_dot: Any) -> Any:
    return jax.jvp(fn, (x,), (x_dot,))[1]


def pullback(fn: Any, x: Any, y_bar: Any) -> Any:
    return jax.vjp(fn, x)[1](y_bar)[0]


# Compiled once per case: most of the time here is compilation.


@functools.cache
def pushing(case: Case, jit: bool) -> Any:
    return maybe_jit(lambda x, t: pushforward(case.call, x, t), jit)


@functools.cache
def pulling(case: Case, jit: bool) -> Any:
    return maybe_jit(lambda x, c: pullback(case.call, x, c), jit)


def combination(a: float, u: Any, b: float, v: Any) -> Any:
    return jax.tree_util.tree_map(lambda p, q: p.dtype.type(a) * p + p.dtype.type(b) * q, u, v)


# ------------------------------------------------------------------------------------------------------ identities


@over_cases
@eager_and_jit
def test_pullback_is_adjoint_of_pushforward(case: Case, jit: bool):
    """<J t, c> = <t, Jᵀ c>: no reference values are needed."""
    x_dot, y_bar = case.tangent(1), case.cotangent(2)
    y_dot, x_bar = pushing(case, jit)(case.x, x_dot), pulling(case, jit)(case.x, y_bar)
    error = abs(inner(y_dot, y_bar) - inner(x_dot, x_bar))
    assert error <= 10 * case.rtol * max(magnitude(y_dot, y_bar), magnitude(x_dot, x_bar))
    assert magnitude(y_dot, y_bar) > 1e-3


@over_cases
@eager_and_jit
def test_both_are_linear(case: Case, jit: bool):
    push, pull = (functools.partial(linear(case, jit), case.x) for linear in (pushing, pulling))
    for linear, u, v in (push, case.tangent(3), case.tangent(4)), (pull, case.cotangent(5), case.cotangent(6)):
        assert_close(linear(combination(2.0, u, -3.0, v)), combination(2.0, linear(u), -3.0, linear(v)), 10 * case.rtol)


@over_cases
@eager_and_jit
def test_equals_the_same_map_in_plain_jax(case: Case, jit: bool):
    x_dot, y_bar = case.tangent(7), case.cotangent(8)

    assert_close(maybe_jit(case.call, jit)(case.x), case.plain(case.x), case.rtol)
    assert_close(pushing(case, jit)(case.x, x_dot), pushforward(case.plain, case.x, x_dot), case.rtol)
    assert_close(pulling(case, jit)(case.x, y_bar), pullback(case.plain, case.x, y_bar), case.rtol)


def loss_of(fn: Any) -> Any:
    return lambda x: sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree_util.tree_leaves(fn(x)))


@over_cases
@eager_and_jit
def test_value_and_gradient_equal_plain_jax(case: Case, jit: bool):
    got = maybe_jit(jax.value_and_grad(loss_of(case.call)), jit)(case.x)
    assert_close(got, jax.value_and_grad(loss_of(case.plain))(case.x), 10 * case.rtol)


@over_cases
def test_pushforward_against_central_differences(case: Case):
    eps = 1e-6 if case.rtol < 1e-8 else 1e-2
    x_dot = case.tangent(9)
    ahead, behind = (case.call(combination(1.0, case.x, s * eps, x_dot)) for s in (1, -1))
    slope = jax.tree_util.tree_map(lambda a, b: (a - b) / (2 * eps), ahead, behind)
    assert_close(pushforward(case.call, case.x, x_dot), slope, 1e-6 if case.rtol < 1e-8 else 1e-2)


@over_cases
@eager_and_jit
def test_derivatives_can_be_transposed_again(case: Case, jit: bool):
    """Transposing t → J t gives c → Jᵀ c, and transposing that gives t → J t again."""
    x_dot, y_bar = case.tangent(10), case.cotangent(11)

    def push(t: Any) -> Any:
        return pushforward(case.call, case.x, t)

    def pull(c: Any) -> Any:
        return jax.linear_transpose(push, case.x)(c)[0]

    def push_again(t: Any) -> Any:
        return jax.linear_transpose(pull, y_bar)(t)[0]

    assert_close(maybe_jit(pull, jit)(y_bar), pullback(case.plain, case.x, y_bar), case.rtol)
    assert_close(maybe_jit(push_again, jit)(x_dot), pushforward(case.plain, case.x, x_dot), case.rtol)


def test_large_arrays_through_callbacks_do_not_deadlock():
    """More callbacks at once than JAX has threads, on arrays that it would copy and compute with on these threads."""
    n = min(4 * (os.cpu_count() or 1), 32)
    large = FunctionTesseract(lambda i: {"y": i["x"] * 2.0}, {"x": np.ones(3)}, name="large", delay=0.01)

    def loss(x: Any) -> Any:
        parts = [apply_tesseract(large, {"x": x * float(k)})["y"] for k in range(1, n + 1)]
        return sum(jnp.sum(part**2) for part in parts)

    x = jnp.linspace(0.0, 1.0, 1_000_000)
    squares = 4.0 * sum(k**2 for k in range(1, n + 1))
    assert_close(jax.jit(jax.value_and_grad(loss))(x), (squares * jnp.sum(x**2), 2.0 * squares * x), 1e-11)


# ------------------------------------------------------------------------------------------------ second derivatives


@pytest.fixture
def square() -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": jnp.sin(i["x"]) + i["x"] ** 2}, {"x": np.ones(3)}, name="square")


X = np.array([0.3, -0.2, 0.5])


def _norm(square: FunctionTesseract) -> Any:
    return lambda x: jnp.sum(apply_tesseract(square, {"x": x})["y"] ** 2)


@pytest.mark.parametrize(
    "second",
    [
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x))),
        jax.hessian,
        lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (x,))[1]),
        lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (x,)),
    ],
    ids=["reverse-reverse", "hessian", "reverse-forward", "forward-reverse"],
)
@eager_and_jit
def test_second_derivatives_are_refused(second: Any, jit: bool, square: FunctionTesseract):
    with pytest.raises(
        SecondDerivative, match=r"Second derivative requested of Tesseract 'square'(?s:.*)L-BFGS"
    ) as caught:
        maybe_jit(second(_norm(square)), jit)(X)
    assert isinstance(caught.value, NotImplementedError)
    assert_close(jax.grad(_norm(square))(X), jax.grad(lambda x: jnp.sum(square.fn({"x": x})["y"] ** 2))(X))


@eager_and_jit
def test_derivatives_with_respect_to_tangents_and_cotangents_work(jit: bool, square: FunctionTesseract):
    """J t is linear in t and Jᵀ c in c, so these derivatives are J and Jᵀ themselves."""

    def y(x: Any) -> Any:
        return apply_tesseract(square, {"x": x})["y"]

    slope = jnp.cos(X) + 2.0 * X
    by_tangent = jax.grad(lambda t: jnp.sum(pushforward(y, X, t) ** 2))
    by_cotangent = jax.grad(lambda c: jnp.sum(pullback(y, X, c) ** 2))
    along_cotangent = jax.jacfwd(lambda c: pullback(y, X, c))
    ones = jnp.ones(3)
    assert_close(maybe_jit(by_tangent, jit)(ones), 2.0 * slope**2)
    assert_close(maybe_jit(by_cotangent, jit)(ones), 2.0 * slope**2)
    assert_close(maybe_jit(along_cotangent, jit)(ones), jnp.diag(slope))


def test_transposing_in_the_primal_is_refused_with_advice(square: FunctionTesseract):
    with pytest.raises(ValueError, match="Close over the primals"):
        jax.linear_transpose(lambda x: pushforward(lambda v: apply_tesseract(square, {"x": v})["y"], x, X), X)(X)
