"""`Layout`: the shape of a tree of inputs or outputs, without what JAX carries through it.

JAX's rules take operands (arrays) and parameters (everything else). A layout is the tree as a parameter: a value, with
slots where operands belong. Of outputs, plain numbers have a slot as well, and so has everything else that only an
answer can tell (text, None, lists of numbers): what a component says is never a constant of the traced function.
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
from tesseract_flow.errors import Fault, InvalidInput
from tesseract_flow.exact import pack
from tesseract_flow.schema import Keys, ValueLost, cast

L = TypeVar("L", bound="Layout")


class Slot(enum.Enum):
    """What stands where JAX carries a value: `ARRAY`, an array of the schema; `NUMBER`, a plain number or flag, as an
    array without dimensions; `PLAIN`, any other plain value or a tree of them, as bytes."""

    ARRAY = enum.auto()
    NUMBER = enum.auto()
    PLAIN = enum.auto()


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
    """The shape of a tree of inputs or outputs: where its slots are, and everything in it that has none.

    Attributes:
        treedef: the nesting, with slots and static leaves alike as leaves.
        leaves: per leaf a `Slot` or a `Static`, in JAX's order.
        keys: per slot, the keys that lead to it.
        paths: per slot, the same as the protocol writes it, such as `mesh.knots.[0]`.
        differentiable: per slot, whether the schema marks it so.
        any_rank: per slot, whether the schema leaves its rank open (`...`), so that a batch dimension has room.
    """

    treedef: Any  # a PyTreeDef, which is no type to type checkers
    leaves: tuple[Static | Slot, ...]
    keys: tuple[Keys, ...]
    paths: tuple[str, ...]
    differentiable: tuple[bool, ...]
    any_rank: tuple[bool, ...]

    @property
    def n_slots(self) -> int:
        return len(self.paths)

    def fill(self, values: Sequence[Any]) -> Any:
        """The tree with `values` in its slots."""
        remaining = iter(values)
        leaves = [next(remaining) if isinstance(leaf, Slot) else leaf.value for leaf in self.leaves]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


@dataclasses.dataclass(frozen=True)
class InputLayout(Layout):
    """A tree of inputs. Its slots are arrays.

    Attributes:
        casts: per slot, the dtype in which it is sent, where conversion may lose a value; else None, and it is sent as
            it is. Such a cast cannot be part of the traced function, where values are not known: the operand keeps its
            dtype up to the request, and is looked at there.
    """

    casts: tuple[np.dtype | None, ...] = ()

    def sent(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what is sent for these operands (or something else that has both)."""
        casts = self.casts or (None,) * len(operands)
        return [jax.ShapeDtypeStruct(x.shape, dtype or x.dtype) for x, dtype in zip(operands, casts, strict=True)]

    def request(self, tesseract: AbstractTesseract, primals: Sequence[np.ndarray]) -> Any:
        """The tree to send.

        Raises:
            InvalidInput: a value does not survive the conversion to the schema's dtype. Nothing was sent.
        """
        if any(self.casts):
            primals = [self.cast(tesseract, k, x, self.paths[k]) for k, x in enumerate(primals)]
        return self.fill(primals)

    def cast(self, tesseract: AbstractTesseract, k: int, value: np.ndarray, what: str) -> np.ndarray:
        """A value for slot `k`, or its tangent, in the dtype in which it is sent; `what` is it in a message."""
        dtype = self.casts[k] if self.casts else None
        return value if dtype is None else cast_input(tesseract, value, dtype, what)


def cast_input(tesseract: AbstractTesseract, value: np.ndarray, dtype: Any, what: str) -> np.ndarray:
    """`value` in the dtype that the schema has.

    Raises:
        InvalidInput: it would be another value.
    """
    try:
        return cast(value, dtype)
    except ValueLost as error:
        raise misfit(tesseract, [Fault(what, str(error), "out_of_range")]) from None


def misfit(tesseract: AbstractTesseract, faults: Sequence[Fault], kind: type[InvalidInput] = InvalidInput) -> Exception:
    """What to raise when inputs do not fit the schema."""
    lines = "\n".join(f"  {fault}" for fault in faults)
    message = f"The inputs do not fit the schema of Tesseract {tesseract.name!r}:\n{lines}\nNothing was sent."
    return kind(message, faults=faults, tesseract=repr(tesseract), endpoint="apply")


@dataclasses.dataclass(frozen=True)
class OutputLayout(Layout):
    """A tree of outputs, and what each answer must have in common with the one that was foreseen.

    Attributes:
        absent: places of optional arrays that are not there.
        lengths: per list or dict with arrays in it, its place and its length or keys.
        known: plain values that were asked beforehand because the traced function looks at them, by place and as
            bytes. No answer may have others.
    """

    absent: tuple[Keys, ...] = ()
    lengths: tuple[tuple[Keys, int | frozenset[Any]], ...] = ()
    known: tuple[tuple[Keys, str, bytes], ...] = ()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Of what kind each slot is."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Slot))

    def knowing(self, values: Mapping[Keys, Any]) -> tuple[OutputLayout, list[int]]:
        """The same with these values in place of their `PLAIN` slots, and the indices of the slots that are left."""
        if not values:
            return self, list(range(self.n_slots))
        kept = [k for k, keys in enumerate(self.keys) if keys not in values]
        number, leaves = iter(range(self.n_slots)), []
        for leaf in self.leaves:
            keys = self.keys[next(number)] if isinstance(leaf, Slot) else ()
            leaves.append(Static(values[keys]) if keys in values else leaf)
        known = [
            (keys, path, pack(values[keys])) for keys, path in zip(self.keys, self.paths, strict=True) if keys in values
        ]
        layout = dataclasses.replace(
            self,
            leaves=tuple(leaves),
            keys=tuple(self.keys[k] for k in kept),
            paths=tuple(self.paths[k] for k in kept),
            differentiable=tuple(self.differentiable[k] for k in kept),
            any_rank=tuple(self.any_rank[k] for k in kept),
            known=(*self.known, *known),
        )
        return layout, kept
