"""A typed dict that contains itself, and a dataclass with an array: both leaves to tesseract-core."""

import dataclasses

from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64
from typing_extensions import TypedDict


class Tree(TypedDict):
    value: int
    children: "list[Tree]"


@dataclasses.dataclass
class Case:
    load: Differentiable[Array[(None,), Float64]]
    factor: float = 1.0


class InputSchema(BaseModel):
    tree: Tree
    case: Case
    x: Differentiable[Array[(None,), Float64]]


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=inputs.x)
