"""What a step keeps, and what it lets go."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.optimize import Constraint, Evaluation, MaxSteps, Observer, Problem, build_driver, optimize
from tesseract_flow.optimize.drivers.moves import Trial
from tesseract_flow.optimize.drivers.optax.engine import _accepted
from tesseract_flow.optimize.evaluator import Sample
from tesseract_flow.optimize.failures import FailurePolicy
from tesseract_flow.optimize.steps import prepare, start
from tests.optimize.helpers import rosenbrock_problem


def sample(number: float) -> Sample:
    return Sample(jnp.asarray(number), {}, [])


def test_the_accepted_point_is_the_trial_that_it_is_up_to_rounding():
    before = {"x": jnp.array([1.0, -3.0])}
    trials = [Trial({"x": before["x"] + t}, sample(t), t, 0.0, 0.0, 0.0) for t in (0.5, 0.25, 0.125)]
    # As if the step had been put together with a fused multiply-add.
    twin = {"x": jnp.asarray(np.nextafter(np.array([1.25, -2.75]), 10))}
    found = _accepted(before, twin, trials)
    assert found is trials[1]
    other = {"x": jnp.array([1.25, -2.75]) * (1 + 1e-14)}
    assert _accepted(before, other, trials) is None
    assert _accepted(before, twin, []) is None


@pytest.mark.parametrize("driver", ["adam", "lbfgs"])
def test_evaluations_of_earlier_steps_are_let_go(driver):
    made: list[weakref.ref] = []
    alive: list[int] = []

    def transform(fn):
        compiled = jax.jit(fn)

        def call(*args):
            answer = compiled(*args)
            made.append(weakref.ref(answer[1]["x"]))
            return answer

        return call

    watch = Observer(on_step=lambda *_: alive.append(sum(ref() is not None for ref in made)))
    optimize(rosenbrock_problem(), driver, stop=MaxSteps(12), transform=transform, observers=[watch])
    assert len(made) >= 12
    assert max(alive) <= 6  # the trials of one step


@pytest.mark.slow
def test_a_thousand_variables_with_active_bounds():
    """The beam of 1000 elements in closed form: thickness at its lower bound in the last elements."""
    n, optimum = 1000, 23710.856198
    s = np.arange(n + 1) / n
    c = jnp.asarray(120 * ((1 - s[:-1]) ** 3 - (1 - s[1:]) ** 3) / 3)

    def evaluate(h):
        return Evaluation((c / h**3).sum(), {"volume": 0.1 / n * h.sum()})

    problem = Problem(
        jnp.full(n, 0.1),
        evaluate,
        bounds=(1e-2, 10.0),
        constraints={"volume": Constraint(equals=0.01)},
        scale=0.1,
    )
    result = optimize(problem, "lbfgs", transform=jax.jit)
    assert abs(result.value / optimum - 1) < 1e-6
    assert abs(float(result.constraints["volume"]) / 0.01 - 1) < 1e-6
    assert float(result.design[-1]) == 0.01


@pytest.mark.slow
def test_a_search_tells_what_it_tried():
    """On a straight line values and slopes agree everywhere; a planted sign is seen in each trial."""

    def searches(sign):
        @jax.custom_jvp
        def line(x):
            return 3.0 * x.sum()

        line.defjvp(lambda primals, tangents: (line(*primals), sign * 3.0 * tangents[0].sum()))
        problem = Problem(jnp.array([1.0, 2.0]), line, bounds=(-10.0, 10.0))
        run = prepare(problem, build_driver("lbfgs"), jax.jit, None, 1e-6, FailurePolicy())
        state, _ = start(run, lambda: {"seconds": 0.0, "requests": 0, "evaluations": 0})
        return run.engine.step(run, state).searches

    (good,) = searches(1.0)
    assert good.here is not None and good.trials
    for trial in good.trials:
        assert trial.found == pytest.approx(trial.predicted) and trial.predicted < 0
        assert trial.distance > 0 and trial.slope * trial.distance == pytest.approx(trial.predicted)
    wrong = [trial for search in searches(-1.0) for trial in search.trials]
    assert len(wrong) > 3
    for trial in wrong:
        assert trial.found == pytest.approx(-trial.predicted, abs=1e-12) and trial.predicted < 0
