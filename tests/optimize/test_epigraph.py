"""The largest of several objectives: minimax problems with published optima, and what an epigraph is made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize import Constraint, Evaluation, Problem, epigraph, optimize
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close


def cb2(x: Any) -> Any:
    """C. Charalambous and A. R. Conn, SIAM Journal on Numerical Analysis 15 (1978), 162-187: 1.9522245."""
    a, b = x
    return jnp.stack([a**2 + b**4, (2 - a) ** 2 + (2 - b) ** 2, 2 * jnp.exp(b - a)])


def rosen_suzuki(x: Any) -> Any:
    """J. B. Rosen and S. Suzuki, Communications of the ACM 8 (1965), 113, in the minimax form of CB2's authors: -44."""
    a, b, c, d = x
    f = a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d
    g = jnp.stack(
        [
            a**2 + b**2 + c**2 + d**2 + a - b + c - d - 8,
            a**2 + 2 * b**2 + c**2 + 2 * d**2 - a - d - 10,
            a**2 + b**2 + c**2 + 2 * a - b - d - 5,
        ]
    )
    return jnp.concatenate([f[None], f + 10 * g])


CASES = {
    "CB2": (cb2, jnp.array([1.0, -0.1]), 1.9522245),
    "Rosen-Suzuki": (rosen_suzuki, jnp.zeros(4), -44.0),
}


@pytest.mark.parametrize("driver", ["slsqp", "lbfgs", "mma"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.slow
def test_published_optima_are_found(case: Any, driver: str):
    if driver == "mma":
        pytest.importorskip("nlopt")
    fn, start, optimum = case
    result = optimize(epigraph(Problem(start, fn)), driver=driver)
    rtol = 1e-3 if driver == "mma" else 1e-6  # a first-order method
    np.testing.assert_allclose(result.value, optimum, rtol=rtol)
    np.testing.assert_allclose(fn(result.design["design"]).max(), optimum, rtol=rtol)
    if driver == "mma":
        return
    assert result.converged
    assert result.active is not None
    # The weights of the scenarios, which add up to one, are those of the gradients that cancel.
    weights = result.multipliers["scenarios"]
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-4)
    np.testing.assert_allclose(weights @ jax.jacrev(fn)(result.design["design"]), np.zeros(len(start)), atol=1e-3)
    assert result.active.constraints["scenarios"].upper.tolist() == (np.asarray(weights) > 1e-3).tolist()


def test_a_search_that_ends_in_a_kink_says_what_it_may_be():
    result = optimize(Problem(jnp.array([1.0, -0.1]), lambda x: jnp.max(cb2(x))), driver="lbfgs")
    assert not result.converged
    assert "a kink there, as a maximum of several has (tf.epigraph makes it smooth)" in "\n".join(result.notes)


@pytest.mark.slow
def test_everything_else_of_a_problem_stays():
    def evaluate(design: Any) -> Evaluation:
        x = design["x"]
        return Evaluation(jnp.stack([jnp.sum((x - 2) ** 2), jnp.sum((x + 1) ** 2)]), {"first": x[0]}, {"twice": 2 * x})

    plain = Problem(
        {"x": jnp.array([3.0, 4.0]), "kind": "fin"},
        evaluate,
        bounds=({"x": -5.0}, {"x": 5.0}),
        constraints={"first": Constraint(lower=1.0)},
        scale={"x": "bounds"},
        name="fin",
        settings={"mesh": 3},
        picture=lambda design, found: (design["kind"], found.aux),  # type: ignore[arg-type]
    )
    made = epigraph(plain)
    assert made.name == "fin"
    assert made.settings == {"mesh": 3}
    assert made.design["worst"] == 41.0  # the largest at the start
    assert_close(made.partition.scale["design"]["x"], jnp.full(2, 10.0))
    assert_close(made.partition.scale["worst"], jnp.asarray(100.0))  # 2 (4 + 1) over a range of 10
    assert_close(made.partition.origin["worst"], jnp.asarray(41.0))
    result = optimize(made, driver="slsqp")
    np.testing.assert_allclose(result.design["design"]["x"], [1.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(result.value, 5.0, rtol=1e-6)
    assert made.picture is not None
    assert made.picture(result.design, result.evaluation)[0] == "fin"  # type: ignore[index]
    by_refs = epigraph(Problem(jnp.array([1.0, -0.1]), cb2, ref=2.0, vary=True))
    np.testing.assert_allclose(optimize(by_refs, driver="slsqp").value, 1.9522245, rtol=1e-6)


def test_the_start_is_evaluated_once_and_not_where_all_is_known():
    part = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(2)})

    def problem() -> Problem:
        return Problem(jnp.array([1.0, 3.0]), lambda x: apply_tesseract(part, {"x": x})["y"])

    with count_requests() as requests:
        assert epigraph(problem()).design["worst"] == 9.0
    assert (requests.n_of("apply"), requests.n_of("vector_jacobian_product")) == (1, 1)
    with count_requests() as requests:
        assert epigraph(problem(), worst=9.0, unit=1.0).design["worst"] == 9.0
    assert requests.n_total == 0
    part = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(2)}, endpoints=("apply", "abstract_eval"))
    assert epigraph(problem()).partition.scale["worst"] == 8.0  # no derivatives: what tells the scenarios apart


@pytest.mark.parametrize(("factor", "constant"), [(1.0, 1e7), (1.0, 1e8), (1e-6, 100.0), (1e-8, 5.0), (1e-4, 100.0)])
def test_a_constant_added_to_the_scenarios_makes_no_design_optimal(factor: float, constant: float):
    def scenarios(x: Any) -> Any:
        return factor * jnp.stack([x[0] ** 2, (x[0] - 2) ** 2]) + constant

    result = optimize(epigraph(Problem(jnp.array([3.0]), scenarios)), "slsqp")
    assert result.converged
    np.testing.assert_allclose(result.design["design"], [1.0], atol=1e-4)
    np.testing.assert_allclose((result.value - constant) / factor, 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda x: jnp.sum(x), r"shape \(\)"),
        (lambda x: {"wind": x[0], "snow": x[1]}, "returned dict"),
        (lambda x: jnp.zeros((0,)), r"shape \(0,\)"),
        (lambda x: jnp.arange(3), "dtype int"),
        (lambda x: jnp.stack([x[0], jnp.nan]), r"1 of 2 entries, at \[1\]"),
        (lambda x: Evaluation(x, {"scenarios": x}), "returns a constraint 'scenarios' itself"),
    ],
)
def test_what_is_no_array_of_scenarios_is_refused(evaluate: Any, message: str):
    with pytest.raises(ProblemError, match=message):
        epigraph(Problem(jnp.ones(2), evaluate))


def test_a_name_that_is_taken_and_a_start_that_is_none():
    with pytest.raises(ProblemError, match="has a constraint 'scenarios' already"):
        epigraph(Problem(jnp.ones(2), lambda x: x, constraints={"scenarios": Constraint(lower=0.0)}))
    with pytest.raises(ProblemError, match="finite number"):
        epigraph(Problem(jnp.ones(2), lambda x: x), worst=float("nan"))
    with pytest.raises(ProblemError, match="positive number"):
        epigraph(Problem(jnp.ones(2), lambda x: x), unit=0.0)
