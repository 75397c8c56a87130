"""A real component made of a recipe, in a process of its own: same answers over HTTP, residuals found."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tesseract_flow.client import AbstractTesseract, ServedTesseract, open_tesseract
from tesseract_flow.errors import ComponentFailed
from tesseract_flow.recipes import get_at, set_at
from tests.helpers import assert_close

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
    from tests.recipes.component.tesseract_api import diffuse

pytestmark = pytest.mark.server

INPUTS: dict[str, Any] = {
    "temperature": np.linspace(0.0, 1.0, 5),
    "scheme": "implicit",
    "n_steps": 2,
    "conductivity": np.array(0.3),
    "sources": {"left.{1}": {"cell": np.array(1, np.int32), "strength": np.array(2.0)}},
    "weights": [np.ones(5), np.arange(5.0)],
}
T = {
    "temperature": np.sin(np.arange(5.0)),
    "conductivity": np.array(-0.5),
    r"sources.{left.\{1\}}.strength": np.array(1.5),
}
C = {"temperature": np.cos(np.arange(5.0)), "moments.{0}": np.array(2.0), "moments.{1}": np.array(-1.0)}


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, np.ndarray]]:
    """Outputs, J t and J^T c of the component's own function, by path."""

    def between(x: dict[str, Any]) -> dict[str, Any]:
        out = diffuse(set_at(INPUTS, x))
        return {path: get_at(out, path) for path in C}

    def answer(x: Any) -> Any:
        y, y_dot = jax.jvp(between, (x,), (T,))
        return {"y": y, "y_dot": y_dot, "x_bar": jax.vjp(between, x)[1](C)[0]}

    return jax.tree_util.tree_map(np.asarray, jax.jit(answer)({path: get_at(INPUTS, path) for path in T}))


@pytest.fixture(scope="module")
def served() -> Iterator[AbstractTesseract]:
    handle = open_tesseract(Path(__file__).parent / "component")
    yield handle
    assert isinstance(handle, ServedTesseract)
    handle.stop()


def test_apply(served: AbstractTesseract, expected: Any) -> None:
    out = served.apply(INPUTS)
    assert_close({path: get_at(out, path) for path in C}, expected["y"])
    assert out["scheme"] == "implicit"


def test_pushforward_and_jacobian(served: AbstractTesseract, expected: Any) -> None:
    assert_close(served.jacobian_vector_product(INPUTS, list(T), list(C), T), expected["y_dot"])
    for output, row in served.jacobian(INPUTS, list(T), list(C)).items():
        product = sum(np.tensordot(row[path], T[path], axes=T[path].ndim) for path in T)
        assert_close(np.asarray(product), expected["y_dot"][output], rtol=1e-11)


def test_pullbacks_find_the_residuals_of_their_apply(served: AbstractTesseract, expected: Any) -> None:
    n_hits = served.apply(INPUTS)["n_hits"]
    for scale in (1.0, -3.0):
        c = {path: scale * value for path, value in C.items()}
        x_bar = served.vector_jacobian_product(INPUTS, list(T), list(C), c)
        assert_close(x_bar, {path: scale * value for path, value in expected["x_bar"].items()}, rtol=1e-11)
    assert served.apply(INPUTS)["n_hits"] == n_hits + 2
    elsewhere = {**INPUTS, "conductivity": np.array(0.2)}
    served.vector_jacobian_product(elsewhere, list(T), list(C), C)
    assert served.apply(elsewhere)["n_hits"] == n_hits + 2


def test_abstract_eval(served: AbstractTesseract) -> None:
    abstract = jax.tree_util.tree_map(
        lambda leaf: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} if isinstance(leaf, np.ndarray) else leaf,
        INPUTS,
    )
    answer = served.abstract_eval(abstract)
    assert answer["temperature"] == {"shape": [5], "dtype": "float64"}
    assert answer["moments"] == {"0": {"shape": [], "dtype": "float64"}, "1": {"shape": [], "dtype": "float64"}}
    assert answer["scheme"] == "implicit"


def test_refusal_reaches_the_caller(served: AbstractTesseract) -> None:
    # tesseract-core does not look into dicts of outputs before the component does.
    with pytest.raises(ComponentFailed, match="leads nowhere"):
        served.jacobian(INPUTS, ["conductivity"], ["moments.{7}"])
