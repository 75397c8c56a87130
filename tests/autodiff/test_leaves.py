"""Numbers and arrays of every dtype: what JAX hands to functions, weak types, integers, and life without x64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.literals import TypedFloat, TypedInt, TypedNdArray  # what JAX hands to functions; it has no public name
from jax.core import ShapedArray

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import InvalidInput, NotDifferentiable
from tesseract_flow.schema import ArrayField, LeafField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close, maybe_jit

ROOT = Path(__file__).resolve().parents[2]
eager_and_jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])

X = jnp.array([1.0, 2.0, 3.0])


@eager_and_jit
def test_constants_as_jax_types_them(jit: bool):
    """Functions under `custom_jvp` and the like get Python numbers and NumPy arrays of JAX's own subclasses."""
    scale = FunctionTesseract(
        lambda i: {"y": i["factor"] * i["x"] * i["n"]},
        {"x": np.ones(3), "factor": np.ones(()), "n": 1},
        name="scale",
        inputs={"n": LeafField("int")},
    )
    watched = Watched(scale)
    array = TypedNdArray(np.asarray(X))
    weak = TypedNdArray(np.asarray(2.0), aval=ShapedArray((), np.dtype("float64"), weak_type=True))
    for factor, n in ((TypedFloat(2.0, np.dtype("float64")), TypedInt(3, np.dtype("int64"))), (weak, 3)):
        run = maybe_jit(lambda f=factor, n=n: apply_tesseract(watched, {"x": array, "factor": f, "n": n})["y"], jit)
        assert_close(run(), 6.0 * X)
        assert not run().weak_type
    for _, payload in watched.requests:
        assert type(payload["inputs"]["n"]) is int

    @jax.custom_jvp
    def double(factor: Any) -> Any:
        return jnp.sum(apply_tesseract(scale, {"x": X, "factor": factor, "n": 2})["y"])

    double.defjvp(lambda primals, tangents: (double(*primals), 12.0 * tangents[0]))
    assert_close(maybe_jit(jax.value_and_grad(double), jit)(2.0), (jnp.asarray(24.0), jnp.asarray(12.0)))


@pytest.mark.parametrize(
    "x", [2.0, jnp.asarray(2.0), jnp.asarray(2.0, np.float64), np.float64(2.0)], ids=["python", "weak", "jax", "numpy"]
)
@eager_and_jit
def test_weak_types_come_out_as_in_plain_jax(x: Any, jit: bool):
    square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(())})
    through = lambda x: apply_tesseract(square, {"x": x})["y"]  # noqa: E731
    plain = lambda x: jax.lax.convert_element_type(x, np.float64) ** 2  # noqa: E731
    for transform in (lambda f: f, jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (x,))[1]):
        got, want = (maybe_jit(transform(f), jit)(x) for f in (through, plain))
        assert_close(got, want)
        assert got.weak_type == want.weak_type


def test_results_fed_back_are_no_reason_to_trace_again():
    square = Watched(FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(())}))
    n_traces = 0

    @jax.jit
    def step(x: Any) -> Any:
        nonlocal n_traces
        n_traces += 1
        return apply_tesseract(square, {"x": x})["y"]

    x = step(1.0)
    for _ in range(4):
        x = step(x)
    assert n_traces == 2  # weak at first, as a Python number is, and from then on not
    assert len(square.payloads("abstract_eval")) == 1


COUNTS = FunctionTesseract(
    lambda i: {"picked": i["x"][i["index"]], "n": jnp.sum(i["index"]), "any": jnp.any(i["mask"])},
    {"x": np.ones(3), "index": np.zeros(2, np.int64), "mask": np.ones(2, bool)},
    name="counts",
)


@eager_and_jit
def test_integer_and_bool_arrays_are_traced_but_not_differentiated(jit: bool):
    def run(x: Any, index: Any, mask: Any) -> Any:
        return apply_tesseract(COUNTS, {"x": x, "index": index, "mask": mask})

    index, mask = jnp.array([2, 0], np.int32), jnp.array([True, False])
    out = maybe_jit(run, jit)(X, index, mask)
    assert (out["n"].dtype, out["any"].dtype) == (np.int64, np.bool_)
    slope = maybe_jit(jax.grad(lambda x, k, m: jnp.sum(run(x, k, m)["picked"])), jit)(X, index, mask)
    assert_close(slope, jnp.array([1.0, 0.0, 1.0]))
    zero = jax.grad(lambda k: jnp.sum(run(X, k, mask)["picked"]), allow_int=True)(index)
    assert zero.dtype == jax.dtypes.float0

    with count_requests() as requests, pytest.raises(InvalidInput, match="index: float64 cannot be converted to int64"):
        maybe_jit(run, jit)(X, jnp.array([2.0, 0.0]), mask)
    assert requests.n_total == 0


