"""A linear map told both ways is, to JAX, the linear map itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.autodiff import linear_map
from tesseract_flow.errors import InvalidEvaluation, SecondDerivative
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close, inner

A = np.arange(6.0).reshape(2, 3)


def product(matrix: Any, x: Any) -> Any:
    return linear_map(
        lambda at, x: [at[0] @ x[0]], lambda at, c: [at[0].T @ c[0]], [jnp.asarray(matrix)], [x], "a product"
    )[0]


X, X_DOT, BAR = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.1, 2.0]), jnp.array([1.5, -1.0])


@pytest.mark.parametrize("run", [lambda fn: fn, jax.jit, tf.concurrent], ids=["eager", "jit", "concurrent"])
def test_it_goes_both_ways_and_back(run: Any):
    y, y_dot = run(lambda x, t: jax.jvp(lambda x: product(A, x), (x,), (t,)))(X, X_DOT)
    assert_close((y, y_dot), (A @ X, A @ X_DOT))
    (x_bar,) = run(lambda x, c: jax.vjp(lambda x: product(A, x), x)[1](c))(X, BAR)
    assert_close(x_bar, A.T @ BAR)
    assert abs(inner(y_dot, BAR) - inner(X_DOT, x_bar)) < 1e-12
    twice = jax.linear_transpose(lambda c: jax.linear_transpose(lambda x: product(A, x), X)(c)[0], BAR)
    assert_close(twice(X)[0], A @ X)


def test_of_many_each_by_its_own():
    matrices, xs = jnp.stack([A, 2.0 * A, -A]), jnp.stack([X, X_DOT, X])
    for axes, arguments in (((0, None), (matrices, X)), ((None, 0), (A, xs)), ((0, 0), (matrices, xs))):
        mapped = jax.vmap(product, in_axes=axes)
        assert_close(mapped(*arguments), jax.vmap(jnp.matmul, in_axes=axes)(*arguments))
        of_x = jax.jit(jax.grad(lambda x: jnp.sum(mapped(arguments[0], x) ** 2)))  # noqa: B023
        plain = jax.grad(lambda x: jnp.sum(jax.vmap(jnp.matmul, in_axes=axes)(arguments[0], x) ** 2))  # noqa: B023
        assert_close(of_x(arguments[1]), plain(arguments[1]))


def test_a_way_that_nobody_goes_is_not_traced():
    def never(at: Any, c: Any) -> Any:
        raise AssertionError

    jax.jvp(lambda x: linear_map(lambda at, x: x, never, [], [x]), (X,), (X_DOT,))


def test_where_it_is_taken_has_no_derivative():
    with pytest.raises(SecondDerivative, match="The derivative of a product was differentiated once more"):
        jax.grad(lambda matrix: product(matrix, X).sum())(jnp.asarray(A))


def test_calls_inside_are_nodes_of_the_plan():
    double = FunctionTesseract(lambda i: {"y": 2.0 * i["x"]}, {"x": np.ones(3)}, name="double")

    def ask(at: Any, x: Any) -> Any:
        return [tf.apply_tesseract(double, {"x": x[0]})["y"]]

    assert "wave 1: double.apply" in str(tf.concurrent(lambda x: linear_map(ask, ask, [], [x])).plan(X))


def test_our_own_error_comes_as_itself():
    def refuse(_: Any) -> Any:
        raise InvalidEvaluation("no such product")

    def fail(at: Any, x: Any) -> Any:
        return [jax.pure_callback(refuse, x[0], x[0])]

    for run in (lambda fn: fn, tf.concurrent):
        with pytest.raises(InvalidEvaluation, match="no such product"):
            run(lambda x: linear_map(fail, fail, [], [x]))(X)
