"""Which limits hold a design back: against problems whose solution says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.optimize import Active, Constraint, Evaluation, Problem, optimize, read_journal
from tesseract_flow.report import write_result
from tesseract_flow.report.tables import bound_rows, constraint_rows

DRIVERS = ["lbfgs", "slsqp", "trust-constr"]


def evaluate(design: Any) -> Evaluation:
    x = design["x"]
    values = {
        "sum": jnp.sum(x),  # held down
        "pair": x[:2] * jnp.array([1.0, 1e-3]),  # the second held up
        "slack": x[0],
        "same": x[3],
    }
    return Evaluation(jnp.sum((x - jnp.array([5.0, -1.0, 0.5, 4.0])) ** 2) + (design["free"] - 1.0) ** 2, values)


def problem() -> Problem:
    return Problem(
        {"x": jnp.array([1.0, 1.0, 0.2, 2.0]), "free": jnp.asarray(0.0), "n": 3},
        evaluate,
        bounds=({"x": jnp.array([0.0, 0.0, 0.0, -jnp.inf])}, {"x": jnp.array([2.0, 4.0, 4.0, jnp.inf])}),
        constraints={
            "sum": Constraint(upper=5.0),
            "pair": Constraint(lower=jnp.array([-3.0, 2e-4]), upper=50.0),
            "slack": Constraint(lower=-4.0, upper=10.0),
            "same": Constraint(equals=2.5),
        },
    )


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.slow
def test_entries_are_found_that_lie_at_a_limit(driver: str, tmp_path: Path):
    # x = (2, 0.2, 0.3, 2.5): the first at its bound, the second by `pair`, the third by `sum`, the last by `same`.
    result = optimize(problem(), driver=driver, journal=str(tmp_path / "run"))
    assert result.converged
    np.testing.assert_allclose(result.design["x"], [2.0, 0.2, 0.3, 2.5], atol=1e-3)
    active = result.active
    assert active is not None
    assert list(active.constraints) == ["pair", "same", "slack", "sum"]
    assert list(active.bounds) == ["x"]
    assert str(active.constraints["sum"]) == "upper"
    assert str(active.constraints["same"]) == "equal"
    assert str(active.constraints["slack"]) == "none"
    assert not active.constraints["slack"].any
    assert active.constraints["pair"].lower.tolist() == [False, True]
    assert not active.constraints["pair"].upper.any()
    assert active.bounds["x"].upper.tolist() == [True, False, False, False]
    assert not active.bounds["x"].lower.any()
    read = read_journal(str(tmp_path / "run")).active
    assert read is not None
    assert read.to_json() == active.to_json()
    rows = {
        row["constraint"]: row for row in constraint_rows(result.constraints, result.multipliers, active.constraints)
    }
    assert rows["pair"]["active"] == "lower: 1 entry, at [1]"
    assert bound_rows(active.bounds) == [
        {"leaf": "x", "entries": 4, "at a bound": 1, "active": "upper: 1 entry, at [0]"}
    ]
    write_result(tmp_path / "out", result)
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told["active"]["bounds"]["x"] == {"shape": [4], "lower": [], "upper": [[0]]}
    assert "upper: 1 entry, at [0]" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_close_to_a_limit_and_not_held_by_it_is_not_active():
    made = Problem(
        jnp.array([1.0, 1.0]),
        lambda x: Evaluation(jnp.sum((x - jnp.array([1e-4, 2.0 - 1e-4])) ** 2), {"x": x}),
        bounds=(0.0, 2.0),
        constraints={"x": Constraint(lower=0.0, upper=2.0, scale=1.0)},
    )
    result = optimize(made, driver="slsqp")
    assert result.active is not None
    assert not result.active.bounds["(root)"].any
    assert not result.active.constraints["x"].any


def test_a_leaf_between_equal_bounds_is_at_both():
    made = Problem(jnp.array([1.0, 2.0]), jnp.sum, bounds=(jnp.array([0.0, 2.0]), jnp.array([4.0, 2.0])))
    active = optimize(made, driver="lbfgs").active
    assert active is not None
    assert str(active.bounds["(root)"]) == "equal: 1 entry, at [1]; lower: 1 entry, at [0]"


def test_without_limits_there_is_nothing_to_tell():
    active = optimize(Problem(jnp.ones(2), lambda x: jnp.sum(x**2)), driver="lbfgs").active
    assert active is not None
    assert active.constraints == {}
    assert active.bounds == {}


def test_masks_come_back_from_a_file_as_they_were():
    masks = Active(np.array([[True, False], [False, False]]), np.array([[False, True], [True, False]]))
    again = Active.from_json(json.loads(json.dumps(masks.to_json())))
    assert (again.lower == masks.lower).all()
    assert (again.upper == masks.upper).all()
    everywhere = Active(np.zeros(3, bool), np.ones(3, bool))
    assert str(everywhere) == "upper: all 3 entries, at [0], [1], [2]"
