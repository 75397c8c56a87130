"""The least that a component can be."""

from pydantic import BaseModel
from tesseract_core.runtime import Array, Float64


class InputSchema(BaseModel):
    x: Array[(), Float64]


class OutputSchema(BaseModel):
    y: Array[(), Float64]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=inputs.x)
