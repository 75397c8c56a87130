"""Misfits: their objective for every driver, and the drivers that use the misfit itself."""

from __future__ import annotations

import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import HttpTesseract, own_requests
from tesseract_flow.errors import ComponentFailed, DriverError, EvaluationFailed, ProblemError
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    MaxSteps,
    Problem,
    build_driver,
    check_evaluation,
    driver_names,
    driver_settings,
    optimize,
)
from tesseract_flow.optimize.drivers.least_squares import bidiagonal
from tesseract_flow.optimize.linearised import cheaper_side, endpoints_of
from tesseract_flow.testing import FunctionTesseract
from tesseract_flow.testing.faults import FaultyServer, of_function
from tests.faults.component import tesseract_api
from tests.faults.conftest import document
from tests.optimize.helpers import Counted, same_bits

METHODS = ("gauss-newton", "levenberg-marquardt", "dogleg")
STOP = {"max_steps": 80, "gradient_tolerance": 1e-7}


def rosenbrock(**options) -> Problem:
    def evaluate(x):
        return Evaluation(misfit={"valley": 10.0 * (x[1] - x[0] ** 2), "wall": (1.0 - x[0])[None]})

    return Problem(jnp.array([-1.2, 1.0]), evaluate, **options)


def curve(n: int = 20) -> Problem:
    """Made by a = 2, k = 3, c = 0.5."""
    t = jnp.linspace(0.0, 1.0, n)
    y = 2.0 * jnp.exp(-3.0 * t) + 0.5

    def evaluate(p):
        return Evaluation(misfit=p["a"] * jnp.exp(-p["k"] * t) + p["c"] - y, aux={"t": t})

    return Problem({"a": jnp.asarray(1.0), "k": jnp.asarray(1.0), "c": jnp.asarray(0.0), "name": "decay"}, evaluate)


def staying() -> Problem:
    """One that no design makes zero: 1 is the least half sum of squares, at 0, and steps of Gauss-Newton halve what is
    left."""
    return Problem(jnp.array([3.0]), lambda x: Evaluation(misfit=jnp.stack([x[0] + 1.0, 0.5 * x[0] ** 2 + x[0] - 1.0])))


def asked_of(tesseract, n: int, m: int):
    """A misfit of m entries, behind a component, with n unknowns."""
    target = jnp.arange(float(m))

    def evaluate(x):
        return Evaluation(misfit=apply_tesseract(tesseract, {"x": x})["y"] - target)

    return Problem(jnp.linspace(0.5, 1.0, n), evaluate)


def component(n: int, m: int, *endpoints: str, **options) -> FunctionTesseract:
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(m, n)))
    return FunctionTesseract(
        lambda i: {"y": matrix @ i["x"] + 0.1 * jnp.sin(i["x"]).sum()},
        {"x": np.ones(n)},
        name="part",
        endpoints=("apply", "abstract_eval", *endpoints),
        **options,
    )


PULLBACK, PUSHFORWARD = "vector_jacobian_product", "jacobian_vector_product"


# --- known answers


@pytest.mark.parametrize("driver", METHODS)
def test_known_answers(driver):
    found = optimize(rosenbrock(), driver, stop=STOP, transform=jax.jit)
    assert found.converged and np.allclose(found.design, 1.0, atol=1e-6) and found.value < 1e-12

    found = optimize(curve(), driver, stop=STOP, transform=jax.jit)
    assert found.converged and found.steps <= 10
    assert [float(found.design[key]) for key in "akc"] == pytest.approx([2.0, 3.0, 0.5], abs=1e-6)

    found = optimize(staying(), driver, stop=STOP, transform=jax.jit)
    assert found.converged and found.value == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("driver", METHODS)
def test_columns_that_depend_on_each_other(driver):
    def evaluate(x):
        return Evaluation(misfit=jnp.stack([x[0] + x[1] - 1.0, 2.0 * (x[0] + x[1]), x[2] ** 2 - 4.0]))

    found = optimize(Problem(jnp.array([1.0, 2.0, 3.0]), evaluate), driver, stop=STOP, transform=jax.jit)
    assert found.converged and found.value == pytest.approx(0.4, rel=1e-12)
    # Where the sum is all that counts, the shortest way keeps the difference.
    assert np.allclose(found.design, [-0.4, 0.6, 2.0], atol=1e-6)


