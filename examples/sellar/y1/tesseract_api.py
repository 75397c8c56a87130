"""First discipline of Sellar's problem: y1 = z1² + z2 + x − 0.2 y2. Of derivatives it offers a pullback only."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    z: Differentiable[Array[(2,), Float64]]
    x: Differentiable[Float64]
    y2: Differentiable[Float64]


class OutputSchema(BaseModel):
    y1: Differentiable[Float64]


def apply(inputs: InputSchema) -> OutputSchema:
    """The state of this discipline for a given state of the other."""
    return OutputSchema(y1=inputs.z[0] ** 2 + inputs.z[1] + inputs.x - 0.2 * inputs.y2)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The cotangent of y1, times its derivatives."""
    slopes = {"z": np.array([2.0 * inputs.z[0], 1.0]), "x": 1.0, "y2": -0.2}
    return {name: cotangent_vector["y1"] * slopes[name] for name in vjp_inputs}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """A number, whatever the inputs."""
    return {"y1": ShapeDType(shape=(), dtype="float64")}
