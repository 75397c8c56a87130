"""Everything that can be wrong with a problem is said before the first evaluation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.errors import BoundsError, ProblemError
from tesseract_flow.optimize import Constraint, Evaluation, Problem, check_evaluation, optimize

UPPER = Constraint(upper=1.0)


def volume(design):
    return Evaluation(design["x"].sum(), {"volume": design["x"].sum(), "stress": design["x"]})


def problem(evaluate=volume, **kwargs) -> Problem:
    return Problem({"x": jnp.ones(3), "label": "case"}, evaluate, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"evaluate": 3.0}, ProblemError, "must be a function.*float"),
        ({"constraints": {"volume": 0.01}}, ProblemError, r"'volume'.*expected Constraint\(equals"),
        ({"settings": {"f": jnp.ones(2)}}, ProblemError, "settings.*plain JSON"),
        ({"settings": {"f": float("nan")}}, ProblemError, "settings.*plain JSON"),
        ({"bounds": (2.0, 1.0)}, BoundsError, "lower 2.0 > upper 1.0"),
        ({"scale": -1.0}, ProblemError, "scale of 'x' must be positive"),
        ({"constraints": {1: Constraint(upper=1.0)}}, ProblemError, "Constraint 1 .*named by a text, received int"),
        ({"bounds": ({"x": 0.0, 1: None}, None)}, BoundsError, r"lower bound .*keys 'x' \(str\) and 1 \(int\) have no"),
        ({"vary": {"x": True, 1: False}}, ProblemError, "`vary` cannot be used: the keys .*texts"),
    ],
)
def test_values_are_checked_where_the_problem_is_written_down(kwargs, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        problem(**kwargs)


@pytest.mark.parametrize(
    ("evaluate", "constraints", "message"),
    [
        (lambda d: d["x"], None, r"must be a scalar, received an array of shape \(3,\)"),
        (
            lambda d: jax.lax.complex(d["x"].sum(), d["x"].sum()),
            None,
            "real floating-point number, received dtype complex128",
        ),
        (lambda d: (d["x"] > 0).sum(), None, "real floating-point number, received dtype int"),
        (lambda d: None, None, "returned NoneType as its objective"),
        (lambda d: {"loss": d["x"].sum()}, None, "returned dict as its objective"),
        (lambda d: Evaluation(d["x"].sum(), [d["x"]]), None, "constraints as list"),  # type: ignore[arg-type]
        (lambda d: Evaluation(d["x"].sum(), {"c": {"a": d["x"]}}), None, "'c' as dict, expected an array.\nGive each"),
        (lambda d: Evaluation(d["x"].sum(), {"c": [*d["x"]]}), {"c": UPPER}, "'c' as list, expected an"),
        (lambda d: Evaluation(d["x"].sum(), {"c": None}), {"c": UPPER}, "'c' as NoneType, expected an"),
        (lambda d: Evaluation(misfit=d["x"], constraints={"c": {}}), None, "'c' as dict, expected an array"),
        (
            lambda d: Evaluation(d["x"].sum(), aux={"a": 1, 1: 2}),
            None,
            r"keys have no order \(test_problem.py, line \d+",
        ),
        (volume, {"volum": Constraint(equals=1.0)}, "(?s)constrains 'volum'.*Did you mean 'volume'"),
        (lambda d: d["x"].sum(), {"volume": Constraint(equals=1.0)}, "evaluate returns no constraints"),
        (
            volume,
            {"stress": Constraint(upper=jnp.ones(2))},
            r"upper has shape \(2,\), but evaluate returns shape \(3,\)",
        ),
        (volume, {"volume": Constraint(upper=jnp.ones(3))}, r"upper has shape \(3,\), but evaluate returns shape \(\)"),
        (
            lambda d: Evaluation(d["x"].sum(), {"n": jnp.asarray(3)}),
            {"n": Constraint(upper=1.0)},
            "'n': evaluate returns dtype int",
        ),
    ],
)
def test_what_evaluate_returns_is_checked_without_running_it(evaluate, constraints, message):
    with pytest.raises(ProblemError, match=message):
        check_evaluation(problem(evaluate, constraints=constraints))


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda d: float(d["x"][0]) ** 2,
        lambda d: d["x"][0] if d["x"][0] > 0 else d["x"][1],
        lambda d: np.sum(np.asarray(d["x"])),
        lambda d: jnp.arange(int(d["x"][0])).sum() * 1.0,
    ],
    ids=["float", "if", "numpy", "int"],
)
def test_what_needs_the_value_of_what_is_traced_is_told_with_a_remedy(evaluate):
    with pytest.raises(ProblemError, match=r"needs the value of .*\(test_problem.py, line \d+\)") as failure:
        optimize(problem(evaluate))
    assert "jnp.where" in str(failure.value)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda d, s: s["betta"] * d["x"].sum(), r"asks for 'betta' \(test_problem.py, line \d+\).* mean 'beta'\? "),
        (lambda d, s: d["y"].sum(), r"asks for 'y' .*The design has .*'x'.*; scheduled are 'beta'"),
    ],
    ids=["scheduled", "design"],
)
def test_a_name_that_is_not_there_is_told_with_those_that_are(evaluate, message):
    with pytest.raises(ProblemError, match=message):
        optimize(problem(evaluate, schedule={"beta": 2.0}))


def test_keys_of_a_design_that_jax_cannot_sort_are_told():
    mixed = {"inner": [{"[0]": jnp.ones(2), 1: jnp.ones(2)}]}
    with pytest.raises(
        ProblemError, match=r"keys '\[0\]' \(str\) and 1 \(int\) at 'inner.\[0\]' have no order.*\n.*texts"
    ):
        Problem(mixed, volume)
    numbers = Problem({2: jnp.ones(2), 1: jnp.ones(3)}, volume).partition.varying
    assert list(numbers) == [1, 2]


def test_a_constraint_may_be_a_number_that_does_not_depend_on_the_design():
    template = check_evaluation(problem(lambda d: Evaluation(d["x"].sum(), {"c": 0.5}), constraints={"c": UPPER}))
    assert template.constraints["c"].shape == ()


def test_checking_runs_nothing():
    ran = []

    def evaluate(design):
        x = jax.pure_callback(lambda x: ran.append(1) or x, jax.ShapeDtypeStruct((3,), jnp.float64), design["x"])
        return Evaluation(x.sum(), {"volume": x.sum()}, aux=("text", x))

    template = check_evaluation(problem(evaluate, constraints={"volume": Constraint(equals=1.0)}))
    assert ran == []
    assert template.objective.shape == () and template.aux[0] == "text" and template.aux[1].shape == (3,)


def test_the_start_is_moved_into_the_bounds():
    start = problem(bounds=(2.0, None)).start
    assert start["x"].tolist() == [2.0, 2.0, 2.0]
