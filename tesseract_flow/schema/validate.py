"""Whether a tree of values fits a schema, and where its arrays are, before any server is asked.

Here: `check_inputs`, `array_leaves`, `resolve`. Not here: conversion of values, and constraints on them such as
`minimum` or `pattern`, which stay the server's. The one idea: only what an abstract value has is looked at. Whatever
has `.shape` and `.dtype` is an array (NumPy, JAX, tracers, `ShapeDtypeStruct`) and is never converted, so the same
checks run while JAX traces.

What is accepted is what the server accepts (pydantic's lax mode: 3.0 and "3" are ints), with two exceptions on
purpose: a list where an array is wanted, which JAX would take apart, and a bool where a number is wanted.

Kinds of fault: `unknown_field`, `missing_field`, `wrong_kind`, `wrong_choice`, `bool_for_number`, `wrong_key`,
`wrong_length`, `list_for_array`, `wrong_rank`, `wrong_shape`, `wrong_dtype`, `out_of_range`, `meaning_lost`.
"""

from __future__ import annotations

import enum
import functools
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tesseract_flow.errors import Fault, did_you_mean
from tesseract_flow.schema.casting import ValueLost, cast_number
from tesseract_flow.schema.fields import (
    DTYPES,
    ArrayField,
    DictField,
    Field,
    LeafField,
    ListField,
    ModelField,
    UnionField,
    describe,
    describe_shape,
)
from tesseract_flow.schema.meaning import what_is_lost
from tesseract_flow.schema.paths import Keys, segment

_INT_TEXT = re.compile(r"\s*[+-]?\d+(_\d+)*(\.0*)?\s*", re.ASCII)
_BOOL_TEXT = frozenset({"0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"})
_EXACT_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float,), "bool": (bool,)}
_NUMPY_KINDS = {"int": "iu", "float": "iuf", "bool": "b"}
# A bool is an int to Python, so it comes first.
_NUMBERS: Mapping[type, str] = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}


def check_inputs(root: Field, tree: Any) -> list[Fault]:
    """Everything that is wrong with a tree, empty if it fits. Values may be abstract; nothing is converted."""
    return list(_faults(root, tree, ()))


def array_leaves(root: Field, tree: Any) -> list[tuple[Keys, ArrayField]]:
    """Where the tree has arrays according to the schema, in the order in which JAX flattens it (sorted dict keys).

    Unions are resolved by the value, so None in an optional array is no array. Whether values fit is `check_inputs`'s
    question; what the schema does not know is left out.
    """
    return list(_array_leaves(root, tree))


def resolve(field: Field, value: Any) -> Field:
    """What the schema means by a value: the fitting option of a union, or the one that comes closest; else `field`.

    Of several options that fit, an array goes to the first array, a plain Python value to the leaf of just its type;
    else the first wins.
    """
    if not isinstance(field, UnionField):
        return field
    options = [option for option in field.options if next(_faults(option, value, ()), None) is None]
    if not options:
        return min(field.options, key=lambda option: _distance(list(_faults(option, value, ())), ""))
    if is_arraylike(value):
        return next((option for option in options if isinstance(_unwrap(option), ArrayField)), options[0])
    exact = (option for option in options if isinstance(option, LeafField) and _is_exactly(option, value))
    return next(exact, options[0])


def is_arraylike(value: Any) -> bool:
    """Whether a value counts as an array: it has a shape and a dtype, or knows how to become an array."""
    if isinstance(value, type):
        return False
    has_form = hasattr(value, "dtype") and hasattr(value, "shape")
    return has_form or hasattr(value, "__array__") or hasattr(value, "__jax_array__")


def is_castable(dtype: str, expected: str | None) -> bool:
    """Whether the server converts `dtype` to `expected`.

    It does so within a kind or towards a wider kind (int to float to complex); among integers in any direction,
    because there it looks at the values.
    """
    return dtype in DTYPES if expected is None else dtype in _sources(expected)


