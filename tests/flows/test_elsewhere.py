"""Calls in other processes: the same design, the same number of requests, and rules that count them."""

import numpy as np
import pytest
from prefect.task_runners import ProcessPoolTaskRunner

from tesseract_flow.flows import Optimizer, Stop, optimize_design
from tests.client.helpers import PROBE

PROBLEM = f"""
import jax.numpy as jnp
import tesseract_flow as tf

probe = tf.open_tesseract({str(PROBE)!r})


def problem():
    def evaluate(design):
        y = tf.apply_tesseract(probe, {{"x": design["x"]}})["y"]
        return jnp.sum((y - jnp.array([1.0, 4.0, 9.0])) ** 2)

    return tf.Problem({{"x": jnp.array([0.5, 1.5, 2.0])}}, evaluate, name="squares")
"""


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same_bits_and_counts(prefect_harness, tmp_path):
    file = tmp_path / "squares.py"
    file.write_text(PROBLEM)

    def run(flow, key, **stop):
        optimizer = Optimizer(name="sgd", learning_rate=0.01)
        out = flow(
            f"{file}:problem",
            optimizer=optimizer,
            stop=Stop(**stop),
            run_key=key,
            observe="calls",
            folder=str(tmp_path),
        )
        return out, np.load(f"{out['folder']}/design.npz")["x"]

    pooled = optimize_design.with_options(task_runner=ProcessPoolTaskRunner(max_workers=2))
    here, x = run(optimize_design, "threads", max_steps=4)
    away, other = run(pooled, "processes", max_steps=4)
    assert here["requests"] == away["requests"] > 8
    assert here["value"] == away["value"]
    np.testing.assert_array_equal(x, other)
    stopped, _ = run(pooled, "few", max_steps=50, max_requests=7)
    assert stopped["steps"] < 5 and "requests" in stopped["reason"]