@pytest.mark.parametrize("driver", METHODS)
def test_bounds(driver):
    inside, valley = [], rosenbrock().evaluate

    def evaluate(x):
        jax.debug.callback(lambda x: inside.append(bool((x >= -2.0).all() and (x <= 0.8).all())), x)
        return valley(x)

    problem = Problem(jnp.array([-1.2, 0.7]), evaluate, bounds=(-2.0, 0.8))
    found = optimize(problem, driver, stop=STOP, transform=jax.jit)
    assert found.converged and np.allclose(found.design, [0.8, 0.64], atol=1e-6)
    assert found.value == pytest.approx(0.02, rel=1e-9) and all(inside)


def test_a_scale_changes_the_way_and_not_the_answer():
    problem = curve()
    scaled = Problem(problem.design, problem.evaluate, scale={"k": 10.0}, bounds=({"k": 3.0}, {"k": 3.0, "a": 5.0}))
    found = optimize(scaled, "levenberg-marquardt", stop=STOP, transform=jax.jit)
    assert found.converged and float(found.design["k"]) == 3.0 and float(found.design["a"]) == pytest.approx(2.0)


def test_every_driver_minimises_half_the_sum_of_squares():
    problem = curve()
    start = optimize(problem, "adam", stop=MaxSteps(0), transform=jax.jit)
    half = 0.5 * float((start.evaluation.misfit**2).sum())
    assert start.value == pytest.approx(half, rel=1e-15)
    assert problem.function().value(np.array([1.0, 0.0, 1.0])) == pytest.approx(half, rel=1e-15)
    found = optimize(problem, "slsqp", stop=STOP, transform=jax.jit)
    assert found.converged and float(found.design["k"]) == pytest.approx(3.0, abs=1e-4)


# --- what is asked, and of whom


@pytest.mark.parametrize(
    ("driver", "n", "m", "endpoints", "endpoint", "per_step"),
    [
        ("gauss-newton", 5, 3, [PULLBACK], PULLBACK, 3),
        ("levenberg-marquardt", 3, 5, [PULLBACK], PULLBACK, 5),  # there is no other way
        ("dogleg", 3, 5, [PUSHFORWARD], PUSHFORWARD, 3),
        ("gauss-newton", 5, 3, [PUSHFORWARD], PUSHFORWARD, 5),
        ("levenberg-marquardt", 3, 5, [PULLBACK, PUSHFORWARD], PUSHFORWARD, 3),
        ("dogleg", 5, 3, [PULLBACK, PUSHFORWARD], PULLBACK, 3),
        ("gauss-newton", 5, 3, ["jacobian"], "jacobian", 1),
    ],
)
def test_the_jacobian_is_asked_for_where_a_step_ends_from_the_cheaper_side(driver, n, m, endpoints, endpoint, per_step):
    problem = asked_of(component(n, m, *endpoints), n, m)
    with own_requests() as requests:
        found = optimize(problem, driver, stop=MaxSteps(3))
    assert requests["part.apply"] == found.evaluations
    assert requests[f"part.{endpoint}"] == per_step * (found.steps + 1)
    assert found.requests == requests.n_solves == found.evaluations + per_step * (found.steps + 1)


def test_rows_are_pulled_back_at_once():
    barrier = threading.Barrier(3, timeout=60)  # all of them have to be at work for any to answer
    tesseract = component(4, 3, PULLBACK, before=lambda endpoint, inputs: endpoint == PULLBACK and barrier.wait())
    assert optimize(asked_of(tesseract, 4, 3), "gauss-newton", stop=MaxSteps(1)).steps == 1


def test_with_pushforwards_alone_gradients_are_verified_too():
    problem = asked_of(component(2, 3, PUSHFORWARD), 2, 3)
    found = optimize(problem, "levenberg-marquardt", stop=STOP, verify_gradients=2)
    assert found.converged
    with pytest.raises(tf.errors.EndpointNotFound):
        optimize(problem, "lbfgs")


def test_single_products_where_rows_and_columns_are_many():
    n, m, k = 12, 15, 4
    problem = asked_of(component(n, m, PULLBACK, PUSHFORWARD), n, m)
    settings = {"jacobian": "products", "products": k}
    with own_requests() as requests:
        found = optimize(problem, "levenberg-marquardt", driver_settings=settings, stop=MaxSteps(2))
    assert found.steps == 2 and found.value < 0.5 * found.history[0].value
    assert requests["part.apply"] == found.evaluations
    assert requests[f"part.{PUSHFORWARD}"] == k * 3
    assert requests[f"part.{PULLBACK}"] == k * 3  # one of them is the gradient


