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
    return Duals({"c": jnp.asarray(price)}, {"c": jnp.asarray(penalty)})


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


def test_violation_is_measured_in_units_of_the_scale():
    assert float(one(Constraint(equals=0.01)).violation({"c": jnp.asarray(0.0101)})) == pytest.approx(0.01)
    assert float(one(Constraint(upper=0.0)).violation({"c": jnp.asarray(0.25)})) == pytest.approx(0.25)
    assert float(one(Constraint(lower=2.0, scale=10.0)).violation({"c": jnp.asarray(1.0)})) == pytest.approx(0.1)
    assert float(one(Constraint(lower=-1.0, upper=4.0)).violation({"c": jnp.asarray(3.9)})) == 0.0
    array = one(Constraint(upper=jnp.array([1.0, 2.0])), (2,))
    assert float(array.violation({"c": jnp.array([0.5, 3.0])})) == pytest.approx(0.5)
    assert float(one(Constraint(upper=1.0), (0,)).violation({"c": jnp.zeros(0)})) == 0.0


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
        ({"equals": float("inf")}, "equals must be a number"),
        ({"upper": float("nan")}, "upper must be a number"),
        ({"upper": "high"}, "upper must be a number"),
        ({"upper": 1.0, "scale": 0.0}, "scale must be positive"),
    ],
)
def test_demands_that_make_no_sense_are_refused(kwargs, message):
    with pytest.raises(ProblemError, match=message):
        Constraint(**kwargs)
