"""Components with one derivative endpoint, or none, in every mode of differentiation: with `derive=`, and without."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests, open_tesseract
from tesseract_flow.errors import EndpointNotFound, ShapesUnknown
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close

X, B = np.array([0.3, -0.2, 0.5]), np.array([1.0, 2.0, 3.0])
OUTER = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}
HAVE = ("jacobian", "jacobian_vector_product", "vector_jacobian_product", None)
MODES = {
    "grad": lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2)),
    "jacrev": jax.jacrev,
    "jacfwd": jax.jacfwd,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.asarray(B),))[1],
    "vmap of grad": lambda f: lambda x: jax.vmap(jax.grad(lambda v: jnp.sum(f(v) ** 2)))(jnp.stack([x, 2.0 * x])),
}


def plain(x: Any) -> Any:
    return jnp.sin(x) * B + jnp.sum(x**2)


def component(have: str | None, *, has_shapes: bool = True) -> FunctionTesseract:
    endpoints = {"apply"} | ({have} if have else set()) | ({"abstract_eval"} if has_shapes else set())
    return FunctionTesseract(lambda i: {"y": plain(i["x"])}, {"x": X}, name="poor", endpoints=endpoints)


def through(tesseract: Any) -> Any:
    return lambda x: apply_tesseract(tesseract, {"x": x})["y"]


@pytest.mark.parametrize("has_shapes", [True, False], ids=["with shapes", "without"])
@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("have", HAVE, ids=str)
def test_with_derive_everything_works(have: str | None, mode: str, outer: str, has_shapes: bool):
    tesseract = open_tesseract(component(have, has_shapes=has_shapes), derive="central" if have is None else True)
    if outer == "jit" and not has_shapes:
        through(tesseract)(X)  # no values under jit: the outputs' shapes must be known
    with count_requests() as requests:
        got = OUTER[outer](MODES[mode](through(tesseract)))(X)
    assert_close(got, MODES[mode](plain)(jnp.asarray(X)), 1e-9 if have is None else 1e-12)
    assert {name.rpartition(".")[2] for name in requests} <= {"apply", "abstract_eval", have}


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize(
    ("have", "mode", "wanted"),
    [
        *((have, "grad", "vector_jacobian_product") for have in ("jacobian", "jacobian_vector_product", None)),
        *((have, "jvp", "jacobian_vector_product") for have in ("jacobian", "vector_jacobian_product", None)),
        (None, "jacrev", "vector_jacobian_product"),
        (None, "jacfwd", "jacobian_vector_product"),
    ],
)
def test_without_it_the_error_tells_how(have: str | None, mode: str, wanted: str, outer: str):
    with (
        count_requests() as requests,
        pytest.raises(EndpointNotFound, match=f"'poor' has no endpoint '{wanted}'(?s:.*)derive=") as caught,
    ):
        OUTER[outer](MODES[mode](through(component(have))))(X)
    assert isinstance(caught.value, NotImplementedError)
    if outer != "eager":
        assert requests.n_of("apply") == 0


def test_without_values_nothing_tells_the_shapes_of_a_component_that_does_not_say_them():
    with pytest.raises(ShapesUnknown, match="Call it once with inputs of these shapes"):
        jax.jit(lambda x: jnp.sum(through(component(None, has_shapes=False))(x)))(X)
