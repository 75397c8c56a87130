"""Importing the package is cheap and brings in nothing before it is used; every public name is really there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import tesseract_flow

ROOT = Path(__file__).resolve().parents[1]


def loaded_after(code: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter that has run `code`."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def exists(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


PUBLIC = [name for name, module in tesseract_flow._EXPORTS.items() if exists(module)]
SHARED = {name for name, module in tesseract_flow._EXPORTS.items() if module == f"tesseract_flow.{name}"}
LOWEST = ("errors", "derivatives", "exact", "wire", "schema", "client")
LOW = [name for name in LOWEST if exists(f"tesseract_flow.{name}")]
# Prefect's server imports the blocks when it starts, whether somebody uses them or not.
BLOCKS = [name for name in ("blocks",) if exists(f"tesseract_flow.{name}")]


def test_import_loads_nothing_heavy() -> None:
    heavy = {"prefect", "torch", "jax", "numpy", "equinox", "optax", "scipy", "matplotlib", "tesseract_core", "httpx"}
    assert loaded_after("import tesseract_flow; tesseract_flow.__version__; dir(tesseract_flow)") & heavy == set()


@pytest.mark.slow
def test_public_names_work_without_prefect_and_torch() -> None:
    uses = "\n".join(f"tesseract_flow.{name}" for name in PUBLIC)
    assert loaded_after(f"import tesseract_flow\n{uses}") & {"prefect", "torch"} == set()


def test_apply_tesseract_brings_no_http_before_there_is_an_address() -> None:
    """A fifth of the time that importing JAX takes."""
    light = "import tesseract_flow; tesseract_flow.apply_tesseract; tesseract_flow.client.on_each_kind"
    assert loaded_after(light) & {"httpx", "httpcore", "click", "rich"} == set()
    assert loaded_after("import tesseract_flow; tesseract_flow.open_tesseract('a:1').n_lanes") & {"httpx"} == set()


@pytest.mark.slow
def test_importing_leaves_the_garbage_collector_as_it_was() -> None:
    for before in ("enable", "disable"):
        uses = "tesseract_flow.apply_tesseract, tesseract_flow.open_tesseract"
        loaded_after(f"import gc, tesseract_flow\ngc.{before}()\n{uses}\nassert gc.isenabled() is {before == 'enable'}")


def test_public_names_of_the_client() -> None:
    from tesseract_flow import client

    tree = ast.parse((ROOT / "tesseract_flow/client/__init__.py").read_text())
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == client._EXPORTS
    assert {name for name in client.__all__ if getattr(client, name) is not None} >= set(seen)
    with pytest.raises(AttributeError, match="HttpTesserakt"):
        _ = client.HttpTesserakt


@pytest.mark.parametrize("layer", [*LOW, *BLOCKS])
def test_layer_works_without_jax(layer: str) -> None:
    assert loaded_after(f"import tesseract_flow.{layer}") & {"jax", "torch"} == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves(name: str) -> None:
    value = getattr(tesseract_flow, name)
    assert getattr(tesseract_flow, name) is value


@pytest.mark.parametrize("first", ["", "import {}", "from {} import *"], ids=["name", "module", "star"])
@pytest.mark.parametrize("name", [name for name in PUBLIC if name in SHARED and name != "errors"])
@pytest.mark.slow
def test_function_that_shares_its_name_with_a_package_can_be_called(name: str, first: str) -> None:
    """Importing the package sets the attribute that the function would have, whoever does it first."""
    first = first.format(tesseract_flow._EXPORTS[name])
    loaded_after(f"{first}\nimport tesseract_flow\nassert callable(tesseract_flow.{name})")


@pytest.mark.parametrize("name", ["optimize", pytest.param("report", marks=pytest.mark.slow)])
def test_help_shows_the_function_that_a_package_stands_for(name: str) -> None:
    loaded_after(
        f"""
import importlib, inspect, pydoc, types
import tesseract_flow as tf
package = tf.{name}
home = importlib.import_module(package._home)
function = home.{name}
assert isinstance(package, types.ModuleType) and isinstance(function, types.FunctionType)
assert inspect.signature(package) == inspect.signature(function)
shown = pydoc.plain(pydoc.render_doc(package))
assert shown.index(function.__doc__.splitlines()[0]) < shown.index("{name}(") < shown.index("PACKAGE CONTENTS")
for parameter in inspect.signature(function).parameters:
    assert parameter in shown
"""
    )


def test_dir_lists_public_names_before_they_are_used() -> None:
    loaded_after(f"import tesseract_flow\nassert {set(tesseract_flow._EXPORTS)} <= set(dir(tesseract_flow))")


def test_all_is_the_table_and_the_version() -> None:
    assert set(tesseract_flow.__all__) == {*tesseract_flow._EXPORTS, "__version__"}


def test_type_checkers_see_the_same_names() -> None:
    (guarded,) = (
        node
        for node in ast.parse((ROOT / "tesseract_flow/__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: f"{node.module}.{alias.name}" if node.module == "tesseract_flow" else node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == tesseract_flow._EXPORTS


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tesseract_flow' has no attribute 'optimise'"):
        _ = tesseract_flow.optimise


def test_tasks_and_flows_are_importable_inside_the_package() -> None:
    for name in ("tasks", "flows"):
        module = importlib.import_module(f"tesseract_flow.{name}")
        assert module.__doc__ is not None
        assert Path(module.__file__ or "").resolve() == ROOT / name / "__init__.py"
