"""Root models, which paths spell out and trees leave out."""

import numpy as np
from pydantic import BaseModel, RootModel
from tesseract_core.runtime import Array, Differentiable, Float64


class Knots(RootModel[list[Differentiable[Array[(3,), Float64]]]]):
    pass


class Load(RootModel[Differentiable[Array[(None,), Float64]]]):
    pass


class Named(RootModel[dict[str, Load]]):
    pass


class Either(RootModel[Differentiable[Array[(None,), Float64]] | str]):
    pass


class Label(RootModel[str]):
    pass


class Plain(BaseModel):
    root: Differentiable[Array[(2,), Float64]]


class InputSchema(BaseModel):
    knots: Knots
    load: Load
    named: Named
    either: Either
    label: Label
    plain: Plain
    loads: list[Load] = []
    maybe_knots: Knots | None = None
    maybe_load: Load | None = None


class OutputSchema(BaseModel):
    load: Load


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(load=inputs.load)


def vector_jacobian_product(inputs, vjp_inputs, vjp_outputs, cotangent_vector):
    gradients = {path: np.zeros(3) for path in vjp_inputs}
    return gradients | ({"load.root": cotangent_vector["load.root"]} if "load.root" in vjp_inputs else {})
