"""What a rod costs: areas of its pieces → a price. Nothing but `apply`, as of a program that one cannot change."""

# The annotation Differentiable[...] describes a field to tesseract-core, not to a type checker.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import Any

from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float64, ShapeDType


class InputSchema(BaseModel):
    area: Differentiable[Array[(None,), Float64]] = Field(description="Area of each piece [m^2]")
    length: float = Field(default=1.0, gt=0.0, description="Length of each piece [m]")
    per_volume: float = Field(default=2.0, gt=0.0, description="Price of the material [EUR/m^3]")


class OutputSchema(BaseModel):
    price: Differentiable[Float64] = Field(description="Of all pieces [EUR]")


def apply(inputs: InputSchema) -> OutputSchema:
    """The price of the material."""
    return OutputSchema(price=inputs.per_volume * inputs.length * inputs.area.sum())


def abstract_eval(abstract_inputs: Any) -> dict[str, Any]:
    """One number."""
    return {"price": ShapeDType(shape=(), dtype="float64")}
