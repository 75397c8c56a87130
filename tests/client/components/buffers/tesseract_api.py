"""A component as one for a solver in Fortran might be: it works in buffers that it uses again, writes into what it is
given, and keeps that. y = x²."""

# The runtime's annotations are no types to a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import time
from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64

y, x_bar, y_dot, block = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros((3, 3))
kept: list[Any] = []
callers: list[int] = [0]
most: list[int] = [0]


def write_into(x: Any) -> None:
    """As code in other languages does, which knows nothing of read-only views."""
    (x if x.flags.writeable else x.base)[:] = 99.0


class InputSchema(BaseModel):
    x: Differentiable[Array[(3,), Float64]]


class OutputSchema(BaseModel):
    y: Differentiable[Array[(3,), Float64]]
    part: Array[(2,), Float64]


def apply(inputs: InputSchema) -> OutputSchema:
    callers[0] += 1
    most[0] = max(most[0], callers[0])
    np.square(inputs.x, out=y)
    time.sleep(1e-4)  # another thread, if one may be here, writes into the buffer now
    kept.append(inputs.x)
    write_into(inputs.x)
    callers[0] -= 1
    return OutputSchema(y=y, part=y[1:])


def abstract_eval(abstract_inputs: Any) -> Any:
    return {"y": {"shape": [3], "dtype": "float64"}, "part": {"shape": [2], "dtype": "float64"}}


def vector_jacobian_product(inputs: InputSchema, vjp_inputs: Any, vjp_outputs: Any, cotangent_vector: Any) -> Any:
    np.multiply(2 * inputs.x, cotangent_vector["y"], out=x_bar)
    write_into(inputs.x)
    write_into(cotangent_vector["y"])
    return {"x": x_bar}


def jacobian_vector_product(inputs: InputSchema, jvp_inputs: Any, jvp_outputs: Any, tangent_vector: Any) -> Any:
    np.multiply(2 * inputs.x, tangent_vector["x"], out=y_dot)
    write_into(inputs.x)
    write_into(tangent_vector["x"])
    return {"y": y_dot}


def jacobian(inputs: InputSchema, jac_inputs: Any, jac_outputs: Any) -> Any:
    block[:] = np.diag(2 * inputs.x)
    write_into(inputs.x)
    return {"y": {"x": block}}
