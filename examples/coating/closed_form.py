"""Coatings with known answers: one film, two films, and the reflectance of any stack by another way of computing it.

Uses NumPy only. Light comes at normal incidence from a medium of index `incident`, films do not absorb.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def quarter_wave(index: float, incident: float = 1.0, substrate: float = 1.52) -> float:
    """Reflectance of one film a quarter of a wavelength thick, the best that a single film of `index` can do if it lies
    between those of its neighbours.

    Source: H. A. Macleod, Thin-Film Optical Filters, 4th edition (2010), section 3.1.
    """
    return ((incident * substrate - index**2) / (incident * substrate + index**2)) ** 2


def v_coat(outer: float, inner: float, wavelength: float, incident: float = 1.0, substrate: float = 1.52) -> np.ndarray:
    """Thicknesses of the two films, outer one first, that reflect nothing at `wavelength`: of the two solutions the one
    with the thinner outer film.

    Real and imaginary part of n_0 B = C are two equations for the tangents of both phases.

    Source: H. A. Macleod, Thin-Film Optical Filters, 4th edition (2010), section 3.2.

    Raises:
        ValueError: no thicknesses of films with these indices reflect nothing.
    """
    difference = substrate - incident
    inside = inner**2 - incident * substrate
    outside = incident * substrate - outer**2
    ratio = outer**2 * substrate - incident * inner**2
    squares = np.array(
        [difference * inside * outer**2 / (ratio * outside), difference * outside * inner**2 / (ratio * inside)]
    )
    if squares.min() < 0.0:
        raise ValueError(f"two films of {outer:g} and {inner:g} on {substrate:g} always reflect something.")
    phases = np.arctan(np.sqrt(squares))
    if difference / ratio < 0.0:  # the product of the tangents is n_1 n_2 difference / ratio
        phases[1] = np.pi - phases[1]
    return phases * wavelength / (2.0 * np.pi * np.array([outer, inner]))


def reflectance(
    thickness: Sequence[float] | np.ndarray,
    index: Sequence[float] | np.ndarray,
    wavelength: np.ndarray,
    incident: float = 1.0,
    substrate: float = 1.52,
) -> np.ndarray:
    """|r|^2 at each wavelength, of shape (k,), by adding the films from the substrate on (Rouard's method).

    A film between a medium and something that reflects r' has r = (f + r' e) / (1 + f r' e), with Fresnel's f at its
    front and e = exp(-2 i phase).
    """
    indices = [incident, *np.asarray(index), substrate]
    fresnel = [(a - b) / (a + b) for a, b in itertools.pairwise(indices)]
    r = np.full(len(wavelength), fresnel[-1], complex)
    for d, n, f in zip(thickness[::-1], indices[-2:0:-1], fresnel[-2::-1], strict=True):
        e = np.exp(-4j * np.pi * n * d / wavelength)
        r = (f + r * e) / (1.0 + f * r * e)
    return np.abs(r) ** 2
