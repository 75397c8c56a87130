"""y = scale x^3 + sum(x) for a vector x, with every endpoint, in NumPy."""

from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    x: Differentiable[Array[(None,), Float64]]
    scale: float = 1.0


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=inputs.scale * inputs.x**3 + np.sum(inputs.x))


def abstract_eval(abstract_inputs: Any) -> dict[str, ShapeDType]:
    return {"y": ShapeDType(shape=abstract_inputs.x.shape, dtype="float64")}


def jacobian(inputs: InputSchema, jac_inputs: set[str], jac_outputs: set[str]) -> dict[str, Any]:
    return {"y": {"x": np.diag(3.0 * inputs.scale * inputs.x**2) + 1.0}}


def jacobian_vector_product(
    inputs: InputSchema, jvp_inputs: set[str], jvp_outputs: set[str], tangent_vector: dict[str, Any]
) -> dict[str, Any]:
    t = tangent_vector["x"]
    return {"y": 3.0 * inputs.scale * inputs.x**2 * t + np.sum(t)}


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    c = cotangent_vector["y"]
    return {"x": 3.0 * inputs.scale * inputs.x**2 * c + np.sum(c)}
