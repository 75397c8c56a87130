"""NLopt's methods under our loop; what holds for every library is in `test_library_drivers`."""

from __future__ import annotations

import sys
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.client import own_requests
from tesseract_flow.errors import DriverError, EvaluationFailed
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    MaxEvaluations,
    MaxSteps,
    Problem,
    build_driver,
    driver_settings,
    optimize,
)
from tests.optimize.helpers import BEAM_OPTIMUM, Counted, beam_problem, hs71_problem, rosenbrock_problem, same_bits
from tests.optimize.standard import STANDARD
from tests.optimize.test_library_drivers import two_components

CONSERVATIVE = ("mma", "ccsaq")
ALL = (*CONSERVATIVE, "ld_slsqp")
STOP = {"max_steps": 400, "gradient_tolerance": 1e-6}
SMALL = [problem for problem in STANDARD if problem.name in ("hs1", "hs6", "hs35", "hs43", "hs100")]


def budget(n: int = 2000) -> Problem:
    """mean(load² / x) under a mean of x: by Cauchy and Schwarz, x is proportional to load."""
    load = jnp.linspace(1.0, 3.0, n)
    return Problem(
        jnp.full(n, 0.5),
        lambda x: Evaluation((load**2 / x).mean(), {"volume": x.mean()}),
        bounds=(1e-3, 1.0),
        constraints={"volume": Constraint(upper=0.5)},
    )


@pytest.mark.parametrize("standard", SMALL, ids=lambda standard: standard.name)
def test_ld_slsqp_finds_published_optima(standard):
    result = optimize(standard.problem(), "ld_slsqp", stop=STOP, transform=jax.jit)
    assert result.converged, result.reason
    assert result.value == pytest.approx(standard.optimum, rel=1e-6, abs=1e-6)


def test_hs71_by_ld_slsqp():
    result = optimize(hs71_problem(), "ld_slsqp", stop=STOP, transform=jax.jit)
    assert result.converged and result.value == pytest.approx(17.0140173, rel=1e-7) and result.evaluations <= 10
    assert float(result.multipliers["product"]) == pytest.approx(-0.5522937, rel=1e-4)


@pytest.mark.parametrize("driver", ALL)
def test_the_beam(driver):
    result = optimize(beam_problem(Constraint(upper=0.01)), driver, stop=STOP, transform=jax.jit)
    assert result.value == pytest.approx(BEAM_OPTIMUM, rel=1e-6) and result.feasible


@pytest.mark.parametrize("driver", CONSERVATIVE)
def test_many_variables_under_a_budget(driver):
    result = optimize(budget(), driver, stop={"max_steps": 60, "gradient_tolerance": 1e-5}, transform=jax.jit)
    assert result.converged and result.feasible and result.value == pytest.approx(8.0, rel=1e-6)
    assert np.allclose(result.design, jnp.linspace(1.0, 3.0, 2000) / 4, rtol=1e-2)
    assert result.steps <= 25


@pytest.mark.parametrize("driver", CONSERVATIVE)
def test_both_limits_of_a_range_hold(driver):
    for sign, expected in ((1.0, -1.0), (-1.0, 2.0)):
        problem = Problem(
            jnp.zeros(2),
            lambda x, sign=sign: Evaluation((sign * x + x**2 / 100).sum(), {"sum": x.sum()}),
            bounds=(-10.0, 10.0),
            constraints={"sum": Constraint(lower=-1.0, upper=2.0)},
        )
        result = optimize(problem, driver, stop=STOP, transform=jax.jit)
        assert float(result.design.sum()) == pytest.approx(expected, abs=1e-5) and result.feasible


@pytest.mark.parametrize("driver", ALL)
def test_derivatives_are_asked_for_where_it_goes_on_and_nowhere_else(driver):
    with own_requests() as requests:
        result = optimize(two_components(), driver, stop=MaxSteps(12))
        asked = Counter(requests)
    if driver in CONSERVATIVE:
        assert result.evaluations > result.steps + 1  # there were trials
    for name in ("rosen", "ball"):
        assert asked[f"{name}.apply"] == result.evaluations
        assert asked[f"{name}.vector_jacobian_product"] == result.steps + 1


@pytest.mark.parametrize("driver", ALL)
def test_what_ends_a_run_is_said_as_it_is(driver):
    result = optimize(rosenbrock_problem(), driver, stop=MaxEvaluations(9), transform=jax.jit)
    assert "maximum number of evaluations" in result.reason and 9 <= result.evaluations <= 30
    flat = Problem(jnp.ones(2), lambda x: Evaluation((x**2).sum(), {"square": (x**2).sum()}))
    problem = Problem(flat.design, flat.evaluate, constraints={"square": Constraint(upper=-1.0)})
    result = optimize(problem, driver, stop={**STOP, "max_steps": 60}, transform=jax.jit)
    assert not result.converged and not result.feasible


