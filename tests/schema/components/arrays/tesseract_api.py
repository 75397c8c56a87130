"""Arrays of every kind."""

from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float16, Float32, Float64, Int8, Int32, Int64, UInt8
from tesseract_core.runtime.schema_types import Bool, Complex64, Complex128


class InputSchema(BaseModel):
    any_rank: Differentiable[Array[..., Float64]]
    any_all: Array[..., None]
    any_dtype: Array[(None,), None]
    scalar: Differentiable[Float64]
    int_scalar: Int64
    vector: Differentiable[Array[(3,), Float32]]
    odd: Array[(1, None, 0, 2), Float64]
    half: Array[(None,), Float16]
    small: Array[(None,), UInt8]
    signed: Array[(None,), Int8]
    mask: Array[(None,), Bool]
    phase: Differentiable[Array[(None,), Complex128]]
    phase_single: Array[(None,), Complex64]
    start: Array[(2,), Float64] = [0.0, 1.0]


class OutputSchema(BaseModel):
    scalar: Differentiable[Float64]
    index: Array[(None,), Int32]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(scalar=inputs.scalar, index=[0])
