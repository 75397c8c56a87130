"""Whether an answer fits the schema and the question, before anybody believes it or keeps it.

Here: `answer_faults`, for every endpoint. Not here: inputs (`validate`), and what a component said of its shapes before
(that is for whoever asked). The one idea: a derivative has the shape of what it is a derivative of, so the question
tells more than the schema. What fits costs a few microseconds; words are found for the rest.

What an answer may be is narrower than what inputs may be: a server has converted and broadcast its outputs already.

Kinds of fault: `missing_field`, `unknown_field`, `wrong_kind`, `wrong_length`, `wrong_shape`, `wrong_dtype`, and
`not_finite`: null in place of a plain float, which is how NaN and inf arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.errors import Fault, SchemaError
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
from tesseract_flow.schema.model import TesseractSchema
from tesseract_flow.schema.paths import field_at, follow, parse_path, segment

_PLAIN = frozenset({"str", "int", "float", "bool", "path"})
_SCALARS = frozenset({str, int, float, bool})
_SCALAR_OF = {"str": str, "path": str, "int": int, "bool": bool}
_LARGEST = 2**63  # elements; NumPy counts no further


def answer_faults(schema: TesseractSchema, endpoint: str, payload: Mapping[str, Any], answer: Any) -> list[Fault]:
    """What is wrong with an answer; empty if it can be one to `payload`."""
    match endpoint:
        case "apply":
            return list(_misfits(schema.outputs, answer, (), _array_misfit))
        case "abstract_eval":
            return list(_misfits(schema.outputs, answer, (), _abstract_misfit))
        case "jacobian_vector_product":
            wanted = payload["jvp_outputs"]
            return list(_by_path(wanted, answer, "", lambda path, value: _output_misfit(schema, path, value)))
        case "vector_jacobian_product":
            wanted = payload["vjp_inputs"]
            return list(
                _by_path(wanted, answer, "", lambda path, value: _input_misfit(schema, path, payload["inputs"], value))
            )
        case "jacobian":
            return list(_jacobian_misfits(schema, payload, answer))
    return []


# ----------------------------------------------------------------------------------------------------- trees of outputs


def _misfits(field: Field, value: Any, at: tuple[str, ...], of_array: Any) -> Iterator[Fault]:
    match field:
        case ArrayField():
            if (message := of_array(field, value)) is not None:
                yield Fault(".".join(at), *message)
        case ModelField(is_root=True):
            yield from _misfits(field.fields["root"], value, at, of_array)
        case ModelField():
            if not isinstance(value, Mapping):
                yield _wrong_kind(field, value, at)
                return
            for name, child in field.fields.items():
                if name in value:
                    yield from _misfits(child, value[name], (*at, name), of_array)
                elif name in field.required:
                    yield Fault(".".join((*at, name)), f"is missing; expected: {describe(child)}", "missing_field")
            for name in value.keys() - field.fields.keys():
                if field.extra is None:
                    known = ", ".join(field.fields) or "none"
                    yield Fault(
                        ".".join((*at, str(name))), f"the schema has no such field; it has: {known}", "unknown_field"
                    )
                else:
                    yield from _misfits(field.extra, value[name], (*at, str(name)), of_array)
        case DictField(value=child):
            if not isinstance(value, Mapping):
                yield _wrong_kind(field, value, at)
                return
            for key, item in value.items():
                yield from _misfits(child, item, (*at, segment(field, key)), of_array)
        case ListField():
            if not isinstance(value, list | tuple):
                yield _wrong_kind(field, value, at)
                return
            if len(value) < field.min_items or (field.max_items is not None and len(value) > field.max_items):
                yield Fault(".".join(at), f"expected a {describe(field)}, received {len(value)} items", "wrong_length")
            for index, item in enumerate(value):
                if (child := field.get(index)) is not None:
                    yield from _misfits(child, item, (*at, segment(field, index)), of_array)
        case UnionField(options=options):
            found = None
            for option in options:
                faults = list(_misfits(option, value, at, of_array))
                if not faults:
                    return
                found = faults if found is None or len(faults) < len(found) else found
            yield from found or ()
        case LeafField(kind=kind):
            if value is None and kind in _PLAIN:
                yield _null(kind, at)
            elif not _may_be(field, value):
                yield _wrong_kind(field, value, at)


def _may_be(field: LeafField, value: Any) -> bool:
    """Whether a value of JSON can be what the schema promises. Objects of a component in this process are its own."""
    if isinstance(value, Mapping | list | tuple):
        return field.kind not in _PLAIN
    if type(value) not in _SCALARS:
        return True
    match field.kind:
        case "enum":
            return not field.choices or value in field.choices
        case "float":  # the words are those of pydantic's ser_json_inf_nan="strings"
            return type(value) in (int, float) or value in ("NaN", "Infinity", "-Infinity")
        case kind:
            return kind not in _SCALAR_OF or type(value) is _SCALAR_OF[kind]


def _null(kind: str, at: tuple[str, ...]) -> Fault:
    if kind != "float":
        return Fault(".".join(at), f"expected a plain {kind}, received null", "wrong_kind")
    return Fault(
        ".".join(at),
        "null in place of a plain float, which is how NaN, inf and -inf travel in JSON; nothing tells which of them it "
        "was. As an array without dimensions (Float64 in place of float in the OutputSchema) it arrives as it is",
        "not_finite",
    )


def _array_misfit(field: ArrayField, value: Any) -> tuple[str, str] | None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        if isinstance(value, bool | int | float | complex):  # of a handle in this process
            value = np.asarray(value)
        else:
            return f"expected a {describe(field)}, received {_what(value)}", "wrong_kind"
    return _form_misfit(field, tuple(value.shape), str(value.dtype))


def _abstract_misfit(field: ArrayField, value: Any) -> tuple[str, str] | None:
    if not isinstance(value, Mapping) or set(value) != {"shape", "dtype"}:
        return f"expected a shape and a dtype, received {_what(value)}", "wrong_kind"
    shape, dtype = value["shape"], value["dtype"]
    if not isinstance(shape, list | tuple) or not all(type(n) is int and n >= 0 for n in shape):
        return f"expected a shape, a list of lengths, received {str(shape)[:80]}", "wrong_shape"
    n_elements = 1
    for n in shape:
        n_elements *= max(n, 1)
    if n_elements >= _LARGEST or len(shape) > 64:
        return f"no array has the shape {str(shape)[:80]}", "wrong_shape"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"expected a dtype ({', '.join(DTYPES)}), received {str(dtype)[:80]!r}", "wrong_dtype"
    return _form_misfit(field, tuple(shape), dtype)


def _form_misfit(field: ArrayField, shape: tuple[int, ...], dtype: str) -> tuple[str, str] | None:
    if (
        field.shape is not None
        and field.shape != shape
        and (
            len(field.shape) != len(shape)
            or any(want is not None and want != n for want, n in zip(field.shape, shape, strict=True))
        )
    ):
        return f"expected shape {describe_shape(field.shape)}, received {describe_shape(shape)}", "wrong_shape"
    if dtype != field.dtype and not _is_same_kind(dtype, field.dtype):
        return f"expected dtype {field.dtype or 'of the protocol'}, received {dtype}", "wrong_dtype"
    return None


def _is_same_kind(dtype: str, expected: str | None) -> bool:
    if dtype not in DTYPES:
        return False
    if expected is None:
        return True
    kinds = np.dtype(dtype).kind + np.dtype(expected).kind
    return kinds[0] == kinds[1] or kinds in ("ui", "iu")


# ---------------------------------------------------------------------------------------------------------- derivatives


def _by_path(wanted: Sequence[str], answer: Any, before: str, of_value: Any) -> Iterator[Fault]:
    """An object with the paths that were asked for and no others."""
    if not isinstance(answer, Mapping):
        yield Fault(
            before, f"expected an object with the paths {_listed(wanted)}, received {_what(answer)}", "wrong_kind"
        )
        return
    for path in wanted:
        name = f"{before}/{path}" if before else path
        if path not in answer:
            yield Fault(name, f"is missing; it sent {_listed(answer)}", "missing_field")
        elif (message := of_value(path, answer[path])) is not None:
            yield Fault(name, *message)
    for path in answer.keys() - set(wanted):
        yield Fault(
            f"{before}/{path}" if before else str(path),
            f"was not asked for; wanted: {_listed(wanted)}",
            "unknown_field",
        )


def _output_misfit(schema: TesseractSchema, path: str, value: Any) -> tuple[str, str] | None:
    field = _array_at(schema.outputs, path)
    return _array_misfit(_ANY_ARRAY if field is None else field, value)


def _input_misfit(schema: TesseractSchema, path: str, inputs: Any, value: Any) -> tuple[str, str] | None:
    return _array_misfit(_primal(schema, path, inputs), value)


def _jacobian_misfits(schema: TesseractSchema, payload: Mapping[str, Any], answer: Any) -> Iterator[Fault]:
    wanted, given = payload["jac_inputs"], payload["jac_outputs"]
    yield from _by_path(given, answer, "", lambda path, value: None)
    if not isinstance(answer, Mapping):
        return
    for y in given:
        if y not in answer:
            continue
        output = _array_at(schema.outputs, y) or _ANY_ARRAY
        shapes: set[tuple[int, ...]] = set()

        def of_block(x: str, value: Any, output: ArrayField = output, shapes: Any = shapes) -> tuple[str, str] | None:
            primal = _primal(schema, x, payload["inputs"])
            if primal.shape is None or output.shape is None:
                expected = None
            else:
                expected = (*output.shape, *primal.shape)
            found = _array_misfit(ArrayField(primal.dtype, expected, True), value)
            if found is None and primal.shape is not None:
                shape = tuple(np.shape(value))
                n = len(shape) - len(primal.shape)
                if n < 0 or shape[n:] != primal.shape:
                    return f"expected a shape that ends with {primal.shape}, received {shape}", "wrong_shape"
                shapes.add(shape[:n])
                if len(shapes) > 1:
                    return f"its output has the shape {shape[:n]} here and another one for other inputs", "wrong_shape"
            return found

        yield from _by_path(wanted, answer[y], y, of_block)


_ANY_ARRAY = ArrayField(None, None, True)


def _primal(schema: TesseractSchema, path: str, inputs: Any) -> ArrayField:
    """What the derivative with respect to an input looks like: the input, at full size where the schema broadcasts."""
    field = _array_at(schema.inputs, path) or _ANY_ARRAY
    try:
        value = follow(inputs, parse_path(path, schema.inputs))
        have = None if value is None else tuple(np.shape(value))
    except (SchemaError, ValueError, TypeError):
        have = None
    if have is None:
        return field
    if field.shape is None or len(field.shape) != len(have):
        return ArrayField(field.dtype, have, True)
    shape = tuple(n if want is None else want for want, n in zip(field.shape, have, strict=True))
    return ArrayField(field.dtype, shape, True)


def _array_at(root: Field, path: str) -> ArrayField | None:
    try:
        field = field_at(root, parse_path(path, root))
    except SchemaError:
        return None
    return field if isinstance(field, ArrayField) else None


# --------------------------------------------------------------------------------------------------------------- words


def _wrong_kind(field: Field, value: Any, at: tuple[str, ...]) -> Fault:
    return Fault(".".join(at), f"expected {describe(field)}, received {_what(value)}", "wrong_kind")


def _what(value: Any) -> str:
    if value is None:
        return "null"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {value.dtype} array of shape {describe_shape(tuple(value.shape))}"
    if isinstance(value, bool | int | float | str):
        return repr(value)[:80]
    if isinstance(value, Mapping):
        return f"an object with {_listed(value)}"
    return f"a {type(value).__name__}"


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, sorted(map(str, names)))) or "nothing"
