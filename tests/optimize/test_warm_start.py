"""Fixed points begin where the step before has left them: fewer requests, the same answer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.autodiff.carried import as_it_was, carrying, searches_of
from tesseract_flow.optimize import check_evaluation
from tesseract_flow.report import history_rows
from tesseract_flow.report.files import history_csv
from tesseract_flow.report.tables import summary_rows
from tesseract_flow.testing import FunctionTesseract

LOOP = FunctionTesseract(
    lambda i: {"T": i["x"] + i["gain"] * jnp.tanh(i["T"])},
    {"T": np.ones(3), "x": np.ones(3), "gain": np.array(1.0)},
    name="loop",
)


def loop(x: Any, gain: float = 0.95, **settings: Any) -> Any:
    return tf.fixed_point(
        lambda T, x: tf.apply_tesseract(LOOP, {"T": T, "x": x, "gain": gain})["T"],
        jnp.zeros(3),
        x,
        name="loop",
        **settings,
    )


def problem(**settings: Any) -> tf.Problem:
    def evaluate(x: Any) -> Any:
        return tf.Evaluation(jnp.sum((loop(x, **settings) - 1.0) ** 2) + 0.1 * jnp.sum(x**2))

    return tf.Problem(jnp.linspace(0.5, 1.0, 3), evaluate, bounds=(0.01, 3.0))


@pytest.mark.parametrize("driver", ["adam", "lbfgs", "l-bfgs-b"])
@pytest.mark.slow
def test_it_saves_requests_and_the_answer_is_within_the_tolerance(driver: str):
    warm, cold = (
        tf.optimize(problem(warm_start=one, solver="anderson"), driver, stop={"max_steps": 4}) for one in (True, False)
    )
    assert warm.requests / warm.evaluations <= 0.85 * cold.requests / cold.evaluations
    np.testing.assert_allclose(warm.design, cold.design, rtol=1e-7)
    left = warm.evaluation.coupled["loop"]
    assert left.residual < 4e-11
    np.testing.assert_allclose(left.x, loop(warm.design), rtol=1e-9)


def test_how_fixed_points_were_reached_is_in_history_report_and_files(tmp_path):
    def evaluate(x: Any) -> Any:
        T = jax.vmap(lambda x: tf.fixed_point(lambda T, x: x + 0.5 * jnp.tanh(T), 0.0, x, name="loop"))(x)
        return jnp.sum((T - 1.0) ** 2)

    one = tf.Problem(jnp.linspace(0.5, 1.0, 3), evaluate)
    result = tf.optimize(one, "adam", stop={"max_steps": 2}, journal=tmp_path / "run")
    first, *_, last = (record.coupled["loop"] for record in result.history)
    assert last["rounds"] < first["rounds"] and 1 <= last["steps"] <= first["steps"] and last["residual"] < 4e-11
    assert [record.coupled for record in tf.read_journal(tmp_path / "run").history] == [
        record.coupled for record in result.history
    ]
    rows = history_rows(result.history)
    assert [rows[-1][f"loop {what}"] for what in ("steps", "rounds", "residual")] == list(last.values())
    assert "loop rounds" in history_csv(result.history).splitlines()[0]
    assert "rounds per design" in dict(summary_rows(result))["fixed point loop"]


@pytest.mark.parametrize("rtol", [pytest.param(None, marks=pytest.mark.slow), 1e-4])
def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(tmp_path, rtol: float | None):
    # A component without a version is asked once more before the run goes on, and with 1e-4 another step there shows.
    one = problem(solver="anderson", rtol=rtol)
    whole = tf.optimize(one, "adam", stop={"max_steps": 4})
    tf.optimize(one, "adam", stop={"max_steps": 2}, journal=tmp_path / "run")
    resumed = tf.optimize(one, "adam", stop={"max_steps": 4}, journal=tmp_path / "run")
    assert np.asarray(resumed.design).tobytes() == np.asarray(whole.design).tobytes()
    assert resumed.requests == whole.requests
    if rtol is None:
        # Where it begins is no part of what a run is.
        again = tf.optimize(
            problem(solver="anderson", rtol=rtol, warm_start=False),
            "adam",
            stop={"max_steps": 4},
            journal=tmp_path / "run",
        )
        assert again.requests == whole.requests


@pytest.mark.parametrize("is_warm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_group_of_a_pipeline_has_the_same_choice(is_warm: bool):
    one = tf.Pipeline(
        inputs=["x"],
        nodes={
            "a": {"function": lambda x, v: 0.5 * jnp.cos(v) + x, "inputs": {"x": "x", "v": "b"}},
            "b": {"function": lambda u: 0.5 * jnp.sin(u), "inputs": {"u": "a"}},
        },
        groups={"loop": {"nodes": ["a", "b"], "start": {"b": 0.0}, "warm_start": is_warm}},
        outputs={"v": "b"},
    )
    design = {"x": jnp.asarray(0.3)}
    (cold,) = check_evaluation(tf.Problem(design, lambda design: one(design)["v"])).coupled.values()
    cold = jax.tree.map(lambda shape: jnp.full(shape.shape, jnp.nan if shape.dtype == "float64" else 0), cold)
    fn = carrying(lambda design: one(design)["v"])
    (left,) = fn([cold], design)[1]
    (further,) = fn([left], design)[1]
    assert (int(further.n_rounds) < int(left.n_rounds)) == is_warm
    (again,) = fn([as_it_was(left)], design)[1]
    assert (int(again.n_rounds) == 1) == is_warm


@pytest.mark.slow
def test_through_compiled_functions_checkpoints_and_vmap_and_beside_each_other():
    def two(xs: Any) -> Any:
        def inner(x: Any) -> Any:
            return tf.fixed_point(lambda T, x: x + 0.9 * jnp.tanh(T), jnp.zeros(3), x, name="inner")

        first = jax.jit(jax.vmap(inner))(xs)
        second = jax.checkpoint(lambda x: tf.fixed_point(lambda T, x: x - 2.0 * T, 0.0, x, name="outer"))(xs.sum())
        within = jax.lax.map(inner, xs)  # no way out of a loop
        return (first**2).sum() + second**2 + (within**2).sum()

    xs = jnp.linspace(0.1, 0.6, 6).reshape(2, 3)
    found = searches_of(jax.make_jaxpr(two)(xs).jaxpr)
    assert [(one.title, one.left.x.shape) for one in found] == [("inner", (2, 3)), ("outer", (1,))]
    cold = [
        jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan if s.dtype == xs.dtype else 0, s.dtype), one.left)
        for one in found
    ]
    step = jax.jit(jax.value_and_grad(carrying(two), argnums=1, has_aux=True))
    (value, left), gradient = step(cold, xs)
    plain, expected = jax.value_and_grad(two)(xs)
    np.testing.assert_allclose(value, plain, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)
    # One element alone may begin anew.
    before = [left[0]._replace(x=left[0].x.at[1].set(jnp.nan)), left[1]]
    (value, further), gradient = step(before, xs)
    assert further[0].n_rounds[0] < left[0].n_rounds[0] and further[0].n_rounds[1] == left[0].n_rounds[1]
    assert further[1].n_rounds == 1
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)
    (value, again), gradient = step([as_it_was(one) for one in before], xs)
    assert again[0].n_rounds.tolist() == [1, left[0].n_rounds[1]] and again[1].n_rounds == 1
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_a_residual_is_measured_by_what_it_was_at_the_first_start():
    def evaluate(x: Any) -> Any:
        T = tf.fixed_point(lambda T, x: x - T - T**3, jnp.zeros(3), x, form="residual", name="R")
        return jnp.sum((T - 0.5) ** 2)

    found = tf.optimize(tf.Problem(jnp.linspace(0.5, 1.0, 3), evaluate), "adam", stop={"max_steps": 3})
    assert not found.history[-1].failures
    np.testing.assert_allclose(
        found.evaluation.coupled["R"].yardstick, np.sqrt(np.mean(np.linspace(0.5, 1.0, 3) ** 2)), rtol=1e-12
    )


def test_where_it_cannot_be_reached_from_there_it_begins_at_T0():
    # Picard: from T0 it converges at once, from the last state (T = 3) it runs away.
    def phi(T: Any, x: Any) -> Any:
        return jnp.where(jnp.abs(T) < 1.0 + x, x * 0.0 + 0.5, T * 4.0)

    def evaluate(x: Any) -> Any:
        return (tf.fixed_point(phi, 0.0, x, solver="picard", name="run away") - x) ** 2

    one = tf.Problem(jnp.asarray(1.0), evaluate)
    template = check_evaluation(one)
    from tesseract_flow.optimize.constraints import ConstraintSet
    from tesseract_flow.optimize.evaluator import Evaluator, Weights

    constraints = ConstraintSet.build({}, template.constraints, template.objective.dtype)
    evaluator = Evaluator(one, template, constraints, jax.jit)
    weights = Weights(jnp.ones(()), constraints.silent())
    sample = evaluator(jnp.asarray(1.0), weights)
    evaluator.forget()
    lost = [leaf + 9.0 if k == 1 else leaf for k, leaf in enumerate(sample.leaves)]
    assert evaluator.evaluation(lost).coupled["run away"].x == sample.leaves[1] + 9.0
    evaluator.begin_at(lost)
    assert evaluator(jnp.asarray(1.0), weights).lagrangian == sample.lagrangian


@pytest.mark.parametrize(
    ("solver", "form"),
    [
        ("newton-krylov", "map"),
        pytest.param("newton-krylov", "residual", marks=pytest.mark.slow),
        ("anderson", "map"),
        pytest.param("broyden", "map", marks=pytest.mark.slow),
        pytest.param("aitken", "map", marks=pytest.mark.slow),
        ("picard", "map"),
    ],
)
def test_the_state_follows_parameters_that_move_by_less_than_the_tolerance(solver: str, form: Any):
    """From a start that would do it did not move at all: differences of 0, next to a gradient of 5.8."""

    def state(x: Any) -> Any:
        def phi(T: Any, x: Any) -> Any:
            return x + 0.9 * jnp.sin(T) - (T if form == "residual" else 0.0)

        return tf.fixed_point(phi, 0.0, x, solver=solver, form=form, rtol=1e-6, max_steps=100)

    x = jnp.asarray(0.05)
    (one,) = check_evaluation(tf.Problem(x, state)).coupled.values()
    cold = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan if s.dtype == x.dtype else 0, s.dtype), one)
    step = jax.jit(jax.value_and_grad(carrying(state), argnums=1, has_aux=True))
    (_, left), _ = step([cold], x)
    (here, _), slope = step(left, x)
    (there, (moved,)), _ = step(left, x + 1e-8)
    gain = 1.0 - 1.0 / slope
    share = 1.0 - gain**3 if solver == "picard" else 1.0  # three sweeps of it
    np.testing.assert_allclose((there - here) / 1e-8, share * slope, rtol=1e-4)
    assert moved.n_rounds <= 4 and moved.residual < 1e-6


@pytest.mark.parametrize("solver", ["picard", "anderson", "newton-krylov"])
def test_a_start_that_would_do_stays_where_no_step_is_better(solver: str):
    """Noise of half the tolerance; and a loop that runs away from its solution."""

    def noisy(T: Any) -> Any:
        return T + 5e-4 * jnp.where(jnp.abs(T - 1.0) < 1e-9, 1.0, 3.0)

    for phi, start in ((noisy, 1.0), (lambda T: jnp.where(T == -0.5005, -0.501, jnp.nan), -0.5005)):
        T, convergence = tf.fixed_point(phi, start, solver=solver, rtol=2e-3, with_convergence=True)
        assert float(T) == start and convergence.n_steps == 0 and convergence.n_rounds <= 4
        assert convergence.residuals[0] <= 2e-3
