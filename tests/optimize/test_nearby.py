"""A run that began far up a wall is not converged at its foot: what is lower nearby is looked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tesseract_flow.optimize import Constraint, Evaluation, Problem, optimize

TURNED = jnp.array([[0.8, 0.6], [-0.6, 0.8]])
LENNARD_JONES = lambda r: (4 * (r**-12 - r**-6)).sum()  # noqa: E731
CASES = {
    "a direction 1e12 times as steep": (
        Problem(jnp.array([10.0, 0.0]), lambda x: 1e12 * x[0] ** 2 + (x[1] - 5.0) ** 2),
        0.0,
    ),
    "a direction 1e15 times as steep": (
        Problem(jnp.array([-3.3, 0.7]), lambda x: 1e15 * x[0] ** 2 + (x[1] - 5.0) ** 2),
        0.0,
    ),
    "a direction 1e14 times as steep, across": (
        Problem(jnp.array([10.0, 0.0]), lambda x: 1e14 * (TURNED[0] @ x) ** 2 + (TURNED[1] @ x - 5.0) ** 2),
        0.0,
    ),
    "several directions that are steep": (
        Problem(
            jnp.full(4, -3.3), lambda x: 1e15 * (x[:3] ** 2 * jnp.array([1.0, 3.0, 0.1])).sum() + (x[3] - 5.0) ** 2
        ),
        0.0,
    ),
    "an exponential wall": (Problem(jnp.array([3.0]), lambda x: jnp.cosh(20 * (x - 1)).sum()), 1.0),
    "two atoms": (Problem(jnp.array([0.1]), LENNARD_JONES, bounds=(0.05, 5.0)), -1.0),
    "a barrier": (
        Problem(jnp.array([0.01, 0.0]), lambda x: x[0] ** -6 + x[0] ** 2 + (x[1] - 5) ** 2, bounds=(1e-3, 10.0)),
        1.754765350603323,  # 3^(1/4) + 3^(-3/4)
    ),
    "a twelfth power beside a constraint": (
        Problem(
            jnp.array([10.0, 0.0]),
            lambda x: Evaluation(x[0] ** 12 + (x[1] - 5) ** 2, {"c": x[1]}),
            constraints={"c": Constraint(upper=4.0)},
        ),
        1.0,
    ),
}


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        *((driver, name) for driver in ("lbfgs", "slsqp") for name in CASES),
        *(("l-bfgs-b", name) for name in list(CASES)[:7]),
        ("mma", "a twelfth power beside a constraint"),
        *(pytest.param("trust-constr", name, marks=pytest.mark.slow) for name in CASES),
        *(pytest.param("mma", name, marks=pytest.mark.slow) for name in list(CASES)[:7]),
    ],
)
def test_the_foot_of_a_wall_is_no_optimum(driver, name):
    """Claimed at 25, 162905, 20.9, 27 and 1.74, in units of the slope at the start."""
    problem, least = CASES[name]
    result = optimize(problem, driver, transform=jax.jit)
    assert result.value == pytest.approx(least, abs=2e-3) if result.converged else result.reason
    if driver in ("lbfgs", "slsqp") and "1e14" not in name and "1e15" not in name and "several" not in name:
        assert result.converged, result.reason


def test_in_single_precision_too():
    problem = Problem(jnp.array([-1.2, 5.0], jnp.float32), lambda x: 1e6 * (1 - x[0]) ** 2 + 0.1 * (x[1] - 2.0) ** 2)
    for driver in ("slsqp", "lbfgs"):
        result = optimize(problem, driver, transform=jax.jit)
        assert result.value < 1e-3 or not result.converged


@pytest.mark.parametrize("rest", [0.0, 1e-9, 1e-3, 25.0])
def test_a_sum_of_squares_that_falls_to_almost_nothing_converges(rest):
    problem = Problem(jnp.array([-1.2, 1.0]), lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2 + rest)
    for driver in ("lbfgs", "slsqp", "l-bfgs-b"):
        result = optimize(problem, driver, transform=jax.jit)
        assert result.converged and result.value == pytest.approx(rest, abs=1e-10), (driver, result.reason)


def test_where_the_values_rise_at_once_a_claim_costs_two_looks():
    """HS28 of Hock & Schittkowski falls to 1e-31, far below the slope that its claim rests on. Six looks were more than
    all of its steps."""
    problem = Problem(
        jnp.array([-4.0, 1.0, 1.0]),
        lambda x: Evaluation((x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2, {"c": x[0] + 2 * x[1] + 3 * x[2]}),
        constraints={"c": Constraint(equals=1.0)},
    )
    result = optimize(problem, "slsqp", transform=jax.jit)
    assert result.converged and result.value < 1e-20
    before, last = result.history[-2:]
    assert last.evaluations - before.evaluations == 1 + 2
