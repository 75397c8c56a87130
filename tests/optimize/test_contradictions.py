"""Gradients that contradict the values end a run within a search or two; right ones are never accused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import ProblemError
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched
from tests.optimize.helpers import beam_problem, hs71_problem, rosenbrock, rosenbrock_problem

PULLBACK = "vector_jacobian_product"
SAYS = "check the gradients of faulty"


def planted(change: Any) -> tf.Problem:
    """Rosenbrock's valley through a component whose pullback is changed."""
    part = FunctionTesseract(
        lambda i: {"r": jnp.stack([1 - i["x"], 10 * (i["y"] - i["x"] ** 2)])},
        {"x": np.array(0.0), "y": np.array(0.0)},
        name="faulty",
    )
    handle = Watched(part, lambda endpoint, y: change(y) if endpoint == PULLBACK else y)
    start = {"x": jnp.asarray(-1.2), "y": jnp.asarray(1.0)}
    return tf.Problem(start, lambda d: jnp.sum(tf.apply_tesseract(handle, d)["r"] ** 2), name="planted")


SIGN = {"sign": lambda y: {k: -v for k, v in y.items()}}
FAULTS = {
    **SIGN,
    "factor": lambda y: {k: 2 * v for k, v in y.items()},
    "missing": lambda y: {**y, "x": 0 * y["x"]},
    "wrong path": lambda y: {"x": y["y"], "y": y["x"]},
}


@pytest.mark.parametrize("driver", ["adam", "lbfgs"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_ends_the_run_at_the_start(driver: str, fault: str) -> None:
    with tf.count_requests() as requests:
        result = tf.optimize(planted(FAULTS[fault]), driver, verify_gradients="start")
    assert not result.converged
    assert SAYS in result.reason
    assert "the gradient predicts" in result.reason
    assert result.steps == 0
    # Two of them because a slope of exactly zero is suspicious by itself: one to see it, a shorter one to be sure.
    assert result.evaluations <= 6
    assert requests.n_of("apply") == requests.n_of(PULLBACK) == result.evaluations
    assert any("the values say" in event for event in result.history[0].events)


def test_a_sign_ends_a_line_search_without_being_asked_for() -> None:
    """It took 14 608 requests in 80 steps, without a word."""
    with tf.count_requests() as requests:
        result = tf.optimize(planted(SIGN["sign"]), "lbfgs", stop={"max_steps": 80})
    assert SAYS in result.reason
    assert result.steps == 1
    assert not result.converged
    assert requests.n_total < 150


@pytest.mark.slow
def test_started_again_it_looks_again(tmp_path: Any) -> None:
    faults = [SIGN["sign"]]
    problem = planted(lambda y: faults[0](y))
    options: dict[str, Any] = {"journal": tmp_path, "verify_gradients": "start", "stop": {"max_steps": 300}}
    assert SAYS in tf.optimize(problem, "lbfgs", **options).reason
    assert SAYS in tf.optimize(problem, "lbfgs", **options).reason
    faults[0] = lambda y: y
    mended = tf.optimize(problem, "lbfgs", **options)
    assert mended.value < 1e-6, mended.reason


def limited() -> tf.Problem:
    """Right at the start, and wrong where the limiter is active: slope 4 said, flat in truth."""
    part = FunctionTesseract(lambda i: {"y": jnp.minimum(4 * i["x"], 2.0)}, {"x": np.array(0.0)}, name="faulty")

    class Unlimited(Watched):
        def request(self, endpoint: Any, payload: Any, *, run_id: str | None = None) -> Any:
            answer = super().request(endpoint, payload, run_id=run_id)
            return {"x": 4.0 * payload["cotangent_vector"]["y"]} if endpoint == PULLBACK else answer

    handle = Unlimited(part)
    return tf.Problem({"x": jnp.asarray(0.1)}, lambda d: (tf.apply_tesseract(handle, d)["y"] - 3.0) ** 2)


def test_every_k_steps_what_is_wrong_where_the_run_goes() -> None:
    options: dict[str, Any] = {"learning_rate": 0.1, "stop": {"max_steps": 60}}
    assert "predicts" not in tf.optimize(limited(), "adam", verify_gradients="start", **options).reason
    result = tf.optimize(limited(), "adam", verify_gradients=5, **options)
    assert SAYS in result.reason
    assert 5 <= result.steps <= 15


@pytest.mark.slow
@pytest.mark.parametrize("make", [beam_problem, rosenbrock_problem, hs71_problem])
@pytest.mark.parametrize("driver", ["adam", "lbfgs"])
def test_right_gradients_are_not_accused(make: Any, driver: str) -> None:
    result = tf.optimize(make(), driver, verify_gradients=3, stop={"max_steps": 40})
    assert "predicts" not in result.reason
    assert all(not record.contradiction for record in result.history)


def test_the_price_is_one_evaluation() -> None:
    plain = tf.optimize(rosenbrock_problem(), "adam", stop={"max_steps": 20})
    at_start = tf.optimize(rosenbrock_problem(), "adam", stop={"max_steps": 20}, verify_gradients="start")
    each_ten = tf.optimize(rosenbrock_problem(), "adam", stop={"max_steps": 20}, verify_gradients=10)
    assert at_start.evaluations == plain.evaluations + 1
    assert each_ten.evaluations == plain.evaluations + 3
    assert plain.value == at_start.value == each_ten.value


@pytest.mark.slow
@pytest.mark.parametrize(
    "evaluate",
    [
        lambda d: jnp.abs(d["x"]) + jnp.abs(d["y"] - 1.0),
        lambda d: jnp.maximum(d["x"], -2.0 * d["x"]) + d["y"] ** 2,
        lambda d: rosenbrock(d) + 1e-7 * jnp.sin(1e6 * d["x"]),
        lambda d: 1e8 + rosenbrock(d),
        lambda d: jnp.sum(d["x"] * 0.0) + 1.0,
        lambda d: jnp.sqrt(jnp.abs(d["x"])) + d["y"] ** 2,
    ],
    ids=["kinks", "a kink along the way", "ripples", "a large offset", "flat", "a cusp"],
)
@pytest.mark.parametrize("driver", ["adam", "lbfgs"])
def test_functions_that_are_hard_but_right(evaluate: Any, driver: str) -> None:
    problem = tf.Problem({"x": jnp.asarray(0.7), "y": jnp.asarray(0.4)}, evaluate)
    result = tf.optimize(problem, driver, verify_gradients=1, stop={"max_steps": 30})
    assert "predicts" not in result.reason, result.reason


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-9, 1e-6])
@pytest.mark.parametrize("driver", ["adam", "lbfgs"])
def test_noise_is_not_taken_for_a_fault(noise: float, driver: str) -> None:
    rng = np.random.default_rng(0)

    def distort(endpoint: str, y: Any) -> Any:
        return {"r": y["r"] + noise * rng.standard_normal(2)} if endpoint == "apply" else y

    zero = np.array(0.0)
    part = FunctionTesseract(lambda i: {"r": jnp.stack([i["x"] - 1, i["y"] + i["x"]])}, {"x": zero, "y": zero})
    handle = Watched(part, distort)
    problem = tf.Problem(
        {"x": jnp.asarray(3.0), "y": jnp.asarray(1.0)}, lambda d: jnp.sum(tf.apply_tesseract(handle, d)["r"] ** 2)
    )
    result = tf.optimize(problem, driver, verify_gradients=1, stop={"max_steps": 25})
    assert "predicts" not in result.reason, result.reason


