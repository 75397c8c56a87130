"""Handles are values: nodes without leaves in trees, and equal if they reach the same component."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tesseract_core import Tesseract

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import AbstractTesseract, count_requests, open_tesseract
from tests.cases import CASES
from tests.helpers import assert_close

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
    from tests import components

ROOT = Path(components.__file__).parents[1]
CASE = next(case for case in CASES if case.name == "any_rank")
X = jnp.array([0.1, 0.2])


@pytest.fixture(scope="module")
def core() -> Tesseract:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Tesseract.from_tesseract_api(components.component(CASE))


def test_every_handle_of_the_client_is_a_node_without_leaves(tmp_path: Path):
    (tmp_path / "tesseract_api.py").write_text("")
    url = Tesseract.from_url("http://a:1")
    for source in ("http://a:1", tmp_path, url):
        handle = open_tesseract(source)
        assert isinstance(handle, AbstractTesseract)
        assert jax.tree_util.tree_leaves([handle, 1.0]) == [1.0]
        assert jax.tree_util.tree_map(lambda leaf: leaf, [handle]) == [handle]


def test_handles_that_are_imported_later_are_known_as_well():
    script = """
import jax
import tesseract_flow as tf
tf.apply_tesseract  # before any kind of handle
from tesseract_flow.client import HttpTesseract, open_tesseract
handle = open_tesseract(["http://a:1", HttpTesseract("http://b:1")], cache=True, derive=True, max_in_flight=1)
assert jax.tree_util.tree_leaves([handle, handle.tesseract, HttpTesseract("http://a:1"), 1.0]) == [1.0]
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_core_objects_pass_through_transformations(core: Tesseract):
    def loss(model: Any) -> Any:
        return jnp.sum(apply_tesseract(model["solver"], {"x": model["x"]})["y"])

    for transform in (lambda f: f, jax.jit):
        slope = transform(jax.grad(loss))({"solver": core, "x": X})
        assert slope["solver"] is core
        assert_close(slope["x"], jnp.exp(X))


def test_objects_for_one_address_are_one_to_jit():
    n_traces = 0

    @jax.jit
    def run(solver: Any, x: Any) -> Any:
        nonlocal n_traces
        n_traces += 1
        return x + 1.0

    for address in ("http://a:1", "http://a:1/"):
        run(Tesseract.from_url(address), X)
    # Where tesseract-jax is installed JAX knows these objects by it, and each one is then a structure of its own.
    n_structures = 1 if find_spec("tesseract_jax") is None else 2
    assert n_traces == n_structures
    run(Tesseract.from_url("http://b:1"), X)
    run(Tesseract.from_url("http://a:1", timeout=3.0), X)
    assert n_traces == n_structures + 2


def test_equal_calls_through_one_object_are_one_request(core: Tesseract):
    run = jax.jit(lambda t, x: apply_tesseract(t, {"x": x})["total"] + apply_tesseract(t, {"x": x})["total"])
    run(core, X)
    with count_requests() as requests:
        assert_close(run(core, X), 2.0 * jnp.sum(X**2))
    assert requests.n_total == 1


PEER = """
import sys, types
stand_in = types.ModuleType("tesseract_jax")
{peer}
{first}
import jax
{second}
from tesseract_core import Tesseract
import tesseract_flow as tf
tf.apply_tesseract
t = Tesseract.from_url("http://a:1")
assert jax.tree_util.tree_leaves([t, 1.0]) == [1.0]
assert jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(t), []) is t
"""


def run_program(**parts: str) -> None:
    code = PEER.format(**{"peer": "", "first": "", "second": ""} | parts)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", ["peer first", "peer last", "broken peer"])
def test_beside_tesseract_jax_in_any_order(order: str, tmp_path: Path):
    """It registers Tesseracts on import and fails if somebody has: so it goes first whenever it is there."""
    register = "jax.tree_util.register_pytree_node(Tesseract, lambda x: ((), x), lambda x, _: x)"
    text = (
        "import does_not_exist"
        if order == "broken peer"
        else f"import jax\nfrom tesseract_core import Tesseract\n{register}"
    )
    (tmp_path / "tesseract_jax.py").write_text(text)
    run_program(
        peer=f"sys.path.insert(0, {str(tmp_path)!r})",
        first="import tesseract_jax" if order == "peer first" else "import tesseract_core, tesseract_flow.autodiff",
        second="import tesseract_jax" if order == "peer last" else "",
    )


def test_nothing_imports_tesseract_core_for_it():
    code = "import tesseract_flow.autodiff, sys; assert 'tesseract_core' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_handles_are_known_to_jax_from_the_first_use_of_the_front_door():
    code = (
        "import jax, tesseract_flow as tf\n"
        "handle = tf.open_tesseract('http://a:1')\n"
        "assert jax.tree_util.tree_leaves([handle, 1.0]) == [1.0]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
