"""Optics of a stack of thin films at normal incidence: thicknesses → amplitude of the reflected light. NumPy.

Each film has the characteristic matrix

    M = [[cos d, i sin d / n], [i n sin d, cos d]],   d = 2 pi n thickness / wavelength,

and with (B, C) = M_1 ... M_m (1, n_substrate), from the side of the light on, the amplitude is

    r = (n_0 B - C) / (n_0 B + C),   reflectance |r|^2.

Derivatives by hand, all of them at once: between the product of the matrices before a film and that of those behind it
stands dM/dd, and each wavelength only sees itself. Films do not absorb.

Source: H. A. Macleod, Thin-Film Optical Filters, 4th edition (2010), section 2.6.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false, reportIndexIssue=false

from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    thickness: Differentiable[Array[(None,), Float64]] = Field(description="Of each film, from the air on [nm]")
    index: Array[(None,), Float64] = Field(description="Index of refraction of each film, positive")
    wavelength: Array[(None,), Float64] = Field(description="Of the light, in vacuum, positive [nm]")
    incident: float = Field(default=1.0, gt=0.0, description="Index of refraction of where the light comes from")
    substrate: float = Field(default=1.52, gt=0.0, description="Index of refraction of where it goes")


class OutputSchema(BaseModel):
    amplitude: Differentiable[Array[(None, 2), Float64]] = Field(
        description="Real and imaginary part of r at each wavelength"
    )


def _matrices(inputs: InputSchema) -> tuple[np.ndarray, np.ndarray]:
    """M of each film at each wavelength, and its derivative by the film's thickness: (m, k, 2, 2)."""
    if inputs.thickness.shape != inputs.index.shape:
        raise ValueError(f"{inputs.thickness.size} thicknesses and {inputs.index.size} indices: each film has both.")
    if not (np.all(inputs.index > 0.0) and np.all(inputs.wavelength > 0.0)):  # written so that NaN counts as bad
        raise ValueError("indices of refraction and wavelengths must be positive.")
    n = inputs.index[:, None]
    per_length = 2.0 * np.pi * n / inputs.wavelength
    phase = per_length * inputs.thickness[:, None]
    c, s = np.cos(phase), np.sin(phase)

    def matrix(diagonal: np.ndarray, off: np.ndarray) -> np.ndarray:
        return np.stack([np.stack([diagonal, 1j * off / n], -1), np.stack([1j * off * n, diagonal], -1)], -2)

    return matrix(c, s), per_length[..., None, None] * matrix(-s, c)


def _amplitude(inputs: InputSchema) -> tuple[np.ndarray, np.ndarray]:
    """r at each wavelength, and its derivative by each thickness: complex, (k,) and (k, m)."""
    films, slopes = _matrices(inputs)
    behind = [np.broadcast_to(np.array([1.0, inputs.substrate], complex), (inputs.wavelength.size, 2))]
    for film in films[::-1]:
        behind.append(np.einsum("kij,kj->ki", film, behind[-1]))
    behind.reverse()
    (b, c), n0 = behind[0].T, inputs.incident
    r = (n0 * b - c) / (n0 * b + c)
    # dr = ((n0 dB - dC) - r (n0 dB + dC)) / (n0 B + C): a row vector that is carried from film to film.
    before = np.stack([n0 * (1.0 - r), -(1.0 + r)], -1) / (n0 * b + c)[:, None]
    dr = np.empty((inputs.wavelength.size, len(films)), complex)
    for i, (film, slope) in enumerate(zip(films, slopes, strict=True)):
        dr[:, i] = np.einsum("ki,kij,kj->k", before, slope, behind[i + 1])
        before = np.einsum("ki,kij->kj", before, film)
    return r, dr


def _parts(z: np.ndarray) -> np.ndarray:
    """Real and imaginary part, as axis 1."""
    return np.stack([z.real, z.imag], 1)


def apply(inputs: InputSchema) -> OutputSchema:
    """The amplitude of the reflected light, for light of amplitude 1."""
    return OutputSchema(amplitude=_parts(_amplitude(inputs)[0]))


def jacobian(inputs: InputSchema, jac_inputs: set[str], jac_outputs: set[str]) -> dict[str, Any]:
    """d amplitude / d thickness, of shape (k, 2, m)."""
    if "thickness" not in jac_inputs or "amplitude" not in jac_outputs:
        return {}
    return {"amplitude": {"thickness": _parts(_amplitude(inputs)[1])}}


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of <cotangent, amplitude> by the thicknesses."""
    if "thickness" not in vjp_inputs or "amplitude" not in vjp_outputs:
        return {}
    return {"thickness": np.einsum("kpm,kp->m", _parts(_amplitude(inputs)[1]), cotangent_vector["amplitude"])}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """Two numbers for each wavelength."""
    return {"amplitude": ShapeDType(shape=(abstract_inputs.wavelength.shape[0], 2), dtype="float64")}
