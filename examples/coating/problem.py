"""An antireflection coating: how thick must the films of a stack be, so that glass reflects as little as possible?

At one wavelength that is least squares, as the *amplitude* of the reflected light must vanish, its real and its
imaginary part. Over a band the largest reflectance counts, which is a smooth problem with a constraint for each
wavelength.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import tesseract_flow as tf
from examples.coating import closed_form
from tesseract_flow.client import TesseractLike

HERE = Path(__file__).resolve().parent
THINNEST, THICKEST = 5.0, 300.0  # nm


def coating(
    index: Sequence[float] = (1.38, 2.1),
    band: tuple[float, float] = (550.0, 550.0),
    n_wavelengths: int = 1,
    substrate: float = 1.52,
    worst: bool = False,
    stack: TesseractLike | None = None,
) -> tf.Problem:
    """Minimise what a coated glass reflects: half the sum of the reflectances, or the largest of them in per cent.

    Args:
        index: of refraction of each film, from the air on; 1.38 is magnesium fluoride.
        band: shortest and longest wavelength [nm].
        n_wavelengths: in the band, ends included.
        substrate: its index of refraction.
        worst: minimise the largest reflectance and not the sum.
        stack: the optics, or their address; default: served from this folder.
    """
    jax.config.update("jax_enable_x64", True)  # the component works in float64
    optics = tf.open_tesseract(stack or HERE / "stack")
    indices, wavelengths = np.asarray(index, float), np.linspace(*band, n_wavelengths)

    def amplitude(design: dict[str, Any]) -> jax.Array:
        films = {"thickness": design["thickness"], "index": indices, "wavelength": wavelengths, "substrate": substrate}
        return tf.apply_tesseract(optics, films)["amplitude"]

    def evaluate(design: dict[str, Any]) -> Any:
        if worst:
            return 100.0 * (amplitude(design) ** 2).sum(axis=1)
        return tf.Evaluation(misfit=amplitude(design))

    # Films of a quarter of a wavelength are a stationary point, and mostly not the best one: begin beside it.
    start = np.linspace(0.8, 1.6, indices.size) * np.mean(band) / (4.0 * indices)
    problem = tf.Problem(
        {"thickness": jnp.asarray(start)},
        evaluate,
        bounds=({"thickness": THINNEST}, {"thickness": THICKEST}),
        scale={"thickness": 100.0},
        name="coating",
        defaults={
            "driver": "mma" if worst else "gauss-newton",
            "stop": {"gradient_tolerance": 1e-7 if worst else 1e-9, "max_steps": 200},
        },
        picture=lambda design, _: spectrum(design, indices, substrate, wavelengths),
    )
    bare = ((1.0 - substrate) / (1.0 + substrate)) ** 2
    return tf.epigraph(problem, worst=100.0 * bare) if worst else problem


def spectrum(design: dict[str, Any], indices: np.ndarray, substrate: float, aims: np.ndarray) -> Figure:
    """Reflectance over wavelength, and without a coating; marked, where it was to be small."""
    wavelengths = np.linspace(380.0, 780.0, 401)
    thickness = np.asarray(design["thickness"])

    def percent(wavelengths: np.ndarray) -> np.ndarray:
        return 100.0 * closed_form.reflectance(thickness, indices, wavelengths, substrate=substrate)

    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(wavelengths, percent(wavelengths), color="#0072b2", label="coated")
    axes.plot(aims, percent(aims), "o", color="#0072b2", markersize=3)
    axes.axhline(100.0 * ((1.0 - substrate) / (1.0 + substrate)) ** 2, color="#222222", linestyle="--", label="bare")
    axes.set(xlabel="wavelength [nm]", ylabel="reflectance [%]", ylim=(0.0, 6.0))
    axes.set_title(", ".join(f"{d:.1f} nm" for d in thickness), loc="left", fontsize=11, fontweight="bold")
    axes.legend(loc="upper right", frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
