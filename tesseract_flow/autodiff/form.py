"""The form of a tree of outputs: which places are arrays, which are numbers, and which are anything else.

The one idea: only what all answers have in common may be built into a traced function. Of an example, or of what
`abstract_eval` says, that is the nesting around arrays and the types of numbers. All else is left to the answers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.autodiff.layout import Slot
from tesseract_flow.schema import (
    ANY,
    ArrayField,
    DictField,
    Field,
    Keys,
    LeafField,
    ListField,
    ModelField,
    UnionField,
    describe_shape,
    field_at,
)


class Abstract:
    """Shape and dtype where a tree has an array."""

    def __init__(self, shape: Sequence[int], dtype: Any):
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)


class Form:
    """What all answers of one form have in common, read off one of them."""

    def __init__(self) -> None:
        self.absent: list[Keys] = []
        self.lengths: list[tuple[Keys, int | frozenset[Any]]] = []
        self.faults: list[tuple[Keys, str]] = []

    def slots(self, field: Field | None, value: Any, at: Keys) -> Any:
        """The tree with what decides about a slot as its leaves: an `Abstract`, the type of a number, or `PLAIN`."""
        while isinstance(field, ModelField) and field.is_root:
            field = field.fields["root"]
        if isinstance(value, Abstract):
            return value
        if field is None or not _has_arrays(field):
            return self._plain(field, value, at)
        if isinstance(field, ArrayField):
            self.faults.append((at, f"expected a shape and a dtype, got {_what(value)}"))
            return Slot.PLAIN
        if value is None:
            self.absent.append(at)
            return None
        if isinstance(value, Mapping):
            if not isinstance(field, ModelField):
                self.lengths.append((at, frozenset(value)))
            return {key: self.slots(field_at(field, (key,)), item, (*at, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            self.lengths.append((at, len(value)))
            return [self.slots(field_at(field, (k,)), item, (*at, k)) for k, item in enumerate(value)]
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            self.faults.append((at, f"expected a shape and a dtype, got {_what(value)}"))
        return _number_type(None, value) or Slot.PLAIN

    def _plain(self, field: Field | None, value: Any, at: Keys) -> Any:
        if isinstance(field, ModelField) and isinstance(value, Mapping):
            return {key: self.slots(field.get(key), item, (*at, key)) for key, item in value.items()}
        return _number_type(field, value) or Slot.PLAIN


def _number_type(field: Field | None, value: Any) -> type | None:
    """How traced code works with a plain number: by its schema, or if that says nothing, by an example."""
    options = field.options if isinstance(field, UnionField) else (ANY if field is None else field,)
    kinds = {option.kind if isinstance(option, LeafField) else "" for option in options}
    if kinds == {"any"}:
        return type(value) if type(value) in (bool, int, float) else None
    if kinds == {"bool"}:
        return bool
    return None if not kinds <= {"int", "float"} else float if "float" in kinds else int


@functools.cache
def _has_arrays(field: Field) -> bool:
    match field:
        case ArrayField():
            return True
        case UnionField(options=options):
            return any(map(_has_arrays, options))
        case ModelField(fields=fields, extra=extra):
            return any(map(_has_arrays, fields.values())) or (extra is not None and _has_arrays(extra))
        case DictField(value=item) | ListField(item=item):
            return _has_arrays(item)
        case _:
            return False


def _what(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {describe_shape(tuple(value.shape))}"
    return repr(value) if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"
