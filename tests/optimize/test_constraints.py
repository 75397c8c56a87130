"""The augmented Lagrangian: its derivative, its limits, and how its multipliers move."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize import Evaluation, Problem, optimize
from tesseract_flow.optimize.constraints import (
    AugmentedLagrangian,
    Constraint,
    ConstraintSet,
    Duals,
    change_duals,
    count_step,
    mean_residuals,
)

numbers = st.floats(-5, 5)
METHOD = AugmentedLagrangian.for_steps()


def one(constraint: Constraint, shape=()) -> ConstraintSet:
    return ConstraintSet.build({"c": constraint}, {"c": jax.ShapeDtypeStruct(shape, jnp.float64)}, jnp.float64)


def duals(price, penalty=2.0) -> Duals:
    return Duals({"c": jnp.asarray(price)}, {"c": jnp.asarray(penalty)}, {"c": jnp.ones(())})


def violation(constraint: Constraint, value, shape=()) -> float:
    demands = one(constraint, shape)
    return float(demands.violation({"c": jnp.asarray(value, float)}, demands.silent()))


@given(numbers, numbers, numbers)
def test_equality_is_the_textbook_term(value, target, price):
    demands = one(Constraint(equals=target, scale=1.0))
    h = value - target
    assert np.isclose(
        float(demands.augmentation({"c": jnp.asarray(value)}, duals(price), jnp.float64)), price * h + h * h
    )


@given(numbers, numbers, numbers)
def test_one_sided_term_is_that_of_nocedal_and_wright(value, limit, price):
    # For c >= limit with multiplier mu >= 0: equation (17.65) with c_i(x) = value - limit, mu_k = 1/ρ; our price is
    # -mu.
    price, rho = -abs(price), 2.0
    demands = one(Constraint(lower=limit, scale=1.0))
    c = value - limit
    expected = price * c + rho / 2 * c * c if c + price / rho <= 0 else -(price**2) / (2 * rho)
    received = float(demands.augmentation({"c": jnp.asarray(value)}, duals(price, rho), jnp.float64))
    assert np.isclose(received, expected, atol=1e-12)


@given(numbers, numbers, st.floats(0, 4), numbers)
@pytest.mark.slow
def test_derivative_is_the_next_multiplier(value, lower, width, price):
    demands = one(Constraint(lower=lower, upper=lower + width, scale=1.0))
    values, current = {"c": jnp.asarray(value)}, duals(price)
    slope = jax.grad(lambda v: demands.augmentation(v, current, jnp.float64))(values)["c"]
    _, tally = demands.start(METHOD)
    following, _ = change_duals(current, tally, demands.residuals(values, current), METHOD)
    assert np.isclose(float(slope), float(following.price["c"]), atol=1e-12)


@given(numbers)
def test_the_price_of_a_slack_inequality_falls_to_zero(price):
    demands = one(Constraint(upper=100.0, scale=1.0))
    _, tally = demands.start(METHOD)
    following, _ = change_duals(duals(price), tally, demands.residuals({"c": jnp.asarray(0.0)}, duals(price)), METHOD)
    assert abs(float(following.price["c"])) < 1e-14


def test_silent_duals_add_nothing_and_keep_nan_out_of_the_gradient():
    demands = one(Constraint(equals=0.0), (3,))
    values = {"c": jnp.array([1.0, 0.0, -2.0])}
    value, slope = jax.value_and_grad(lambda v: demands.augmentation(v, demands.silent(), jnp.float64))(values)
    assert float(value) == 0.0 and slope["c"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("constraint", "value", "expected"),
    [
        (Constraint(equals=0.01), 0.0101, 0.01),
        (Constraint(upper=0.0), 0.25, 0.25),
        (Constraint(lower=2.0, scale=10.0), 1.0, 0.1),
        (Constraint(lower=-1.0, upper=4.0), 3.9, 0.0),
        # Each side by its own limit, however large the other is.
        (Constraint(lower=4.0, upper=1e30), 1.0, 0.75),
        (Constraint(lower=4.0, upper=1e9), 1.0, 0.75),
        (Constraint(lower=1.0, upper=1e5), 0.0, 1.0),
        (Constraint(lower=1.0, upper=1e5), 1.1e5, 0.1),
        (Constraint(lower=-1e9, upper=4.0), 5.0, 0.25),
        (Constraint(lower=-1e30, upper=4.0), 5.0, 0.25),
    ],
)
def test_a_violation_is_relative_to_the_limit_that_is_violated(constraint, value, expected):
    assert violation(constraint, value) == pytest.approx(expected)


def test_every_entry_of_an_array_has_its_own_limits():
    upper = Constraint(upper=jnp.array([1.0, 2.0]))
    assert violation(upper, [0.5, 3.0], (2,)) == pytest.approx(0.5)
    assert violation(Constraint(upper=1.0), np.zeros(0), (0,)) == 0.0
    mixed = Constraint(lower=[4.0, -np.inf, 1.0], upper=[1e9, 2.0, 1.0])
    assert violation(mixed, [4.0, -50.0, 1.0], (3,)) == 0.0
    assert violation(mixed, [1.0, -50.0, 1.0], (3,)) == pytest.approx(0.75)
    assert violation(mixed, [4.0, 3.0, 1.0], (3,)) == pytest.approx(0.5)
    assert violation(mixed, [4.0, 0.0, 1.5], (3,)) == pytest.approx(0.5)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-30, 30), st.floats(-3, 3), st.floats(-3, 3))
@pytest.mark.slow
def test_multipliers_of_two_sides_add_up_to_the_slope_of_the_augmentation(low, width, value, below, above):
    demands = one(Constraint(lower=low, upper=low + width))
    start, _ = demands.start(METHOD)
    price = {"c.lower": jnp.asarray(-abs(below)), "c.upper": jnp.asarray(abs(above))}
    current = Duals(price, start.penalty, start.unit)
    values = {"c": jnp.asarray(value)}
    slope = jax.grad(lambda v: demands.augmentation(v, current, jnp.float64))(values)["c"]
    total = demands.multipliers(demands.estimates(values, current), current)["c"]
    assert np.isclose(float(slope), float(total), atol=1e-10)


def test_a_limit_of_zero_is_measured_by_the_start():
    demands = one(Constraint(lower=jnp.array([0.0, 2.0, 0.0])), (3,))
    units = demands.units_from({"c": jnp.array([-3.0, 50.0, 5.0])})
    assert units["c"][jnp.array([0, 2])].tolist() == [3.0, 5.0]
    sized = Duals({"c": jnp.zeros(3)}, {"c": jnp.zeros(())}, units)
    assert float(demands.violation({"c": jnp.array([-0.6, 2.0, 0.0])}, sized)) == pytest.approx(0.2)
    assert float(demands.violation({"c": jnp.array([0.0, 1.0, 0.0])}, sized)) == pytest.approx(0.5)
    for nothing in (0.0, 1e-16):  # a limit that is met up to rounding says nothing about sizes
        assert demands.units_from({"c": jnp.full(3, nothing)})["c"].tolist() == [1.0, 1.0, 1.0]


def test_entries_of_different_size_are_measured_each_by_its_own():
    """By the largest of them, 3e5, an angle of 0.2 held whatever it was."""
    demands = one(Constraint(lower=0.0), (3,))
    start = {"c": jnp.array([3e5, 0.1, 0.0])}
    units = demands.units_from(start)["c"]
    assert units.tolist() == [3e5, 0.1, 0.1]  # what tells nothing is no larger than the others
    sized = dataclasses.replace(demands.silent(), unit={"c": units})
    assert float(demands.violation({"c": jnp.array([0.0, -0.2, 0.0])}, sized)) == pytest.approx(2.0)
    assert demands.units_from(start, spread=1e3)["c"].tolist() == [3e5, 300.0, 300.0]


def test_penalty_grows_only_where_the_residual_did_not_shrink():
    names = {"good": Constraint(equals=0.0), "bad": Constraint(equals=0.0)}
    shapes = {name: jax.ShapeDtypeStruct((), jnp.float64) for name in names}
    demands = ConstraintSet.build(names, shapes, jnp.float64)
    method = dataclasses.replace(METHOD, growth=10.0, decrease=0.5, max_penalty=100.0)
    current, tally = demands.start(method)
    penalties = []
    for good, bad in [(1.0, 1.0), (0.4, 0.9), (0.1, 0.8), (0.01, 0.8), (1e-12, 0.8)]:
        residuals = {"good": jnp.asarray(good), "bad": jnp.asarray(bad)}
        current, tally = change_duals(current, tally, residuals, method)
        penalties.append((float(current.penalty["good"]), float(current.penalty["bad"])))
    assert penalties == [(3.0, 3.0), (3.0, 30.0), (3.0, 100.0), (3.0, 100.0), (3.0, 100.0)]
    assert int(tally.n_changes) == 5


def test_mean_residual_cancels_an_oscillation():
    demands = one(Constraint(equals=0.0))
    _, tally = demands.start(METHOD)
    for t in (0.5, -0.5, 0.5, -0.5, 0.1):
        tally = count_step(tally, {"c": jnp.asarray(t)})
    assert float(mean_residuals(tally)["c"]) == pytest.approx(0.02)


def test_float32_stays_float32():
    shapes = {"c": jax.ShapeDtypeStruct((2,), jnp.float32)}
    demands = ConstraintSet.build({"c": Constraint(upper=1.0)}, shapes, jnp.float32)
    current, tally = demands.start(METHOD)
    values = {"c": jnp.array([2.0, 0.0], jnp.float32)}
    tally = count_step(tally, demands.residuals(values, current))
    current, tally = change_duals(current, tally, mean_residuals(tally), METHOD)
    assert {leaf.dtype for leaf in jax.tree.leaves(current)} == {jnp.dtype(jnp.float32)}
    assert demands.augmentation(values, current, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "received nothing"),
        ({"equals": 1.0, "lower": 0.0}, "either equals"),
        ({"lower": 2.0, "upper": 1.0}, "No value satisfies"),
        ({"lower": np.zeros(3), "upper": np.ones(2)}, "do not go together"),
        ({"equals": float("inf")}, "equals must be a number"),
        ({"upper": float("nan")}, "upper must be a number"),
        ({"upper": "high"}, "upper must be a number"),
        ({"lower": 1e30}, "No value satisfies"),
        ({"upper": -1e30}, "No value satisfies"),
        ({"equals": 1e30}, "equals must be a number"),
        ({"upper": 1.0, "scale": 0.0}, "scale must be positive"),
    ],
)
def test_demands_that_make_no_sense_are_refused(kwargs, message):
    with pytest.raises(ProblemError, match=message):
        Constraint(**kwargs)


# --- what would hold everywhere, or nowhere


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e20, 1e30, [1.0, 1e30]])
def test_a_scale_that_excuses_everything_is_refused(scale):
    with pytest.raises(ProblemError, match=r"scale must be positive and below 1e\+20"):
        Constraint(upper=1.0, scale=scale)


def circle(scale: float) -> Problem:
    def evaluate(x):
        return Evaluation(x.sum(), {"c": (x**2).sum()})

    return Problem(jnp.ones(2), evaluate, constraints={"c": Constraint(upper=2.0, scale=scale)})


@pytest.mark.parametrize("tol", [np.nan, np.inf, -1e-6, 1.0, 1e30, True, "1e-6"])
def test_a_tolerance_that_nothing_or_everything_meets_is_refused(tol):
    with pytest.raises(ProblemError, match="feasibility_tol must be a number from 0 to below 1"):
        optimize(circle(1.0), "slsqp", feasibility_tol=tol)


@pytest.mark.parametrize(("scale", "is_told"), [(2.0, False), (1e5, False), (1e7, True)])
def test_a_violation_as_large_as_the_limit_is_told(scale, is_told):
    result = optimize(circle(scale), "slsqp", stop={"max_steps": 2})
    assert any("counts as held up to a violation of" in note for note in result.notes) == is_told
