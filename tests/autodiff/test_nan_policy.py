"""NaN and inf are caught where they appear, by name, if that is asked for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.errors import NonFiniteError
from tesseract_flow.execute import concurrent
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close

X = np.array([1.0, 2.0, 3.0])
OUTER = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}
outers = pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)


def poisoned(endpoint: str, value: float = np.nan) -> Watched:
    """A component whose answers to one endpoint have a bad entry at [1]."""

    def spoil(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: spoil(item) for key, item in tree.items()}
        if isinstance(tree, np.ndarray) and tree.dtype.kind == "f":
            tree = tree.copy()
            tree[1] = value
        return tree

    part = FunctionTesseract(lambda i: {"y": i["x"] ** 2, "n": jnp.arange(3), "note": "fine"}, {"x": X}, name="duct")
    return Watched(part, lambda asked, answer: spoil(answer) if asked == endpoint else answer)


def y_of(tesseract: Any, **options: Any) -> Any:
    return lambda x: apply_tesseract(tesseract, {"x": x}, **options)["y"]


DERIVATIVES = {
    "apply": lambda f: f,
    "jacobian_vector_product": lambda f: lambda x: jax.jvp(f, (x,), (x,))[1],
    "vector_jacobian_product": lambda f: jax.grad(lambda x: jnp.sum(f(x))),
    "jacobian": jax.jacrev,
}


@outers
@pytest.mark.parametrize("endpoint", DERIVATIVES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_it_names_component_endpoint_and_place(endpoint: str, value: float, outer: Any):
    run = outer(DERIVATIVES[endpoint](y_of(poisoned(endpoint, value), nan_policy="raise")))
    # Compiled, JAX's own error carries the whole message.
    with pytest.raises((NonFiniteError, RuntimeError)) as caught:
        jax.block_until_ready(run(X))
    text = str(caught.value)
    path = {"vector_jacobian_product": "'x'", "jacobian": "'y/x'"}.get(endpoint, "'y'")
    assert f"Tesseract 'duct' answered '{endpoint}' with {path} not finite" in text
    assert "the first at [1" in text
    assert "Everything that it was given is finite" in text
    if outer is not jax.jit:
        assert isinstance(caught.value, NonFiniteError)
    good = y_of(FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": X}, name="duct"), nan_policy="raise")
    assert_close(outer(good)(X), jnp.asarray(X**2))  # the next call works


@outers
@pytest.mark.parametrize("policy", [None, "propagate"])
def test_without_it_they_pass(policy: Any, outer: Any):
    got = outer(y_of(poisoned("apply"), nan_policy=policy))(X)
    np.testing.assert_array_equal(got, [1.0, np.nan, 9.0])


@pytest.mark.parametrize(
    ("run", "culprit"),
    [
        (lambda f: f(np.array([1.0, np.nan, 3.0])), "'x'"),
        (lambda f: jax.jvp(f, (X,), (np.array([1.0, np.inf, 3.0]),)), "the tangent of 'x'"),
        (lambda f: jax.vjp(f, X)[1](jnp.array([1.0, np.nan, 3.0])), "the cotangent of 'y'"),
    ],
)
def test_it_tells_what_had_arrived_already(run: Any, culprit: str):
    with pytest.raises(NonFiniteError, match=f"It was given some already: {culprit}"):
        run(y_of(FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": X}), nan_policy="raise"))


def test_constant_outputs_have_no_derivative_to_be_checked():
    """Their tangents are NaN because the schema has none, which is no fault of the component."""
    part = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2, "frozen": i["x"]},
        {"x": X},
        outputs={"frozen": ArrayField("float64", (None,), False)},
    )
    y_dot = jax.jvp(lambda x: apply_tesseract(part, {"x": x}, nan_policy="raise"), (X,), (X,))[1]
    assert np.isnan(y_dot["frozen"]).all()
    assert_close(y_dot["y"], jnp.asarray(2.0 * X**2))


def test_elements_of_a_batch_are_told_apart():
    rows = np.array([[1.0, 2.0, 3.0], [-1.0, 1.0, 1.0]])
    part = FunctionTesseract(lambda i: {"y": jnp.log(i["x"])}, {"x": X}, name="log")
    with pytest.raises(NonFiniteError, match=r"'log'(?s:.*)at \[0\]") as caught:
        jax.vmap(y_of(part, nan_policy="raise"))(rows)
    assert "element 1 of a batch of 2" in "".join(caught.value.__notes__)


def test_jaxs_own_switch_turns_it_on():
    with jax.debug_nans(True), pytest.raises(NonFiniteError, match="Tesseract 'duct'"):
        y_of(poisoned("apply"))(X)
    with jax.debug_nans(False):
        assert np.isnan(y_of(poisoned("apply"))(X)).any()
