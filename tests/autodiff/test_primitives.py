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
from tesseract_flow.client import count_requests
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


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("integers", "float32")])
def test_vmap_goes_one_by_one(case: Case):
    batch = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf, leaf * leaf.dtype.type(0.5)]), case.x)
    with count_requests() as requests:
        got = jax.vmap(jax.value_and_grad(loss_of(case.call)))(batch)
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 2
    assert_close(got, jax.vmap(jax.value_and_grad(loss_of(case.plain)))(batch), 10 * case.rtol)


# --------------------------------------------------------------------------------------- inside other transformations


@pytest.fixture
def square() -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": jnp.sin(i["x"]) + i["x"] ** 2}, {"x": np.ones(3)}, name="square")


X = np.array([0.3, -0.2, 0.5])


def _scan(f: Any) -> Any:
    return lambda x: jax.lax.scan(lambda c, w: (f(c) * w, f(c)), x, jnp.array([1.0, 2.0]))


def _fori_loop(f: Any) -> Any:
    return lambda x: jax.lax.fori_loop(0, 3, lambda k, c: f(c), x)


def _while_forward(f: Any) -> Any:
    return lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) > 0.5, lambda c: 0.1 * f(c), x)


def _cond(f: Any) -> Any:
    return lambda x: jax.lax.cond(x[0] > 0.0, lambda v: f(v), lambda v: 2.0 * v, x)


def _switch(f: Any) -> Any:
    return lambda x: jax.lax.switch(1, [lambda v: v, lambda v: f(2.0 * v)], x)


def _map(f: Any) -> Any:
    return lambda x: jax.lax.map(f, jnp.stack([x, 2.0 * x]))


def _checkpoint(f: Any) -> Any:
    return jax.checkpoint(lambda x: jnp.sin(f(x)))


def _nested_jit(f: Any) -> Any:
    return lambda x: jax.jit(lambda v: 2.0 * jax.jit(f)(v))(x) + x


def _custom_jvp(f: Any) -> Any:
    @jax.custom_jvp
    def g(x: Any) -> Any:
        return f(x)

    @g.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return g(*primals), 3.0 * tangents[0]

    return g


def _custom_vjp(f: Any) -> Any:
    @jax.custom_vjp
    def g(x: Any) -> Any:
        return f(x)

    def g_fwd(x: Any) -> Any:
        return f(x), f(2.0 * x)

    def g_bwd(residuals: Any, y_bar: Any) -> Any:
        return (residuals * y_bar,)

    g.defvjp(g_fwd, g_bwd)
    return g


WRAPPERS = [_scan, _fori_loop, _cond, _switch, _map, _checkpoint, _nested_jit, _custom_jvp, _custom_vjp]


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__.strip("_"))
@eager_and_jit
def test_inside(wrapper: Any, jit: bool, square: FunctionTesseract):
    def through(x: Any) -> Any:
        return apply_tesseract(square, {"x": x})["y"]

    def plain(x: Any) -> Any:
        return square.fn({"x": x})["y"]

    got = maybe_jit(jax.value_and_grad(loss_of(wrapper(through))), jit)(X)
    assert_close(got, jax.value_and_grad(loss_of(wrapper(plain)))(X))


@eager_and_jit
def test_inside_while_loop_and_jacobians(jit: bool, square: FunctionTesseract):
    def through(x: Any) -> Any:
        return apply_tesseract(square, {"x": x})["y"]

    def plain(x: Any) -> Any:
        return square.fn({"x": x})["y"]

    x = jnp.abs(X) * 3.0
    for transform in (_while_forward, jax.jacfwd, jax.jacrev):
        assert_close(maybe_jit(transform(through), jit)(x), transform(plain)(x))


@eager_and_jit
@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_over_any_axis_and_over_one_of_several(jit: bool, axis: int):
    add = FunctionTesseract(lambda i: {"y": i["a"] * i["b"]}, {"a": np.ones(3), "b": np.ones(3)})
    batch, b = np.arange(12.0).reshape((4, 3) if axis == 0 else (3, 4)), np.arange(3.0)
    got = maybe_jit(jax.vmap(lambda a, b: apply_tesseract(add, {"a": a, "b": b})["y"], (axis, None)), jit)(batch, b)
    assert_close(got, jnp.asarray((batch if axis == 0 else batch.T) * b))


def test_vmap_over_nothing(square: FunctionTesseract):
    with count_requests() as requests:
        got = jax.vmap(lambda x: apply_tesseract(square, {"x": x})["y"])(np.zeros((0, 3)))
    assert got.shape == (0, 3)
    assert requests.n_of("apply") == 0


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
