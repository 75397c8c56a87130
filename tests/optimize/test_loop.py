"""`optimize` as a whole: what it evaluates, what it keeps, when it stops, whom it tells."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.errors import DriverError, OtherRun, ProblemError
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FirstOrder,
    GradientBelow,
    MaxEvaluations,
    MaxRequests,
    MaxSteps,
    Observer,
    Problem,
    Stagnation,
    TargetValue,
    WallTime,
    optimize,
)
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import Counted, rosenbrock, rosenbrock_problem, same_bits


def bowl(design):
    return ((design["x"] - 3.0) ** 2).sum()


def bowl_problem(**kwargs) -> Problem:
    return Problem({"x": jnp.array([0.0, 1.0]), "tag": "bowl", "n": 2}, bowl, **kwargs)


def test_without_constraints_it_is_the_plain_optax_loop():
    transformation = optax.sgd(1e-3, momentum=0.5)
    result = optimize(rosenbrock_problem(), transformation, stop=MaxSteps(20), transform=jax.jit)
    u = {"x": jnp.asarray(-1.2), "y": jnp.asarray(1.0)}
    state = transformation.init(u)
    for record in result.history:
        assert record.value == pytest.approx(float(rosenbrock(u)), rel=1e-12)
        updates, state = transformation.update(jax.grad(rosenbrock)(u), state)
        u = optax.apply_updates(u, updates)


@pytest.mark.slow
def test_rosenbrock_by_lbfgs():
    transform = Counted()
    result = optimize(rosenbrock_problem(), "lbfgs", transform=transform)
    assert result.value < 1e-8 and result.converged
    assert float(result.design["x"]) == pytest.approx(1.0, abs=1e-4)
    assert transform.n_calls == result.evaluations <= 60


@pytest.mark.parametrize("search", ["zoom", "backtracking"])
@pytest.mark.slow
def test_every_trial_is_one_evaluation_and_the_accepted_one_none_more(search):
    points = []

    def transform(fn):
        compiled = jax.jit(fn)

        def call(varying, *others):
            points.append((float(varying["x"]), float(varying["y"])))
            return compiled(varying, *others)

        return call

    seen = []
    watch = Observer(on_step=lambda record, design, evaluation: seen.append((float(design["x"]), float(design["y"]))))
    result = optimize(
        rosenbrock_problem(),
        "lbfgs",
        driver_settings={"linesearch": search},
        stop=MaxSteps(10),
        transform=transform,
        observers=[watch],
    )
    assert len(points) == len(set(points)) == result.evaluations
    assert set(seen) <= set(points)


@pytest.mark.slow
def test_bounds_hold_at_every_evaluation_and_are_exact_where_active():
    points = []

    def transform(fn):
        compiled = jax.jit(fn)

        def call(varying, *others):
            points.append(np.asarray(varying["x"]))
            return compiled(varying, *others)

        return call

    # 0.3 and 0.1 have no exact ratio: scaling back and forth must not leak over the bound.
    problem = bowl_problem(bounds=(None, jnp.array([0.3, 10.0])), scale=0.1)
    for driver, rate in [("adam", 0.3), ("lbfgs", None)]:
        result = optimize(
            problem,
            driver,
            learning_rate=rate,
            stop={"max_steps": 300, "gradient_tolerance": 1e-7},
            transform=transform,
        )
        assert all((point <= np.array([0.3, 10.0])).all() for point in points)
        assert result.design["x"].tolist() == pytest.approx([0.3, 3.0], abs=1e-5)
        assert float(result.design["x"][0]) == 0.3
    assert result.converged and result.reason.startswith("optimal to first order")


def test_a_start_outside_the_bounds_is_moved_and_noted():
    result = optimize(bowl_problem(bounds=(0.5, None)), stop=MaxSteps(0))
    assert result.design["x"].tolist() == [0.5, 1.0]
    assert result.notes == (
        "the start was outside the bounds, and was moved into them",
        "a bound is active: 'x' at its lower bound (1 of 2 entries)",
    )
    assert optimize(bowl_problem(), stop=MaxSteps(0)).notes == ()


def test_what_does_not_vary_never_changes():
    mesh = np.arange(4)
    design = {
        "x": jnp.array([0.0, 1.0]),
        "w": jnp.ones(2),
        "f": jnp.tanh,
        "p": 0.25,
        "mesh": mesh,
        "none": None,
        "s": "a",
    }

    def evaluate(design):
        assert design["p"] == 0.25 and design["f"] is jnp.tanh
        return ((design["x"] - design["w"] * design["p"]) ** 2).sum() + design["mesh"].sum() * 0.0

    problem = Problem(design, evaluate, vary=lambda leaf: eqx.is_inexact_array(leaf) and leaf is design["x"])
    result = optimize(problem, learning_rate=0.1, stop=MaxSteps(200))
    assert result.design["x"].tolist() == pytest.approx([0.25, 0.25], abs=1e-3)
    assert result.design["w"] is design["w"] and result.design["mesh"] is mesh
    assert type(result.design["p"]) is float and result.design["f"] is jnp.tanh and result.design["none"] is None


def test_the_best_is_kept_when_the_last_is_worse():
    result = optimize(bowl_problem(), optax.sgd(1.05), stop=MaxSteps(5), transform=jax.jit)
    values = [record.value for record in result.history]
    assert values == sorted(values) and result.value == values[0]
    assert [record.best_step for record in result.history] == [0] * 6
    assert result.design["x"].tolist() == [0.0, 1.0] and float(result.evaluation.objective) == result.value


@pytest.mark.slow
def test_a_feasible_design_beats_a_better_infeasible_one():
    def evaluate(design):
        return Evaluation(design["x"].sum(), {"x": design["x"]})

    start = {"x": jnp.array([2.0])}
    problem = Problem(start, evaluate, constraints={"x": Constraint(lower=1.0)})
    # Steps of 0.4: feasible at 2.0, 1.6 and 1.2, not below.
    result = optimize(problem, optax.sign_sgd(0.4), stop=MaxSteps(4), transform=jax.jit)
    assert float(result.design["x"][0]) == pytest.approx(1.2)
    assert min(record.value for record in result.history) < 1.0
    infeasible = Problem({"x": jnp.array([0.0])}, evaluate, constraints={"x": Constraint(lower=1.0)})
    never = optimize(infeasible, optax.sign_sgd(0.1), stop=MaxSteps(4), transform=jax.jit)
    assert not never.feasible and float(never.design["x"][0]) == pytest.approx(0.4)
    assert never.violation == pytest.approx(0.6)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(
    ("stop", "reason", "converged"),
    [
        (MaxSteps(3), "maximum number of steps reached (3)", False),
        # Only the user knows what 5.0 means, so it is a reason and no claim.
        (GradientBelow(5.0), "gradient below 5", False),
        (FirstOrder(0.9), "optimal to first order", True),
        ([MaxEvaluations(4), MaxSteps(50)], "maximum number of evaluations reached (4 of 4)", False),
        (MaxRequests(9), "maximum number of requests reached (10 of 9)", False),
        (WallTime(7.5), "wall time used up", False),
        # The user's own success: it says nothing about optimality.
        ({"target_value": 5.0}, "target value reached", False),
        ([Stagnation(2, rtol=0.5), MaxSteps(50)], "no improvement by more than 0.5", False),
        (TargetValue(-1.0), "maximum number of steps reached (200)", False),
    ],
)
def test_the_reason_to_stop_is_in_the_result(stop, reason, converged):
    transform = Counted()
    result = optimize(
        bowl_problem(),
        learning_rate=0.1,
        stop=stop,
        transform=transform,
        count=lambda: 100 + 2 * transform.n_calls,
        clock=Clock(),
    )
    assert reason in result.reason and result.converged == converged
    assert result.steps == len(result.history) - 1
    assert [record.requests for record in result.history] == [2 * (k + 1) for k in range(len(result.history))]
    assert (result.requests, result.evaluations) == (2 * transform.n_calls, transform.n_calls)


def test_requests_to_tesseracts_are_counted_without_being_asked_for():
    square = FunctionTesseract(lambda i: {"y": jnp.sum(i["x"] ** 2)}, {"x": jnp.ones(2)}, name="square")
    problem = Problem({"x": jnp.ones(2)}, lambda design: apply_tesseract(square, {"x": design["x"]})["y"])
    result = optimize(problem, stop=MaxRequests(9))
    assert result.requests == 10  # two for each of five evaluations; shapes were asked before the first one
    assert result.reason == "maximum number of requests reached (10 of 9)"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda transform: optimize(bowl_problem(), "adm", transform=transform), DriverError),
        (lambda transform: optimize(bowl_problem(), on_failure="ignore", transform=transform), ProblemError),
        (
            lambda transform: optimize(bowl_problem(constraints={"v": Constraint(equals=1.0)}), transform=transform),
            ProblemError,
        ),
    ],
)
def test_mistakes_are_reported_before_the_first_evaluation(call, error):
    transform = Counted()
    with pytest.raises(error):
        call(transform)
    assert transform.n_calls == 0


@pytest.mark.slow
def test_searches_step_back_from_nan_on_their_own():
    def evaluate(x):
        return jnp.where(x > 0.9, jnp.nan, (x - 0.8) ** 2) + jnp.where(x < 0.5, 3 * (0.5 - x), 0.0)

    result = optimize(Problem(jnp.asarray(-1.0), evaluate), "lbfgs", transform=jax.jit)
    assert float(result.design) == pytest.approx(0.8, abs=1e-5)


@pytest.mark.slow
def test_a_driver_that_cannot_go_on_says_so():
    """At |x| the line search ends in the kink, where no step along the gradient goes down."""
    result = optimize(Problem(jnp.array([0.4, 0.7]), lambda x: jnp.abs(x - 0.3).sum()), "lbfgs", stop=MaxSteps(100))
    assert "no better design, even after a restart" in result.reason and not result.converged
    assert result.value < 1e-3 and result.history[-1].stalled


def test_observers_see_every_finished_step_in_order():
    events = []
    watch = Observer(
        on_start=lambda problem, history: events.append(("start", problem.name, len(history))),
        on_step=lambda record, design, evaluation: events.append(
            (record.step, design["tag"], float(evaluation.objective) == record.value)
        ),
        on_finish=lambda result: events.append(("finish", result.steps)),
    )
    optimize(bowl_problem(name="bowl"), stop=MaxSteps(2), observers=[watch, Observer()])
    assert events == [("start", "bowl", 0), *((k, "bowl", True) for k in range(3)), ("finish", 2)]


def test_steps_can_be_run_elsewhere():
    steps = []

    def run_step(step, fn):
        steps.append(step)
        return fn()

    optimize(bowl_problem(), stop=MaxSteps(3), run_step=run_step)
    assert steps == [0, 1, 2, 3]


def test_the_scale_of_the_objective_does_not_matter_to_the_constrained_method():
    def make(factor):
        return Problem(
            jnp.array([1.0, 2.0]),
            lambda x: Evaluation(factor * ((x - 3) ** 2).sum(), {"sum": x.sum()}),
            constraints={"sum": Constraint(equals=4.0)},
        )

    # A power of two, so that scaling is exact.
    a, b = (
        optimize(make(factor), learning_rate=0.05, stop=MaxSteps(60), transform=jax.jit) for factor in (1.0, 1024.0)
    )
    assert b.value == pytest.approx(1024 * a.value, rel=1e-9)
    assert b.design.tolist() == pytest.approx(a.design.tolist(), rel=1e-9)


def test_the_scale_of_the_design_is_the_unit_of_the_driver():
    def make(factor):
        return Problem(jnp.array([0.0, 1.0]) * factor, lambda x: ((x / factor - 3) ** 2).sum(), scale=factor)

    a, b = (optimize(make(factor), stop=MaxSteps(30), transform=jax.jit) for factor in (1.0, 1024.0))
    assert (b.design == 1024.0 * a.design).all()
    assert [r.value for r in a.history] == [r.value for r in b.history]


def test_equal_runs_are_equal_to_the_bit():
    a, b = (optimize(rosenbrock_problem(), "lbfgs", stop=MaxSteps(8), transform=jax.jit) for _ in range(2))
    assert same_bits(a, b)
    assert not same_bits(a, dataclasses.replace(b, history=b.history[:-1]))


@pytest.mark.parametrize(
    ("slip", "says"),
    [
        ({"max_steps": 3}, "does not take 'max_steps'.*stop={'max_steps': 3}"),
        ({"bounds": (0.0, 1.0)}, r"belongs to the problem: Problem\(design, evaluate, bounds=...\)"),
        ({"driver": "lbfgs", "memory_size": 5}, "driver_settings={'memory_size': 5}"),
        ({"learning_rat": 0.1}, "Did you mean 'learning_rate'"),
        ({"nothing_like_it": 1}, "It takes: problem, driver, learning_rate"),
    ],
)
def test_a_keyword_that_belongs_elsewhere_is_refused_with_the_place(slip, says):
    with pytest.raises(TypeError, match=f"(?s){says}"):
        optimize(bowl_problem(), **slip)


# --- the scale of the objective


@pytest.mark.parametrize("factor", [1e-9, 4000.0**2, 1e9])
def test_scaled_by_its_size_at_the_start_the_unit_of_the_objective_costs_nothing(factor):
    """As `1 * bowl`, step by step."""

    def solved(factor):
        problem = bowl_problem()
        problem = dataclasses.replace(problem, evaluate=lambda d: factor * bowl(d))
        return optimize(problem, "adam", stop=MaxSteps(15), transform=jax.jit, objective_scale="start")

    result, one = solved(factor), solved(1.0)
    assert np.allclose(result.design["x"], one.design["x"], rtol=1e-9)
    assert result.value == pytest.approx(factor * one.value)
    assert result.history[0].value == pytest.approx(13.0 * factor)  # what is shown is the objective itself
    assert result.history[-1].gradient_norm == pytest.approx(factor * one.history[-1].gradient_norm)


@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
def test_a_scale_of_one_is_what_runs_without_constraints_have(driver):
    plain, asked = (
        optimize(rosenbrock_problem(), driver, stop=MaxSteps(8), transform=jax.jit, objective_scale=scale)
        for scale in (None, 1.0)
    )
    assert same_bits(plain, asked)


def test_the_scale_is_in_the_journal_and_part_of_what_a_run_is(tmp_path):
    options = {"transform": jax.jit, "objective_scale": "start"}
    whole = optimize(rosenbrock_problem(), "lbfgs", stop=MaxSteps(9), **options)
    for n in (3, 9):
        parts = optimize(rosenbrock_problem(), "lbfgs", stop=MaxSteps(n), journal=tmp_path / "J", **options)
    assert same_bits(whole, parts)
    with pytest.raises(OtherRun, match='objective_scale: "start" -> '):
        optimize(rosenbrock_problem(), "lbfgs", journal=tmp_path / "J", transform=jax.jit)


@pytest.mark.parametrize("start", [400.0, 2.0])
def test_an_objective_that_is_flat_at_the_start_is_scaled_by_its_size_over_the_designs(start):
    """Divided by its size, the entropy of ODFITS took twice as many evaluations: nothing moved for long."""
    problem = Problem(
        jnp.full(3, start),
        lambda x: Evaluation((x * (jnp.log(x / start) - 1.0)).sum(), {"sum": jnp.array([1.0, 2.0, 0.5]) @ x}),
        bounds=(1e-3, None),
        constraints={"sum": Constraint(equals=4.0 * start)},
    )
    flat, plain = (optimize(problem, "slsqp", transform=jax.jit, objective_scale=scale) for scale in (None, 1.0))
    assert flat.converged and same_bits(flat, plain)


@pytest.mark.parametrize("scale", ["end", 0.0, -1.0, float("nan"), True])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ProblemError, match="objective_scale must be"):
        optimize(bowl_problem(), objective_scale=scale)


@pytest.mark.parametrize("size", [5000.0, 1e-3])
@pytest.mark.slow
def test_a_limit_of_zero_is_measured_by_the_start_also_after_going_on(tmp_path, size):
    def problem():
        return Problem(
            jnp.array([3.0, 2.0]),
            lambda x: Evaluation((x**2).sum(), {"c": size * (2.0 - x.sum())}),
            constraints={"c": Constraint(upper=0.0)},
            bounds=(-4.0, 4.0),
        )

    whole = optimize(problem(), "lbfgs", stop={"max_steps": 40}, transform=jax.jit)
    for n in (2, 40):
        parts = optimize(problem(), "lbfgs", stop={"max_steps": n}, journal=tmp_path / "J", transform=jax.jit)
    assert same_bits(whole, parts)
    assert any(f"its value at the start, {3 * size:.3g}" in note for note in parts.notes)
    assert parts.value == pytest.approx(2.0, rel=1e-4)
