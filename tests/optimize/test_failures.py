"""Evaluations that fail: what is gone back from, what is given up, and that nothing of them stays."""

from __future__ import annotations

import collections
import logging
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import MemoryCache, count_requests, open_tesseract
from tesseract_flow.compose import fixed_point
from tesseract_flow.errors import (
    AccessDenied,
    CallTimeout,
    ComponentFailed,
    EvaluationFailed,
    InvalidInput,
    ProblemError,
    TesseractFlowError,
    Unreachable,
)
from tesseract_flow.optimize import Constraint, Evaluation, FailurePolicy, MaxSteps, Problem, Stagnation, optimize
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import same_bits

KINDS = ["raises", "NaN", "time-out", "refuses", "says so"]
OWN_TEXT = "'apply' of Tesseract 'wall': the component raised an error.\nValueError: mesh has negative volumes"


def error_of(kind: str) -> Exception | None:
    return {
        "raises": ComponentFailed(OWN_TEXT),
        "time-out": CallTimeout("'apply' of Tesseract 'wall': no answer within 3 s."),
        "refuses": InvalidInput("'apply' of Tesseract 'wall': the inputs do not fit its schema:\n  x: too large"),
    }.get(kind)


def wall(kind: str, start: float = 0.0) -> Problem:
    """y = -log(2 - x) - 5 x, with its minimum at 1.8 and a component that ends at 2."""

    def y(i):
        x = i["x"]
        ends = jnp.where(x < 2, jnp.log(2 - jnp.minimum(x, 1.9999999)), 0.0 if kind == "says so" else jnp.nan)
        return {"y": -ends - 5 * x, "inside": x < 2}

    def before(endpoint, inputs):
        if endpoint == "apply" and inputs["x"] >= 2 and (error := error_of(kind)) is not None:
            raise error

    component = FunctionTesseract(y, {"x": np.float64(0.0)}, name="wall", before=before)

    def evaluate(design):
        out = apply_tesseract(component, {"x": design["x"]})
        return Evaluation(out["y"], aux={"inside": out["inside"]})

    return Problem({"x": jnp.asarray(start)}, evaluate, valid="inside", name="wall")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_line_search_steps_back_from_a_wall_of_any_kind(kind, caplog):
    with count_requests() as requests, caplog.at_level(logging.WARNING, "tesseract_flow"):
        result = optimize(wall(kind), "lbfgs")
    assert float(result.design["x"]) == pytest.approx(1.8, abs=1e-6) and result.converged
    assert result.evaluations == requests["wall.apply"] == 17
    # The pullback may be on its way when apply raises.
    assert 11 <= requests["wall.vector_jacobian_product"] <= 17
    assert result.history[-1].failures == 6
    (second, third) = [record for record in result.history if record.events]
    assert second.events[0].startswith("4 evaluations failed, the first at x = 9: ")
    assert second.events[1:] == third.events[1:] == ("the line search stepped back",)
    assert all(math.isfinite(record.value) and record.failed_in_a_row == 0 for record in result.history)
    assert len(caplog.records) == 6 and "Step 2: the evaluation at x = 9 failed." in caplog.text
    if kind == "raises":
        assert "ValueError: mesh has negative volumes" in second.events[0]
    if kind == "says so":
        assert "'inside' is False" in second.events[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_shortened_until_it_can_be_evaluated(kind):
    result = optimize(wall(kind), optax.sign_sgd(0.85), stop=MaxSteps(3))
    # 0.85, 1.7; 2.55 and 2.125 fail, 1.9125 does not.
    assert [record.failures for record in result.history] == [0, 0, 0, 2]
    assert result.history[-1].move == pytest.approx(0.85 / 4)
    assert result.history[-1].events[-1] == "the step was shortened to 0.25 of its length"
    assert result.evaluations == 6


def test_a_step_that_cannot_be_shortened_is_tried_without_the_drivers_memory():
    """Momentum carries a driver into the wall, wherever it stands; without it, it would turn."""

    def transform(fn):
        compiled = jax.jit(fn)

        def call(varying, *others):
            if float(varying["x"]) > 1.0:
                raise ComponentFailed(OWN_TEXT)
            return compiled(varying, *others)

        return call

    problem = Problem({"x": jnp.asarray(0.0)}, lambda design: (design["x"] - 0.9) ** 2)
    policy = FailurePolicy(shrinks=0)
    result = optimize(problem, optax.sgd(0.3, momentum=0.9), transform=transform, on_failure=policy, stop=MaxSteps(60))
    assert float(result.design["x"]) == pytest.approx(0.9, abs=1e-2)
    assert any("the driver's memory was cleared" in event for record in result.history for event in record.events)


@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
def test_at_a_wall_without_a_way_back_the_run_ends_with_the_best_and_says_why(driver):
    def transform(fn):
        compiled = jax.jit(fn)

        def call(varying, *others):
            if float(varying["x"]) > 1.0:
                raise ComponentFailed(OWN_TEXT)
            return compiled(varying, *others)

        return call

    problem = Problem({"x": jnp.asarray(0.0)}, lambda design: -design["x"])
    settings = {"learning_rate": 0.1} if driver == "adam" else {}
    result = optimize(problem, driver, transform=transform, stop=MaxSteps(400), **settings)
    assert float(result.design["x"]) == pytest.approx(1.0, abs=1e-3) and float(result.design["x"]) <= 1.0
    assert not result.converged
    assert "failed in a row" in result.reason and "mesh has negative volumes" in result.reason
    assert any("evaluations failed" in note for note in result.notes)


def test_a_dropped_update_leaves_everything_but_the_driver():
    noisy = optax.noisy_sgd(0.05, eta=100.0, key=1)
    result = optimize(wall("raises", 1.7), noisy, stop=MaxSteps(30), on_failure="skip")
    dropped = [record for record in result.history if "the update was dropped" in record.events]
    assert dropped and all(record.move == 0 and record.failed_in_a_row > 0 for record in dropped)
    assert result.history[-1].step == 30
    # A driver that remembers nothing and tries the same again ends soon.
    stuck = optimize(wall("raises"), optax.sign_sgd(0.85), on_failure=FailurePolicy(action="skip", in_a_row=3))
    assert [record.failed_in_a_row for record in stuck.history[-3:]] == [0, 1, 2]
    assert "3 evaluations failed in a row in step 5, at x = 2.55" in stuck.reason
    assert stuck.evaluations == 6


@pytest.mark.parametrize("kind", KINDS)
def test_it_can_also_end_the_run_at_once(kind):
    stopped = optimize(wall(kind), optax.sign_sgd(0.85), on_failure="stop")
    assert stopped.steps == 2 and stopped.reason.startswith("an evaluation failed in step 3, at x = 2.55: ")
    assert float(stopped.design["x"]) == pytest.approx(1.7) and not stopped.converged
    assert stopped.evaluations == 4
    with pytest.raises(EvaluationFailed, match=r"This was an evaluation in step 3, at x = 2\.55") as caught:
        optimize(wall(kind), optax.sign_sgd(0.85), on_failure="raise")
    assert caught.value.step == 3
    assert isinstance(caught.value.__cause__, TesseractFlowError)


@pytest.mark.parametrize("action", ["shrink", "skip", "stop", "raise"])
def test_a_start_that_fails_is_an_error_with_everything_in_it(action):
    with pytest.raises(EvaluationFailed) as caught:
        optimize(wall("raises", 3.0), "lbfgs", on_failure=action)
    text = str(caught.value)
    assert "ValueError: mesh has negative volumes" in text
    assert "evaluation of the start, at x = 3." in text and "no good design to go back to" in text
    assert any(note == "Its inputs: x = 3." for note in caught.value.__cause__.__notes__)


@pytest.mark.parametrize("kind", ["raises", "time-out"])
def test_the_same_in_a_program_that_is_compiled_as_a_whole(kind):
    result = optimize(wall(kind), "lbfgs", transform=jax.jit)
    assert float(result.design["x"]) == pytest.approx(1.8, abs=1e-6) and result.evaluations == 17
    with pytest.raises(EvaluationFailed) as caught:
        optimize(wall(kind), optax.sign_sgd(0.85), transform=jax.jit, on_failure="raise")
    assert type(caught.value.__cause__) is type(error_of(kind))


def test_what_no_other_design_would_mend_is_raised_at_once():
    n_asked = collections.Counter()

    def before(endpoint, inputs):
        n_asked[endpoint] += 1
        if endpoint == "apply" and inputs["x"] >= 2:
            raise AccessDenied("'apply' of Tesseract 'shut': access denied (HTTP 401).")

    shut = FunctionTesseract(lambda i: {"y": -i["x"]}, {"x": np.float64(0.0)}, name="shut", before=before)
    problem = Problem(jnp.asarray(1.6), lambda x: apply_tesseract(shut, {"x": x})["y"])
    with pytest.raises(AccessDenied):
        optimize(problem, optax.sign_sgd(0.5), on_failure=FailurePolicy(retries=5))
    assert n_asked["apply"] == 2


def test_a_failure_that_passes_is_repeated():
    """A component that fails the first time at each point, with a policy that allows for it."""
    seen = set()

    def before(endpoint, inputs):
        if endpoint == "vector_jacobian_product" and float(inputs["x"]) not in seen:
            seen.add(float(inputs["x"]))
            raise ComponentFailed("the licence server is busy")

    flaky = FunctionTesseract(lambda i: {"y": (i["x"] - 3) ** 2}, {"x": np.float64(0.0)}, name="flaky", before=before)
    problem = Problem({"x": jnp.asarray(0.0)}, lambda design: apply_tesseract(flaky, {"x": design["x"]})["y"])
    result = optimize(problem, "lbfgs", on_failure=FailurePolicy(retries=1))
    healthy = Problem({"x": jnp.asarray(0.0)}, lambda design: (design["x"] - 3) ** 2)
    undisturbed = optimize(healthy, "lbfgs")
    assert [record.value for record in result.history] == [record.value for record in undisturbed.history]
    assert result.history[-1].failures == 0 and result.evaluations == 2 * undisturbed.evaluations
    assert "was repeated (1 of 1): the licence server is busy" in result.history[1].events[0]


def test_nothing_of_a_failed_evaluation_stays_in_a_result_cache():
    """Two components with answers kept: the second says once that it did not converge."""
    cache, told = MemoryCache(), []

    def solve(i):
        return {"y": (i["x"] - 3) ** 2, "converged": i["x"] < 10}

    flaky = FunctionTesseract(solve, {"x": np.float64(0.0)}, name="flaky")
    plain = FunctionTesseract(lambda i: {"x": i["x"] * 1.0}, {"x": np.float64(0.0)}, name="plain")

    def request(endpoint, payload, *, run_id=None, ask=flaky.request):
        answer = ask(endpoint, payload, run_id=run_id)
        if endpoint == "apply" and len(told) == 0 and payload["inputs"]["x"] > 0:
            told.append(float(payload["inputs"]["x"]))
            answer["converged"] = np.asarray(False)
        return answer

    flaky.request = request  # type: ignore[method-assign]
    first, second = (open_tesseract(handle, cache=cache) for handle in (plain, flaky))

    def evaluate(design):
        out = apply_tesseract(second, apply_tesseract(first, {"x": design["x"]}))
        return Evaluation(out["y"], aux={"converged": out["converged"]})

    problem = Problem({"x": jnp.asarray(0.0)}, evaluate, valid="converged")
    result = optimize(problem, "lbfgs", on_failure=FailurePolicy(retries=1), stop=MaxSteps(2))
    assert len(told) == 1 and result.history[-1].failures == 0
    assert any("was repeated (1 of 1)" in event for record in result.history for event in record.events)
    # Asked again at the point that failed, the cache has the answer that was good.
    assert bool(second.apply({"x": np.float64(told[0])})["converged"])


class Away:
    """A transform whose calls from the n-th to the m-th find nobody."""

    def __init__(self, first: int, last: float):
        self.first, self.last, self.n = first, last, 0

    def __call__(self, fn):
        compiled = jax.jit(fn)

        def call(*args):
            self.n += 1
            if self.first <= self.n <= self.last:
                raise Unreachable("'apply' of Tesseract 'fem': no connection.\nStart it.")
            return compiled(*args)

        return call


def bowl() -> Problem:
    return Problem({"x": jnp.array([0.0, 1.0])}, lambda design: ((design["x"] - 3.0) ** 2).sum())


def test_a_component_that_is_away_is_waited_for():
    pauses: list[float] = []
    result = optimize(bowl(), stop=MaxSteps(5), transform=Away(4, 7), sleep=pauses.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0] and result.steps == 5
    assert result.history[3].events[0] == "waited 1 s for a component: 'apply' of Tesseract 'fem': no connection."
    assert result.design["x"].tolist() == optimize(bowl(), stop=MaxSteps(5), transform=jax.jit).design["x"].tolist()


def test_it_is_not_waited_for_at_the_start_nor_for_ever():
    pauses: list[float] = []
    with pytest.raises(Unreachable):
        optimize(bowl(), transform=Away(1, math.inf), sleep=pauses.append)
    assert pauses == []
    with pytest.raises(Unreachable) as caught:
        optimize(bowl(), transform=Away(3, math.inf), sleep=pauses.append, on_failure=FailurePolicy(patience=10))
    assert pauses == [1.0, 2.0, 4.0, 3.0]
    assert "waited for, 10 s in all" in caught.value.__notes__[-1]


def test_multipliers_stay_where_a_point_cannot_be_evaluated_again():
    """The point was good a moment ago: only a component that changes its mind fails there."""
    n_calls = collections.Counter()

    def transform(fn):
        compiled = jax.jit(fn)

        def call(varying, *others):
            point = (
                varying["x"].tobytes() if isinstance(varying["x"], np.ndarray) else np.asarray(varying["x"]).tobytes()
            )
            n_calls[point] += 1
            if n_calls[point] == 2 and len(n_calls) > 3 and sum(n > 1 for n in n_calls.values()) == 2:
                raise CallTimeout("'apply' of Tesseract 'fem': no answer within 3 s.")
            return compiled(varying, *others)

        return call

    problem = Problem(
        {"x": jnp.array([1.0, 2.0])},
        lambda design: Evaluation(((design["x"] - 3) ** 2).sum(), {"sum": design["x"].sum()}),
        constraints={"sum": Constraint(equals=4.0)},
    )
    result = optimize(problem, "lbfgs", transform=transform)
    told = [record for record in result.history if "multipliers stay as they were" in record.events]
    assert len(told) == 1 and result.history[-1].failures == 1
    before = result.history[told[0].step - 1]
    assert told[0].changes == before.changes and result.history[told[0].step + 1].changes == before.changes + 1
    assert result.design["x"].tolist() == pytest.approx([2.0, 2.0], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
@pytest.mark.parametrize("kind", ["raises", "NaN"])
def test_interrupted_and_gone_on_with_failures_in_it_ends_with_the_same_bits(tmp_path, driver, kind):
    settings = {"learning_rate": 0.6} if driver == "adam" else {}
    stop = MaxSteps(8)

    class Interrupted:
        def __init__(self, at=None):
            self.at, self.n = at, 0

        def __call__(self, fn):
            def call(varying, *others):
                self.n += 1
                if self.n == self.at:
                    raise KeyboardInterrupt
                x = float(varying["x"][0])
                if x >= 2 and kind == "raises":
                    raise ComponentFailed(OWN_TEXT)
                value = -math.log(2 - x) - 5 * x if x < 2 else math.nan
                slope = 1 / (2 - x) - 5 if x < 2 else math.nan
                return (jnp.asarray(value), [jnp.asarray(value)]), {"x": jnp.array([slope])}

            return call

    problem = Problem({"x": jnp.array([0.0])}, lambda design: (-jnp.log(2 - design["x"]) - 5 * design["x"]).sum())
    undisturbed = optimize(problem, driver, stop=stop, transform=Interrupted(), **settings)
    assert undisturbed.history[-1].failures >= 2
    n_lives = 0
    for at in (3, 6, 5, 4, 2, 7):
        try:
            optimize(problem, driver, stop=stop, journal=tmp_path, transform=Interrupted(at), **settings)
        except KeyboardInterrupt:
            n_lives += 1
    assert n_lives >= 2
    resumed = optimize(problem, driver, stop=stop, journal=tmp_path, transform=Interrupted(), **settings)
    assert same_bits(undisturbed, resumed)


@pytest.mark.parametrize("transform", [None, jax.jit, eqx.filter_jit], ids=["concurrent", "jit", "filter_jit"])
def test_the_authors_sentence_comes_first(transform, caplog):
    def evaluate(x):
        x = eqx.error_if(x, x >= 2, "mesh has negative volumes")
        return -jnp.log(2 - x) - 5 * x

    found = optimize(Problem(jnp.asarray(0.0), evaluate), "lbfgs", transform=transform)
    assert float(found.design) == pytest.approx(1.8, abs=1e-6) and found.evaluations == 17
    assert found.history[2].events[0] == "4 evaluations failed, the first at design = 9: mesh has negative volumes"
    assert {record.name for record in caplog.records} == {"tesseract_flow"}  # and no traceback of JAX's
    with pytest.raises(EvaluationFailed, match=r"^mesh has negative volumes\nThis was the evaluation of the start"):
        optimize(Problem(jnp.asarray(3.0), evaluate), "lbfgs", transform=transform)


def test_flags_are_checked_before_the_first_evaluation():
    def evaluate(design):
        flags = {"converged": (design["x"] < 2).all(), "margin": design["x"].sum(), "always": True}
        return Evaluation(design["x"].sum(), aux={"flow": flags})

    def problem(valid):
        return Problem({"x": jnp.zeros(2)}, evaluate, valid=valid)

    optimize(problem("flow.converged"), stop=MaxSteps(1))
    optimize(problem(["flow.converged"]), stop=MaxSteps(1))
    for valid, says in [
        ("flow.convergd", "Did you mean 'flow.converged'"),
        ("flow.margin", "dtype float64, expected bool"),
        ("flow.always", "is the constant True"),
    ]:
        with pytest.raises(ProblemError, match=says):
            optimize(problem(valid))


def test_policies_that_cannot_be_meant_are_refused():
    for settings, says in [
        ("shrnk", "Did you mean 'shrink'"),
        ({"retrys": 1}, "Did you mean 'retries'"),
        ({"retries": -1}, "retries must be 0 or more"),
        ({"factor": 1.0}, "between 0 and 1"),
        ({"in_a_row": 0}, "1 or more"),
        ({"patience": math.nan}, "0 seconds or more"),
        (3, "takes one of 'shrink', 'skip', 'stop', 'raise'"),
    ]:
        with pytest.raises(ProblemError, match=says):
            optimize(bowl(), on_failure=settings)


# -- random walls

DRIVERS = {
    "lbfgs": ("lbfgs", {}),
    "lbfgs, backtracking": ("lbfgs", {"driver_settings": {"linesearch": "backtracking"}}),
    "adam": ("adam", {"learning_rate": 0.3}),
    "momentum": (optax.sgd(0.05, momentum=0.9), {}),
}


def random_wall(seed: int):
    """A random bowl in three dimensions, cut by a random half-space that holds its minimum or does not."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(3, 3))
    matrix, minimum = factor @ factor.T + 0.3 * np.eye(3), rng.normal(size=3)
    normal = rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    has_minimum = seed % 2 == 0
    offset = normal @ minimum + (0.05 + 0.3 * rng.random() if has_minimum else -0.2 - rng.random())
    start = minimum - normal * (2.0 + rng.random())
    kind = KINDS[seed % len(KINDS)]
    asked, lost = [], []

    def transform(fn):
        def call(varying, *others):
            x = np.asarray(varying["x"])
            asked.append(x)
            is_good, way = normal @ x < offset, x - minimum
            value, gradient = 0.5 * way @ matrix @ way, matrix @ way
            if not is_good:
                lost.append(x)
                if (error := error_of(kind)) is not None:
                    raise error
                value, gradient = (-1e6, 1e6 * gradient) if kind == "says so" else (np.nan, np.nan * gradient)
            leaves = [jnp.asarray(value), jnp.asarray(is_good)]
            return (jnp.asarray(value), leaves), {"x": jnp.asarray(gradient)}

        return call

    problem = Problem(
        {"x": jnp.asarray(start)}, lambda d: Evaluation(d["x"].sum(), aux={"ok": d["x"].sum() > 0}), valid="ok"
    )
    return problem, transform, (minimum, normal, offset, has_minimum), asked, lost


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 52))])
def test_random_walls(seed):
    problem, transform, (minimum, normal, offset, has_minimum), asked, lost = random_wall(seed)
    driver, settings = DRIVERS[list(DRIVERS)[seed % len(DRIVERS)]]
    stop = [MaxSteps(2000), Stagnation(200, rtol=1e-9)]
    result = optimize(problem, driver, stop=stop, transform=transform, **settings)
    x = np.asarray(result.design["x"])
    assert normal @ x < offset and np.isfinite(result.value)
    assert result.evaluations == len(asked) and result.history[-1].failures <= len(lost)
    assert all(np.isfinite(record.value) and record.value > -1 for record in result.history)
    if "in a row" in result.reason:
        # Every way out of where the driver is leads through the wall: it says so, and keeps the best. A search only
        # comes there if the minimum is behind the wall.
        assert not result.converged and result.value < result.history[0].value
        assert not (has_minimum and driver == "lbfgs"), result.reason
    elif has_minimum:
        assert np.abs(x - minimum).max() < 1e-3, result.reason
    else:
        assert lost and not (result.converged and np.abs(x - minimum).max() > 1e-3)
        assert result.value < result.history[0].value


def test_a_fixed_point_that_is_not_reached_says_where_and_what_to_do():
    def evaluate(x):
        state = fixed_point(
            lambda T, x: {"a": x * jnp.cos(T["b"]), "b": x * jnp.sin(T["a"]) + x**2 * T["b"]},
            {"a": jnp.zeros(2), "b": jnp.zeros(2)},
            x,
            solver="picard",
        )
        return jnp.sum(state["a"])

    with pytest.raises(EvaluationFailed, match=r"It is largest in 'a'\. .* another solver= \(newton-krylov\)"):
        optimize(Problem(jnp.array(0.8), evaluate), "adam", stop=MaxSteps(1))
