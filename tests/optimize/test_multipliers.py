"""Multipliers by least squares: right at a solution, and the same in whatever units a problem is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.optimize.multipliers import least_squares_multipliers

POWERS = st.integers(-6, 6).map(lambda k: 10.0**k)
NO_BOX = (np.full(3, -np.inf), np.full(3, np.inf))


def multipliers(gradient, jacobian, values, rows=(1.0, 1.0, 1.0), objective=1.0):
    """Of values that are to be at most zero, with rows and objective in other units."""
    scale = np.asarray(rows)
    limits = np.full(3, -np.inf), np.zeros(3)
    point = np.array([0.5, -2.0, 1.0])
    return least_squares_multipliers(
        objective * np.asarray(gradient), scale[:, None] * np.asarray(jacobian), scale * values, limits, point, NO_BOX
    )


@given(st.tuples(POWERS, POWERS, POWERS), POWERS, st.integers(0, 100))
def test_units_of_rows_and_objective_cancel(rows, objective, seed):
    random = np.random.default_rng(seed)
    gradient, jacobian = random.normal(size=3), random.normal(size=(3, 3))
    values = -(10.0 ** random.uniform(-9, 0, size=3))
    plain = multipliers(gradient, jacobian, values)
    other = multipliers(gradient, jacobian, values, rows, objective)
    assert np.allclose(other * np.asarray(rows) / objective, plain, rtol=1e-5, atol=1e-7 * (1 + np.abs(plain).max()))


def test_at_a_solution_the_gradient_vanishes():
    random = np.random.default_rng(3)
    jacobian, known = random.normal(size=(3, 3)), np.array([2.0, 0.0, 5.0])
    found = multipliers(-known @ jacobian, jacobian, np.array([0.0, -0.3, 0.0]))
    assert found == pytest.approx(known, abs=1e-12)


def test_a_row_without_a_derivative_has_no_multiplier():
    jacobian = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert multipliers([-3.0, 0.0, 0.0], jacobian, np.zeros(3)).tolist() == [3.0, 0.0, 0.0]
