"""Cantilever of least compliance: which thickness along a clamped beam makes it stiffest, for a given volume?

Three Tesseracts in a row, wired in plain Python. `section` turns thickness into second moments of area and a volume,
`fem` solves for the displacements (it offers a pullback and nothing else), `compliance` is the work of the load. The
closed-form answer is in `closed_form.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tesseract_flow as tf
from examples.beam import closed_form
from tesseract_flow.client import AbstractTesseract, TesseractLike

HERE = Path(__file__).resolve().parent
LOWER, UPPER = 1e-2, 10.0  # thickness
INK, BEAM, LOAD = "#222222", "#7fb5d6", "#d55e00"


def cantilever(
    n_elements: int = 50,
    volume: float = 0.01,
    section: TesseractLike | None = None,
    fem: TesseractLike | None = None,
    compliance: TesseractLike | None = None,
) -> tf.Problem:
    """Minimise compliance over the thickness of each element, at a given volume.

    Args:
        n_elements: equal elements along the unit length.
        volume: of material, with unit length and width 0.1.
        section, fem, compliance: the three Tesseracts, or their addresses; those left out are served from this folder.
    """
    jax.config.update("jax_enable_x64", True)  # the components work in float64
    sections, solver, work = _opened(section, "section"), _opened(fem, "fem"), _opened(compliance, "compliance")

    def evaluate(design: dict[str, Any]) -> tf.Evaluation:
        beam = tf.apply_tesseract(sections, {"thickness": design["thickness"]})
        state = tf.apply_tesseract(solver, {"inertia": beam["inertia"]})
        answer = tf.apply_tesseract(work, {"displacement": state["displacement"]})
        return tf.Evaluation(
            objective=answer["compliance"],
            constraints={"volume": beam["volume"]},
            aux={"deflection": state["displacement"][:, 0]},
        )

    thickness = volume / 0.1
    return tf.Problem(
        design={"thickness": jnp.full(n_elements, thickness), "name": "cantilever"},
        evaluate=evaluate,
        bounds=({"thickness": LOWER}, {"thickness": UPPER}),
        constraints={"volume": tf.Constraint(equals=volume)},
        scale={"thickness": thickness},
        name="cantilever",
        picture=lambda design, evaluation: thickness_profile(design, evaluation, volume),
    )


def _opened(source: TesseractLike | None, name: str) -> AbstractTesseract:
    if isinstance(source, AbstractTesseract):  # what a flow makes of "block:NAME"; it has its label
        return source
    return tf.open_tesseract(source or HERE / name, label=name)


def thickness_profile(design: dict[str, Any], evaluation: tf.Evaluation, volume: float) -> Figure:
    """The beam seen from the side, clamped at the left and loaded at the right; dashed, the known optimum."""
    h = np.asarray(design["thickness"])
    best = closed_form.optimal_thickness(h.size, target_volume=volume, lower=LOWER, upper=UPPER)
    ends = np.linspace(0.0, 1.0, h.size + 1)
    top = 0.62 * max(h.max(), best.max())
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(h / 2, ends, baseline=-h / 2, fill=True, color=BEAM, label="design")
    dashes = {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 1.3}
    axes.stairs(best / 2, ends, baseline=None, label="closed-form optimum", **dashes)
    axes.stairs(-best / 2, ends, baseline=None, **dashes)
    axes.axhline(0.0, color=INK, linewidth=0.7, linestyle="-.", alpha=0.6)
    axes.fill_between([-0.025, 0.0], -top, top, facecolor="white", edgecolor=INK, hatch="////", linewidth=0.0)
    axes.plot([0.0, 0.0], [-top, top], color=INK, linewidth=1.8)
    axes.annotate("", (1.0, -0.75 * top), (1.0, 0.0), arrowprops={"arrowstyle": "-|>", "color": LOAD, "linewidth": 2.0})
    axes.text(1.0, -0.78 * top, "load", ha="center", va="top", color=LOAD)
    axes.set(xlabel="position along the beam", ylabel="height", xlim=(-0.025, 1.03), ylim=(-1.05 * top, 1.05 * top))
    axes.set_title(f"compliance {float(evaluation.objective):.2f}", loc="left", fontsize=11, fontweight="bold")
    axes.legend(loc="upper right", frameon=False, ncols=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