@pytest.mark.slow
def test_float32() -> None:
    start = {"x": jnp.asarray(-1.2, jnp.float32), "y": jnp.asarray(1.0, jnp.float32)}
    result = tf.optimize(tf.Problem(start, rosenbrock), "lbfgs", verify_gradients=1, stop={"max_steps": 30})
    assert "predicts" not in result.reason, result.reason
    wrong = jax.custom_vjp(rosenbrock)
    wrong.defvjp(lambda d: (rosenbrock(d), d), lambda d, c: (jax.tree.map(lambda g: -g * c, jax.grad(rosenbrock)(d)),))
    result = tf.optimize(tf.Problem(start, wrong), "lbfgs", verify_gradients=1, stop={"max_steps": 30})
    assert "predicts" in result.reason


def test_a_probe_that_cannot_be_evaluated_says_nothing() -> None:
    def evaluate(design: Any) -> Any:
        return jnp.where(design["x"] >= 1.0, design["x"] ** 2, jnp.nan)

    result = tf.optimize(
        tf.Problem({"x": jnp.asarray(1.0)}, evaluate), "adam", verify_gradients="start", stop={"max_steps": 0}
    )
    assert "predicts" not in result.reason
    assert result.history[0].events == ()


@pytest.mark.parametrize("value", ["end", 0, -1, True, 1.5])
def test_settings_that_are_none(value: Any) -> None:
    with pytest.raises(ProblemError, match="verify_gradients must be"):
        tf.optimize(rosenbrock_problem(), verify_gradients=value)


@pytest.mark.slow
def test_a_look_aside_that_fails_ends_no_run(caplog):
    """The optimum lies where the fixed point ceases to be; the look next to it was the end of the run."""

    def squared(T, p):
        return T + (T**2 + 2.0 - p) * 0.5

    problem = tf.Problem(jnp.asarray(4.0), lambda p: tf.fixed_point(squared, jnp.asarray(1.0), p, max_steps=30) + 3 * p)
    result = tf.optimize(problem, "lbfgs", on_failure={"action": "shrink"})
    assert result.value == pytest.approx(6.0, abs=1e-4) and not result.converged
    assert "Traceback" not in caplog.text
