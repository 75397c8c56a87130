"""One call of a Tesseract in NumPy: its three requests, and the checks of what comes back.

Not here: tensors, autograd and batching. The one idea: a `Call` is everything about a call except its arrays, so each
request is a method that takes arrays and gives arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import Fault, InvalidAnswer
from tesseract_flow.schema import ArrayField, Keys, array_leaves, check_inputs, follow, format_path
from tesseract_flow.torch.refusals import refuse_misfits
from tesseract_flow.torch.trees import Constant, Slot, Tree, map_leaves


@dataclasses.dataclass(frozen=True)
class Operand:
    """What the schema says about the place of one tensor.

    Attributes:
        path: the place, as the protocol writes it.
        is_array: the schema has an array there, and not a plain number.
        is_differentiable: derivatives with respect to it can be asked.
    """

    path: str
    is_array: bool
    is_differentiable: bool


@dataclasses.dataclass(frozen=True)
class Aval:
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Answer:
    """Outputs of a call.

    Attributes:
        tree: the outputs, with a slot at each differentiable array; the others stand there themselves.
        paths: of the differentiable arrays, as the protocol writes them.
        arrays: the differentiable arrays.
    """

    tree: Tree
    paths: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]

    @property
    def avals(self) -> tuple[Aval, ...]:
        return tuple(Aval(array.shape, array.dtype) for array in self.arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """All of one call except its tensors.

    Attributes:
        tesseract: whom to ask.
        inputs: the input tree, with slots where it has tensors.
        operands: per tensor, what the schema says about its place.
        vmap_method: how `torch.vmap` maps the call.
    """

    tesseract: AbstractTesseract
    inputs: Tree
    operands: tuple[Operand, ...]
    vmap_method: str | None

    def apply(self, primals: Sequence[np.ndarray]) -> Answer:
        """The outputs. One request."""
        inputs = self._filled(primals)
        if self.vmap_method in SHAPES_LATER:
            refuse_misfits(
                self.tesseract,
                check_inputs(self.tesseract.schema.inputs, inputs),
                f"With vmap_method={self.vmap_method!r} shapes are checked as they are sent; where the schema has no "
                "room for a batch dimension, use 'sequential'.",
            )
        return read_answer(self.tesseract, self.tesseract.apply(inputs))

    def pushforward(
        self,
        primals: Sequence[np.ndarray],
        tangents: Mapping[int, np.ndarray],
        paths: Sequence[str],
        avals: Sequence[Aval],
    ) -> list[np.ndarray]:
        """J·t for the outputs at `paths`, from tangents by index of the operand. One request."""
        x_dot = {self.operands[i].path: t for i, t in tangents.items()}
        answer = self.tesseract.jacobian_vector_product(self._filled(primals), list(x_dot), list(paths), x_dot)
        return [
            self._checked("jacobian_vector_product", path, answer[path], aval)
            for path, aval in zip(paths, avals, strict=True)
        ]

    def pullback(
        self, primals: Sequence[np.ndarray], wanted: Sequence[int], cotangents: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        """Jᵀ·c for the operands of these indices, from cotangents by path of the output. One request."""
        paths = [self.operands[i].path for i in wanted]
        answer = self.tesseract.vector_jacobian_product(self._filled(primals), paths, list(cotangents), cotangents)
        return [
            self._checked("vector_jacobian_product", path, answer[path], primals[i])
            for i, path in zip(wanted, paths, strict=True)
        ]

    def _filled(self, primals: Sequence[np.ndarray]) -> Tree:
        def fill(keys: Keys, leaf: Any) -> Any:
            if isinstance(leaf, Constant):
                return leaf.value
            if not isinstance(leaf, Slot):
                return leaf
            value = primals[leaf.index]
            return value.item() if value.ndim == 0 and not self.operands[leaf.index].is_array else value

        return map_leaves(fill, self.inputs)

    def _checked(self, endpoint: str, path: str, value: Any, expected: Any) -> np.ndarray:
        """`value` as an array of the expected shape and dtype; a server's word is not trusted."""
        array = np.asarray(value)
        kind_fits = np.can_cast(array.dtype, expected.dtype, "same_kind")
        if array.shape != expected.shape or not kind_fits:
            raise InvalidAnswer(
                f"Tesseract {self.tesseract.name!r} answered {endpoint!r} with {path!r} of shape {array.shape} and "
                f"dtype {array.dtype}; expected shape {expected.shape} and dtype {expected.dtype}.\n"
                f"This is a fault in the component's {endpoint!r}: a derivative has the shape of what it belongs to.",
                tesseract=repr(self.tesseract),
                endpoint=endpoint,
            )
        return array.astype(expected.dtype, copy=False)


#: The vmap methods under which the arrays of a request have a dimension more than the caller's.
SHAPES_LATER = frozenset({"expand_dims", "broadcast_all"})


def read_answer(tesseract: AbstractTesseract, answer: Any) -> Answer:
    """An answer of `apply`, taken apart. What the schema promises of its arrays must hold.

    Plain values are left alone: the component validated them, and in-process ones have richer types than JSON's.
    """
    root = tesseract.schema.outputs
    fields = dict(array_leaves(root, answer))
    if faults := _faults_of(tesseract, answer, fields):
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise InvalidAnswer(
            f"Tesseract {tesseract.name!r} answered 'apply' with outputs that do not fit its own schema:\n{lines}",
            tesseract=repr(tesseract),
            endpoint="apply",
        )
    paths: list[str] = []
    arrays: list[np.ndarray] = []

    def read(keys: Keys, leaf: Any) -> Any:
        field = fields.get(keys)
        if field is None:
            return leaf
        array = np.asarray(leaf, field.dtype)
        if not field.differentiable or array.dtype.kind not in "fc":
            return array
        paths.append(format_path(root, keys))
        arrays.append(array)
        return Slot(len(arrays) - 1)

    return Answer(map_leaves(read, answer), tuple(paths), tuple(arrays))


def _faults_of(tesseract: AbstractTesseract, answer: Any, fields: Mapping[Keys, ArrayField]) -> list[Fault]:
    root = tesseract.schema.outputs
    if not isinstance(answer, Mapping):
        names = ", ".join(root.fields)
        return [Fault("", f"expected an object with the fields {names}, got {type(answer).__name__}")]
    faults = [fault for fault in check_inputs(root, answer) if fault.kind == "missing_field"]
    for keys, field in fields.items():
        path = format_path(root, keys)
        faults += [Fault(path, fault.message) for fault in check_inputs(field, follow(answer, keys))]
    return faults
