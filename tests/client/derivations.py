"""Components with few endpoints, and questions to them: what the tests of derived endpoints share."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tesseract_flow.client import AbstractTesseract
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.testing import FunctionTesseract
from tests.cases import Case
from tests.helpers import Watched

JACOBIAN, JVP, VJP = "jacobian", "jacobian_vector_product", "vector_jacobian_product"

X = {"x": np.array([1.0, 2.0, 3.0])}
C = {"y": np.array([1.0, -1.0, 0.5])}


def only(case: Case, *endpoints: str) -> FunctionTesseract:
    """The case's Tesseract with few endpoints."""
    offered = {"apply", "abstract_eval", *endpoints}
    return FunctionTesseract(
        case.fn, case.inputs, name=case.name, endpoints=offered, inputs=case.input_fields, outputs=case.output_fields
    )


def square(*endpoints: str, has_shapes: bool = True, **options: Any) -> FunctionTesseract:
    """y = x², entry by entry."""
    offered = {"apply", *endpoints} | ({"abstract_eval"} if has_shapes else set())
    return FunctionTesseract(
        lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="square", endpoints=offered, **options
    )


class Showing(Watched):
    """A handle that shows only some endpoints of another."""

    def __init__(self, tesseract: AbstractTesseract, endpoints: set[str]):
        super().__init__(tesseract)
        object.__setattr__(self, "shown", dataclasses.replace(tesseract.schema, endpoints=frozenset(endpoints)))

    @property
    def schema(self) -> TesseractSchema:
        return self.shown  # type: ignore[attr-defined]


def vjp(handle: AbstractTesseract, inputs: Any = X, c: Any = C, **options: Any) -> Any:
    return handle.vector_jacobian_product(inputs, list(inputs), list(c), c, **options)


def ask(handle: AbstractTesseract, endpoint: str) -> Any:
    """Any derivative of `square`."""
    if endpoint == JACOBIAN:
        return handle.jacobian(X, ["x"], ["y"])
    return vjp(handle) if endpoint == VJP else handle.jacobian_vector_product(X, ["x"], ["y"], {"x": C["y"]})


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "tesseract_flow"]
