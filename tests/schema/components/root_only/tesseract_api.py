"""Inputs and outputs that are root models themselves."""

from pydantic import RootModel
from tesseract_core.runtime import Array, Differentiable, Float64


class InputSchema(RootModel[dict[str, Differentiable[Array[(3,), Float64]]]]):
    pass


class OutputSchema(RootModel[Differentiable[Array[(None,), Float64]]]):
    pass


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(sum(inputs.root.values()))