@pytest.mark.parametrize("driver", METHODS)
def test_products_lead_where_rows_lead(driver):
    problem = rosenbrock(bounds=(-2.0, 0.8)) if driver == "dogleg" else curve()
    found = [
        optimize(problem, driver, driver_settings={"jacobian": side}, stop=STOP, transform=jax.jit)
        for side in ("rows", "columns", "products")
    ]
    assert all(each.converged for each in found)
    assert found[0].value == pytest.approx(found[1].value, abs=1e-12)
    assert found[0].value == pytest.approx(found[2].value, abs=1e-12)


def test_the_side_is_chosen_by_what_is_offered_and_by_the_shape():
    both = frozenset({PULLBACK, PUSHFORWARD})
    assert cheaper_side([both], 30, 40, many=29) == "products" and cheaper_side([both], 30, 40, many=30) == "columns"
    assert cheaper_side([], 40, 30, many=29) == "products" and cheaper_side([both], 40, 30, many=30) == "rows"
    assert cheaper_side([both, frozenset({PULLBACK})], 30, 40, many=1) == "rows"
    assert cheaper_side([both, frozenset({PUSHFORWARD})], 40, 30, many=1) == "columns"
    # A product of a component that has its Jacobian alone costs as much as all of them.
    assert cheaper_side([frozenset({"jacobian"})], 40, 30, many=1) == "rows"
    assert endpoints_of(asked_of(component(2, 3, PULLBACK), 2, 3)) == [frozenset({"apply", "abstract_eval", PULLBACK})]
    derived = tf.open_tesseract(component(2, 3, PULLBACK), derive=True)
    assert endpoints_of(asked_of(derived, 2, 3)) == [frozenset({"apply", "abstract_eval", PULLBACK})]


def test_thousands_of_pullbacks_at_each_step_are_refused_unless_they_are_meant(monkeypatch):
    monkeypatch.setattr("tesseract_flow.optimize.drivers.least_squares._TOO_MANY", 6)
    problem = asked_of(component(2, 7, PULLBACK), 2, 7)
    with pytest.raises(DriverError, match=r"would ask for 7 pullbacks at each step.*\n.*'jacobian': 'rows'"):
        optimize(problem, "gauss-newton")
    meant = build_driver("gauss-newton", settings={"jacobian": "rows"})
    assert optimize(problem, meant, stop=MaxSteps(1)).steps == 1
    # One request has all of them.
    assert optimize(asked_of(component(2, 7, "jacobian"), 2, 7), "gauss-newton", stop=MaxSteps(1)).steps == 1


def test_bidiagonalisation_solves_least_squares():
    rng = np.random.default_rng(3)
    matrix, misfit = rng.normal(size=(9, 5)), rng.normal(size=9)
    small, residual, basis = bidiagonal(lambda t: matrix @ t, lambda c: matrix.T @ c, misfit, matrix.T @ misfit, 5)
    assert np.allclose(basis.T @ basis, np.eye(5), atol=1e-12)
    for damping in (0.0, 0.3):
        a, b = np.vstack([matrix, damping * np.eye(5)]), np.r_[misfit, np.zeros(5)]
        c, d = np.vstack([small, damping * np.eye(5)]), np.r_[residual, np.zeros(5)]
        assert np.allclose(np.linalg.lstsq(a, b)[0], basis @ np.linalg.lstsq(c, d)[0], atol=1e-12)
    small, residual, basis = bidiagonal(lambda t: t, lambda c: c, misfit, misfit, 4)  # ends after one step
    assert np.allclose(small[1:], 0.0) and np.allclose(basis[:, 1:], 0.0) and residual[0] == np.linalg.norm(misfit)


def test_what_can_only_be_pulled_back_through_is():
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, bar: (2.0 * x * bar,))
    problem = Problem(jnp.array([1.0, 3.0]), lambda x: Evaluation(misfit=square(x) - 4.0))
    found = optimize(problem, "gauss-newton", stop=STOP)
    assert found.converged and np.allclose(found.design, 2.0)


