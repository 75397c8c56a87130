"""A component for chains, into which faults can be planted from outside; its text is copied, so it needs NumPy alone.

y_i = sin(x_i) + 0.3 w_i x_{i-1},        z = s mean(x^2)
"""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    x: Differentiable[Array[(None,), Float64]]
    w: Differentiable[Array[(None,), Float64]]
    s: Differentiable[Float64]
    fault: str = ""


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]
    z: Differentiable[Float64]


_kept: dict[Any, Any] = {}


def apply(inputs: InputSchema) -> OutputSchema:
    kind = np.float32 if inputs.fault == "float32" else np.float64
    x, w, s = (np.asarray(value, kind) for value in (inputs.x, inputs.w, inputs.s))
    y, z = np.sin(x) + kind(0.3) * w * np.roll(x, 1), s * (x**2).mean(dtype=kind)
    return OutputSchema(y=y.astype(np.float64), z=np.float64(z))


def _pulled(inputs: InputSchema, c_y: np.ndarray, c_z: float) -> dict[str, np.ndarray]:
    x, w, s = inputs.x, inputs.w, inputs.s
    neighbour = np.roll(0.3 * w * c_y, -1)
    if inputs.fault == "missing":
        neighbour = 0.0 * neighbour
    elif inputs.fault == "transposed":
        neighbour = 0.3 * w * np.roll(c_y, 1)
    answer = {
        "x": np.cos(x) * c_y + neighbour + 2 * c_z * s * x / x.size,
        "w": 0.3 * np.roll(x, 1) * c_y,
        "s": np.asarray(c_z * (x**2).mean()),
    }
    if inputs.fault == "sign":
        answer["s"] = -answer["s"]
    elif inputs.fault == "factor":
        answer["w"] = 2 * answer["w"]
    elif inputs.fault == "path":
        answer["x"], answer["w"] = answer["w"], answer["x"]
    elif inputs.fault == "entry":
        answer["x"][x.size // 3] *= 1.5
    return answer


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
) -> dict[str, Any]:
    c_y = np.asarray(cotangent_vector.get("y", np.zeros_like(inputs.x)))
    c_z = float(cotangent_vector.get("z", 0.0))
    if inputs.fault == "stale":
        # Keyed by what is shown of the inputs, and not by what they are.
        key = (*(np.round(value, 3).tobytes() for value in (inputs.x, inputs.w, inputs.s)), c_y.tobytes(), c_z)
        answer = _kept.setdefault(key, _pulled(inputs, c_y, c_z))
    else:
        answer = _pulled(inputs, c_y, c_z)
    return {path: answer[path] for path in vjp_inputs}


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    n = 7 if abstract_inputs.fault == "shapes" else abstract_inputs.x.shape[0]
    return {"y": ShapeDType(shape=(n,), dtype="float64"), "z": ShapeDType(shape=(), dtype="float64")}