@functools.cache
def _sources(expected: str) -> frozenset[str]:
    """The dtypes that the server converts to `expected`."""

    def castable(name: str) -> bool:
        source, target = np.dtype(name), np.dtype(expected)
        return np.can_cast(source, target, casting="same_kind") or source.kind + target.kind in ("ui", "iu")

    sources = frozenset(filter(castable, DTYPES))
    # JAX's and PyTorch's own float, which no server knows: it is converted before it is sent.
    return sources | {"bfloat16"} if "float16" in sources else sources


# ---------------------------------------------------------------------------------------------- one check per field


def _faults(field: Field, value: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    """What is wrong with a value at a path."""
    match field:
        case ArrayField():
            return _array_faults(field, value, at)
        case ModelField(is_root=True):
            return _faults(field.fields["root"], value, (*at, "root"))
        case ModelField():
            return _model_faults(field, value, at)
        case DictField():
            return _dict_faults(field, value, at)
        case ListField():
            return _list_faults(field, value, at)
        case UnionField():
            return _union_faults(field, value, at)
        case LeafField():
            return _leaf_faults(field, value, at)


def _array_faults(field: ArrayField, value: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    if isinstance(value, list | tuple):
        yield _fault(
            at,
            "list_for_array",
            f"expected a {describe(field)}, got a {type(value).__name__}; wrap it in jnp.asarray(...). "
            "JAX would take a list for a container of separate values.",
        )
    elif isinstance(value, bool | int | float | complex) and not isinstance(value, np.generic):
        yield from _scalar_faults(field, value, at)
    elif (lost := what_is_lost(value)) is not None:
        yield _fault(at, "meaning_lost", lost)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        yield from _shape_faults(field, tuple(value.shape), at)
        dtype = _dtype_name(value.dtype)
        if not is_castable(dtype, field.dtype):
            yield _fault(
                at, "wrong_dtype", f"{dtype} cannot be converted to {_dtype_wanted(field)}{_dtype_advice(field)}"
            )
    elif not is_arraylike(value):
        yield _mismatch(field, value, at)


def _scalar_faults(field: ArrayField, value: complex, at: tuple[str, ...]) -> Iterator[Fault]:
    """A Python number becomes an array without dimensions."""
    yield from _shape_faults(field, (), at)
    dtype = next(name for number, name in _NUMBERS.items() if isinstance(value, number))
    if not is_castable(dtype, field.dtype):
        message = f"{value!r} cannot be converted to {_dtype_wanted(field)}{_dtype_advice(field)}"
        yield _fault(at, "wrong_dtype", message)
    else:
        if isinstance(value, int) and value >= 2**63:
            dtype = "uint64"  # as NumPy takes it
        try:
            cast_number(value, field.dtype or dtype)
        except ValueLost as error:
            yield _fault(at, "out_of_range", str(error))


def _shape_faults(field: ArrayField, shape: tuple[Any, ...], at: tuple[str, ...]) -> Iterator[Fault]:
    if field.shape is None:
        return
    wanted, got = describe_shape(field.shape), f"shape {describe_shape(shape)}"
    if len(shape) != len(field.shape):
        advice = "" if shape else "; make it an array of that shape, for example with jnp.full(shape, value)"
        yield _fault(at, "wrong_rank", f"expected shape {wanted}, got {got if shape else 'a scalar'}{advice}")
    elif any(want is not None and n != want and n != 1 for n, want in zip(shape, field.shape, strict=True)):
        yield _fault(at, "wrong_shape", f"expected shape {wanted} (a length of 1 broadcasts), got {got}")


def _model_faults(field: ModelField, value: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    if not isinstance(value, Mapping):
        yield _mismatch(field, value, at)
        return
    for name, item in value.items():
        child = field.get(name)
        if child is None:
            known = ", ".join(field.fields) or "none"
            advice = did_you_mean(str(name), field.fields.keys() - value.keys())
            yield _fault((*at, str(name)), "unknown_field", f"unknown field.{advice} Fields here: {known}")
        else:
            yield from _faults(child, item, (*at, name))
    for name, child in field.fields.items():
        if name in field.required and name not in value:
            yield _fault((*at, name), "missing_field", f"required field is missing; expected: {describe(child)}")


def _dict_faults(field: DictField, value: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    if not isinstance(value, Mapping):
        yield _mismatch(field, value, at)
        return
    for key, item in value.items():
        here = (*at, segment(field, key))
        # Numbers become text in JSON, and the component turns them back where it has a dict[int, ...].
        if not isinstance(key, str | int):
            yield _fault(here, "wrong_key", f"keys must be text, got {key!r}")
        elif field.keys and key not in field.keys:
            advice = did_you_mean(str(key), field.keys)
            yield _fault(here, "wrong_key", f"unknown key.{advice} Keys here: {', '.join(field.keys)}")
        else:
            yield from _faults(field.value, item, here)


def _list_faults(field: ListField, value: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    if not isinstance(value, list | tuple):
        yield _mismatch(field, value, at)
        return
    if len(value) < field.min_items or (field.max_items is not None and len(value) > field.max_items):
        wanted = f"at least {field.min_items}" if field.max_items is None else f"{field.min_items} to {field.max_items}"
        wanted = str(field.min_items) if field.min_items == field.max_items else wanted
        yield _fault(at, "wrong_length", f"expected {wanted} items, got {len(value)}")
    for index, item in enumerate(value):
        child = field.get(index)
        if child is not None:
            yield from _faults(child, item, (*at, segment(field, index)))


def _union_faults(field: UnionField, value: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    attempts = []
    for option in field.options:
        faults = list(_faults(option, value, at))
        if not faults:
            return
        attempts.append(faults)
    here = ".".join(at)
    best = min(attempts, key=lambda faults: _distance(faults, here))
    if _distance(best, here)[0]:  # not even the kind is right: then name all options
        yield _mismatch(field, value, at)
    else:
        yield from best


def _distance(faults: list[Fault], here: str) -> tuple[bool, int, int]:
    """How far a value is from an option: another kind is farthest, then a wrong tag, then the number of faults."""
    is_other_kind = any(fault.kind == "wrong_kind" and fault.path in (here, _joined(here, "root")) for fault in faults)
    return is_other_kind, sum(fault.kind == "wrong_choice" for fault in faults), len(faults)


def _leaf_faults(field: LeafField, value: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    if (lost := what_is_lost(value)) is not None:
        yield _fault(at, "meaning_lost", lost)
        return
    if field.kind == "any":
        return
    value = _plain(value)
    if is_arraylike(value):
        if not _is_scalar_of(field, value):
            yield _mismatch(field, value, at)
    elif field.kind == "enum":
        if not any(_is_choice(value, choice) for choice in field.choices):
            advice = (
                did_you_mean(value, (c for c in field.choices if isinstance(c, str))) if isinstance(value, str) else ""
            )
            yield _fault(at, "wrong_choice", f"expected {describe(field)}, got {_what(value)}.{advice}")
    elif isinstance(value, bool) and field.kind in ("int", "float"):
        yield _fault(at, "bool_for_number", f"expected a number ({field.kind}), got {value}")
    elif not _LEAF_TESTS[field.kind](value):
        yield _mismatch(field, value, at)
    elif field.kind == "float" and isinstance(value, int):
        try:
            cast_number(value, "float64")
        except ValueLost as error:
            yield _fault(at, "out_of_range", str(error))


# ------------------------------------------------------------------------------------------------------ plain values


def _plain(value: Any) -> Any:
    """Enum members and NumPy scalars as the Python values that JSON carries."""
    if isinstance(value, enum.Enum):
        return value.value
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value


def _is_int(value: Any) -> bool:
    if isinstance(value, str):
        return _INT_TEXT.fullmatch(value) is not None
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 2**63)


def _is_float(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, int | float)
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_bool(value: Any) -> bool:
    return value.lower() in _BOOL_TEXT if isinstance(value, str) else isinstance(value, int | float) and value in (0, 1)


_LEAF_TESTS = {
    "str": lambda value: isinstance(value, str),
    "int": _is_int,
    "float": _is_float,
    "bool": _is_bool,
    "null": lambda value: value is None,
    "path": lambda value: isinstance(value, str | os.PathLike),
}


def _is_choice(value: Any, choice: Any) -> bool:
    """Equality that tells True from 1, as JSON does, but not 1.0 from 1."""
    if isinstance(value, bool) or isinstance(choice, bool) or choice is None:
        return type(value) is type(choice) and value == choice
    return isinstance(value, str | int | float) and value == choice


def _is_exactly(field: LeafField, value: Any) -> bool:
    if field.kind == "enum":
        return any(_is_choice(_plain(value), choice) for choice in field.choices)
    return type(value) in _EXACT_TYPES.get(field.kind, ()) or (field.kind == "null" and value is None)


def _is_scalar_of(field: LeafField, value: Any) -> bool:
    """Whether an array, perhaps without a value, can stand for a plain number."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype") or len(value.shape) > 0:
        return False
    dtype = _dtype_name(value.dtype)
    return dtype in DTYPES and np.dtype(dtype).kind in _NUMPY_KINDS.get(field.kind, "")


def _dtype_name(dtype: Any) -> str:
    """A dtype's name in NumPy's words, also for libraries with dtypes of their own (`torch.float32`)."""
    return str(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2])


# ------------------------------------------------------------------------------------------------- places of arrays


def _array_leaves(field: Field, value: Any) -> Iterator[tuple[Keys, ArrayField]]:
    field = _unwrap(resolve(field, value))
    if isinstance(field, UnionField):  # a root model of a union
        yield from _array_leaves(field, value)
    elif isinstance(field, ArrayField) and value is not None:
        yield (), field
    elif isinstance(field, ModelField | DictField) and isinstance(value, Mapping):
        for key in _flattening_order(value):
            child = field.value if isinstance(field, DictField) else field.get(key)
            if child is not None:
                yield from (((key, *keys), array) for keys, array in _array_leaves(child, value[key]))
    elif isinstance(field, ListField) and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            child = field.get(index)
            if child is not None:
                yield from (((index, *keys), array) for keys, array in _array_leaves(child, item))


def _flattening_order(tree: Mapping[Any, Any]) -> list[Any]:
    if isinstance(tree, OrderedDict):  # the one dict whose order JAX keeps
        return list(tree)
    try:
        return sorted(tree)
    except TypeError:  # JAX refuses to flatten such a dict; any fixed order will do
        return sorted(tree, key=lambda key: (type(key).__name__, str(key)))


def _unwrap(field: Field) -> Field:
    """A root model's value."""
    while isinstance(field, ModelField) and field.is_root:
        field = field.fields["root"]
    return field


# ----------------------------------------------------------------------------------------------------------- wording


def _fault(at: tuple[str, ...], kind: str, message: str) -> Fault:
    return Fault(".".join(at), message, kind)


def _mismatch(field: Field, value: Any, at: tuple[str, ...]) -> Fault:
    advice = ""
    if isinstance(field, ListField) and is_arraylike(value):
        advice = "; list(x) splits an array along its first dimension" if _has_array(field.item) else "; use x.tolist()"
    return _fault(at, "wrong_kind", f"expected {describe(field)}, got {_what(value)}{advice}")


def _what(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {_dtype_name(value.dtype)} array of shape {describe_shape(tuple(value.shape))}"
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    return f"a {type(value).__name__}"


def _has_array(field: Field) -> bool:
    return isinstance(_unwrap(field), ArrayField)


def _dtype_wanted(field: ArrayField) -> str:
    return field.dtype or f"any of {', '.join(DTYPES)}"


def _dtype_advice(field: ArrayField) -> str:
    return f"; convert it with .astype({field.dtype!r}) if the loss is intended" if field.dtype else ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
