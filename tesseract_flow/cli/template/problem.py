"""A hanging rod: which widths make it stiffest under its loads, for a given price?

Three Tesseracts, wired in plain JAX: `section` turns widths into areas, `rod` solves for displacements, `price` says
what it costs. Replace them by your own; `evaluate` is where they meet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tesseract_flow as tf
from tesseract_flow.client import TesseractLike

HERE = Path(__file__).resolve().parent


def problem(
    n_pieces: int = 6,
    budget: float = 1.0,
    section: TesseractLike | None = None,
    rod: TesseractLike | None = None,
    price: TesseractLike | None = None,
) -> tf.Problem:
    """Minimise the work of the loads over the width of each piece.

    Args:
        n_pieces: of the rod, each with a load of 1 N at its lower end.
        budget: the most that the rod may cost [EUR].
        section, rod, price: the three Tesseracts, or their addresses; those left out are served from this folder.
    """
    jax.config.update("jax_enable_x64", True)  # the components work in float64
    sections = tf.open_tesseract(section or HERE / "section")
    solver = tf.open_tesseract(rod or HERE / "rod")
    # It has no derivatives: differences stand in, for two requests per piece.
    shop = tf.open_tesseract(price or HERE / "price", derive="central")
    load = np.ones(n_pieces)

    def evaluate(design: dict[str, Any]) -> tf.Evaluation:
        area = tf.apply_tesseract(sections, {"width": design["width"]})["area"]
        state = tf.apply_tesseract(solver, {"area": area, "load": load})
        cost = tf.apply_tesseract(shop, {"area": area})
        return tf.Evaluation(
            objective=jnp.vdot(load, state["displacement"]),
            constraints={"price": cost["price"]},
        )

    return tf.Problem(
        design={"width": jnp.full(n_pieces, 0.2)},
        evaluate=evaluate,
        bounds=({"width": 0.05}, {"width": 2.0}),
        constraints={"price": tf.Constraint(upper=budget)},
        scale={"width": 0.2},
        name="rod",
    )
