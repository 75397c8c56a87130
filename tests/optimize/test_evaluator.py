"""The traced Lagrangian: traced once, evaluated once per point, and never trusted to be finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tesseract_flow.errors import NonFiniteError
from tesseract_flow.optimize import AugmentedLagrangian, Constraint, Evaluation, Problem, check_evaluation
from tesseract_flow.optimize.constraints import ConstraintSet, Duals
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Weights, check_finite
from tests.optimize.helpers import Counted


def evaluate(design):
    x = design["x"]
    aux = {"field": x**2, "unit": "m", "nested": [x[0], None, 3, jnp.tanh]}
    return Evaluation((x**3).sum(), {"sum": x.sum(), "unused": x}, aux)


def make(transform):
    problem = Problem({"x": jnp.array([1.0, 2.0]), "n": 2}, evaluate, constraints={"sum": Constraint(equals=4.0)})
    template = check_evaluation(problem)
    demands = ConstraintSet.build(problem.constraints or {}, template.constraints, jnp.dtype("float64"))
    return Evaluator(problem, template, demands, transform), demands


def weights(scale=1.0, price=0.0, penalty=1.0):
    one = {"sum": jnp.ones(())}
    return Weights(jnp.asarray(scale), Duals({"sum": jnp.asarray(price)}, {"sum": jnp.asarray(penalty)}, one))


def test_value_and_gradient_are_those_of_the_lagrangian():
    evaluator, _ = make(jax.jit)
    x = jnp.array([1.0, 2.5])

    def by_hand(x):
        t = x.sum() / 4 - 1
        return (x**3).sum() / 10 + 0.7 * t + 0.5 * 3 * t**2

    sample = evaluator({"x": x, "n": None}, weights(10.0, 0.7, 3.0))
    assert jnp.allclose(sample.lagrangian, by_hand(x))
    assert jnp.allclose(sample.gradient["x"], jax.grad(by_hand)(x))


def test_changing_multipliers_and_scale_traces_nothing_again():
    transform = Counted()
    evaluator, _ = make(transform)
    for k in range(4):
        evaluator({"x": jnp.array([1.0, 2.0]) + k, "n": None}, weights(1.0 + k, k / 2, 3.0**k))
    assert (transform.n_traces, transform.n_calls, evaluator.n_evaluations) == (1, 4, 4)


def test_a_point_is_evaluated_once_per_step_and_weights_are_part_of_the_point():
    evaluator, _ = make(jax.jit)
    x = {"x": jnp.array([1.0, 2.0]), "n": None}
    first = evaluator(x, weights())
    assert evaluator({"x": jnp.array([1.0, 2.0]), "n": None}, weights()) is first
    evaluator(x, weights(price=1.0))
    # -0.0 == 0.0, but they are not the same bits, and 1/x tells them apart.
    evaluator({"x": jnp.array([0.0, 2.0]), "n": None}, weights())
    evaluator({"x": jnp.array([-0.0, 2.0]), "n": None}, weights())
    assert evaluator.n_evaluations == 4
    evaluator.forget()
    evaluator(x, weights())
    assert evaluator.n_evaluations == 5


def test_evaluations_come_back_whole():
    evaluator, _ = make(jax.jit)
    evaluation = evaluator.evaluation(evaluator({"x": jnp.array([1.0, 2.0]), "n": None}, weights()).leaves)
    assert float(evaluation.objective) == 9.0
    assert evaluation.constraints["unused"].tolist() == [1.0, 2.0]
    assert evaluation.aux["unit"] == "m" and evaluation.aux["field"].tolist() == [1.0, 4.0]
    assert evaluation.aux["nested"][1:] == [None, 3, jnp.tanh]


@pytest.mark.parametrize(
    ("objective", "constraint", "gradient", "message"),
    [
        (jnp.nan, 1.0, [1.0, 1.0], "^the objective is nan"),
        (jnp.inf, 1.0, [1.0, 1.0], "the objective is inf"),
        (1.0, jnp.nan, [1.0, 1.0], r"constraint 'volume' is not finite \(1 of 1"),
        (1.0, 1.0, [jnp.nan, 1.0], r"the gradient with respect to 'mesh.knots' is not finite \(1 of 2"),
    ],
)
def test_what_is_not_finite_is_named(objective, constraint, gradient, message):
    sample = Sample(jnp.asarray(0.0), {"mesh": {"knots": jnp.array(gradient)}}, [])
    evaluation = Evaluation(jnp.asarray(objective), {"volume": jnp.asarray(constraint)})
    with pytest.raises(NonFiniteError, match=message):
        check_finite(evaluation, sample)


def test_silent_duals_show_the_objective_alone():
    evaluator, demands = make(jax.jit)
    demands.start(AugmentedLagrangian.for_steps())
    sample = evaluator({"x": jnp.array([1.0, 2.0]), "n": None}, Weights(jnp.asarray(1.0), demands.silent()))
    assert float(sample.lagrangian) == 9.0 and sample.gradient["x"].tolist() == [3.0, 12.0]