def test_single_precision():
    problem = Problem(jnp.array([1.0, 3.0], jnp.float32), lambda x: Evaluation(misfit=[x**2 - 4.0, x[0] - x[1]]))
    found = optimize(problem, "levenberg-marquardt", transform=jax.jit)
    assert found.converged and np.allclose(found.design, 2.0, atol=1e-4) and found.design.dtype == jnp.float32


@pytest.mark.slow
def test_a_served_component_in_the_misfit():
    matrix = np.random.default_rng(0).normal(size=(2, 6))
    with FaultyServer(of_function(tesseract_api.answer, document())) as server:

        def evaluate(x):
            inputs = {"x": x, "w": matrix, "s": jnp.asarray(0.5), "mode": "plain"}
            return Evaluation(misfit={"y": apply_tesseract(HttpTesseract(server.url), inputs)["y"] - 1.0, "x": x - 0.7})

        problem = Problem(jnp.linspace(0.5, 1.0, 6), evaluate)
        found = optimize(problem, "levenberg-marquardt", stop=STOP)
        assert found.converged
        assert found.value == pytest.approx(optimize(problem, "lbfgs", stop=STOP).value, rel=1e-6)


# --- journals, failures, wrong derivatives


@pytest.mark.parametrize("driver", METHODS)
def test_going_on_from_any_step_asks_nobody_again(driver, tmp_path):
    for side in ("rows", "products"):
        settings = {"jacobian": side}
        whole, parts = Counted(), Counted()
        undisturbed = optimize(staying(), driver, driver_settings=settings, stop=MaxSteps(5), transform=whole)
        for n in (0, 1, 2, 5):
            result = optimize(
                staying(),
                driver,
                driver_settings=settings,
                stop=MaxSteps(n),
                journal=tmp_path / side,
                transform=parts,
            )
        assert same_bits(undisturbed, result) and parts.n_calls == whole.n_calls
        assert whole.n_traces <= 6  # however many steps there are
        kept = tf.read_journal(tmp_path / side)
        assert np.allclose(kept.evaluation.misfit["misfit"], undisturbed.evaluation.misfit)


@pytest.mark.parametrize("driver", METHODS)
@pytest.mark.parametrize("kind", ["raises", "NaN"])
def test_an_evaluation_that_fails_is_stepped_back_from(driver, kind):
    def before(endpoint, inputs):
        if kind == "raises" and endpoint == "apply" and inputs["x"][0] > 2.5:
            raise ComponentFailed("'apply' of Tesseract 'wall': the component raised an error.\nValueError: folded")

    wall = FunctionTesseract(
        lambda i: {"y": jnp.log(2.5 - i["x"]) if kind == "NaN" else jnp.log(2.5 - jnp.minimum(i["x"], 2.4999))},
        {"x": np.ones(1)},
        before=before,
    )

    def evaluate(x):
        # The first step of Gauss-Newton goes beyond the wall; the answer is 2.
        return Evaluation(misfit=apply_tesseract(wall, {"x": x})["y"] - jnp.log(0.5))

    problem = Problem(jnp.array([-8.0]), evaluate)
    found = optimize(problem, driver, driver_settings={"jacobian": "rows"}, stop=STOP)
    assert found.converged and float(found.design[0]) == pytest.approx(2.0, abs=1e-6)
    assert found.history[-1].failures > 0
    assert any("stepped back" in event for record in found.history for event in record.events)
    with pytest.raises(EvaluationFailed):
        optimize(problem, driver, on_failure="raise")
    assert "an evaluation failed" in optimize(problem, driver, on_failure="stop").reason


@pytest.mark.parametrize("driver", METHODS)
def test_a_wrong_derivative_is_found_out(driver):
    @jax.custom_jvp
    def wrong(x):
        return x**2

    wrong.defjvp(lambda primals, tangents: (primals[0] ** 2, -2.0 * primals[0] * tangents[0]))
    problem = Problem(jnp.array([3.0, 1.5]), lambda x: Evaluation(misfit=wrong(x) - 1.0))
    found = optimize(problem, driver, stop=STOP, transform=jax.jit)
    assert not found.converged and "check the gradients" in found.reason.lower()


def test_a_start_that_fits_is_the_answer():
    found = optimize(Problem(jnp.ones(2), lambda x: Evaluation(misfit=x - 1.0)), "dogleg", transform=jax.jit)
    assert found.value == 0.0 and found.steps == 0 and np.array_equal(found.design, [1.0, 1.0])


# --- what does not fit is said before anything is evaluated


