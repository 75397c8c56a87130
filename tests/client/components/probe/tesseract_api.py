"""A component that squares, and that can be made to fail in every way a component fails."""

import os
import sys

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    x: Differentiable[Array[(None,), Float64]]
    mode: str = "square"


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]
    pid: int = 0


def apply(inputs: InputSchema) -> OutputSchema:
    if inputs.mode == "raise":
        raise ValueError("the mesh is tangled")
    if inputs.mode == "exit":
        os._exit(3)
    if inputs.mode == "trace":
        return OutputSchema(y=[sys.gettrace() is not None], pid=os.getpid())
    if inputs.mode == "break the promise":
        return {"z": 1.0}
    print(f"squaring {inputs.x.shape}", flush=True)
    return OutputSchema(y=inputs.x**2, pid=os.getpid())


def abstract_eval(abstract_inputs):
    # Anything with a shape will do: the model of abstract inputs is made by tesseract-core.
    return {"y": ShapeDType(shape=abstract_inputs.x.shape, dtype="float64")}


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {"x": 2 * inputs.x * cotangent_vector["y"]}
