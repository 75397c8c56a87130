"""A component's inputs and outputs as plain trees.

Here: models → dicts, by reading their fields where that is all that `model_dump` would do. Not here: what a model's
annotations say about its leaves (`tesseract_flow.recipes.trees`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# What is neither a container nor in need of a conversion. By exact type, as a subclass may be anything.
_LEAVES = frozenset({np.ndarray, str, int, float, bool, complex, bytes, type(None)})


def is_model(value: Any) -> bool:
    """Whether it is a pydantic model: told by its methods, so that NumPy is all that this package needs."""
    return all(callable(getattr(type(value), method, None)) for method in ("model_dump", "model_validate"))


def as_tree(value: Any) -> Any:
    """Dicts, lists and tuples in place of models. Leaves that offer themselves as arrays become NumPy arrays."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is dict:
        return {key: as_tree(item) for key, item in value.items()}
    if is_model(value):
        read = _reader_of(kind)
        tree = read(value) if read is not None else _OTHERWISE
        return as_tree(value.model_dump()) if tree is _OTHERWISE else tree
    if isinstance(value, Mapping):
        return {key: as_tree(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(as_tree(item) for item in value))
    if isinstance(value, list | tuple):
        # Plain ones: to JAX a list of another class is a leaf.
        return (list if isinstance(value, list) else tuple)(as_tree(item) for item in value)
    # JAX's own arrays stay where they are, on whatever device.
    if hasattr(value, "__array__") and hasattr(value, "shape") and not hasattr(value, "aval"):
        return np.asarray(value)
    return value


# For each array `model_dump` calls a function that checks it once more and gives it back, which takes longer than all
# else that a recipe does in Python. So a model is read by its fields if its schema has only such as come out of
# `model_dump` as they are. Values that are not what the schema says are left to `model_dump`: then readers answer
# `_OTHERWISE`.

_OTHERWISE = object()
_PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "none": type(None)}
_SCALARS = frozenset(_PLAIN.values())
_AROUND = frozenset({"default", "nullable", "function-before", "function-after", "function-wrap"})


@functools.lru_cache(maxsize=64)
def _reader_of(kind: type) -> Callable[[Any], Any] | None:
    """From a model of exactly this class to its tree; None if that takes more than reading its fields."""
    schema = getattr(kind, "__pydantic_core_schema__", None)
    is_pydantics = getattr(getattr(kind, "model_dump", None), "__module__", None) == "pydantic.main"
    if not isinstance(schema, dict) or not is_pydantics:
        return None
    return _reader(schema["schema"] if schema.get("type") == "definitions" else schema)


def _reader(schema: Any) -> Callable[[Any], Any] | None:
    is_nullable = False
    while schema["type"] in _AROUND and "serialization" not in schema:
        is_nullable |= schema["type"] == "nullable"
        schema = schema["schema"]
    read = _array_reader(schema) if "serialization" in schema else _plain_reader(schema)
    return _or_none(read) if read is not None and is_nullable else read


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _plain_reader(schema: Any) -> Callable[[Any], Any] | None:
    kind = _PLAIN.get(schema["type"])
    if kind is not None:
        return lambda value: value if type(value) is kind else _OTHERWISE
    if schema["type"] == "literal":
        return lambda value: value if type(value) in _SCALARS else _OTHERWISE
    return _model_reader(schema) if schema["type"] == "model" else None


def _model_reader(schema: Any) -> Callable[[Any], Any] | None:
    fields = schema["schema"]
    config = schema.get("config") or {}
    if fields["type"] != "model-fields" or config.get("serialize_by_alias"):
        return None
    if fields.get("computed_fields") or any(set(field) - _FIELD for field in fields["fields"].values()):
        return None
    readers: dict[str, Callable[[Any], Any]] = {}
    for name, field in fields["fields"].items():
        read_field = _reader(field["schema"])
        if read_field is None:
            return None
        readers[name] = read_field
    kind = schema["cls"]

    def read(model: Any) -> Any:
        if type(model) is not kind or model.__pydantic_extra__:
            return _OTHERWISE
        values, tree = model.__dict__, {}
        for name, read_field in readers.items():
            tree[name] = item = read_field(values.get(name, _OTHERWISE))
            if item is _OTHERWISE:
                return _OTHERWISE
        return tree

    return read


# Of a field that is written as it is. Aliases have no say in `model_dump` unless the configuration says so.
_FIELD = frozenset({"type", "schema", "metadata", "validation_alias", "serialization_alias", "frozen"})
_ARRAYS = "tesseract_core.runtime.array_encoding"


def _array_reader(schema: Any) -> Callable[[Any], Any] | None:
    """tesseract-core's arrays, which `model_dump` checks once more and gives back."""
    write = schema["serialization"].get("function")
    writer = getattr(write, "func", None)  # it is a partial
    if getattr(writer, "__module__", None) != _ARRAYS or getattr(writer, "__name__", None) != "encode_array":
        return None
    shape, dtype = write.keywords.get("expected_shape"), write.keywords.get("expected_dtype")
    if not isinstance(shape, tuple) or dtype is None:
        return None
    dtype, n_dims = np.dtype(dtype), len(shape)
    fixed = tuple((i, n) for i, n in enumerate(shape) if n is not None)

    def read(value: Any) -> Any:
        if n_dims == 0:
            return np.asarray(value) if type(value) is dtype.type else _OTHERWISE
        is_it = (
            type(value) is np.ndarray
            and value.dtype == dtype
            and value.ndim == n_dims
            and all(value.shape[i] == n for i, n in fixed)
        )
        return value if is_it else _OTHERWISE

    return read
