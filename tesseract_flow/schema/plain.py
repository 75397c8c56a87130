"""Trees as the protocol has them, out of what Python programs have: `plain_tree`.

Here: pydantic models, dataclasses, named tuples, other mappings, sets and enum members become dicts, lists and values.
Not here: arrays, which pass untouched, tracers included; whether anything fits (`validate`). The one idea: the schema
says what a container means, so a named tuple is a record where a model is wanted and a list where a list is.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from tesseract_flow.schema.fields import ANY, DictField, Field, LeafField, ListField, ModelField, UnionField
from tesseract_flow.schema.validate import check_inputs, is_arraylike, resolve


def plain_tree(field: Field, value: Any) -> Any:
    """`value` with dicts and lists in place of other containers, and the values of enum members.

    Containers that mean nothing at their place in the schema (a tuple where it has an array, say) stay as they are,
    so that messages can name them. What it is given is not changed.
    """
    if isinstance(value, enum.Enum):
        return plain_tree(field, value.value)
    # A model may well have fields `shape` and `dtype`, and is no array for that.
    if value is None or isinstance(value, str | bytes) or (is_arraylike(value) and not _is_model(value)):
        return value
    if isinstance(value, int | float | complex):
        return _number(value)
    while isinstance(field, ModelField) and field.is_root:
        field = field.fields["root"]
    if _is_root_model(value):
        return plain_tree(field, value.root)
    if isinstance(field, UnionField):
        return _plain_in_union(field, value)
    entries = _entries(field, value)
    if entries is not None:
        return {_key(key): plain_tree(_child(field, _key(key)), item) for key, item in entries.items()}
    if not isinstance(field, ListField | LeafField):
        return value
    if isinstance(value, set | frozenset):
        value = sorted(value, key=lambda item: (type(item).__name__, item))  # an order that does not change
    if isinstance(value, list | tuple):
        return [plain_tree(_child(field, index), item) for index, item in enumerate(value)]
    return value


def _plain_in_union(field: UnionField, value: Any) -> Any:
    for option in field.options:
        tree = plain_tree(option, value)
        if not check_inputs(option, tree):
            return tree
    return plain_tree(resolve(field, value), value)


def _entries(field: Field, value: Any) -> Mapping[Any, Any] | None:
    """The named parts of a value, or None if it has none."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if _is_model(value):
        declared = type(value).__pydantic_fields__
        # Not model_dump, which copies arrays' owners, warns of what it does not know, and stops at tracers.
        names = [name for name, info in declared.items() if not info.exclude and hasattr(value, name)]
        entries = {_name(field, name, declared[name]): getattr(value, name) for name in names}
        return entries | (getattr(value, "__pydantic_extra__", None) or {})
    if dataclasses.is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, tuple) and isinstance(field, ModelField) and (as_dict := getattr(value, "_asdict", None)):
        return as_dict()
    return None


def _name(field: Field, name: str, info: Any) -> str:
    """A pydantic field's name in the schema: its own, or the alias under which its component takes it."""
    aliases = [alias for alias in (info.validation_alias, info.serialization_alias, info.alias) if alias]
    if isinstance(field, ModelField) and name not in field.fields:
        return next((alias for alias in aliases if isinstance(alias, str) and alias in field.fields), name)
    return name


def _child(field: Field, key: Any) -> Field:
    match field:
        case ModelField() | ListField():
            return field.get(key) or ANY
        case DictField(value=value):
            return value
        case _:
            return ANY


def _number(value: Any) -> Any:
    """Without the dtype that JAX gives to Python numbers in some places: JSON encoders know only the built-in types."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else complex(value)


def _key(key: Any) -> Any:
    return key.value if isinstance(key, enum.Enum) else key


def _is_model(value: Any) -> bool:
    """Whether it is an instance of a pydantic model or dataclass, told without pydantic."""
    return not isinstance(value, type) and isinstance(getattr(type(value), "__pydantic_fields__", None), dict)


def _is_root_model(value: Any) -> bool:
    return _is_model(value) and bool(getattr(type(value), "__pydantic_root_model__", False))
