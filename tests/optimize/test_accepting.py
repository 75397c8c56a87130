"""Changes that make another state necessary are accepted as far as there is a design to go on from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tesseract_flow.errors import OtherRun
from tesseract_flow.optimize import Constraint, Evaluation, MaxSteps, Problem, optimize, read_contents
from tests.optimize.helpers import same_bits

DRIVERS = {"slsqp": {}, "lbfgs": {}, "adam": {"learning_rate": 0.1}}


def problem(n=2, **constraints) -> Problem:
    """Two unknowns at 3, kept from there by whatever is demanded."""

    def evaluate(x):
        values = {"sum": x.sum(), "each": x, "apart": x[0] - x[1]}
        return Evaluation(((x - 3.0) ** 2).sum(), {name: values[name] for name in constraints})

    return Problem(jnp.arange(1.0, 1.0 + n), evaluate, constraints=constraints)


SUM = Constraint(upper=2.0)
CHANGES = {
    "added": ({}, {"sum": SUM}),
    "removed": ({"sum": SUM}, {}),
    "another": ({"sum": SUM}, {"each": Constraint(upper=1.2)}),
    "zero": ({"sum": SUM}, {"sum": SUM, "apart": Constraint(equals=0.0)}),
}


@pytest.mark.parametrize(
    ("driver", "what"), [("slsqp", what) for what in CHANGES] + [("lbfgs", "added"), ("adam", "zero")]
)
def test_constraints_come_and_go(tmp_path, driver, what):
    before, after = (problem(**constraints) for constraints in CHANGES[what])
    options = {"transform": jax.jit, **DRIVERS[driver]}
    optimize(before, driver, stop=MaxSteps(2), journal=tmp_path, **options)
    kept = read_contents(tmp_path).last["(root)"]
    with pytest.raises(OtherRun, match="accept_changes=True"):
        optimize(after, driver, journal=tmp_path, **options)
    stop = {"max_steps": 300, "gradient_tolerance": 1e-4}
    went_on = optimize(after, driver, stop=stop, journal=tmp_path, accept_changes=True, **options)
    expected = {"added": [1.0, 1.0], "removed": [3.0, 3.0], "another": [1.2, 1.2], "zero": [1.0, 1.0]}[what]
    assert went_on.converged and went_on.design.tolist() == pytest.approx(expected, abs=1e-3)
    # The step after those that were made before is the old design, judged as one of the new problem.
    judged = went_on.history[3]
    assert judged.value == pytest.approx(float(((kept - 3.0) ** 2).sum())) and judged.since == 3
    anew = {"added": "sum", "another": "each", "zero": "apart"}.get(what)
    assert [event for event in judged.events if event.startswith("multipliers")] == (
        [f"multipliers begin anew ({anew})"] if anew else []
    )
    assert same_bits(went_on, optimize(after, driver, stop=stop, journal=tmp_path, **options))


def test_killed_before_the_new_problem_was_evaluated_it_still_goes_on(tmp_path):
    optimize(problem(), "slsqp", stop=MaxSteps(2), journal=tmp_path, transform=jax.jit)

    def interrupted(fn):
        def call(*args):
            raise KeyboardInterrupt

        return call

    with pytest.raises(KeyboardInterrupt):
        optimize(problem(sum=SUM), "slsqp", journal=tmp_path, transform=interrupted, accept_changes=True)
    result = optimize(problem(sum=SUM), "slsqp", journal=tmp_path, transform=jax.jit)
    assert result.converged and result.design.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_another_driver_goes_on_with_a_memory_of_its_own(tmp_path):
    optimize(problem(sum=SUM), "slsqp", stop=MaxSteps(1), journal=tmp_path, transform=jax.jit)
    result = optimize(problem(sum=SUM), "lbfgs", journal=tmp_path, transform=jax.jit, accept_changes=True)
    assert result.converged and result.design.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert "the memory of lbfgs begins anew" in result.history[2].events


def test_where_no_design_can_go_on_that_is_not_offered(tmp_path):
    optimize(problem(2), "lbfgs", stop=MaxSteps(2), journal=tmp_path, transform=jax.jit)
    for options in ({"accept_changes": True}, {}):
        with pytest.raises(OtherRun, match=r"What varies has other names or shapes.*\n.*\n.*another folder") as refused:
            optimize(problem(3), "lbfgs", stop=MaxSteps(4), journal=tmp_path, transform=jax.jit, **options)
        assert "accept_changes" not in str(refused.value) and "start_from" not in str(refused.value)
    assert read_contents(tmp_path).step == 2
