"""Data assimilation: which initial state, and which forcing, explain what was seen of an atmosphere later on?

A `scan` over the served model, in which each iteration is a call, and the differences between what it says and what was
seen, as a misfit. The truth is known (`twin.py`), so the answer can be compared with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tesseract_flow as tf
from examples.lorenz96.twin import Twin, twin
from tesseract_flow.client import TesseractLike

HERE = Path(__file__).resolve().parent


def assimilation(
    n: int = 40,
    n_times: int = 12,
    every: int = 2,
    noise: float = 0.0,
    seed: int = 0,
    stepper: TesseractLike | None = None,
) -> tf.Problem:
    """Least squares over initial state and forcing.

    Args:
        n: places around the circle.
        n_times: how often observations are made, 0.05 units of time apart.
        every: each so-many-th place is observed.
        noise: standard deviation of the observations' errors; 0 is an exact twin experiment.
        seed: of the truth and of the errors.
        stepper: the model, or its address; default: served from this folder.
    """
    jax.config.update("jax_enable_x64", True)  # the component works in float64
    model = tf.open_tesseract(stepper or HERE / "stepper")
    truth = twin(n, n_times, every=every, noise=noise, seed=seed)

    def evaluate(design: dict[str, Any]) -> tf.Evaluation:
        def step(x, _):
            x = tf.apply_tesseract(model, {"state": x, "forcing": design["forcing"]})["state"]
            return x, x

        _, trajectory = jax.lax.scan(step, design["state"], length=n_times)
        # In units of the errors, so half of what is left is about half the number of data less that of unknowns.
        return tf.Evaluation(misfit=(trajectory[:, truth.seen] - truth.observations) / (noise or 1.0))

    return tf.Problem(
        {"state": jnp.asarray(truth.background), "forcing": jnp.asarray(7.0)},
        evaluate,
        bounds=({"forcing": 0.0}, {"forcing": 20.0}),
        name="lorenz96",
        defaults={"driver": "levenberg-marquardt", "stop": {"gradient_tolerance": 1e-9, "max_steps": 100}},
        picture=lambda design, evaluation: states(design, truth),
    )


def states(design: dict[str, Any], truth: Twin) -> Figure:
    """The initial state that was found, and the true one."""
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(truth.state, color="#222222", linewidth=1.0, label="truth")
    axes.plot(np.asarray(design["state"]), "o", color="#d55e00", markersize=4, label="found")
    axes.plot(truth.seen, truth.observations[0], "+", color="#0072b2", label="first observations, 0.05 later")
    axes.set(xlabel="place", ylabel="state")
    axes.set_title(f"forcing {float(design['forcing']):.6f}", loc="left", fontsize=11, fontweight="bold")
    axes.legend(loc="upper right", frameon=False, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
