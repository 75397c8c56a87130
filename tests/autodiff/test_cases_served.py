"""The identities over real components: tesseract-core's runtime behind HTTP, and its objects in this process.

The cases' schemas are written out in `tests/components.py`, so what is tested here beside the numbers is that trees of
every form survive the schema, the wire and pydantic, both ways.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tesseract_core import Tesseract

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.autodiff.plain import revealed
from tesseract_flow.client import AbstractTesseract, count_requests, open_tesseract
from tests.cases import CASES, Case
from tests.helpers import assert_close, inner, magnitude, maybe_jit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
    from tests import components

ROOT = Path(components.__file__).parents[1]
BY_NAME = {case.name: case for case in CASES}
# In process they run one at a time under tesseract-core's lock; trees of every form, without the numerical ones.
IN_PROCESS = ["nested", "static_between", "integers", "plain_outputs", "optional", "records"]

eager_and_jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


@pytest.fixture(scope="module")
def served() -> Iterator[Mapping[str, AbstractTesseract]]:
    """A handle per case, over HTTP to one process that serves them all."""
    with tempfile.TemporaryDirectory() as output, tempfile.TemporaryFile("w+") as log:
        environment = {
            **os.environ,
            "TESSERACT_OUTPUT_PATH": output,
            "PYTHONWARNINGS": "ignore",
            "JAX_DISABLE_JIT": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.components"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                log.seek(0)
                pytest.fail(f"the components could not be served:\n{log.read()}")
            yield {name: open_tesseract(f"http://127.0.0.1:{port}/{name}", label=name) for name in BY_NAME}
        finally:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


@pytest.fixture(scope="module")
def in_process() -> Mapping[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: Tesseract.from_tesseract_api(components.component(BY_NAME[name])) for name in IN_PROCESS}


@pytest.fixture(params=[*(f"{name}-http" for name in BY_NAME), *(f"{name}-core" for name in IN_PROCESS)])
def case(request: pytest.FixtureRequest) -> Case:
    name, _, kind = request.param.rpartition("-")
    return through(name, request.getfixturevalue("served" if kind == "http" else "in_process")[name])


@functools.cache
def through(name: str, source: Any) -> Case:
    return BY_NAME[name].through(source)


@functools.cache
def pushing(case: Case, jit: bool) -> Callable[[Any, Any], Any]:
    return maybe_jit(lambda x, t: jax.jvp(case.call, (x,), (t,)), jit)


@functools.cache
def pulling(case: Case, jit: bool) -> Callable[[Any, Any], Any]:
    return maybe_jit(lambda x, c: jax.vjp(case.call, x)[1](c)[0], jit)


def combination(a: float, u: Any, b: float, v: Any) -> Any:
    return jax.tree_util.tree_map(lambda p, q: p.dtype.type(a) * p + p.dtype.type(b) * q, u, v)


@pytest.mark.server
@eager_and_jit
@pytest.mark.slow
def test_values_and_both_derivatives_equal_plain_jax(case: Case, jit: bool):
    x_dot, y_bar = case.tangent(1), case.cotangent(2)
    y, y_dot = pushing(case, jit)(case.x, x_dot)
    expected, expected_dot = jax.jvp(case.plain, (case.x,), (x_dot,))
    assert_close((y, y_dot), (expected, expected_dot), case.rtol)
    assert_close(pulling(case, jit)(case.x, y_bar), jax.vjp(case.plain, case.x)[1](y_bar)[0], case.rtol)


@pytest.mark.server
@eager_and_jit
def test_pullback_is_adjoint_of_pushforward(case: Case, jit: bool):
    """<J t, c> = <t, Jᵀ c>."""
    x_dot, y_bar = case.tangent(3), case.cotangent(4)
    (_, y_dot), x_bar = pushing(case, jit)(case.x, x_dot), pulling(case, jit)(case.x, y_bar)
    error = abs(inner(y_dot, y_bar) - inner(x_dot, x_bar))
    assert error <= 10 * case.rtol * max(magnitude(y_dot, y_bar), magnitude(x_dot, x_bar))
    assert magnitude(y_dot, y_bar) > 1e-3


@pytest.mark.server
@eager_and_jit
def test_both_are_linear(case: Case, jit: bool):
    push = lambda t: pushing(case, jit)(case.x, t)[1]  # noqa: E731
    pull = functools.partial(pulling(case, jit), case.x)
    for linear, u, v in (push, case.tangent(5), case.tangent(6)), (pull, case.cotangent(7), case.cotangent(8)):
        assert_close(linear(combination(2.0, u, -3.0, v)), combination(2.0, linear(u), -3.0, linear(v)), 10 * case.rtol)


@pytest.mark.server
def test_pushforward_against_central_differences(case: Case):
    eps, rtol = (1e-6, 1e-6) if case.rtol < 1e-8 else (1e-2, 1e-2)
    x_dot = case.tangent(9)
    ahead, behind = (case.call(combination(1.0, case.x, s * eps, x_dot)) for s in (1, -1))
    slope = jax.tree_util.tree_map(lambda a, b: (a - b) / (2 * eps), ahead, behind)
    assert_close(pushing(case, False)(case.x, x_dot)[1], slope, rtol)


@pytest.mark.server
@eager_and_jit
def test_whole_trees_come_back_and_cost_one_request(case: Case, jit: bool):
    """Text, numbers, None and arrays of integers as well, under jit as in eager calls."""

    def run(x: Any) -> Any:
        return apply_tesseract(case.tesseract, case.full(x))

    compiled = jax.jit(run).lower(case.x).compile() if jit else run
    with count_requests() as requests:
        tree = revealed(compiled(case.x))
    assert requests.n_of("apply") == requests.n_total == 1
    expected = case.fn(case.inputs)
    assert_close(numbers_of(tree), numbers_of(expected), case.rtol)
    assert texts_of(tree) == texts_of(expected)


def numbers_of(tree: Any) -> Any:
    """Arrays, and plain numbers as arrays without dimensions, which is what jit makes of them."""
    return jax.tree_util.tree_map(lambda leaf: None if isinstance(leaf, str) else jnp.asarray(leaf), tree)


def texts_of(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, str)]


@pytest.mark.server
@eager_and_jit
def test_a_gradient_costs_one_apply_and_one_pullback(case: Case, jit: bool):
    def loss(x: Any) -> Any:
        return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree_util.tree_leaves(case.call(x)))

    step = jax.value_and_grad(loss)
    if jit:
        step = jax.jit(step).lower(case.x).compile()
    with count_requests() as requests:
        step(case.x)
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 1
    assert requests.n_total == 2 + requests.n_of("abstract_eval")
    assert requests.n_of("abstract_eval") <= 1
