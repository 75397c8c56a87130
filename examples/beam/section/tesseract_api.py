"""Cross-sections of a rectangular beam: element thickness -> second moments of area, and the volume of material.

Two independent differentiable outputs, so whoever needs only one of them pays for only one derivative:

    inertia_i = b h_i^3 / 12          [m^4]   second moment of area of a rectangle of width b and height h_i
    volume    = b (L / n) sum_i h_i   [m^3]   n elements of equal length L / n

Any consistent set of units will do; SI is shown. Both formulas hold for every real thickness: whether a thickness makes
sense is a question of the design's bounds, and the finite-element component refuses a beam without stiffness.

Source: J. M. Gere and S. P. Timoshenko, Mechanics of Materials (1997), appendix D, case 1.
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    thickness: Differentiable[Array[(None,), Float64]] = Field(
        description="Height h_i of each element's cross-section, from the clamped end to the tip [m]"
    )
    width: float = Field(default=0.1, gt=0.0, description="Width b of every cross-section [m]")
    length: float = Field(default=1.0, gt=0.0, description="Length L of the beam [m]")


class OutputSchema(BaseModel):
    inertia: Differentiable[Array[(None,), Float64]] = Field(
        description="Second moment of area I_i of each element [m^4]"
    )
    volume: Differentiable[Float64] = Field(description="Volume of material [m^3]")


def _inertia_slope(inputs: InputSchema) -> np.ndarray:
    """d inertia_i / d thickness_i; every other entry of that Jacobian is zero."""
    return inputs.width * inputs.thickness**2 / 4.0


def _volume_slope(inputs: InputSchema) -> float:
    """d volume / d thickness_i, the same for every element."""
    return inputs.width * inputs.length / _n_elements(inputs.thickness)


def _n_elements(thickness: np.ndarray | ShapeDType) -> int:
    (n,) = thickness.shape
    if n == 0:
        raise ValueError("thickness is empty: a beam needs at least one element.")
    return n


def apply(inputs: InputSchema) -> OutputSchema:
    """Second moment of area of each element, and the volume of the beam."""
    return OutputSchema(
        inertia=inputs.width * inputs.thickness**3 / 12.0,
        volume=_volume_slope(inputs) * inputs.thickness.sum(),
    )


def jacobian_vector_product(
    inputs: InputSchema, jvp_inputs: set[str], jvp_outputs: set[str], tangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """How the outputs move when the thickness moves along `tangent_vector["thickness"]`."""
    h_dot = tangent_vector["thickness"]
    answers = {
        "inertia": lambda: _inertia_slope(inputs) * h_dot,
        "volume": lambda: _volume_slope(inputs) * h_dot.sum(),
    }
    return {name: answers[name]() for name in jvp_outputs}


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """Gradient of <cotangent, outputs> with respect to the thickness."""
    h_bar = np.zeros_like(inputs.thickness)
    if "inertia" in vjp_outputs:
        h_bar += _inertia_slope(inputs) * cotangent_vector["inertia"]
    if "volume" in vjp_outputs:
        h_bar += _volume_slope(inputs) * cotangent_vector["volume"]
    return {"thickness": h_bar} if "thickness" in vjp_inputs else {}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """Shapes of the outputs: one second moment per element, and a scalar."""
    n = _n_elements(abstract_inputs.thickness)
    return {
        "inertia": ShapeDType(shape=(n,), dtype="float64"),
        "volume": ShapeDType(shape=(), dtype="float64"),
    }
