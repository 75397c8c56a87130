"""The vocabulary of a schema: what may sit at one place of an input or output tree.

Here: immutable value types, one per kind of place. Not here: where they come from (`openapi`), how places are named
(`paths`), and whether a value fits (`validate`). The one idea: a schema is a tree of these, compared and hashed by
value, so that handles and JAX parameters can carry it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

V = TypeVar("V")

#: The dtypes that the protocol knows, by NumPy's names.
DTYPES: tuple[str, ...] = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


class FrozenMapping(Mapping[str, V]):
    """A mapping that cannot change and can be hashed. It keeps its order; equality ignores it, as for dicts."""

    __slots__ = ("_entries", "_hash")

    def __init__(self, entries: Mapping[str, V]):
        self._entries = dict(entries)
        self._hash: int | None = None

    def __getitem__(self, key: str) -> V:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        # Kept, because JAX hashes the parameters of a primitive at every call.
        if self._hash is None:
            self._hash = hash(frozenset(self._entries.items()))
        return self._hash

    def __reduce__(self) -> tuple[type, tuple[dict[str, V]]]:
        # Without the hash: text hashes differently in each process.
        return FrozenMapping, (self._entries,)

    def __repr__(self) -> str:
        return repr(self._entries)


@dataclass(frozen=True)
class ArrayField:
    """An array.

    Attributes:
        dtype: a name in `DTYPES`; None where any of them will do.
        shape: one entry per dimension, None for any length; None as a whole for any rank.
        differentiable: derivative endpoints accept this place.
    """

    dtype: str | None
    shape: tuple[int | None, ...] | None
    differentiable: bool


@dataclass(frozen=True)
class ModelField:
    """A record with named fields: a pydantic model, a dataclass or a typed dict.

    Attributes:
        fields: name -> field, in order of declaration.
        required: the names that have no default.
        extra: what a field with another name must be; None refuses such fields.
        is_root: a pydantic `RootModel`. It has the single field `root`, which paths spell out (`points.root.[0]`) and
            which trees leave out: there the field's value stands in the place of the model.
    """

    fields: Mapping[str, Field]
    required: frozenset[str] = frozenset()
    extra: Field | None = None
    is_root: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", FrozenMapping(self.fields))
        object.__setattr__(self, "required", frozenset(self.required))

    def get(self, name: object) -> Field | None:
        """The field of that name, declared or admitted as extra; None where there can be none."""
        if not isinstance(name, str):
            return None
        return self.fields.get(name, self.extra)


@dataclass(frozen=True)
class DictField:
    """A `dict[str, value]` with free keys, or with keys out of `keys` if that is not empty."""

    value: Field
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class ListField:
    """A list, a set, or a tuple.

    Attributes:
        item: what every item is; for a fixed-length tuple of different things, their union.
        prefix: the fields of the first items one by one (a fixed-length tuple), else empty.
        min_items: fewest items.
        max_items: most items, None for no limit.
    """

    item: Field
    prefix: tuple[Field, ...] = ()
    min_items: int = 0
    max_items: int | None = None

    def get(self, index: object) -> Field | None:
        """The field of the item at that index; None where there can be none."""
        if not isinstance(index, int) or index < 0 or (self.max_items is not None and index >= self.max_items):
            return None
        return self.prefix[index] if index < len(self.prefix) else self.item


@dataclass(frozen=True)
class UnionField:
    """Any one of several fields; never directly nested in another union."""

    options: tuple[Field, ...]


@dataclass(frozen=True)
class LeafField:
    """A value that is not an array, passed through as it is.

    Attributes:
        kind: "str", "int", "float", "bool", "null", "path" (text that names a file), "enum" (one of `choices`), or
            "any" for everything that we do not look into.
        choices: the values of an "enum".
    """

    kind: str
    choices: tuple[Any, ...] = ()


Field: TypeAlias = ArrayField | ModelField | DictField | ListField | UnionField | LeafField

ANY = LeafField("any")
NULL = LeafField("null")


def union_of(*options: Field) -> Field:
    """The union of the options: flat, without repetitions, and the option itself if only one is left."""
    flat: dict[Field, None] = {}
    for option in options:
        flat.update(dict.fromkeys(option.options if isinstance(option, UnionField) else (option,)))
    return next(iter(flat)) if len(flat) == 1 else UnionField(tuple(flat))


def describe(field: Field) -> str:
    """A few words for messages, such as `float64 array of shape (*, 3)`."""
    match field:
        case ArrayField(dtype=dtype, shape=shape):
            kind = f"{dtype} array" if dtype else "array of any dtype"
            return f"{kind} of any rank" if shape is None else f"{kind} of shape {describe_shape(shape)}"
        case ModelField(is_root=True):
            return describe(field.fields["root"])
        case ModelField():
            return f"model with fields {', '.join(field.fields)}" if field.fields else "model without fields"
        case DictField(value=value):
            return f"dict of {describe(value)}"
        case ListField(prefix=prefix) if prefix:
            return f"list of {len(prefix)} ({', '.join(map(describe, prefix))})"
        case ListField(item=item):
            return f"list of {describe(item)}"
        case UnionField(options=options):
            return " or ".join(dict.fromkeys(map(describe, options)))
        case LeafField(kind="enum", choices=choices):
            return " | ".join(map(repr, choices))
        case LeafField(kind=kind):
            return {"null": "None", "path": "file path", "any": "anything"}.get(kind, kind)


def describe_shape(shape: tuple[int | None, ...]) -> str:
    """A shape as Python writes it, with `*` for any length."""
    lengths = ["*" if length is None else str(length) for length in shape]
    return f"({lengths[0]},)" if len(lengths) == 1 else f"({', '.join(lengths)})"
