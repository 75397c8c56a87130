"""Scaling by magnitudes, by bounds, and between two values: what a driver sees, and that results stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.errors import OtherRun, ProblemError
from tesseract_flow.optimize import Constraint, Evaluation, Problem, optimize
from tesseract_flow.optimize.stopping import MaxSteps
from tests.helpers import assert_close

DESIGN = {"temperature": jnp.asarray(301.0), "load": jnp.array([2e5, 5e5])}
BOUNDS = ({"temperature": 300.0, "load": 0.0}, {"temperature": 310.0, "load": 1e6})


def evaluate(design: Any) -> Evaluation:
    heat = (design["temperature"] - 307.0) ** 2
    load = design["load"] / 1e6
    return Evaluation(heat + jnp.sum((load - 0.9) ** 2), {"total": jnp.sum(design["load"])})


def problem(limit: Any = None, **kwargs: Any) -> Problem:
    limit = Constraint(upper=1e6) if limit is None else limit
    return Problem(DESIGN, evaluate, bounds=BOUNDS, constraints={"total": limit}, **kwargs)


SCALINGS = {
    "bounds": {"scale": "bounds"},
    "some by bounds": {"scale": {"temperature": "bounds", "load": 1e6}},
    "two values": {"ref": {"temperature": 310.0, "load": 1e6}, "ref0": {"temperature": 300.0}},
    "the other way round": {"ref": {"temperature": 300.0, "load": 0.0}, "ref0": {"temperature": 310.0, "load": 1e6}},
    "a magnitude": {"scale": {"temperature": 10.0, "load": np.array([1e6, 1e6])}},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_the_driver_sees_units_and_everybody_else_the_design(scaling: Any):
    made = problem(**scaling)
    u = made.partition.to_scaled(made.start)
    assert_close(made.partition.from_scaled(u), made.start, 1e-14)
    box = made.box.scaled(made.partition)
    width = jax.tree.map(jnp.subtract, box.upper, box.lower)
    assert_close(width, {"temperature": jnp.asarray(1.0), "load": jnp.ones(2)}, 1e-12)
    # By the chain rule, a gradient in these units is that of the function of them.
    direct = jax.grad(lambda u: evaluate(made.partition.from_scaled(u)).objective)(u)
    assert_close(made.partition.scale_gradient(jax.grad(lambda x: evaluate(x).objective)(made.start)), direct, 1e-10)


def test_the_range_of_the_bounds_is_zero_to_one():
    made = problem(scale="bounds")
    box = made.box.scaled(made.partition)
    assert_close(box.lower, {"temperature": jnp.asarray(0.0), "load": jnp.zeros(2)})
    assert_close(box.upper, {"temperature": jnp.asarray(1.0), "load": jnp.ones(2)})
    assert_close(made.partition.to_scaled(made.start)["load"], jnp.array([0.2, 0.5]), 1e-15)


@pytest.mark.parametrize("driver", ["slsqp", "lbfgs"])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_results_and_multipliers_are_those_of_the_design(scaling: Any, driver: str):
    result = optimize(problem(**scaling), driver=driver)
    assert result.converged
    np.testing.assert_allclose(result.design["temperature"], 307.0, atol=1e-3)
    np.testing.assert_allclose(result.design["load"], [5e5, 5e5], rtol=1e-3)
    # d/dc of 2 (c / 2e6 - 0.9)^2 at c = 1e6, per unit of the constraint's own value.
    np.testing.assert_allclose(result.multipliers["total"], 0.8e-6, rtol=1e-2)


def test_an_entry_that_cannot_move_has_a_scale_all_the_same():
    made = Problem(
        jnp.array([1.0, 2.0]), jnp.sum, bounds=(jnp.array([0.0, 2.0]), jnp.array([4.0, 2.0])), scale="bounds"
    )
    assert_close(made.partition.scale, jnp.array([4.0, 1.0]))
    np.testing.assert_allclose(optimize(made, driver="slsqp").design, [0.0, 2.0], atol=1e-9)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": "bounds", "bounds": ({"temperature": 300.0}, {"temperature": 310.0})}, r"none for 'load' \(2 unb"),
        ({"scale": "bound"}, "Did you mean 'bounds'"),
        ({"scale": {"load": "bounds"}, "bounds": None}, "none for 'load'"),
        ({"scale": {"temperature": -1.0}}, "must be positive and finite"),
        ({"ref": {"load": 3.0}, "ref0": {"load": 3.0}}, "ref and ref0 of 'load' are equal.*2 entries"),
        ({"ref": {"load": np.array([2.0, 5.0])}, "ref0": {"load": 5.0}}, r"in 1 entry, at \[1\]"),
        ({"ref0": 1.0}, "without ref the 1 stands for ref"),
        ({"ref": {"load": np.inf}}, "must be finite"),
        ({"ref": 2.0, "scale": {"load": 1.0}}, "'load' has a scale and a ref"),
        ({"ref0": {"wing": 2.0}}, "'wing', which does not vary"),
    ],
)
def test_what_has_no_unit_is_refused_by_name(kwargs: Any, message: str):
    with pytest.raises(ProblemError, match=f"(?s){message}"):
        Problem(DESIGN, evaluate, **{"bounds": BOUNDS, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ref": 2.0, "scale": 1.0}, "either scale="),
        ({"ref": 2.0, "ref0": 2.0}, "must be different"),
        ({"ref0": 1.0}, "must be different"),
        ({"ref": np.ones(2), "ref0": np.zeros(3)}, "do not go together"),
        ({"ref": "large"}, "must be a number"),
    ],
)
def test_a_constraint_without_a_unit_is_refused(kwargs: Any, message: str):
    with pytest.raises(ProblemError, match=message):
        Constraint(upper=3.0, **kwargs)


def test_a_constraint_between_two_values_is_measured_in_their_distance():
    by_scale = optimize(problem(Constraint(upper=1e6, scale=2e6), scale="bounds"), driver="slsqp")
    by_refs = optimize(problem(Constraint(upper=1e6, ref=5e5, ref0=2.5e6), scale="bounds"), driver="slsqp")
    assert by_refs.value == by_scale.value
    assert by_refs.violation == by_scale.violation
    assert [record.violation for record in by_refs.history] == [record.violation for record in by_scale.history]


def test_a_scaling_is_part_of_what_a_run_is(tmp_path: Path):
    journal = str(tmp_path / "run")
    optimize(problem(scale="bounds"), driver="lbfgs", journal=journal, stop=[MaxSteps(2)])
    again = optimize(problem(**SCALINGS["two values"]), driver="lbfgs", journal=journal, stop=[MaxSteps(3)])
    assert again.steps == 3  # the same scaling, said in another way
    for other in ({"scale": SCALINGS["a magnitude"]["scale"]}, {"ref": SCALINGS["two values"]["ref"]}):
        with pytest.raises(OtherRun, match=r"scale|origin"):
            optimize(problem(**other), driver="lbfgs", journal=journal, stop=[MaxSteps(4)])
