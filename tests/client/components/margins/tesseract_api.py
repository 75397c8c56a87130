"""A component with plain numbers on both sides: it says what limit it got, in words, and gives it back as a float."""

from pydantic import BaseModel
from tesseract_core.runtime import Array, Float64


class InputSchema(BaseModel):
    x: Array[(), Float64]
    limit: float = 1.0
    is_told: bool = False


class OutputSchema(BaseModel):
    y: Array[(), Float64]
    limit: str
    margin: float = 0.0


def apply(inputs: InputSchema) -> OutputSchema:
    margin = inputs.limit if inputs.is_told else 0.0
    return OutputSchema(y=2 * inputs.x, limit=repr(inputs.limit), margin=margin)
