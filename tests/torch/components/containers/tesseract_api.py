"""Dicts and lists of arrays on both sides, with plain values between them; NumPy only.

squares.{k} = parts.{k} ** 2, products = [knots.[0] * knots.[1], knots.[0] + knots.[1]], total = scale * sum of all.
"""

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64, Int64
from tesseract_core.runtime.schema_types import Bool


class InputSchema(BaseModel):
    parts: dict[str, Differentiable[Array[(None,), Float64]]]
    knots: list[Differentiable[Array[(2,), Float64]]]
    scale: Differentiable[Float64] = 1.0
    index: Array[(None,), Int64] = np.zeros(1, np.int64)
    order: int = 1
    note: str = ""


class OutputSchema(BaseModel):
    squares: dict[str, Differentiable[Array[(None,), Float64]]]
    products: list[Differentiable[Array[(2,), Float64]]]
    total: Differentiable[Float64]
    next_index: Array[(None,), Int64]
    is_large: Array[(2,), Bool]
    note: str
    order: int


def apply(inputs: InputSchema) -> OutputSchema:
    first, second = inputs.knots
    everything = sum(part.sum() for part in inputs.parts.values()) + first.sum() + second.sum()
    return OutputSchema(
        squares={key: part**2 for key, part in inputs.parts.items()},
        products=[first * second, first + second],
        total=inputs.scale * everything,
        next_index=inputs.index + 1,
        is_large=first > 1.0,
        note=inputs.note + "!",
        order=inputs.order,
    )


def jacobian(inputs: InputSchema, jac_inputs: set[str], jac_outputs: set[str]):
    return {y: {x: _block(inputs, y, x) for x in jac_inputs} for y in jac_outputs}


def jacobian_vector_product(inputs: InputSchema, jvp_inputs, jvp_outputs, tangent_vector):
    def pushed(y, x):
        t = np.asarray(tangent_vector[x])
        return np.tensordot(_block(inputs, y, x), t, axes=t.ndim)

    return {y: sum(pushed(y, x) for x in jvp_inputs) for y in jvp_outputs}


def vector_jacobian_product(inputs: InputSchema, vjp_inputs, vjp_outputs, cotangent_vector):
    def pulled(y, x):
        c = np.asarray(cotangent_vector[y])
        return np.tensordot(c, _block(inputs, y, x), axes=c.ndim)

    return {x: sum(pulled(y, x) for y in vjp_outputs) for x in vjp_inputs}


def _block(inputs: InputSchema, y: str, x: str) -> np.ndarray:
    """d y / d x, of shape y + x."""
    first, second = inputs.knots
    places = {"knots.[0]": first, "knots.[1]": second, "scale": np.asarray(inputs.scale)}
    for key, part in inputs.parts.items():
        escaped = key.replace("{", r"\{").replace("}", r"\}")
        places[f"parts.{{{escaped}}}"] = part
    value = places[x]
    if y == "total":
        others = sum(place.sum() for name, place in places.items() if name != "scale")
        return np.asarray(others) if x == "scale" else np.full(value.shape, inputs.scale)
    if y.startswith("squares."):
        part = places[y.replace("squares", "parts")]
        return np.diag(2 * part) if x == y.replace("squares", "parts") else np.zeros(part.shape + value.shape)
    slopes = {
        ("products.[0]", "knots.[0]"): np.diag(second),
        ("products.[0]", "knots.[1]"): np.diag(first),
        ("products.[1]", "knots.[0]"): np.eye(2),
        ("products.[1]", "knots.[1]"): np.eye(2),
    }
    return slopes.get((y, x), np.zeros((2, *value.shape)))
