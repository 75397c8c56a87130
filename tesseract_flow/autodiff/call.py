"""`Call`: all of one Tesseract call except its arrays.

JAX's rules take operands (arrays) and parameters (everything else). A `Call` is the only parameter of our primitives,
and it is a value: JAX compares calls with `==`, which is what lets it merge equal ones.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from tesseract_flow.client import AbstractTesseract
from tesseract_flow.errors import InvalidAnswer
from tesseract_flow.schema import Keys, follow

T = TypeVar("T")


class _ArraySlot(enum.Enum):
    ARRAY = enum.auto()


ARRAY = _ArraySlot.ARRAY  # stands where a tree has an array


class Static:
    """A leaf that JAX does not trace, compared by type and exact value: 1, 1.0 and True differ, NaN equals itself.

    What cannot be hashed is compared by identity: two such objects are never taken for one another.
    """

    __slots__ = ("_key", "value")

    def __init__(self, value: Any):
        self.value = value
        self._key = (type(value), _exact(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.value)


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack("<d", value)  # tells 0.0 from -0.0, and equals itself for NaN
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return (value.dtype.str, value.shape, value.tobytes())
    try:
        hash(value)
    except TypeError:
        # Not its repr, which may leave things out (long arrays do). The id stays taken for as long as the Static lives.
        return id(value)
    return value


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a tree of inputs or outputs: where its arrays are, and everything in it that is no array.

    Attributes:
        treedef: the nesting, with arrays and static leaves alike as leaves.
        leaves: per leaf `ARRAY` or a `Static`, in JAX's order.
        keys: per array, the keys that lead to it.
        paths: per array, the same as the protocol writes it, such as `mesh.knots.[0]`.
        differentiable: per array, whether the schema marks it so.
    """

    treedef: Any  # a PyTreeDef, which is no type to type checkers
    leaves: tuple[Static | _ArraySlot, ...]
    keys: tuple[Keys, ...]
    paths: tuple[str, ...]
    differentiable: tuple[bool, ...]

    @property
    def n_arrays(self) -> int:
        return len(self.paths)

    def fill(self, arrays: Sequence[Any]) -> Any:
        """The tree with `arrays` at its array leaves."""
        remaining = iter(arrays)
        leaves = [next(remaining) if leaf is ARRAY else leaf.value for leaf in self.leaves]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


@dataclasses.dataclass(frozen=True)
class Call:
    """All of one Tesseract call except its arrays.

    Attributes:
        tesseract: whom to ask.
        input, output: the trees on both sides.
        out_avals: shape and dtype per output array.
        inputs: for derivatives: indices of the inputs that carry a tangent or want a gradient.
        outputs: for derivatives: indices of the outputs that are pushed forward or carry a cotangent.
    """

    tesseract: AbstractTesseract
    input: Layout
    output: Layout
    out_avals: tuple[jax.ShapeDtypeStruct, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def linear(self, inputs: Sequence[int], outputs: Sequence[int]) -> Call:
        """The same call, for derivatives between these inputs and outputs."""
        return dataclasses.replace(self, inputs=tuple(inputs), outputs=tuple(outputs))

    def split(self, operands: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
        """Operands of a derivative → (primals, tangents or cotangents)."""
        return operands[: self.input.n_arrays], operands[self.input.n_arrays :]

    def apply(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """The output arrays at these primals. One request."""
        answer = self.tesseract.apply(self.input.fill(operands), run_id=run_id)
        return [
            self._checked("apply", path, follow(answer, keys), aval)
            for keys, path, aval in zip(self.output.keys, self.output.paths, self.out_avals, strict=True)
        ]

    def pushforward(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """J·t for the outputs in `outputs`; NaN where the schema has no derivative. At most one request."""
        primals, tangents = self.split(operands)
        wanted = [self.output.paths[j] for j in self.outputs if self.output.differentiable[j]]
        answer: Mapping[str, Any] = {}
        if wanted:
            x_dot = {self.input.paths[i]: t for i, t in zip(self.inputs, tangents, strict=True)}
            answer = self.tesseract.jacobian_vector_product(
                self.input.fill(primals), list(x_dot), wanted, x_dot, run_id=run_id
            )
        y_dot = []
        for j in self.outputs:
            path, aval = self.output.paths[j], self.out_avals[j]
            if self.output.differentiable[j]:
                y_dot.append(self._checked("jacobian_vector_product", path, answer[path], aval))
            else:
                y_dot.append(np.full(aval.shape, np.nan, aval.dtype))
        return y_dot

    def pullback(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """Jᵀ·c for the inputs in `inputs`, from cotangents of the outputs in `outputs`. One request."""
        primals, cotangents = self.split(operands)
        wanted = [self.input.paths[i] for i in self.inputs]
        y_bar = {self.output.paths[j]: c for j, c in zip(self.outputs, cotangents, strict=True)}
        answer = self.tesseract.vector_jacobian_product(
            self.input.fill(primals), wanted, list(y_bar), y_bar, run_id=run_id
        )
        return [
            self._checked("vector_jacobian_product", self.input.paths[i], answer[self.input.paths[i]], primals[i])
            for i in self.inputs
        ]

    def _checked(self, endpoint: str, path: str, value: Any, expected: Any) -> np.ndarray:
        """`value` as an array of the expected shape and dtype; a server's word is not trusted."""
        array = np.asarray(value)
        kind_fits = np.can_cast(array.dtype, expected.dtype, "same_kind")
        if array.shape != tuple(expected.shape) or not kind_fits:
            raise InvalidAnswer(
                f"Tesseract {self.tesseract.name!r} answered {endpoint!r} with {path!r} of shape {array.shape} and "
                f"dtype {array.dtype}; expected shape {tuple(expected.shape)} and dtype {expected.dtype}.\n"
                "Either its abstract_eval does not agree with its other endpoints, or the endpoint has a fault.",
                tesseract=repr(self.tesseract),
                endpoint=endpoint,
            )
        return array.astype(expected.dtype, copy=False)
