"""Alternatives: optional, untagged, tagged."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field
from tesseract_core.runtime import Array, Differentiable, Float32, Float64


class Sphere(BaseModel):
    kind: Literal["sphere"] = "sphere"
    radius: Differentiable[Array[(), Float64]]


class Box(BaseModel):
    kind: Literal["box"] = "box"
    sides: Differentiable[Array[(3,), Float64]]
    name: str = ""


class Mesh(BaseModel):
    points: Differentiable[Array[(None, 3), Float64]]


class InputSchema(BaseModel):
    tagged: Annotated[Sphere | Box, Field(discriminator="kind")]
    untagged: Sphere | Mesh | None = None
    shapes: list[Annotated[Sphere | Box, Field(discriminator="kind")]] = []
    number_or_array: float | Differentiable[Array[(None,), Float64]] = 1.0
    two_arrays: Array[(None,), Float32] | Differentiable[Array[(None, None), Float64]]
    one_or_many: Mesh | list[Mesh] | dict[str, Mesh] | None = None
    text_or_number: str | int = ""


class OutputSchema(BaseModel):
    shape: Sphere | Box
    y: Differentiable[Array[(None,), Float64]] | None


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(shape=inputs.tagged, y=None)
