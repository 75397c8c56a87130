"""Models in models, dicts, lists and tuples."""

from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float32, Float64, Int32


class Mesh(BaseModel):
    points: Differentiable[Array[(None, 3), Float64]]
    cells: Array[(None, 4), Int32] | None = None
    tag: str = "mesh"


class Empty(BaseModel):
    pass


class InputSchema(BaseModel):
    # Not in alphabetical order, so that a test can tell declaration order from JAX's.
    wing: Mesh
    parts: dict[str, Mesh]
    layers: list[Mesh]
    knots: list[Differentiable[Array[(3,), Float32]]]
    named: dict[str, Differentiable[Array[..., Float64]]]
    deep: dict[str, list[dict[str, Differentiable[Array[(None,), Float64]]]]]
    aside: Mesh | None = None
    opt: Differentiable[Array[(None,), Float64]] | None = None
    pair: tuple[int, Differentiable[Array[(), Float64]]] = (1, 2.0)
    many: tuple[Array[(2,), Float64], ...] = ()
    marks: set[int] = set()
    empty: Empty = Empty()


class OutputSchema(BaseModel):
    y: Differentiable[Array[(None,), Float64]]
    note: str
    parts: dict[str, Mesh]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=inputs.wing.points.sum(axis=0), note="done", parts=inputs.parts)


def jacobian(inputs, jac_inputs, jac_outputs):
    raise NotImplementedError


def vector_jacobian_product(inputs, vjp_inputs, vjp_outputs, cotangent_vector):
    raise NotImplementedError


def jacobian_vector_product(inputs, jvp_inputs, jvp_outputs, tangent_vector):
    raise NotImplementedError


def abstract_eval(abstract_inputs):
    raise NotImplementedError
