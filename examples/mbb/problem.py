"""The half MBB beam of least compliance: where in a rectangle does half of the material belong?

A field is averaged by a served filter, projected towards empty and full in plain JAX, and given to served finite
elements. The projection gets sharper as the run goes on, so that hardly any grey is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tesseract_flow as tf
from tesseract_flow.client import TesseractLike

HERE = Path(__file__).resolve().parent


def mbb(
    n_columns: int = 60,
    n_rows: int = 20,
    volume: float = 0.5,
    radius: float = 2.4,
    sharpness: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    every: int = 12,
    filter: TesseractLike | None = None,
    fem: TesseractLike | None = None,
) -> tf.Problem:
    """Minimise the compliance of half a beam at a given share of material.

    Args:
        n_columns, n_rows: square elements along and across.
        volume: the share of material, at most.
        radius: of the filter, in elements.
        sharpness: of the projection, one value after the other.
        every: steps for each of them.
        filter, fem: the two Tesseracts, or their addresses; those left out are served from this folder.
    """
    jax.config.update("jax_enable_x64", True)  # the components work in float64
    average, solver = tf.open_tesseract(filter or HERE / "filter"), tf.open_tesseract(fem or HERE / "fem")

    def evaluate(design: dict[str, Any], scheduled: Mapping[str, Any]) -> tf.Evaluation:
        filtered = tf.apply_tesseract(average, {"field": design["field"], "radius": radius})["filtered"]
        beta = scheduled["sharpness"]
        edge = jnp.tanh(beta / 2.0)
        density = (edge + jnp.tanh(beta * (filtered - 0.5))) / (2.0 * edge)
        answer = tf.apply_tesseract(solver, {"density": density})
        return tf.Evaluation(answer["compliance"], {"volume": density.mean()}, aux={"density": density})

    return tf.Problem(
        {"field": jnp.full((n_rows, n_columns), volume)},
        evaluate,
        bounds=(0.0, 1.0),
        constraints={"volume": tf.Constraint(upper=volume)},
        schedule={"sharpness": tf.Schedule(sharpness, every=every)},
        name="mbb",
        picture=lambda design, evaluation: densities(evaluation),
        defaults={
            "driver": "mma",
            # A sharper projection may take up a little more volume than there is. On its way back from there MMA has
            # to improve, or it may go on to an empty beam.
            "driver_settings": {"always_improve": True},
            "stop": {"max_steps": every * len(sharpness)},
        },
    )


def densities(evaluation: tf.Evaluation) -> Figure:
    """The whole beam: the half that is computed, and its mirror image."""
    density = np.asarray(evaluation.aux["density"])
    figure = Figure(figsize=(8.0, 1.9), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(1.0 - np.hstack([density[:, ::-1], density]), cmap="gray", vmin=0.0, vmax=1.0)
    axes.set_title(f"compliance {float(evaluation.objective):.2f}", loc="left", fontsize=11, fontweight="bold")
    axes.set_axis_off()
    return figure
