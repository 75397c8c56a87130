"""Which driver a problem gets that none was named for."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.errors import UnknownArgument
from tesseract_flow.optimize import (
    AugmentedLagrangian,
    Constraint,
    Evaluation,
    FileJournal,
    MaxSteps,
    Problem,
    optimize,
)
from tesseract_flow.optimize.automatic import automatic_driver
from tesseract_flow.optimize.failures import as_policy
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import hs71_problem, rosenbrock_problem, same_bits

ONCE = {"stop": MaxSteps(1), "transform": jax.jit}


def name_for(problem, policy="shrink", **options) -> str:
    asked = {"learning_rate": None, "settings": None, "method": None, "journal": None, **options}
    return automatic_driver(problem, policy=as_policy(policy), shared=Shared(), **asked)


def constrained(n: int, rows: int, of=jnp.asarray) -> Problem:
    return Problem(
        jnp.ones(n),
        lambda x: Evaluation((x**2).sum(), {"c": jnp.resize(of(x), rows)}),
        constraints={"c": Constraint(lower=0.5)},
    )


def test_a_problem_with_constraints_gets_slsqp_unless_it_is_large():
    assert name_for(hs71_problem()) == "slsqp"
    assert name_for(rosenbrock_problem()) == "adam"
    assert [name_for(constrained(n, rows)) for n, rows in [(500, 100), (501, 1)]] == ["slsqp", "adam"]


def test_many_rows_are_too_many_where_a_component_computes_them():
    """Each is a pullback then, at every step; what is computed here has all of them at once."""
    tripled = FunctionTesseract(lambda i: {"y": 3.0 * i["x"]}, {"x": np.ones(2)}, name="tripled")
    assert [name_for(constrained(n, rows)) for n, rows in [(2, 25_000), (2, 25_001)]] == ["slsqp", "adam"]
    few, many = (constrained(2, rows, lambda x: apply_tesseract(tripled, {"x": x})["y"]) for rows in (100, 101))
    assert [name_for(few), name_for(many)] == ["slsqp", "adam"]


def test_rows_of_linear_constraints_are_asked_for_once_and_do_not_count():
    tripled = FunctionTesseract(lambda i: {"y": 3.0 * i["x"]}, {"x": np.ones(2)}, name="tripled")

    def linear(rows):
        problem = constrained(2, rows, lambda x: apply_tesseract(tripled, {"x": x})["y"])
        return dataclasses.replace(problem, constraints={"c": Constraint(lower=0.5, linear=True)})

    assert [name_for(linear(rows)) for rows in (101, 25_001)] == ["slsqp", "adam"]


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.1},
        {"settings": {"b1": 0.9}},
        {"method": AugmentedLagrangian.for_steps()},
        {"policy": "skip"},
    ],
    ids=str,
)
def test_what_only_a_driver_of_optax_has_decides_first(options):
    assert name_for(hs71_problem(), **options) == "adam"


def test_settings_of_slsqp_are_its_own():
    assert name_for(hs71_problem(), settings={"ftol": 1e-9}) == "slsqp"


def test_it_is_the_default_and_solves():
    result = optimize(hs71_problem(), transform=jax.jit)
    assert result.converged and result.value == pytest.approx(17.0140173, rel=1e-6) and result.evaluations <= 12


def test_a_run_goes_on_with_the_driver_that_it_began_with(tmp_path):
    """Adam was the default of all problems once."""
    began = optimize(hs71_problem(), "adam", journal=FileJournal(tmp_path / "began"), **ONCE)
    options = {"stop": MaxSteps(3), "transform": jax.jit}
    went_on = optimize(hs71_problem(), journal=FileJournal(tmp_path / "began"), **options)
    whole = optimize(hs71_problem(), "adam", **options)
    assert began.steps == 1 and same_bits(went_on, whole)
    assert name_for(hs71_problem(), journal=str(tmp_path / "began")) == "adam"
    assert name_for(hs71_problem(), journal=str(tmp_path / "none")) == "slsqp"
    optimize(hs71_problem(), journal=FileJournal(tmp_path / "new"), **ONCE)
    assert optimize(hs71_problem(), journal=FileJournal(tmp_path / "new"), **options).steps == 3


def test_a_setting_of_either_that_is_given_as_a_keyword_is_told_where_it_belongs():
    for setting in ("b1", "ftol"):
        with pytest.raises(UnknownArgument, match=f"driver_settings={{'{setting}'"):
            optimize(hs71_problem(), **{setting: 0.9})
