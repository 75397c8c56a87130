"""What loses a value on its way into a dtype is refused at call time, on every way; what loses none is accepted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.errors import InvalidAnswer, InvalidInput
from tesseract_flow.execute import concurrent
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close

WAYS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "concurrent": concurrent,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
    "jit of vmap": lambda f: lambda x: jax.jit(jax.vmap(f))(x[None])[0],
}


def echo(dtype: str) -> Watched:
    """A component that gives back what it gets."""
    field = {"x": ArrayField(dtype, (None,), dtype[0] in "fc")}
    example = {"x": np.ones(2, dtype)}
    out = {"y": ArrayField(dtype, (None,), dtype[0] in "fc")}
    return Watched(FunctionTesseract(lambda i: {"y": i["x"]}, example, name="echo", inputs=field, outputs=out))


LOST = {
    "wraps": (np.array([1, 300]), "int8", r"300 at \[1\] does not fit into int8"),
    "sign": (np.array([0, 200], np.uint8), "int8", r"200 at \[1\] does not fit into int8"),
    "negative": (np.array([-1, 2]), "uint16", r"-1 at \[0\] does not fit into uint16"),
    "largest": (np.array([2**64 - 1, 1], np.uint64), "int64", "18446744073709551615"),
    "overflow": (np.array([1e40, 1.0]), "float32", r"1e\+40 at \[0\] does not fit into float32"),
    "half": (np.array([1.0, 7e4], np.float32), "float16", r"70000.0 at \[1\] does not fit into float16"),
    "not exact": (np.array([2**53 + 1, 1]), "float64", "9007199254740993 at .* is not exact in float64"),
    "complex overflow": (
        np.array([1e300 + 1j, 0.0]),
        "complex64",
        r"\(1e\+300\+1j\) at \[0\] does not fit into complex64",
    ),
}
KEPT = {
    "bfloat16": (jnp.asarray([1.5, -2.0], jnp.bfloat16), "float32"),
    "half": (np.array([1.5, 65504.0], np.float16), "float64"),
    "rounded": (np.array([0.1, 1e-3]), "float32"),
    "small integers": (np.array([1, -128]), "int8"),
    "integers as floats": (np.array([2**53, -(2**53)]), "float64"),
    "flags": (np.array([True, False]), "int16"),
    "infinite": (np.array([np.inf, np.nan]), "float32"),
    "wide": (np.array([3, 4], np.uint8), "complex128"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOST)
def test_what_loses_a_value_is_refused_before_anything_is_sent(name: str, way: str):
    x, dtype, message = LOST[name]
    tesseract = echo(dtype)
    run = WAYS[way](lambda x: apply_tesseract(tesseract, {"x": x})["y"])
    # A compiled function reports it as JAX's runtime error, with the whole text.
    kind = jax.errors.JaxRuntimeError if "jit" in way else InvalidInput
    with pytest.raises(kind, match=f"do not fit the schema of Tesseract 'echo'(?s:.*)x: {message}"):
        jax.block_until_ready(run(x))
    assert not tesseract.payloads("apply")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KEPT)
def test_what_loses_none_is_accepted(name: str, way: str):
    x, dtype = KEPT[name]
    tesseract = echo(dtype)
    run = WAYS[way](lambda x: apply_tesseract(tesseract, {"x": x})["y"])
    assert_close(run(x), jnp.asarray(np.asarray(x).astype(dtype)))
    (payload,) = tesseract.payloads("apply")
    assert payload["inputs"]["x"].dtype == dtype


@pytest.mark.parametrize("value", [np.array([1.5, 1.0]), np.array([1.0, 2.0]), np.array([1j, 2.0])], ids=str)
def test_another_kind_of_number_is_refused_while_tracing(value: Any):
    for run in (lambda f: f, jax.jit, concurrent):
        with pytest.raises(InvalidInput, match="cannot be converted to int32"):
            run(lambda x: apply_tesseract(echo("int32"), {"x": x})["y"])(value)


@pytest.mark.parametrize("way", ["eager", "jit", "concurrent"])
def test_derivatives_see_the_cast(way: str):
    """Of a float64 through a float32 component: in the caller's dtype, rounded as the component rounds."""
    tesseract = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(2, np.float32)})
    square = lambda x: apply_tesseract(tesseract, {"x": x})["y"]  # noqa: E731
    x = np.array([0.5, 3.0])
    gradient = WAYS[way](jax.grad(lambda x: jnp.sum(square(x))))(x)
    assert gradient.dtype == np.float64
    assert_close(gradient, jnp.asarray(2.0 * x))
    _, y_dot = WAYS[way](lambda x: jax.jvp(square, (x,), (x,)))(x)
    assert_close(y_dot, jnp.asarray(2.0 * x**2, np.float32))
    assert_close(WAYS[way](jax.jacrev(square))(x), jnp.asarray(np.diag(2.0 * x)))


def test_tangents_are_looked_at_as_well():
    tesseract = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(2, np.float32)}, name="square")
    square = lambda x: apply_tesseract(tesseract, {"x": x})["y"]  # noqa: E731
    with pytest.raises(InvalidInput, match=r"the tangent of x: 1e\+40 at \[0\] does not fit into float32"):
        jax.jvp(square, (np.ones(2),), (np.array([1e40, 1.0]),))


