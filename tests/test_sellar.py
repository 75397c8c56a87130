"""Sellar's problem: the derivative of a fixed point by pullbacks alone, and what a cache spares on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tesseract_core import Tesseract

import tesseract_flow as tf
from benchmarks import solver_runs
from benchmarks.measuring import ROOT
from benchmarks.sellar.problem import OPTIMUM, coupled, sellar
from benchmarks.solver_runs import MOST_RUNS, runs_to_optimum
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close

Disciplines = tuple[AbstractTesseract, AbstractTesseract]
START = (5.0, 2.0, 1.0)
DESIGNS = [START, (1.977639, 0.0, 0.0), (-3.0, 0.5, 4.0)]
WEIGHTS = np.array([1.0, -0.3, 0.7])  # of objective and constraints, as a Lagrangian has them


@pytest.fixture(scope="module")
def disciplines() -> Disciplines:
    """The components themselves, in this process."""
    paths = (ROOT / f"examples/sellar/{name}/tesseract_api.py" for name in ("y1", "y2"))
    first, second = (tf.open_tesseract(Tesseract.from_tesseract_api(path), label=path.parent.name) for path in paths)
    return first, second


def design_of(flat: Any) -> dict[str, Any]:
    return {"z": flat[:2], "x": flat[2]}


def values_by_calls(disciplines: Disciplines) -> Callable[[Any], Any]:
    """Objective and both constraints as one vector."""
    problem = sellar(*disciplines)

    def values(flat: Any) -> Any:
        evaluation = problem.evaluate(design_of(flat))
        return jnp.stack([evaluation.objective, evaluation.constraints["y1"], evaluation.constraints["y2"]])

    return values


def closed_form(flat: Any) -> Any:
    """The same without iteration: the root of y1 solves r² + 0.2 r = z1² + z2 + x − 0.2 (z1 + z2)."""
    z1, z2, x = flat
    root = -0.1 + jnp.sqrt(0.01 + z1**2 + z2 + x - 0.2 * (z1 + z2))
    y1, y2 = root**2, root + z1 + z2
    return jnp.stack([x**2 + z2 + y1 + jnp.exp(-y2), y1, y2])


@pytest.mark.parametrize(
    ("run", "designs"),
    [(lambda fn: fn, [START]), (jax.jit, DESIGNS), (tf.concurrent, DESIGNS)],
    ids=["eager", "jit", "concurrent"],
)
def test_values_and_derivatives_are_those_of_the_closed_form(disciplines: Disciplines, run: Any, designs: Any):
    values = values_by_calls(disciplines)

    def both(flat: Any) -> Any:
        value, pullback = jax.vjp(values, flat)
        return value, pullback(WEIGHTS)[0]

    by_calls = run(both)
    for flat in map(jnp.array, designs):
        value, gradient = by_calls(flat)
        assert_close(value, jax.jit(closed_form)(flat), rtol=1e-12)
        assert_close(gradient, WEIGHTS @ jax.jit(jax.jacobian(closed_form))(flat), rtol=1e-10)


def test_derivatives_are_central_differences(disciplines: Disciplines):
    flat, step = jnp.array(START), 1e-5
    values = jax.jit(values_by_calls(disciplines))
    columns = [(values(flat + step * e) - values(flat - step * e)) / (2.0 * step) for e in np.eye(3)]
    assert_close(jax.jit(jax.jacrev(values))(flat), jnp.stack(columns, axis=1), rtol=1e-6)


def test_a_gradient_needs_one_pullback_of_each_and_nothing_else(disciplines: Disciplines):
    """So components that offer no pushforward, no Jacobian and nothing for the fixed point will do."""
    assert all("jacobian" not in t.schema.endpoints for t in disciplines)
    assert all("jacobian_vector_product" not in t.schema.endpoints for t in disciplines)
    jacobian = tf.concurrent(jax.jacrev(values_by_calls(disciplines)))
    with tf.count_requests() as requests:
        jacobian(jnp.array(START))
    assert requests["y1.vector_jacobian_product"] == requests["y2.vector_jacobian_product"] == 1
    assert requests.n_of("apply") + requests.n_of("abstract_eval") + 2 == requests.n_total
    assert 8 <= requests.n_of("apply") <= 16


def test_where_the_disciplines_never_agree_there_is_no_state():
    numbers = {"z": np.zeros(2), "x": np.array(0.0), "y2": np.array(0.0)}
    first = FunctionTesseract(lambda i: {"y1": i["y2"]}, numbers)
    second = FunctionTesseract(lambda i: {"y2": i["y1"] + i["y1"] ** 2 + 1.5}, {"z": np.zeros(2), "y1": np.array(0.0)})
    assert np.isnan(coupled(first, second)(jnp.zeros(2), jnp.array(0.0))).all()


@pytest.mark.slow
def test_with_a_cache_only_distinct_calls_reach_the_solvers(disciplines: Disciplines):
    watched = [Watched(discipline) for discipline in disciplines]
    plain = runs_to_optimum(*watched)
    asked = [bits(payload["inputs"]) for w in watched for payload in w.payloads("apply")]
    assert plain.applies == len(asked)

    cache = tf.MemoryCache()
    y1, y2 = (tf.open_tesseract(discipline, cache=cache) for discipline in disciplines)
    cached = runs_to_optimum(y1, y2)
    assert cached.applies == len(set(asked)) <= MOST_RUNS
    assert cached.applies < plain.applies / 3  # value, gradient, constraints and their Jacobian at each design
    assert cached.pullbacks == plain.pullbacks / 2


def bits(inputs: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, np.asarray(value).tobytes()) for name, value in sorted(inputs.items()))


def test_another_end_than_the_optimum_is_refused(disciplines: Disciplines, monkeypatch: pytest.MonkeyPatch):
    def elsewhere(problem: tf.Problem) -> Any:
        return problem.design, OPTIMUM

    monkeypatch.setattr(solver_runs, "slsqp", elsewhere)
    with pytest.raises(RuntimeError, match=r"SLSQP ended at .* expected .* with 3\.18339395"):
        runs_to_optimum(*disciplines)


def by_fixed_point(first: AbstractTesseract, second: AbstractTesseract, solver: str) -> tf.Problem:
    """The same problem, with the coupling described and not programmed."""
    disciplines = {
        "y1": lambda T, z, x: tf.apply_tesseract(first, {"z": z, "x": x, "y2": T["y2"]})["y1"],
        "y2": lambda T, z, x: tf.apply_tesseract(second, {"z": z, "y1": T["y1"]})["y2"],
    }

    def evaluate(design: dict[str, Any]) -> tf.Evaluation:
        z, x = design["z"], design["x"]
        T = tf.fixed_point(disciplines, {"y1": 1.0, "y2": 0.0}, z, x, solver=solver)
        return tf.Evaluation(x**2 + z[1] + T["y1"] + jnp.exp(-T["y2"]), constraints=T)

    return dataclasses.replace(sellar(first, second), evaluate=evaluate)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["broyden", "newton-krylov"])
def test_described_as_a_fixed_point_it_takes_no_more_runs(disciplines: Disciplines, solver: str):
    cache = tf.MemoryCache()
    kept = [tf.open_tesseract(discipline, cache=cache) for discipline in disciplines]
    with tf.count_requests() as requests:
        design, value = solver_runs.slsqp(by_fixed_point(kept[0], kept[1], solver))
    assert abs(value - OPTIMUM) < 1e-7
    assert_close(design["z"], jnp.array([1.977639, 0.0]), rtol=1e-6)
    # By hand, with secant steps, it is 70 as well. Newton's need a direction with each.
    assert requests.n_of("apply") <= {"broyden": 70, "newton-krylov": 98}[solver]
    assert requests.n_of("jacobian_vector_product") == requests.n_of("jacobian") == 0
