"""CMA-ES: values alone, a generation at once, taken up again to the bit."""

from __future__ import annotations

import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import own_requests
from tesseract_flow.errors import ComponentFailed, DriverError, EvaluationFailed, OtherRun
from tesseract_flow.execute import concurrent
from tesseract_flow.optimize import Evaluation, MaxSteps, Problem, build_driver, driver_settings, optimize
from tesseract_flow.optimize.journal import FileJournal
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import Counted, hs71_problem, rosenbrock_problem, same_bits

STOP = {"max_steps": 400, "gradient_tolerance": 1e-6}


def bowl(**keywords) -> Problem:
    return Problem(jnp.array([2.0, -1.5, 0.5]), lambda x: ((x - jnp.arange(3.0)) ** 2).sum() + 1.0, **keywords)


@pytest.mark.parametrize("seed", [0, 1])
def test_rosenbrocks_valley_and_no_claim(seed):
    settings = {"seed": seed, "spread": 0.5}
    result = optimize(rosenbrock_problem(), "cma-es", driver_settings=settings, stop=STOP, transform=jax.jit)
    assert result.value < 1e-9 and abs(float(result.design["x"]) - 1) < 1e-4
    assert not result.converged and result.optimality is None
    assert result.reason.startswith("the driver came to rest; in its own words")
    assert all(record.gradient_norm is None and record.stationarity is None for record in result.history)


def test_an_active_bound_and_an_entry_that_cannot_move():
    result = optimize(
        bowl(bounds=(jnp.array([-5.0, -5.0, 0.5]), jnp.array([5.0, 0.5, 0.5]))),
        "cma-es",
        stop=STOP,
        transform=jax.jit,
    )
    assert result.value == pytest.approx(1.0 + 0.25 + 2.25, rel=1e-6)
    assert np.allclose(result.design, [0.0, 0.5, 0.5], atol=1e-3)


def component(before=lambda endpoint, inputs: None) -> FunctionTesseract:
    endpoints = ("apply", "abstract_eval")
    example = {"x": np.ones(3)}
    return FunctionTesseract(
        lambda i: {"y": ((i["x"] - 1.0) ** 2).sum()}, example, name="plain", endpoints=endpoints, before=before
    )


def test_it_asks_a_component_without_derivatives_for_values_and_nothing_else(tmp_path):
    plain = component()
    problem = Problem(jnp.zeros(3), lambda x: apply_tesseract(plain, {"x": x})["y"])
    with own_requests() as requests:
        result = optimize(problem, "cma-es", stop=MaxSteps(4), journal=tmp_path / "J")
        keywords = {"recheck": True, "verify_gradients": 1}  # there are no gradients to look at
        optimize(problem, "cma-es", stop=MaxSteps(5), journal=tmp_path / "J", **keywords)
        assert {key for key in requests if requests[key]} <= {"plain.apply", "plain.abstract_eval"}
    assert result.evaluations == result.requests == 1 + 4 * 7  # 4 + 3 ln 3


def test_a_generation_is_evaluated_at_once():
    all_there = threading.Barrier(7, timeout=60)

    def before(endpoint, inputs):
        if endpoint == "apply" and np.asarray(inputs["x"]).any():  # not at the start, which is alone
            all_there.wait()

    plain = component(before)
    problem = Problem(jnp.zeros(3), lambda x: apply_tesseract(plain, {"x": x})["y"])
    result = optimize(problem, "cma-es", stop=MaxSteps(2), transform=concurrent)
    assert result.steps == 2 and not result.history[-1].failures


def test_going_on_gives_the_same_bits_and_asks_nothing_twice(tmp_path):
    whole, parts = Counted(), Counted()
    undisturbed = optimize(bowl(), "cma-es", stop=MaxSteps(8), transform=whole)
    for n in (0, 1, 2, 5, 8):
        result = optimize(bowl(), "cma-es", stop=MaxSteps(n), journal=tmp_path / "J", transform=parts)
    assert same_bits(undisturbed, result) and parts.n_calls == whole.n_calls


def test_the_seed_is_part_of_what_a_run_is(tmp_path):
    optimize(bowl(), "cma-es", stop=MaxSteps(2), journal=tmp_path / "J", transform=jax.jit)
    same = {"seed": 0}
    optimize(bowl(), "cma-es", driver_settings=same, stop=MaxSteps(3), journal=tmp_path / "J", transform=jax.jit)
    with pytest.raises(OtherRun, match="seed"):
        optimize(bowl(), "cma-es", driver_settings={"seed": 1}, journal=tmp_path / "J", transform=jax.jit)


def test_a_damaged_generation_costs_what_was_learned_and_no_step(tmp_path):
    optimize(bowl(), "cma-es", stop=MaxSteps(4), journal=tmp_path / "J", transform=jax.jit)
    part = sorted((tmp_path / "J").glob("answers-*.part"))[2]
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)
    result = optimize(bowl(), "cma-es", stop=MaxSteps(60), journal=FileJournal(tmp_path / "J"), transform=jax.jit)
    assert any("began anew" in note for note in result.notes) and result.value < 1.001
    assert any("began anew" in event for event in result.history[5].events)


@pytest.mark.parametrize("how", ["error", "nan"])
def test_what_fails_comes_last_and_the_others_count(how):
    def before(endpoint, inputs):
        if how == "error" and endpoint == "apply" and np.asarray(inputs["x"])[0] > 0.8:
            raise ComponentFailed("the mesh has negative volumes")

    plain = component(before)

    def evaluate(x):
        y = apply_tesseract(plain, {"x": x})["y"]
        return jnp.where(x[0] > 0.8, jnp.nan, y) if how == "nan" else y

    result = optimize(Problem(jnp.zeros(3), evaluate), "cma-es", stop=MaxSteps(40))
    assert result.value < 0.05 and float(result.design[0]) <= 0.8 and result.history[-1].failures > 0
    assert all(np.isfinite(record.value) for record in result.history)
    with pytest.raises(EvaluationFailed):
        optimize(Problem(jnp.zeros(3), evaluate), "cma-es", stop=MaxSteps(40), on_failure="raise")


def test_a_problem_that_changed_begins_a_leg_of_its_own(tmp_path):
    optimize(bowl(), "cma-es", stop=MaxSteps(3), journal=tmp_path / "J", transform=jax.jit)
    other = Problem(jnp.array([2.0, -1.5, 0.5]), lambda x: Evaluation(2 * ((x - jnp.arange(3.0)) ** 2).sum() + 1.0))
    keywords = {"journal": tmp_path / "J", "transform": jax.jit, "accept_changes": True}
    result = optimize(other, "cma-es", stop=MaxSteps(60), **keywords)
    assert result.value < 1.001 and result.history[4].since == 4
    again = optimize(other, "cma-es", stop=MaxSteps(61), journal=tmp_path / "J", transform=jax.jit)
    assert again.steps == 61 and not any("began anew" in note for note in again.notes)


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(DriverError, match=r"takes bounds, and no constraints.*'product', 'squares'"):
        optimize(hs71_problem(), "cma-es")
    with pytest.raises(DriverError, match="nothing is left to vary"):
        optimize(Problem(jnp.ones(2), lambda x: x.sum(), bounds=(1.0, 1.0)), "cma-es", transform=jax.jit)
    for settings in ({"spread": 0.0}, {"seed": -1}, {"population": 2}):
        with pytest.raises(DriverError, match="cma-es"):
            build_driver("cma-es", settings=settings)
    assert driver_settings("cma-es")["seed"] == 0
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(DriverError, match=r"pip install 'tesseract-flow\[cmaes\]'"):
        build_driver("cma-es")
