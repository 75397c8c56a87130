"""The beam of minimum compliance, and other constrained problems with known answers: what the methods must reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.optimize import Constraint, Evaluation, MaxSteps, Problem, optimize
from tests.optimize.helpers import BEAM_OPTIMUM, Counted, beam_compliance, beam_problem, beam_thickness, hs71_problem


def error_of(result) -> float:
    return abs(result.value / BEAM_OPTIMUM - 1)


def volume_error_of(result) -> float:
    return abs(float(result.constraints["volume"]) / 0.01 - 1)


def test_the_beam_is_the_one_with_the_published_numbers():
    assert float(beam_compliance(jnp.full(50, 0.1))) == pytest.approx(40000.0, rel=1e-9)
    assert float(beam_compliance(jnp.asarray(beam_thickness()))) == pytest.approx(BEAM_OPTIMUM, rel=1e-9)
    assert beam_thickness()[[0, 24, 47, 49]] == pytest.approx([0.1491575, 0.1070589, 0.0336316, 0.0161086], abs=1e-7)


@pytest.mark.slow
def test_adam_with_its_defaults_reaches_one_in_a_thousand():
    transform = Counted()
    result = optimize(beam_problem(), "adam", transform=transform)
    assert error_of(result) < 1e-3
    assert volume_error_of(result) <= 1e-4
    assert result.feasible and result.steps == 200
    # One evaluation per step, however often multipliers changed, and one trace.
    assert transform.n_calls == result.evaluations == 201
    assert transform.n_traces == 1
    assert result.history[-1].changes == 13
    reached = [r.step for r in result.history if r.violation < 1e-4 and abs(r.value / BEAM_OPTIMUM - 1) < 1e-3]
    assert reached[0] <= 130
    assert result.design["label"] == "beam" and result.evaluation.aux["kind"] == "beam"
    assert np.abs(np.asarray(result.design["thickness"]) - beam_thickness()).max() < 2e-3


_compiled: dict[str, Callable[..., Any]] = {}


def compiled_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Runs of the same problem may share what the first one compiles."""
    return _compiled.setdefault("beam", jax.jit(fn))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "rate", "settings"),
    [
        ("adam", 0.01, None),
        ("adam", 0.03, {"schedule": "cosine", "schedule_steps": 300}),
        ("nadam", 0.02, None),
    ],
)
def test_other_first_order_settings_reach_it_too(driver, rate, settings):
    result = optimize(
        beam_problem(),
        driver,
        learning_rate=rate,
        driver_settings=settings,
        stop=MaxSteps(300),
        transform=compiled_once,
    )
    assert error_of(result) < 1e-3 and volume_error_of(result) <= 1e-4


@pytest.mark.parametrize("start", [0.05, 0.2], ids=["from half the volume", "from twice the volume"])
@pytest.mark.slow
def test_adam_finds_the_volume_from_an_infeasible_start(start):
    result = optimize(beam_problem(start=start), "adam", stop=MaxSteps(300), transform=compiled_once)
    assert error_of(result) < 1e-3 and volume_error_of(result) <= 1e-4


@pytest.mark.slow
def test_an_inequality_on_the_volume_is_active_and_gives_the_same_beam():
    result = optimize(beam_problem(Constraint(upper=0.01)), "adam", stop=MaxSteps(300), transform=jax.jit)
    assert error_of(result) < 1e-3 and float(result.constraints["volume"]) <= 0.01 * (1 + 1e-4)


@pytest.mark.slow
def test_lbfgs_reaches_one_in_a_million_in_fewer_evaluations():
    transform = Counted()
    result = optimize(beam_problem(), "lbfgs", transform=transform)
    assert result.converged and "optimal to first order" in result.reason
    assert error_of(result) < 1e-6
    assert volume_error_of(result) < 1e-6
    assert transform.n_calls == result.evaluations <= 80
    assert np.abs(np.asarray(result.design["thickness"]) - beam_thickness()).max() < 1e-4
    # λ at the optimum: compliance falls like volume^-3, so d compliance / d volume = -3 C / V, and λ is its negative.
    assert float(result.multipliers["volume"]) == pytest.approx(3 * BEAM_OPTIMUM / 0.01, rel=1e-3)


@pytest.mark.slow
def test_hock_schittkowski_71_with_a_search():
    result = optimize(hs71_problem(), "lbfgs", transform=jax.jit)
    assert result.value == pytest.approx(17.0140173, rel=1e-7)
    assert result.violation < 1e-6 and result.converged
    assert result.design.tolist() == pytest.approx([1.0, 4.7429994, 3.8211503, 1.3794082], abs=1e-4)
    assert float(result.design[0]) == 1.0


@pytest.mark.slow
def test_hock_schittkowski_71_with_steps():
    result = optimize(hs71_problem(), "adam", learning_rate=0.1, stop=MaxSteps(300), transform=jax.jit)
    assert result.value == pytest.approx(17.0140173, rel=1e-3) and result.feasible


def test_array_constraints_have_a_price_per_entry():
    """Nearest point of a half-space family: min ½|x - t|² with x <= 1 as a constraint, not as bounds."""
    target = jnp.array([3.0, 0.5, -2.0, 1.5])

    def evaluate(x):
        return Evaluation(0.5 * ((x - target) ** 2).sum(), {"x": x})

    problem = Problem(
        jnp.zeros(4), evaluate, constraints={"x": Constraint(lower=-1.0, upper=jnp.array([1.0, 1.0, 1.0, 2.0]))}
    )
    result = optimize(problem, "lbfgs", transform=jax.jit)
    assert result.design.tolist() == pytest.approx([1.0, 0.5, -1.0, 1.5], abs=1e-5)
    assert result.multipliers["x"].tolist() == pytest.approx([2.0, 0.0, -1.0, 0.0], abs=1e-4)


@pytest.mark.slow
def test_float32_reaches_what_float32_can():
    def evaluate(x):
        return Evaluation(((x - 2) ** 2).sum(), {"sum": x.sum()})

    problem = Problem(jnp.zeros(3, jnp.float32), evaluate, constraints={"sum": Constraint(equals=3.0)})
    schedule = {"schedule": "cosine"}
    for driver, settings in [("adam", schedule), ("lbfgs", None)]:
        result = optimize(problem, driver, driver_settings=settings, transform=jax.jit)
        assert result.design.dtype == jnp.float32
        assert result.design.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