@eager_and_jit
def test_differentiating_what_is_only_declared_an_array(jit: bool):
    """A float array without the mark is no obstacle until something differentiates through it."""
    held = FunctionTesseract(
        lambda i: {"y": i["x"] * i["w"]},
        {"x": X, "w": X},
        name="held",
        inputs={"w": ArrayField("float64", (None,), False)},
    )
    run = lambda x, w: jnp.sum(apply_tesseract(held, {"x": x, "w": w})["y"])  # noqa: E731
    assert_close(maybe_jit(jax.grad(run), jit)(X, 2.0 * X), 2.0 * X)
    with pytest.raises(NotDifferentiable, match="'w'"):
        maybe_jit(jax.grad(run, argnums=1), jit)(X, X)


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64", "complex128"])
@eager_and_jit
def test_precisions_of_the_protocol(dtype: str, jit: bool):
    x = jnp.asarray([1.0, -2.0], dtype)
    cubic = FunctionTesseract(lambda i: {"y": i["x"] ** 3}, {"x": x}, name="cubic")
    through = lambda x: apply_tesseract(cubic, {"x": x})["y"]  # noqa: E731
    y, pull = jax.vjp(maybe_jit(through, jit), x)
    assert y.dtype == pull(y)[0].dtype == x.dtype
    assert_close(pull(y)[0], jax.vjp(lambda x: x**3, x)[1](y)[0], 1e-2 if dtype == "float16" else 1e-5)


def test_dtypes_outside_of_the_protocol_are_refused_with_a_remedy():
    square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(2, np.float32)}, name="square")
    for x in (jax.random.split(jax.random.key(0)), jnp.ones(2, jnp.float8_e5m2)):
        with (
            count_requests() as requests,
            pytest.raises(InvalidInput, match=r"cannot be converted.*\.astype\('float32"),
        ):
            apply_tesseract(square, {"x": x})
        assert requests.n_total == 0


def test_real_numbers_where_complex_ones_are_wanted_have_real_gradients():
    square = FunctionTesseract(lambda i: {"y": i["z"] ** 2 * (1.0 + 2.0j)}, {"z": np.ones(3, np.complex128)})
    through = lambda x: jnp.sum(jnp.abs(apply_tesseract(square, {"z": x})["y"]))  # noqa: E731
    plain = lambda x: jnp.sum(jnp.abs(x.astype(np.complex128) ** 2 * (1.0 + 2.0j)))  # noqa: E731
    assert_close(jax.grad(through)(X), jax.grad(plain)(X))


# ---------------------------------------------------------------------------------------------------- without x64


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.grad, jax.vmap], ids=["eager", "jit", "grad", "vmap"])
def test_double_inputs_and_single_outputs_without_x64(transform: Any):
    """Inputs lose nothing that they had; outputs fit. So this works, and is exact to single precision."""
    mixed = FunctionTesseract(
        lambda i: {"y": jnp.sin(i["x"]).astype(np.float32) * i["k"].astype(np.float32)},
        {"x": np.ones(3), "k": np.ones((), np.int64)},
        name="mixed",
    )

    def run(x: Any) -> Any:
        return jnp.sum(apply_tesseract(mixed, {"x": x, "k": 2})["y"])

    with jax.enable_x64(False):
        x = jnp.asarray(X, np.float32)
        got = transform(run)(jnp.stack([x, x]) if transform is jax.vmap else x)
        assert got.dtype == np.float32
    want = {jax.grad: 2.0 * np.cos(X), jax.vmap: np.full(2, 2.0 * np.sum(np.sin(X)))}
    np.testing.assert_allclose(got, want.get(transform, 2.0 * np.sum(np.sin(X))), rtol=1e-6)


WITHOUT_X64 = """
import jax, jax.numpy as jnp, numpy as np
from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import PrecisionError
from tesseract_flow.testing import FunctionTesseract
assert not jax.config.jax_enable_x64
double = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="double")
single = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3, np.float32)}, name="single")
for transform in (lambda f: f, jax.jit, jax.grad):
    run = transform(lambda x, t: jnp.sum(apply_tesseract(t, {"x": x})["y"]))
    for x in (jnp.ones(3), np.ones(3)):
        with count_requests() as requests:
            try:
                run(x, double)
            except PrecisionError as error:
                assert "'double'" in str(error) and "jax_enable_x64" in str(error)
            else:
                raise SystemExit("no error")
        assert requests.n_total == 0
        assert run(x, single).dtype == np.float32
print("fine")
"""


@pytest.mark.slow
def test_a_program_without_x64():
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_X64], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
