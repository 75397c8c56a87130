"""The component that benchmarks ask: y = 2 x, after a delay that stands for a solver's work."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import time
from typing import Any

from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    x: Differentiable[Array[(None,), Float64]]
    delay: float = 0.0


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]


def apply(inputs: InputSchema) -> OutputSchema:
    """Twice the input."""
    time.sleep(inputs.delay)
    return OutputSchema(y=2.0 * inputs.x)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """Twice the cotangent."""
    time.sleep(inputs.delay)
    return {"x": 2.0 * cotangent_vector["y"]}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """The shape of x."""
    return {"y": ShapeDType(shape=abstract_inputs.x.shape, dtype="float64")}
