"""The cases as real components: schemas written out for tesseract-core, endpoints by `JaxRecipe`.

`component(case)` is what a `tesseract_api.py` would be; `python -m tests.components` serves all of them with
tesseract-core's own runtime, in one process, each under its name: a process for each would take a minute to start.
"""

# No `from __future__ import annotations`: tesseract-core reads the annotations of the endpoints.
# ruff: noqa: F821 (names of dtypes are no forward references)
# pyright: reportInvalidTypeForm=false, reportCallIssue=false

import enum
import os
import socket
import sys
import threading
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from tesseract_core.runtime import (
    Array,
    Differentiable,
    Float32,
    Float64,
)

from tesseract_flow.recipes import JaxRecipe
from tests.cases import CASES, Case

Number = Differentiable[Float64]
Vector = Differentiable[Array[(None,), Float64]]
Single = Differentiable[Array[(None,), Float32]]
AnyRank = Differentiable[Array[..., Float64]]


class Rosenbrock:
    class InputSchema(BaseModel):
        x: Number
        y: Number
        a: Number
        b: Number

    class OutputSchema(BaseModel):
        result: Number


class VectorAdd:
    class InputSchema(BaseModel):
        scale: Number
        a: Vector
        b: Vector

    class OutputSchema(BaseModel):
        sum: Vector
        distance: Number


class Mesh(BaseModel):
    points: Differentiable[Array[(None, 2), Float64]]
    scale: Number


class Flow(BaseModel):
    speed: Vector


class Load(BaseModel):
    lift: Vector


class Wing(BaseModel):
    area: Vector
    load: Load


class Nested:
    class InputSchema(BaseModel):
        mesh: Mesh
        flow: Flow

    class OutputSchema(BaseModel):
        wing: Wing
        drag: Vector


class DictOfArrays:
    class InputSchema(BaseModel):
        parts: dict[str, Vector]

    class OutputSchema(BaseModel):
        squares: dict[str, Vector]
        total: Number


class ListOfArrays:
    class InputSchema(BaseModel):
        knots: list[Vector]

    class OutputSchema(BaseModel):
        products: list[AnyRank]
        mean: Number


class Method(enum.Enum):
    LINEAR = "linear"
    CUBIC = "cubic"


class StaticBetween:
    class InputSchema(BaseModel):
        a: Vector
        method: Method
        order: int
        shift: bool
        tol: float | None
        b: Vector

    class OutputSchema(BaseModel):
        y: Vector


class Integers:
    class InputSchema(BaseModel):
        x: Vector
        index: Array[(None,), "int64"]
        mask: Array[(None,), "bool"]

    class OutputSchema(BaseModel):
        picked: Vector
        next: Array[(None,), "int64"]
        is_large: Array[(None,), "bool"]


class PlainOutputs:
    class InputSchema(BaseModel):
        x: Vector

    class OutputSchema(BaseModel):
        status: str
        y: Vector
        n_steps: int
        remark: str | None
        layers: tuple[Vector, str]


class SinglePrecision:
    class InputSchema(BaseModel):
        x: Single
        w: Single

    class OutputSchema(BaseModel):
        y: Single
        norm: Differentiable[Float32]


class Complex:
    class InputSchema(BaseModel):
        z: Differentiable[Array[(None,), "complex128"]]

    class OutputSchema(BaseModel):
        w: Differentiable[Array[(None,), "complex128"]]
        p: Differentiable[Array[(), "complex128"]]


class AnyRankOfThem:
    class InputSchema(BaseModel):
        x: AnyRank

    class OutputSchema(BaseModel):
        y: AnyRank
        total: Number


class Optional:
    class InputSchema(BaseModel):
        x: Vector
        load: Vector | None

    class OutputSchema(BaseModel):
        y: Vector
        reaction: Vector | None


class ZeroSize:
    class InputSchema(BaseModel):
        x: Vector
        empty: Differentiable[Array[(None, 3), Float64]]

    class OutputSchema(BaseModel):
        y: Vector
        total: Number
        empty: Differentiable[Array[(None, 3), Float64]]


class Layer(BaseModel):
    name: str
    thickness: Vector | None
    weights: dict[str, Number]


class Report(BaseModel):
    name: str
    area: Vector | None


class Records:
    class InputSchema(BaseModel):
        kind: str
        layers: list[Layer]
        offsets: list[Vector | None]

    class OutputSchema(BaseModel):
        reports: list[Report]
        totals: dict[str, Number]


SCHEMAS: dict[str, Any] = {
    "rosenbrock": Rosenbrock,
    "vector_add": VectorAdd,
    "nested": Nested,
    "dict_of_arrays": DictOfArrays,
    "list_of_arrays": ListOfArrays,
    "static_between": StaticBetween,
    "integers": Integers,
    "plain_outputs": PlainOutputs,
    "float32": SinglePrecision,
    "complex": Complex,
    "any_rank": AnyRankOfThem,
    "optional": Optional,
    "zero_size": ZeroSize,
    "records": Records,
}


def component(case: Case) -> ModuleType:
    """What a `tesseract_api.py` of the case defines."""
    InputSchema, OutputSchema = SCHEMAS[case.name].InputSchema, SCHEMAS[case.name].OutputSchema
    recipe = JaxRecipe(lambda inputs: case.fn(_by_value(inputs)), outputs=OutputSchema)

    def apply(inputs: InputSchema) -> OutputSchema:
        return recipe.apply(inputs)

    def jacobian(inputs: InputSchema, jac_inputs: set[str], jac_outputs: set[str]):
        return recipe.jacobian(inputs, jac_inputs, jac_outputs)

    def jacobian_vector_product(
        inputs: InputSchema, jvp_inputs: set[str], jvp_outputs: set[str], tangent_vector: dict[str, Any]
    ):
        return recipe.jacobian_vector_product(inputs, jvp_inputs, jvp_outputs, tangent_vector)

    def vector_jacobian_product(
        inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
    ):
        return recipe.vector_jacobian_product(inputs, vjp_inputs, vjp_outputs, cotangent_vector)

    def abstract_eval(abstract_inputs):
        return recipe.abstract_eval(abstract_inputs)

    module = ModuleType(f"tesseract_api_{case.name}")
    endpoints = (apply, jacobian, jacobian_vector_product, vector_jacobian_product, abstract_eval)
    vars(module).update({endpoint.__name__: endpoint for endpoint in endpoints})
    vars(module).update(InputSchema=InputSchema, OutputSchema=OutputSchema, __file__=__file__)
    return module


def _by_value(tree: Any) -> Any:
    """A member of an enum arrives as such; the cases know values."""
    if isinstance(tree, dict):
        return {key: _by_value(item) for key, item in tree.items()}
    return tree.value if isinstance(tree, enum.Enum) else tree


def serve() -> None:
    """Serve all of them on a free port, which is printed, until standard input is closed."""
    import uvicorn
    from fastapi import FastAPI
    from tesseract_core.runtime.serve import create_rest_api

    server = FastAPI()
    for case in CASES:
        server.mount(f"/{case.name}", create_rest_api(component(case)))
    # With its protocol named, as asyncio otherwise leaves Nagle's algorithm on: 40 ms per request.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)

    def end_with_parent() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    uvicorn.Server(uvicorn.Config(server, log_level="warning", timeout_keep_alive=60)).run(sockets=[listening])


if __name__ == "__main__":
    serve()
