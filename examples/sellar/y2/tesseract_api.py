"""Second discipline of Sellar's problem: y2 = √y1 + z1 + z2. Of derivatives it offers a pullback only."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    z: Differentiable[Array[(2,), Float64]]
    y1: Differentiable[Float64]


class OutputSchema(BaseModel):
    y2: Differentiable[Float64]


def _root(y1: np.ndarray) -> np.ndarray:
    if not y1 > 0.0:
        raise ValueError(f"y1 is {float(y1)}: its root, and the slope of that, need a positive number.")
    return np.sqrt(y1)


def apply(inputs: InputSchema) -> OutputSchema:
    """The state of this discipline for a given state of the other."""
    return OutputSchema(y2=_root(inputs.y1) + inputs.z.sum())


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    """The cotangent of y2, times its derivatives."""
    slopes = {"z": np.ones(2), "y1": 0.5 / _root(inputs.y1)}
    return {name: cotangent_vector["y2"] * slopes[name] for name in vjp_inputs}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """A number, whatever the inputs."""
    return {"y2": ShapeDType(shape=(), dtype="float64")}
