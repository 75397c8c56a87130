"""Where a component has no `abstract_eval`, shapes come from an example, and the example is the call itself.

And where it has one: what it may answer, and what becomes of it when the component contradicts itself.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract, memory
from tesseract_flow.client import count_requests
from tesseract_flow.errors import InvalidAnswer, ShapesUnknown
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tesseract_flow.testing.function import ALL_ENDPOINTS
from tests.helpers import Watched, assert_close

X = np.array([1.0, 2.0, 3.0])
ROWS = np.stack([X, -X, 2.0 * X])


@pytest.fixture
def learning() -> Watched:
    endpoints = set(ALL_ENDPOINTS) - {"abstract_eval"}
    return Watched(
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
def test_eager_transformations_cost_nothing_more(name: str, learning: Watched):
    transform, x = TRANSFORMS[name]
    run, expected = transform(y_of(learning)), transform(jnp.sin)(jnp.asarray(x))
    with count_requests() as first:
        assert_close(run(x), expected)
    with count_requests() as second:
        assert_close(run(x), expected)
    # The call that tells the shapes is the first of those that are made anyway.
    assert first == second
    assert first.n_of("abstract_eval") == 0


def test_compiled_it_works_after_one_call(learning: Watched):
    run = jax.jit(jax.value_and_grad(loss(learning)))
    y_of(learning)(X)
    with count_requests() as requests:
        _, gradient = run(X)
    assert_close(gradient, 2.0 * jnp.sin(X) * jnp.cos(X))
    assert requests.n_total == 2


def test_jit_says_what_to_do_where_there_are_no_values(learning: Watched):
    with pytest.raises(ShapesUnknown, match=r"'silent' has no endpoint 'abstract_eval'(?s:.*)once with inputs"):
        jax.jit(y_of(learning))(X)
    assert not learning.payloads("apply")


def test_other_shapes_are_another_structure(learning: Watched):
    y_of(learning)(X)
    with pytest.raises(ShapesUnknown):
        jax.jit(y_of(learning))(X[:2])


def test_concurrent_learns_from_its_first_arguments(learning: Watched):
    """It has values at hand, so it evaluates the function once as it is."""
    step = concurrent(jax.value_and_grad(loss(learning)))
    for x in (X, 2.0 * X):  # what the first run had to ask in order to trace, it does not ask again
        with count_requests() as requests:
            assert_close(step(x)[1], 2.0 * jnp.sin(x) * jnp.cos(x))
        assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 1
        assert requests.n_total == 2


def test_what_a_batch_has_learned_is_one_of_its_elements(learning: Watched):
    with count_requests() as requests:
        concurrent(jax.vmap(jax.grad(loss(learning))))(ROWS)
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == len(ROWS)


# ---------------------------------------------------------------------------------- what abstract_eval may answer

GOOD = {"y": {"shape": [3], "dtype": "float64"}, "note": ""}
BAD = {
    "numbers": (lambda a: {**a, "y": X}, r"y: expected a shape and a dtype, got an array of shape \(3,\)"),
    "a number": (lambda a: {**a, "y": 14.0}, "y: expected"),
    "nothing": (lambda a: {**a, "y": None}, "y: expected"),
    "negative": (lambda a: {**a, "y": {"shape": [-3], "dtype": "float64"}}, "-3 is no length"),
    "fraction": (lambda a: {**a, "y": {"shape": [2.5], "dtype": "float64"}}, "2.5 is no length"),
    "flag": (lambda a: {**a, "y": {"shape": [True], "dtype": "float64"}}, "True is no length"),
    "no dtype": (lambda a: {**a, "y": {"shape": [3], "dtype": None}}, "None is no dtype"),
    "integers": (lambda a: {**a, "y": {"shape": [3], "dtype": "int64"}}, "expected float64, got int64"),
    "flags": (lambda a: {**a, "y": {"shape": [3], "dtype": "bool"}}, "expected float64, got bool"),
    "number as text": (lambda a: {**a, "y": {"shape": ["3"], "dtype": "float64"}}, "'3' is no length"),
    "text": (lambda a: {**a, "y": {"shape": ["three"], "dtype": "float64"}}, "no shape and dtype"),
    "no list": (lambda a: {**a, "y": {"shape": 3, "dtype": "float64"}}, "no list of lengths"),
    "huge": (lambda a: {**a, "y": {"shape": [10**15], "dtype": "float64"}}, "more than a TiB"),
    "huge product": (lambda a: {**a, "y": {"shape": [10**13], "dtype": "int8"}}, "TiB"),
    "rank": (lambda a: {**a, "y": {"shape": [3, 1], "dtype": "float64"}}, r"expected shape \(\*,\)"),
    "complex": (lambda a: {**a, "y": {"shape": [3], "dtype": "complex128"}}, "complex128 cannot be converted"),
    "unknown dtype": (lambda a: {**a, "y": {"shape": [3], "dtype": "float128"}}, "float128"),
    "missing": (lambda a: {"note": ""}, "y: required field is missing"),
    "surplus": (lambda a: {**a, "z": a["y"]}, "z: unknown field"),
    "no object": (lambda a: [a["y"]], "expected an object"),
}


@pytest.mark.parametrize("wrong", BAD)
@pytest.mark.parametrize("outer", [jax.jit, jax.grad, concurrent], ids=["jit", "grad", "concurrent"])
def test_what_is_no_shape_and_dtype_is_refused_by_name(outer: Any, wrong: str):
    distort, message = BAD[wrong]
    plain = FunctionTesseract(lambda i: {"y": jnp.sin(i["x"]), "note": "done"}, {"x": X}, name="odd")
    odd = Watched(plain, lambda endpoint, answer: distort(GOOD) if endpoint == "abstract_eval" else answer)
    with pytest.raises(InvalidAnswer, match=f"'odd' answered 'abstract_eval'(?s:.*){message}"):
        outer(loss(odd))(X)
    assert not odd.payloads("apply")


@pytest.mark.parametrize("outer", [jax.jit, jax.grad, concurrent], ids=["jit", "grad", "concurrent"])
def test_numbers_in_place_of_a_shape_never_become_constants(outer: Any):
    """An abstract_eval that answers [999, 999] made 1998 of a sum that is 14, with the gradient 0."""
    square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": X})
    fake = Watched(square, lambda endpoint, answer: {"y": np.full(2, 999.0)} if endpoint == "abstract_eval" else answer)
    total = lambda x: jnp.sum(apply_tesseract(fake, {"x": x})["y"])  # noqa: E731
    assert total(X) == 14.0
    with pytest.raises(InvalidAnswer):
        outer(total)(X)


def test_of_the_schemas_dtype_whatever_abstract_eval_says():
    """A narrower one would round what apply answers, without a word."""
    square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": X})
    narrow = Watched(
        square,
        lambda asked, answer: {"y": {"shape": [3], "dtype": "float32"}} if asked == "abstract_eval" else answer,
    )
    y = jax.jit(lambda x: apply_tesseract(narrow, {"x": x})["y"])(X / 3.0)
    assert_close(y, jnp.asarray((X / 3.0) ** 2))


# ------------------------------------------------------------------------------- what is contradicted is forgotten


@pytest.mark.parametrize("has_shapes", [True, False], ids=["said", "learned"])
def test_what_a_component_contradicts_is_forgotten(has_shapes: bool):
    """It is asked anew, and the next trace has what it says now."""
    length = [3]

    def fn(i: Any) -> Any:
        return {"y": jnp.resize(i["x"], (length[0],))}

    endpoints = set(ALL_ENDPOINTS) - (set() if has_shapes else {"abstract_eval"})
    growing = FunctionTesseract(fn, {"x": X}, name="growing", endpoints=endpoints)
    step = concurrent(y_of(growing))
    assert step(X).shape == (3,)
    length[0] = 5
    with pytest.raises(InvalidAnswer, match=r"'y' of shape \(5,\).*expected shape \(3,\)(?s:.*)forgotten"):
        step(X)
    assert step(X).shape == (5,)
    jax.clear_caches()
    assert jax.jit(y_of(growing))(X).shape == (5,)


@pytest.mark.parametrize("outer", [jax.jit, concurrent], ids=["jit", "concurrent"])
def test_what_no_answer_has_confirmed_is_asked_again_after_a_while(outer: Any, monkeypatch: pytest.MonkeyPatch):
    """A shape on which the program fails while it is traced is never contradicted by an answer."""
    square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": X})
    lie = {"y": {"shape": [4], "dtype": "float64"}}
    lies = [True]
    odd = Watched(square, lambda asked, answer: lie if asked == "abstract_eval" and lies[0] else answer)
    total = outer(lambda x: jnp.dot(X, apply_tesseract(odd, {"x": x})["y"]))
    for _ in range(2):
        with pytest.raises(TypeError, match="contracting"):
            total(X)
    lies[0] = False
    now = memory._now() + memory._CREDIT + 1.0
    monkeypatch.setattr(memory, "_now", lambda: now)
    assert_close(total(X), jnp.sum(X**3))
    n_asked = len(odd.payloads("abstract_eval"))
    now += 10 * memory._CREDIT  # what an answer has confirmed stays
    jax.clear_caches()
    total(X)
    assert len(odd.payloads("abstract_eval")) == n_asked == 2


@pytest.mark.parametrize("outer", [jax.grad, jax.jit, concurrent], ids=["grad", "jit", "concurrent"])
def test_nobody_keeps_a_handle(outer: Any):
    """15 handles that were used once are 15 that are gone."""
    seen = []
    for _ in range(15):
        handle = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": X})
        outer(loss(handle))(X)
        seen.append(weakref.ref(handle))
    del handle
    jax.clear_caches()
    gc.collect()
    assert [ref for ref in seen if ref() is not None] == []
