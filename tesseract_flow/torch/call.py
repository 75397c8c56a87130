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
from tesseract_flow.schema import (
    ArrayField,
    Keys,
    ValueLost,
    array_leaves,
    cast,
    check_inputs,
    field_at,
    follow,
    format_path,
    is_same_kind,
    parse_path,
)
from tesseract_flow.torch.refusals import cast_input, refuse_misfits
from tesseract_flow.torch.trees import Constant, Slot, Tree, map_leaves


@dataclasses.dataclass(frozen=True)
class Operand:
    """What the schema says about the place of one tensor.

    Attributes:
        path: the place, as the protocol writes it.
        is_array: the schema has an array there, and not a plain number.
        is_differentiable: derivatives with respect to it can be asked.
        dtype: in which it is sent, where that may lose a value, which is then looked at; else None, and it is sent as
            it is.
    """

    path: str
    is_array: bool
    is_differentiable: bool
    dtype: str | None = None


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
        x_dot = {self.operands[i].path: self._cast(i, t, "the tangent of ") for i, t in tangents.items()}
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
            value = self._cast(leaf.index, primals[leaf.index])
            return value.item() if value.ndim == 0 and not self.operands[leaf.index].is_array else value

        return map_leaves(fill, self.inputs)

    def _cast(self, index: int, value: np.ndarray, what: str = "") -> np.ndarray:
        """An operand, or its tangent, in the dtype in which it is sent."""
        operand = self.operands[index]
        return value if operand.dtype is None else cast_input(self.tesseract, value, operand.dtype, what + operand.path)

    def _checked(self, endpoint: str, path: str, value: Any, expected: Any) -> np.ndarray:
        """`value` as an array of the expected shape and dtype; a server's word is not trusted."""
        array = np.asarray(value)
        try:
            if array.shape != expected.shape or not is_same_kind(array.dtype, expected.dtype):
                raise ValueLost("")
            return cast(array, expected.dtype)
        except ValueLost as error:
            detail = f" ({error})" if str(error) else ""
            raise InvalidAnswer(
                f"Tesseract {self.tesseract.name!r} answered {endpoint!r} with {path!r} of shape {array.shape} and "
                f"dtype {array.dtype}; expected shape {expected.shape} and dtype {expected.dtype}{detail}.\n"
                f"This is a fault in the component's {endpoint!r}: a derivative has the shape of what it belongs to.",
                tesseract=repr(self.tesseract),
                endpoint=endpoint,
            ) from None


#: The vmap methods under which the arrays of a request have a dimension more than the caller's.
SHAPES_LATER = frozenset({"expand_dims", "broadcast_all"})


def read_answer(tesseract: AbstractTesseract, answer: Any) -> Answer:
    """An answer of `apply`, taken apart. What the schema promises of its arrays must hold.

    Plain values are left alone: the component validated them, and in-process ones have richer types than JSON's.
    """
    root = tesseract.schema.outputs
    fields = dict(array_leaves(root, answer))
    converted: dict[Keys, np.ndarray] = {}
    faults = _faults_of(tesseract, answer, fields)
    for keys, field in {} if faults else fields.items():
        array = np.asarray(follow(answer, keys))
        try:
            converted[keys] = cast(array, field.dtype or array.dtype)
        except ValueLost as error:
            faults.append(Fault(format_path(root, keys), str(error)))
    if faults:
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
        array = converted[keys]
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
    faults = [
        fault
        for fault in check_inputs(root, answer)
        if fault.kind == "missing_field"
        or (fault.kind == "wrong_kind" and isinstance(field_at(root, parse_path(fault.path, root)), ArrayField))
    ]
    for keys, field in fields.items():
        path = format_path(root, keys)
        value = follow(answer, keys)
        faults += [Fault(path, fault.message) for fault in check_inputs(field, value)]
        dtype = getattr(value, "dtype", None)
        if dtype is not None and field.dtype is not None and not is_same_kind(dtype, field.dtype):
            faults.append(Fault(path, f"expected {field.dtype}, got {dtype}"))
    return faults
