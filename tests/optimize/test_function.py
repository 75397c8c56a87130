"""A problem as plain functions of a flat vector, for optimisers that somebody else wrote."""

from __future__ import annotations

import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import own_requests
from tesseract_flow.errors import ComponentFailed, InvalidEvaluation, NonFiniteError, ProblemError
from tesseract_flow.optimize import Constraint, Evaluation, Problem, optimize
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import hs71_problem
from tests.optimize.test_library_drivers import two_components


def mixed(**options) -> Problem:
    """Leaves of several shapes, with scales, beside what does not vary."""

    def evaluate(design):
        a, b = design["wing"]["a"], design["wing"]["b"]
        assert design["kind"] == "mixed"
        constraints = {"row": a.sum(axis=1) * b, "one": jnp.sin(b), "free": b}
        return Evaluation((a**2).sum() * b + jnp.cos(a[0, 0]), constraints, aux={"a": a})

    design = {"wing": {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.asarray(0.5)}, "kind": "mixed", "n": 3}
    demands = {"row": Constraint(lower=1.0, upper=1e5), "one": Constraint(equals=0.25)}
    return Problem(
        design,
        evaluate,
        bounds=({"wing": {"a": 0.5}}, None),
        constraints=demands,
        scale={"wing": {"a": 4.0}},
        **options,
    )


