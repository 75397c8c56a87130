"""Small Tesseracts in NumPy with closed-form Jacobians, and tensors for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tesseract_flow.client import AbstractTesseract, Endpoint, Tree, record_request
from tesseract_flow.errors import ComponentFailed
from tesseract_flow.schema import ArrayField, Field, LeafField, ModelField, TesseractSchema

CONTAINERS = Path(__file__).parent / "components" / "containers" / "tesseract_api.py"

DERIVATIVES = ("jacobian_vector_product", "vector_jacobian_product")
ANY_RANK = ArrayField("float64", None, True)
INT = LeafField("int")
TEXT = LeafField("str")


def vector(dtype: str = "float64", differentiable: bool = True) -> ArrayField:
    return ArrayField(dtype, (None,), differentiable)


class NumpyTesseract(AbstractTesseract):
    """A Tesseract made of two NumPy functions, which keeps the requests that it gets.

    Args:
        apply: inputs -> outputs.
        slopes: inputs -> {(output path, input path): Jacobian block of shape output + input}; missing blocks are zero.
        inputs, outputs: the fields.
        distort: (endpoint, answer) -> the answer that the caller gets.
    """

    def __init__(
        self,
        apply: Callable[[Any], Any],
        slopes: Callable[[Any], Mapping[tuple[str, str], Any]] = lambda inputs: {},
        *,
        inputs: Mapping[str, Field],
        outputs: Mapping[str, Field],
        name: str = "numpy",
        endpoints: Collection[str] = DERIVATIVES,
        distort: Callable[[str, Tree], Tree] = lambda endpoint, answer: answer,
    ):
        self._name = name
        self._fn = apply
        self._slopes = slopes
        self._distort = distort
        self._schema = TesseractSchema(
            name=name,
            version="test",
            endpoints=frozenset({"apply", *endpoints}),
            inputs=ModelField(inputs, frozenset(inputs)),
            outputs=ModelField(outputs, frozenset(outputs)),
            encodings=None,
            compressions=None,
            digest=name,
        )
        self.requests: list[tuple[str, Mapping[str, Any]]] = []
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return f"NumpyTesseract({self._name})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def schema(self) -> TesseractSchema:
        return self._schema

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        record_request(self._name, endpoint)
        with self.lock:
            self.requests.append((endpoint, payload))
        inputs = payload["inputs"]
        try:
            answer = self._fn(inputs) if endpoint == "apply" else self._product(endpoint, payload)
        except ZeroDivisionError as error:
            raise ComponentFailed(f"{endpoint}: {error}", tesseract=repr(self), endpoint=endpoint) from error
        return self._distort(endpoint, answer)

    def payloads(self, endpoint: str) -> list[Mapping[str, Any]]:
        return [payload for asked, payload in self.requests if asked == endpoint]

    def _product(self, endpoint: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        inputs = payload["inputs"]
        slopes = self._slopes(inputs)
        if endpoint == "jacobian_vector_product":
            given, wanted, inward = payload["tangent_vector"], payload["jvp_outputs"], False
            like = self._fn(inputs)
        else:
            given, wanted, inward = payload["cotangent_vector"], payload["vjp_inputs"], True
            like = inputs
        answer: dict[str, Any] = {}
        for path in wanted:
            total: Any = np.zeros_like(like[path])
            for other, value in given.items():
                block = slopes.get((other, path) if inward else (path, other))
                if block is not None:
                    n = np.ndim(value)
                    total = total + (np.tensordot(value, block, n) if inward else np.tensordot(block, value, n))
            answer[path] = total
        return answer


def product(**options: Any) -> NumpyTesseract:
    """y = a b, element by element, and total = sum(a)."""
    return NumpyTesseract(
        lambda i: {"y": i["a"] * i["b"], "total": np.sum(i["a"])},
        lambda i: {
            ("y", "a"): np.diag(i["b"]),
            ("y", "b"): np.diag(i["a"]),
            ("total", "a"): np.ones(len(i["a"])),
        },
        inputs={"a": vector(), "b": vector()},
        outputs={"y": vector(), "total": ArrayField("float64", (), True)},
        **{"name": "product", **options},
    )


def rosenbrock() -> NumpyTesseract:
    scalar = ArrayField("float64", (), True)
    return NumpyTesseract(
        lambda i: {"f": (1 - i["x"]) ** 2 + 100 * (i["y"] - i["x"] ** 2) ** 2},
        lambda i: {
            ("f", "x"): -2 * (1 - i["x"]) - 400 * i["x"] * (i["y"] - i["x"] ** 2),
            ("f", "y"): 200 * (i["y"] - i["x"] ** 2),
        },
        inputs={"x": scalar, "y": scalar},
        outputs={"f": scalar},
        name="rosenbrock",
    )


def holomorphic() -> NumpyTesseract:
    """w = (1 + 2i) z², and p = sum z³."""
    return NumpyTesseract(
        lambda i: {"w": (1 + 2j) * i["z"] ** 2, "p": np.sum(i["z"] ** 3)},
        lambda i: {("w", "z"): np.diag((2 + 4j) * i["z"]), ("p", "z"): 3 * i["z"] ** 2},
        inputs={"z": vector("complex128")},
        outputs={"w": vector("complex128"), "p": ArrayField("complex128", (), True)},
        name="holomorphic",
    )


def any_rank(**options: Any) -> NumpyTesseract:
    """y = x² and z = sin(w), element by element at any rank, with mask = x > w and the number of dimensions."""

    def diagonal(values: Any) -> np.ndarray:
        return np.diag(np.ravel(values)).reshape(np.shape(values) * 2)

    return NumpyTesseract(
        lambda i: {"y": i["x"] ** 2, "z": np.sin(i["w"]), "mask": i["x"] > i["w"], "ndim": np.ndim(i["x"])},
        lambda i: {("y", "x"): diagonal(2 * i["x"]), ("z", "w"): diagonal(np.cos(i["w"]))},
        inputs={"x": ANY_RANK, "w": ANY_RANK},
        outputs={"y": ANY_RANK, "z": ANY_RANK, "mask": ArrayField("bool", None, False), "ndim": INT},
        **{"name": "any_rank", **options},
    )


def tensor(*values: Any, grad: bool = True, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=grad)
