"""A driver that walks on the spot, below the noise of the values, ends its stage and claims nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.optimize.resting import Resting
from tesseract_flow.optimize.result import StepRecord

FIXED = {"state": {"steps": 0, "rounds": 1, "residual": 4e-8}}


def walked(**changes: Any) -> list[StepRecord]:
    """Six steps on the spot, of four evaluations each; `changes` are of the last one."""
    found = [
        StepRecord(
            step=k,
            value=1.0 + k * 1e-12,
            gradient_norm=1e-5,
            violation=0.0,
            residual=0.0,
            feasible=True,
            best_value=1.0,
            best_step=1,
            best_feasible=True,
            move=1e-12,
            changes=0,
            evaluations=4 * k,
            requests=0,
            seconds=0.0,
            stationarity=1e-5,
        )
        for k in range(1, 7)
    ]
    return [*found[:-1], dataclasses.replace(found[-1], **changes)]


def test_steps_on_the_spot_are_rest() -> None:
    rule = Resting()
    assert rule.reason_to_stop(walked()[1:]) is None
    assert "came to rest above the tolerance: its last 5 steps, of 20 evaluations" in str(rule.reason_to_stop(walked()))
    assert not rule.means_success and not rule.is_met(walked())


@pytest.mark.parametrize(
    "progress",
    [
        {"move": 1e-6},
        {"value": 0.999},
        {"stationarity": 4e-6},
        {"evaluations": 14},
        {"changes": 1},
        {"stationarity": None},
    ],
    ids=lambda one: next(iter(one)),
)
def test_what_leads_somewhere_is_none(progress: dict[str, Any]) -> None:
    assert Resting().reason_to_stop(walked(**progress)) is None


def test_the_noise_of_a_fixed_point_is_named() -> None:
    assert Resting().reason_to_stop(walked(move=3e-8)) is None
    reason = str(Resting().reason_to_stop(walked(move=3e-8, coupled=FIXED)))
    assert "Fixed point 'state' is solved to a residual of 4e-08" in reason and "smaller rtol" in reason


@pytest.mark.slow
def test_a_stage_that_cannot_get_below_its_noise_moves_on() -> None:
    """It took all 100 steps, and 971 evaluations, in the first of three stages, at its optimum since step 14."""
    n, current = 5, jnp.array([1.0, 1.5, 2.0, 1.2, 0.8])
    coupling = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    coupling[0, 0] = coupling[-1, -1] = 1.0

    def cooled(s: Any, area: Any, speed: Any) -> Any:
        return jnp.linalg.solve(jnp.diag(0.1 * jnp.sqrt(area * speed)) + 0.05 * coupling, s["heat"])

    def evaluate(d: Any, scheduled: Any) -> tf.Evaluation:
        parts = {"heat": lambda s, area, speed: current**2 * (1 + 0.02 * s["T"]) / area, "T": cooled}
        start = {"heat": jnp.ones(n), "T": jnp.ones(n)}
        area, speed = d["area"], d["speed"]
        found = tf.fixed_point(parts, start, area, speed, name="thermal", solver="gauss-seidel", rtol=1e-8)
        largest = jax.lax.stop_gradient(found["T"].max())
        hottest = largest * ((found["T"] / largest) ** scheduled["p"]).mean() ** (1 / scheduled["p"])
        price = (area**1.2).sum() + 2 * speed**1.5
        return tf.Evaluation(found["heat"].sum() + 0.05 * speed**3, {"hottest": hottest, "price": price})

    problem = tf.Problem(
        {"area": jnp.full(n, 1.5), "speed": jnp.asarray(1.0)},
        evaluate,
        bounds=({"area": 0.5, "speed": 0.05}, {"area": 10.0, "speed": 5.0}),
        constraints={"hottest": tf.Constraint(upper=7.2), "price": tf.Constraint(upper=16.0)},
        schedule={"p": tf.Schedule([4.0, 16.0, 64.0])},
    )
    result = tf.optimize(problem, "slsqp", stop={"max_steps": 100})
    assert result.history[-1].stage == 2
    assert result.value == pytest.approx(3.8527544220433487, abs=1e-7)
    assert result.steps < 60 and result.evaluations < 300
    assert not any(record.stage == 0 and record.step > 30 for record in result.history)