@pytest.mark.parametrize(
    ("misfit", "what"),
    [
        ({"r": np.ones(2), "hits": np.array([1, 2])}, "leaf 'hits' that is of dtype int64, expected real"),
        ({"r": np.ones(2), "ok": np.array(True)}, "leaf 'ok' that is of dtype bool"),
        ([np.ones(2), 1j * np.ones(2)], r"leaf '\[1\]' that is complex"),
        ({"name": "beam"}, "leaf 'name' that is str 'beam', expected an array"),
        (np.arange(3), "its misfit is of dtype int64"),
        ({}, "its misfit has no entries"),
        (np.ones((0, 3)), "its misfit has no entries"),
    ],
)
def test_misfits_that_are_none(misfit, what):
    problem = Problem(jnp.ones(2), lambda x: Evaluation(misfit=misfit), name="odd")
    with pytest.raises(ProblemError, match=what):
        check_evaluation(problem)
    with pytest.raises(ProblemError, match=what):
        optimize(problem, "adam")
    report = tf.check(problem)
    assert any(finding.kind == "misfit" for finding in report.findings)


def test_an_objective_beside_a_misfit_is_refused():
    problem = Problem(jnp.ones(2), lambda x: Evaluation((x**2).sum(), misfit=x))
    with pytest.raises(ProblemError, match=r"an objective and a misfit.*\n.*regularisation, is a part of the misfit"):
        optimize(problem, "lbfgs")
    with pytest.raises(ProblemError, match="NoneType as its objective"):
        optimize(Problem(jnp.ones(2), lambda x: Evaluation(aux=x)), "lbfgs")


@pytest.mark.parametrize("driver", METHODS)
def test_problems_that_are_not_for_these_drivers(driver):
    assert driver in driver_names() and "jacobian" in driver_settings(driver)
    with pytest.raises(DriverError, match="returns no misfit"):
        optimize(Problem(jnp.ones(2), lambda x: (x**2).sum()), driver)
    constrained = Problem(
        jnp.ones(2), lambda x: Evaluation(misfit=x, constraints={"s": x.sum()}), constraints={"s": Constraint(lower=1)}
    )
    with pytest.raises(DriverError, match=r"(?s)takes bounds, and no constraints.* has 's'\..*'slsqp'"):
        optimize(constrained, driver)
    with pytest.raises(DriverError, match="nothing is left to vary"):
        optimize(Problem(jnp.ones(2), lambda x: Evaluation(misfit=x), bounds=(1.0, 1.0)), driver)
    for settings, what in (({"jacobian": "half"}, "must be one of 'auto'"), ({"products": 0}, "must be 1 or more")):
        with pytest.raises(DriverError, match=what):
            build_driver(driver, settings=settings)
    with pytest.raises(DriverError, match="does not take a learning_rate"):
        build_driver(driver, 0.1)


def test_damping_is_checked():
    with pytest.raises(DriverError, match="'damping' of driver 'levenberg-marquardt' must be positive"):
        build_driver("levenberg-marquardt", settings={"damping": 0.0})


@pytest.mark.parametrize("driver", METHODS)
def test_without_optimistix_it_says_what_to_install(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimistix", None)
    with pytest.raises(DriverError, match=r"not installed: pip install 'tesseract-flow\[optimistix\]'"):
        build_driver(driver)


@pytest.mark.slow
def test_below_the_noise_of_a_fixed_point_a_run_ends_at_once_and_names_it():
    """It took 37 evaluations and a Jacobian for most, for steps shorter than what the state is solved to."""

    def state(k, v):
        def phi(T, k, v):
            return 20 + 40 * k[0] / (1 + v * k[1]) + 5 * jnp.tanh(T / 50) * k[1] + 3 * jnp.roll(jnp.cos(T / 30), 1)

        return tf.fixed_point(phi, jnp.full(6, 50.0), k, v, name="fin")

    rng, truth = np.random.default_rng(0), jnp.array([1.3, 0.8])
    data = {v: np.asarray(state(truth, v)) + 0.05 * rng.normal(size=6) for v in (2.0, 5.0)}
    problem = tf.Problem(
        jnp.array([1.0, 0.5]), lambda k: tf.Evaluation(misfit=[(state(k, v) - d) / 0.05 for v, d in data.items()])
    )
    result = tf.optimize(problem, "gauss-newton")
    assert result.evaluations <= 12
    assert result.converged or "noise of fixed point 'fin" in result.reason