@pytest.mark.parametrize("way", ["eager", "concurrent"])
def test_answers_in_another_dtype_are_taken_if_they_lose_nothing(way: str):
    def answering(y: Any, dtype: str = "float32") -> Any:
        odd = Watched(echo(dtype), lambda endpoint, answer: {"y": y} if endpoint == "apply" else answer)
        return WAYS[way](lambda x: apply_tesseract(odd, {"x": x})["y"])(np.ones(2, dtype))

    assert_close(answering(np.array([0.5, 2.0])), jnp.asarray([0.5, 2.0], np.float32))
    assert_close(answering(np.array([1, 2]), "int8"), jnp.asarray([1, 2], np.int8))
    with pytest.raises(InvalidAnswer, match=r"1e\+40 at \[0\] does not fit into float32"):
        answering(np.array([1e40, 1.0]))
    with pytest.raises(InvalidAnswer, match=r"300 at \[0\] does not fit into int8"):
        answering(np.array([300, 1]), "int8")


@pytest.mark.parametrize("y", [np.array([1, 2]), np.array([True, False]), None, np.array([1j, 0.0])], ids=str)
@pytest.mark.parametrize("way", ["eager", "concurrent"])
def test_answers_of_another_kind_are_refused(way: str, y: Any):
    """An integer 4611686018427387904 where a float64 is due has the bits of 2.0."""
    odd = Watched(echo("float64"), lambda endpoint, answer: {"y": y} if endpoint == "apply" else answer)
    with pytest.raises(InvalidAnswer, match="'echo' answered 'apply'"):
        WAYS[way](lambda x: apply_tesseract(odd, {"x": x})["y"])(np.ones(2))


def test_a_pullback_in_another_dtype_as_well():
    def distort(endpoint: str, answer: Any) -> Any:
        return {"x": np.array([1e40, 1.0])} if endpoint == "vector_jacobian_product" else answer

    odd = Watched(echo("float32"), distort)
    with pytest.raises(InvalidAnswer, match=r"'vector_jacobian_product' with 'x'(?s:.*)does not fit into float32"):
        jax.grad(lambda x: jnp.sum(apply_tesseract(odd, {"x": x})["y"]))(jnp.ones(2, jnp.float32))


NUMBERS_LOST = {
    "float32": (2**24 + 1, "float32", "16777217 is not exact in float32"),
    "float64": (2**53 + 1, "float64", "9007199254740993 is not exact in float64"),
    "float16": (2049, "float16", "2049 is not exact in float16"),
    "complex64": (-(2**24) - 1, "complex64", "-16777217 is not exact in complex64"),
    "overflow": (1e39, "float32", r"1e\+39 does not fit into float32"),
    "a part": (complex(np.inf, 1e39), "complex64", r"1e\+39j\) does not fit into complex64"),
    "beyond 64 bits": (10**400, "float64", "does not fit into float64"),
    "imaginary": (1j, "float32", "1j cannot be converted to float32"),
}


def counter(dtype: str) -> Watched:
    """A component that takes a number."""
    return Watched(FunctionTesseract(lambda i: {"y": i["k"].real * 1}, {"k": np.ones((), dtype)}, name="counter"))


@pytest.mark.parametrize("way", ["eager", "closed over", "traced"])
@pytest.mark.parametrize("name", NUMBERS_LOST)
def test_python_numbers_that_lose_their_value_are_refused_as_arrays_are(name: str, way: str):
    value, dtype, message = NUMBERS_LOST[name]
    tesseract = counter(dtype)
    run: Any = lambda k: apply_tesseract(tesseract, {"k": k})["y"]  # noqa: E731
    if way == "closed over":
        run = concurrent(lambda k: apply_tesseract(tesseract, {"k": k})["y"])
    if way == "traced":
        if name == "beyond 64 bits":
            return  # JAX has no array for it
        value, run, message = np.asarray(value), concurrent(run), message.replace("1j", "complex128")
    with pytest.raises(InvalidInput, match=message):
        run(value)
    assert not tesseract.payloads("apply")


@pytest.mark.parametrize(
    ("value", "dtype"), [(2**24, "float32"), (2**53, "float64"), (2**60, "float32"), (0.1, "float16")]
)
def test_python_numbers_that_keep_their_value_are_sent(value: Any, dtype: str):
    tesseract = counter(dtype)
    apply_tesseract(tesseract, {"k": value})
    (payload,) = tesseract.payloads("apply")
    assert payload["inputs"]["k"] == np.asarray(value, dtype)


@pytest.mark.parametrize("way", ["jit", "concurrent"])
@pytest.mark.parametrize("value", [2**24 + 1, np.int64(2**24 + 1), 1e39, np.float64(1e39)], ids=repr)
def test_what_the_32_bit_mode_would_make_of_a_number_is_refused(value: Any, way: str):
    tesseract = FunctionTesseract(lambda i: {"y": jnp.float32(1.0)}, {"k": np.float64(3.0)}, name="counter")
    with jax.enable_x64(False):
        apply_tesseract(tesseract, {"k": value})  # not traced: sent in 64 bits
        with pytest.raises(InvalidInput, match="float32, to which JAX converts it while tracing"):
            WAYS[way](lambda _: apply_tesseract(tesseract, {"k": value})["y"])(jnp.ones(()))
        assert WAYS[way](lambda _: apply_tesseract(tesseract, {"k": 0.1})["y"])(jnp.ones(())) == 1.0
