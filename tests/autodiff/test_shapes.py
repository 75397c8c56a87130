"""Where a component has no `abstract_eval` but its handle allows to learn from calls: shapes come from an example."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import ShapesUnknown
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tesseract_flow.testing.function import ALL_ENDPOINTS
from tests.helpers import Watched, assert_close

X = np.array([1.0, 2.0, 3.0])
ROWS = np.stack([X, -X, 2.0 * X])


@dataclasses.dataclass(frozen=True)
class Learning(Watched):
    learns_shapes: bool = True


@pytest.fixture
def learning() -> Learning:
    endpoints = set(ALL_ENDPOINTS) - {"abstract_eval"}
    return Learning(
        FunctionTesseract(
            lambda i: {"y": jnp.sin(i["x"]), "note": "done"}, {"x": X}, name="silent", endpoints=endpoints
        )
    )


def y_of(tesseract: Any) -> Any:
    return lambda x: apply_tesseract(tesseract, {"x": x})["y"]


def loss(tesseract: Any) -> Any:
    return lambda x: jnp.sum(y_of(tesseract)(x) ** 2)


TRANSFORMS = {
    "grad": (lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2)), X),
    "jacfwd": (jax.jacfwd, X),
    "jacrev": (jax.jacrev, X),
    "jvp": (lambda f: lambda x: jax.jvp(f, (x,), (x,)), X),
    "linearize": (lambda f: lambda x: jax.linearize(f, x)[1](x), X),
    "vmap": (jax.vmap, ROWS),
    "vmap of grad": (lambda f: jax.vmap(jax.grad(lambda x: jnp.sum(f(x) ** 2))), ROWS),
    "grad of vmap": (lambda f: jax.grad(lambda x: jnp.sum(jax.vmap(f)(x) ** 2)), ROWS),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_eager_transformations_cost_one_more_call_once(name: str, learning: Learning):
    transform, x = TRANSFORMS[name]
    run, expected = transform(y_of(learning)), transform(jnp.sin)(jnp.asarray(x))
    with count_requests() as first:
        assert_close(run(x), expected)
    with count_requests() as second:
        assert_close(run(x), expected)
    assert first.n_of("apply") == second.n_of("apply") + 1
    assert first.n_of("abstract_eval") == 0


@pytest.mark.parametrize("outer", [jax.jit, concurrent], ids=["jit", "concurrent"])
def test_compiled_it_works_after_one_call(outer: Any, learning: Learning):
    run = outer(jax.value_and_grad(loss(learning)))
    y_of(learning)(X)
    with count_requests() as requests:
        _, gradient = run(X)
    assert_close(gradient, 2.0 * jnp.sin(X) * jnp.cos(X))
    assert requests.n_total == 2


def test_jit_says_what_to_do_where_there_are_no_values(learning: Learning):
    with pytest.raises(ShapesUnknown, match=r"'silent' has no endpoint 'abstract_eval'(?s:.*)once with inputs"):
        jax.jit(y_of(learning))(X)
    assert not learning.payloads("apply")


def test_other_shapes_are_another_structure(learning: Learning):
    y_of(learning)(X)
    with pytest.raises(ShapesUnknown):
        jax.jit(y_of(learning))(X[:2])


def test_concurrent_learns_from_its_first_arguments(learning: Learning):
    """It has values at hand, so it evaluates the function once as it is."""
    step = concurrent(jax.value_and_grad(loss(learning)))
    assert_close(step(X)[1], 2.0 * jnp.sin(X) * jnp.cos(X))
    with count_requests() as requests:
        step(2.0 * X)
    assert requests.n_total == 2


def test_nothing_is_learned_unless_the_handle_allows_it(learning: Learning):
    plain = learning.tesseract
    y_of(plain)(X)
    with pytest.raises(ShapesUnknown, match=r"Add abstract_eval(?s:.*)derive="):
        jax.grad(loss(plain))(X)