@pytest.mark.parametrize("driver", ALL)
def test_what_is_raised_comes_through_nlopt_as_it_is(driver):
    def alive():
        return [thread for thread in threading.enumerate() if thread.name.startswith(f"tesseract-flow {driver}")]

    def at(n, error):
        def before(k):
            if k == n:
                raise error

        return before

    for error in (KeyboardInterrupt(), SystemExit(3), ZeroDivisionError("mine")):
        with pytest.raises(type(error)):
            optimize(rosenbrock_problem(), driver, transform=Counted(before=at(5, error)))
        assert not alive()
    optimize(rosenbrock_problem(), driver, stop=MaxSteps(2), transform=jax.jit)
    assert not alive()


@pytest.mark.parametrize("driver", ALL)
def test_policies_for_failures(driver):
    def evaluate(x):
        return jnp.where(x > 1.0, jnp.nan, (x - 3.0) ** 2)

    problem = Problem(jnp.asarray(0.0), evaluate)
    with pytest.raises(DriverError, match="owns its loop"):
        optimize(problem, driver, on_failure="skip", transform=jax.jit)
    with pytest.raises(EvaluationFailed):
        optimize(problem, driver, on_failure="raise", transform=jax.jit)
    result = optimize(problem, driver, on_failure="stop", transform=jax.jit)
    assert result.reason.startswith("an evaluation failed in step") and float(result.design) <= 1.0


def test_going_on_from_any_step_with_constraints(tmp_path):
    whole, parts = Counted(), Counted()
    undisturbed = optimize(budget(30), "mma", stop=MaxSteps(9), transform=whole)
    for n in range(10):
        result = optimize(budget(30), "mma", stop=MaxSteps(n), journal=tmp_path / "J", transform=parts)
    assert same_bits(undisturbed, result) and parts.n_calls == whole.n_calls


@pytest.mark.parametrize("driver", CONSERVATIVE)
def test_equalities_are_refused_by_name_with_what_takes_them(driver):
    with pytest.raises(DriverError, match=r"(?s)demands equals=... of 'squares'\..*'slsqp', 'ld_slsqp'"):
        optimize(hs71_problem(), driver)


EQUAL = {
    "scalar": ({"lower": 2.0, "upper": 2.0}, jnp.float64),
    "entry": ({"lower": jnp.array([0.0, 2.0]), "upper": jnp.array([1.0, 2.0])}, jnp.float64),  # two limits, two demands
    "precision": ({"lower": 2.0, "upper": 2.0 + 1e-12}, jnp.float32),
}


@pytest.mark.parametrize("what", EQUAL)
def test_limits_that_are_equal_are_the_same_demand(what):
    limits, dtype = EQUAL[what]
    start = jnp.ones(2, dtype)
    problem = Problem(start, lambda x: Evaluation((x * x).sum(), {"c": x}), constraints={"c": Constraint(**limits)})
    with pytest.raises(DriverError, match=r"demands lower and upper limits that are equal of 'c'\.\nDemand the"):
        optimize(problem, "mma")


@pytest.mark.parametrize("driver", ALL)
def test_without_nlopt_it_says_what_to_install(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "nlopt", None)
    with pytest.raises(DriverError, match=r"not installed: pip install 'tesseract-flow\[nlopt\]'"):
        build_driver(driver)
    assert isinstance(driver_settings(driver), dict)


def test_settings_are_checked():
    with pytest.raises(DriverError, match="'rho_init' of driver 'mma' must be positive"):
        build_driver("mma", settings={"rho_init": 0.0})
    with pytest.raises(DriverError, match="ld_slsqp takes no settings"):
        build_driver("ld_slsqp", settings={"ftol": 1.0})
    assert build_driver("mma", settings={"always_improve": False}).description["always_improve"] is False


@pytest.mark.parametrize("driver", CONSERVATIVE)
def test_the_stricter_way_goes_on_from_conservative_points_alone(driver):
    problem, settings = beam_problem(Constraint(upper=0.01)), {"always_improve": False}
    result = optimize(problem, driver, driver_settings=settings, stop=STOP, transform=jax.jit)
    assert result.value == pytest.approx(BEAM_OPTIMUM, rel=1e-6) and result.feasible
