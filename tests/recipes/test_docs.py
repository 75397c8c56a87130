"""The examples of docs/recipes.md run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow.recipes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
COMPONENT, DERIVED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The component of the page, as tesseract-core runs it."""
    path = tmp_path_factory.mktemp("diffusion") / "tesseract_api.py"
    path.write_text(COMPONENT, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core import Tesseract

        return Tesseract.from_tesseract_api(path)


def test_example_is_as_short_as_the_page_says() -> None:
    assert len([line for line in COMPONENT.splitlines() if line.strip()]) <= 26


def test_component_runs(component: Any) -> None:
    u = np.linspace(0.0, 1.0, 6)
    inputs = {"temperature": u, "conductivity": 0.25, "n_steps": 1}
    # The step is linear, so it is its own derivative.
    matrix = np.eye(6) + 0.25 * (np.roll(np.eye(6), 1, axis=0) - 2 * np.eye(6) + np.roll(np.eye(6), -1, axis=0))
    np.testing.assert_allclose(component.apply(inputs)["temperature"], matrix @ u, atol=1e-14)
    path = ["temperature"]
    c = np.arange(6.0)
    blocks = component.jacobian(inputs, path, path)
    np.testing.assert_allclose(blocks["temperature"]["temperature"], matrix, atol=1e-14)
    y_dot = component.jacobian_vector_product(inputs, path, path, {"temperature": c})
    np.testing.assert_allclose(y_dot["temperature"], matrix @ c, atol=1e-14)
    x_bar = component.vector_jacobian_product(inputs, path, path, {"temperature": c})
    np.testing.assert_allclose(x_bar["temperature"], c @ matrix, atol=1e-14)
    shapes = {"temperature": [9], "conductivity": []}
    abstract = {name: {"shape": shape, "dtype": "float64"} for name, shape in shapes.items()}
    answer = component.abstract_eval({**inputs, **abstract})["temperature"]
    assert (list(answer["shape"]), answer["dtype"]) == ([9], "float64")


def test_derived_endpoint_runs() -> None:
    recipe = tesseract_flow.recipes.JaxRecipe(lambda inputs: {"y": jnp.sin(inputs["x"])})
    names: dict[str, Any] = {"jacobian_vector_product": recipe.jacobian_vector_product}
    exec(DERIVED, names)
    derived = SimpleNamespace(**names)
    x = np.array([0.5, 1.0])
    np.testing.assert_allclose(derived.jacobian({"x": x}, {"x"}, {"y"})["y"]["x"], np.diag(np.cos(x)))


def test_page_names_every_function() -> None:
    tools = {"get_at", "set_at"}  # for use inside of a component; their docstrings are enough
    assert {name for name in tesseract_flow.recipes.__all__ if name not in PAGE} == tools


def test_recipes_without_jax_in_their_name_do_without_jax() -> None:
    names = [name for name in tesseract_flow.recipes.__all__ if name != "JaxRecipe"]
    code = f"from tesseract_flow.recipes import {', '.join(names)}; import sys; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