def minimised(function, method="SLSQP", **options):
    lower, upper = function.constraint_lower, function.constraint_upper
    constraints = [
        scipy.optimize.NonlinearConstraint(
            lambda x, rows=rows: function.constraints(x)[rows],
            lower[rows],
            upper[rows],
            jac=lambda x, rows=rows: function.jacobian(x)[rows],  # type: ignore[arg-type]
        )
        for rows in (np.flatnonzero(lower == upper), np.flatnonzero(lower != upper))  # SciPy wants them apart
        if len(rows)
    ]
    return scipy.optimize.minimize(
        function.value,
        function.start,
        jac=function.gradient,
        bounds=scipy.optimize.Bounds(function.lower, function.upper),
        constraints=constraints,
        method=method,
        options=options,
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_it_is_the_problem_of_a_flat_vector(scaled):
    problem = mixed()
    function = problem.function(scaled=scaled)
    x = function.start + 0.1 * np.arange(7)
    size = np.r_[np.full(6, 4.0), 1.0] if scaled else np.ones(7)

    def flat(x):
        x = x * size
        return problem.evaluate({"wing": {"a": x[:6].reshape(2, 3), "b": x[6]}, "kind": "mixed", "n": 3})

    def rows(x):
        found = flat(x).constraints
        return jnp.concatenate([found["one"][None], found["row"]])

    assert function.n == 7 and np.array_equal(function.start * size, [0.5, 1, 2, 3, 4, 5, 0.5])
    assert function(x) == function.value(x) == pytest.approx(float(flat(x).objective), rel=1e-15)
    assert np.allclose(function.gradient(x), jax.grad(lambda x: flat(x).objective)(x), rtol=1e-13)
    assert np.allclose(function.constraints(x), rows(x), rtol=1e-15)
    assert np.allclose(function.jacobian(x), jax.jacobian(rows)(x), rtol=1e-13)
    value, gradient = function.value_and_gradient(x)
    assert value == function.value(x) and np.array_equal(gradient, function.gradient(x))
    assert function.evaluations == 1
    # Each limit as it was given, whatever it is measured in elsewhere.
    assert np.array_equal(function.constraint_lower, [0.25, 1.0, 1.0])
    assert np.array_equal(function.constraint_upper, [0.25, 1e5, 1e5])
    assert np.array_equal(function.lower * size, np.r_[np.full(6, 0.5), -np.inf]) and np.isposinf(function.upper).all()
    assert function.names[:2] == ("wing.a[0, 0]", "wing.a[0, 1]") and function.names[-1] == "wing.b"
    assert function.constraint_names == ("one", "row[0]", "row[1]")


@pytest.mark.parametrize("scaled", [False, True])
def test_to_the_design_and_back(scaled):
    function = mixed().function(scaled=scaled)
    x = function.start + np.linspace(0.0, 1.0, 7)
    design = function.design(x)
    assert design["kind"] == "mixed" and design["n"] == 3 and design["wing"]["a"].shape == (2, 3)
    assert np.allclose(function.vector(design), x, rtol=1e-15)
    assert np.array_equal(function.evaluation(x).aux["a"], design["wing"]["a"])
    with pytest.raises(ProblemError, match="structure"):
        function.vector({"wing": design["wing"]})
    with pytest.raises(ProblemError, match=r"'wing\.a' has shape \(3, 2\), expected \(2, 3\)"):
        function.vector({**design, "wing": {**design["wing"], "a": design["wing"]["a"].T}})


def test_a_library_by_hand_finds_what_the_driver_finds():
    function = hs71_problem().function()
    found = minimised(function, ftol=1e-12)
    assert found.fun == pytest.approx(17.0140173, rel=1e-7) and function.evaluations == found.nfev
    driven = optimize(hs71_problem(), "slsqp", transform=jax.jit)
    assert np.allclose(function.design(found.x), driven.design, rtol=1e-5)


def test_equal_points_are_one_evaluation_and_derivatives_cost_pullbacks_alone():
    function = two_components().function()
    with own_requests() as requests:
        found = minimised(function)
        asked = Counter(requests)
    assert found.success and function.requests == sum(asked.values()) - asked["rosen.abstract_eval"] * 2
    for name in ("rosen", "ball"):  # SLSQP asks at each point for value and constraints, and for derivatives as often
        assert asked[f"{name}.apply"] == function.evaluations == found.nfev
        assert asked[f"{name}.vector_jacobian_product"] == found.njev  # and none of it for the row of the sum
    for ask in (function.value, function.constraints, function.gradient, function.jacobian, function.evaluation):
        ask(found.x.copy())
    with own_requests() as requests:
        for ask in (function.gradient, function.value, function.jacobian, function.constraints):
            ask(np.array(function.start))
    assert sum(requests.values()) <= 4  # one apply and one pullback of each


def test_without_constraints_only_the_gradient_is_pulled_back():
    problem = two_components()
    function = Problem(problem.design, problem.evaluate, bounds=(-2.0, 2.0)).function()
    with own_requests() as requests:
        found = minimised(function, "L-BFGS-B")
    assert np.allclose(found.x, 1.0, atol=1e-4) and function.constraints(found.x).shape == (0,)
    assert function.jacobian(found.x).shape == (0, 3)
    assert requests["rosen.vector_jacobian_product"] == function.evaluations == found.nfev
    assert requests["ball.vector_jacobian_product"] == 0


def test_calls_that_do_not_need_each_other_overlap():
    barrier = threading.Barrier(2, timeout=30)  # both components have to be at work for either to answer
    example, parts = {"x": np.ones(2)}, []
    for name in ("a", "b"):
        parts.append(
            FunctionTesseract(
                lambda i: {"y": (i["x"] ** 2).sum()},
                example,
                name=name,
                before=lambda endpoint, inputs: endpoint != "abstract_eval" and barrier.wait(),
            )
        )

    def evaluate(x):
        a, b = (apply_tesseract(part, {"x": x})["y"] for part in parts)
        return Evaluation(a, {"b": b})

    function = Problem(jnp.ones(2), evaluate, constraints={"b": Constraint(upper=3.0)}).function()
    assert function.value(function.start) == 2.0 and np.array_equal(function.jacobian(function.start), [[2.0, 2.0]])


def test_what_is_wrong_is_said_where_it_is_asked():
    def before(endpoint, inputs):
        if endpoint == "apply" and inputs["x"][0] > 1.0:
            raise ComponentFailed("'apply' of Tesseract 'wall': the component raised an error.\nValueError: folded")

    wall = FunctionTesseract(lambda i: {"y": jnp.log(i["x"]).sum()}, {"x": np.ones(2)}, before=before)

    def evaluate(x):
        y = apply_tesseract(wall, {"x": x})["y"]
        return Evaluation(y, aux={"fine": x[1] < 3.0})

    function = Problem(jnp.ones(2), evaluate, valid="fine").function()
    with pytest.raises(ComponentFailed, match="ValueError: folded"):
        function.value(np.array([2.0, 1.0]))
    with pytest.raises(NonFiniteError, match="the objective is nan"):
        function.value(np.array([-1.0, 1.0]))
    with pytest.raises(InvalidEvaluation, match="'fine' is False"):
        function.gradient(np.array([0.5, 4.0]))
    with pytest.raises(NonFiniteError, match=r"a vector with 1 NaN or infinite entry, at \[1\]"):
        function.value(np.array([0.5, np.nan]))
    with pytest.raises(
        ProblemError, match=r"take a vector with 2 entries \(design\[0\], design\[1\]\), received shape"
    ):
        function.value(np.ones(3))
    assert function.value(np.ones(2)) == 0.0  # none of it is in the way of what comes next
    with pytest.raises(ProblemError, match="constrains 'stress', but evaluate returns no constraints"):
        Problem(jnp.ones(2), evaluate, constraints={"stress": Constraint(upper=1.0)}).function()


def test_what_it_returns_and_what_it_was_given_may_be_changed_in_place():
    function = hs71_problem().function()
    x = function.start.copy()
    before = [np.copy(ask(x)) for ask in (function.gradient, function.constraints, function.jacobian)]
    for ask in (function.gradient, function.constraints, function.jacobian):
        ask(x)[...] = np.nan
    assert function.value(x) == 16.0
    x[:] = 2.0
    assert function.value(x) == 26.0
    again = [ask(function.start) for ask in (function.gradient, function.constraints, function.jacobian)]
    assert all(np.array_equal(a, b) for a, b in zip(before, again, strict=True)) and function.evaluations == 2


def test_points_that_are_equal_in_the_designs_precision_are_equal():
    problem = Problem(jnp.ones(2, jnp.float32), lambda x: (x**2).sum())
    function = problem.function()
    assert function.value(np.ones(2)) == function.value(np.ones(2) + 1e-12) == 2.0 and function.evaluations == 1
    assert function.gradient(np.ones(2)).dtype == np.float64


def test_what_was_asked_to_learn_shapes_serves_the_first_evaluation():
    example, endpoints = {"x": np.ones(2)}, ("apply", "vector_jacobian_product")
    silent = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, example, name="silent", endpoints=endpoints)
    with own_requests() as requests:
        function = Problem(jnp.ones(2), lambda x: apply_tesseract(silent, {"x": x})["y"].sum()).function()
        assert function.value(function.start) == 2.0
    assert requests["silent.apply"] == function.requests == 1
