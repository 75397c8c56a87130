"""A rod that hangs and carries loads: areas of its pieces → displacements. NumPy, with a pullback by hand.

    K(a) u = f,   K = B^T diag(a E / l) B,   B u the stretch of each piece

Linear elasticity of pieces of length l in a row, clamped at the top, with a load f_i at the lower end of each.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    area: Differentiable[Array[(None,), Float64]] = Field(description="Area of each piece, from the top [m^2]")
    load: Array[(None,), Float64] = Field(description="Force at the lower end of each piece [N]")
    modulus: float = Field(default=1.0, gt=0.0, description="Young's modulus [Pa]")
    length: float = Field(default=1.0, gt=0.0, description="Length of each piece [m]")


class OutputSchema(BaseModel):
    displacement: Differentiable[Array[(None,), Float64]] = Field(description="Of each piece's lower end [m]")


def _stretch(displacement: np.ndarray) -> np.ndarray:
    return np.diff(displacement, prepend=0.0)


def _solved(inputs: InputSchema, force: np.ndarray) -> np.ndarray:
    """K⁻¹ force: each piece carries what hangs below it."""
    carried = np.cumsum(force[::-1])[::-1]
    return np.cumsum(carried * inputs.length / (inputs.modulus * inputs.area))


def apply(inputs: InputSchema) -> OutputSchema:
    """The displacement of each piece's lower end."""
    if inputs.area.shape != inputs.load.shape:
        raise ValueError(f"{inputs.area.size} areas and {inputs.load.size} loads: each piece has one of either.")
    return OutputSchema(displacement=_solved(inputs, inputs.load))


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of <cotangent, displacement>: the adjoint solves K v = cotangent, and K is symmetric.

    From K u = f follows dK u + K du = 0, so <c, du> = -v^T dK u, a product of two stretches for each area.
    """
    u = _solved(inputs, inputs.load)
    v = _solved(inputs, cotangent_vector["displacement"])
    return {"area": -inputs.modulus / inputs.length * _stretch(u) * _stretch(v)}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """One displacement for each piece."""
    return {"displacement": ShapeDType(shape=abstract_inputs.area.shape, dtype="float64")}
