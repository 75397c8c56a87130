"""The twin experiment: the truth from its observations, and what it costs."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tesseract_flow as tf
from examples.lorenz96.problem import assimilation
from examples.lorenz96.twin import integrated, twin
from tesseract_flow.testing import in_process
from tests.examples.helpers import EXAMPLES, run_example


@pytest.fixture(scope="module")
def stepper():
    return in_process(EXAMPLES / "lorenz96" / "stepper")


def test_the_component_is_the_model_of_the_twin(stepper):
    state = twin(8).state
    answer = stepper.apply({"state": state, "forcing": 8.0, "n_steps": 20})["state"]
    np.testing.assert_allclose(answer, integrated(state, 8.0, 20), rtol=1e-12)


def test_too_few_places_are_refused(stepper):
    with pytest.raises(tf.errors.CallError, match="fewer than 4"):
        stepper.apply({"state": np.ones(3), "forcing": 8.0})


@pytest.mark.slow
def test_a_small_truth_is_found_and_requests_are_counted(stepper):
    truth = twin(8, 3)
    with tf.count_requests() as requests:
        run = tf.optimize(assimilation(8, 3, stepper=stepper))
    assert run.converged
    np.testing.assert_allclose(run.design["state"], truth.state, atol=1e-6)
    assert float(run.design["forcing"]) == pytest.approx(8.0, abs=1e-6)
    # A call of each of the three windows per evaluation, and a Jacobian of each at the start and after each step.
    assert requests.n_of("apply") == 3 * run.evaluations
    assert requests.n_of("jacobian") == 3 * (run.steps + 1)
    # What has fallen to almost nothing is looked at before it is called optimal: six designs at most.
    assert requests.n_of("vector_jacobian_product") <= 3 * 6


@pytest.mark.slow
@pytest.mark.server
def test_the_example_finds_its_truth(tmp_path):
    run_example("lorenz96", tmp_path)
    result = json.loads((tmp_path / "runs" / "lorenz96" / "result.json").read_text())
    assert result["converged"] and result["steps"] <= 10


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["levenberg-marquardt", "gauss-newton", "dogleg"])
@pytest.mark.parametrize("seed", range(3))
def test_any_truth_is_found_by_each_driver(stepper, driver, seed):
    run = tf.optimize(assimilation(seed=seed, stepper=stepper), driver)
    np.testing.assert_allclose(run.design["state"], twin(seed=seed).state, atol=1e-6)


@pytest.mark.slow
def test_what_is_left_with_errors_in_the_observations_is_what_statistics_say(stepper):
    n_data, n_unknowns = 12 * 20, 41
    left = [tf.optimize(assimilation(noise=0.5, seed=seed, stepper=stepper)).value for seed in range(4)]
    # Half a chi-square variable with so many degrees of freedom, four times.
    free = n_data - n_unknowns
    assert np.mean(left) == pytest.approx(free / 2, abs=3.0 * np.sqrt(free / 2) / np.sqrt(4))
