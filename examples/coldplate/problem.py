"""A cold plate: where should fluid run through a heated plate, so that it stays cool?

Warm fluid rises, so the flow depends on the temperature, and the temperature on the flow: a fixed point of two served
components, at which the loop gain of many designs is above 1. A third one averages the design over a neighbourhood.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tesseract_flow as tf
from tesseract_flow.client import TesseractLike

HERE = Path(__file__).resolve().parent
SOLID = 1e-2  # permeability where there is no channel; in a channel it is 1
METAL, FLUID = 0.1, 0.02  # conductivity


def coldplate(
    n_columns: int = 24,
    n_rows: int = 12,
    buoyancy: float = 3.0,
    channels: float = 0.5,
    solver: str = "newton-krylov",
    filter: TesseractLike | None = None,
    flow: TesseractLike | None = None,
    heat: TesseractLike | None = None,
) -> tf.Problem:
    """Minimise the mean temperature over the share of channel in each cell.

    Args:
        n_columns, n_rows: cells along the plate and upwards.
        buoyancy: the rise of warm fluid over the whole height, in units of the pressure that drives the flow.
        channels: the share of the plate that may be channel, at most.
        solver: of the coupled state.
        filter, flow, heat: the Tesseracts, or their addresses; those left out are served from this checkout.
    """
    jax.config.update("jax_enable_x64", True)  # the components work in float64
    average = tf.open_tesseract(filter or HERE.parent / "mbb" / "filter")
    darcy, energy = tf.open_tesseract(flow or HERE / "flow"), tf.open_tesseract(heat or HERE / "heat")
    n_faces = n_rows * (n_columns + 1) + (n_rows - 1) * n_columns

    def evaluate(design: dict[str, Any], scheduled: Mapping[str, Any]) -> tf.Evaluation:
        share = tf.apply_tesseract(average, {"field": design["share"], "radius": 1.5})["filtered"]
        permeability = SOLID ** (1.0 - share)
        conductivity = METAL + (FLUID - METAL) * share
        rise = scheduled["buoyancy"] / n_rows
        state = tf.fixed_point(
            {
                "flow": lambda T: tf.apply_tesseract(
                    darcy, {"permeability": permeability, "temperature": T["heat"], "buoyancy": rise}
                )["flux"],
                "heat": lambda T: tf.apply_tesseract(energy, {"flux": T["flow"], "conductivity": conductivity})[
                    "temperature"
                ],
            },
            {"flow": jnp.zeros(n_faces), "heat": jnp.zeros((n_rows, n_columns))},
            solver=solver,
            name="plate",
        )
        return tf.Evaluation(state["heat"].mean(), {"channels": share.mean()}, aux={**state, "share": share})

    return tf.Problem(
        {"share": jnp.full((n_rows, n_columns), channels)},
        evaluate,
        bounds=(0.0, 1.0),
        constraints={"channels": tf.Constraint(upper=channels)},
        schedule={"buoyancy": tf.Schedule.linear(buoyancy / 3, buoyancy, 3, every=8)},
        name="coldplate",
        picture=lambda design, evaluation: plate(evaluation),
        defaults={"driver": "mma", "driver_settings": {"always_improve": True}, "stop": {"max_steps": 24}},
    )


def plate(evaluation: tf.Evaluation) -> Figure:
    """Channels at the left, temperature at the right."""
    figure = Figure(figsize=(9.0, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(np.asarray(evaluation.aux["share"]), origin="lower", cmap="Blues", vmin=0.0, vmax=1.0)
    left.set_title("channels", loc="left", fontsize=11)
    image = right.imshow(np.asarray(evaluation.aux["heat"]), origin="lower", cmap="inferno")
    right.set_title(f"temperature, mean {float(evaluation.objective):.4f}", loc="left", fontsize=11)
    figure.colorbar(image, ax=right)
    for axes in (left, right):
        axes.set_axis_off()
    return figure
