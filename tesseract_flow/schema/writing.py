"""A schema as JSON and back, for files that outlive the server that said it; and as the document of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema.fields import (
    DTYPES,
    ArrayField,
    DictField,
    Field,
    LeafField,
    ListField,
    ModelField,
    UnionField,
)
from tesseract_flow.schema.model import TesseractSchema


def schema_to_json(schema: TesseractSchema) -> dict[str, Any]:
    return {
        "name": schema.name,
        "version": schema.version,
        "digest": schema.digest,
        "endpoints": sorted(schema.endpoints),
        "encodings": None if schema.encodings is None else sorted(schema.encodings),
        "compressions": None if schema.compressions is None else sorted(schema.compressions),
        "inputs": _written(schema.inputs),
        "outputs": _written(schema.outputs),
    }


def schema_from_json(content: Any) -> TesseractSchema:
    """The schema that was written.

    Raises:
        SchemaError: this is none.
    """
    try:
        inputs, outputs = _read(content["inputs"]), _read(content["outputs"])
        if not (isinstance(inputs, ModelField) and isinstance(outputs, ModelField)):
            raise TypeError("inputs and outputs are models")
        return TesseractSchema(
            name=_text(content["name"]),
            version=_text(content["version"]),
            endpoints=frozenset(map(_text, content["endpoints"])),
            inputs=inputs,
            outputs=outputs,
            encodings=_words(content["encodings"]),
            compressions=_words(content["compressions"]),
            digest=_text(content["digest"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SchemaError(f"This is no schema in writing: {error!r}.") from error


def _written(field: Field | None) -> Any:
    match field:
        case None:
            return None
        case ArrayField(dtype=dtype, shape=shape, differentiable=differentiable):
            return {"array": dtype, "shape": None if shape is None else list(shape), "differentiable": differentiable}
        case ModelField(fields=fields, required=required, extra=extra, is_root=is_root):
            return {
                "model": {name: _written(one) for name, one in fields.items()},
                "required": sorted(required),
                "extra": _written(extra),
                "is_root": is_root,
            }
        case DictField(value=value, keys=keys):
            return {"dict": _written(value), "keys": list(keys)}
        case ListField(item=item, prefix=prefix, min_items=least, max_items=most):
            return {"list": _written(item), "prefix": [_written(one) for one in prefix], "items": [least, most]}
        case UnionField(options=options):
            return {"union": [_written(one) for one in options]}
        case LeafField(kind=kind, choices=choices):
            return {"leaf": kind, "choices": list(choices)}


def _read(content: Any) -> Field | None:
    if content is None:
        return None
    return _READERS[next(iter(content))](content)


def _field(content: Any) -> Field:
    field = _read(content)
    if field is None:
        raise TypeError("a field is missing")
    return field


_READERS: dict[str, Callable[[Mapping[str, Any]], Field]] = {
    "array": lambda c: ArrayField(c["array"], None if c["shape"] is None else tuple(c["shape"]), c["differentiable"]),
    "model": lambda c: ModelField(
        {name: _field(one) for name, one in c["model"].items()},
        frozenset(c["required"]),
        _read(c["extra"]),
        c["is_root"],
    ),
    "dict": lambda c: DictField(_field(c["dict"]), tuple(c["keys"])),
    "list": lambda c: ListField(_field(c["list"]), tuple(map(_field, c["prefix"])), *c["items"]),
    "union": lambda c: UnionField(tuple(map(_field, c["union"]))),
    "leaf": lambda c: LeafField(c["leaf"], tuple(c["choices"])),
}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _words(value: Any) -> frozenset[str] | None:
    return None if value is None else frozenset(map(_text, value))


def openapi_of(schema: TesseractSchema) -> dict[str, Any]:
    """An OpenAPI document that says what the schema says, for a component that has none; its digest is another.

    Raises:
        SchemaError: it has a pydantic RootModel, which needs the component's own document.
    """
    component = {
        "Inputs": _node(schema.inputs),
        "Outputs": _node(schema.outputs),
        "Body": {"type": "object", "properties": {"inputs": {"$ref": "#/components/schemas/Inputs"}}},
    }

    def content(name: str) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}

    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": schema.name, "version": schema.version},
        "paths": {
            f"/{name}": {"get" if name == "health" else "post": {"responses": {"200": {"description": "done"}}}}
            for name in sorted(schema.endpoints | {"apply"})
        },
        "components": {"schemas": component},
    }
    answer = {"description": "done", **content("Outputs")}
    document["paths"]["/apply"]["post"] = {"requestBody": content("Body"), "responses": {"200": answer}}
    if schema.encodings is not None:
        document["x-supported-output-formats"] = sorted(schema.encodings)
    if schema.compressions is not None:
        document["x-supported-compressions"] = sorted(schema.compressions)
    return document


_LEAVES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "null": {"type": "null"},
    "path": {"type": "string", "format": "path"},
    "any": {},
}


def _node(field: Field | None) -> Any:
    match field:
        case None:
            return False
        case ArrayField(dtype=dtype, shape=shape, differentiable=differentiable):
            lengths = {"items": {"type": "integer"}} if shape is None else _lengths(shape)
            return {
                "type": "object",
                "properties": {
                    "object_type": {"const": "array"},
                    "shape": {"type": "array", **lengths},
                    "dtype": {"enum": list(DTYPES)} if dtype is None else {"const": dtype},
                },
                "array_flags": ["DIFFERENTIABLE"] if differentiable else [],
            }
        case ModelField(is_root=True):
            raise SchemaError("A RootModel has no document of its own; take that of the component.")
        case ModelField(fields=fields, required=required, extra=extra):
            properties = {name: _node(one) for name, one in fields.items()}
            return {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                "additionalProperties": _node(extra),
            }
        case DictField(value=value, keys=keys):
            names = {"propertyNames": {"enum": list(keys)}} if keys else {}
            return {"type": "object", "additionalProperties": _node(value), **names}
        case ListField(item=item, prefix=prefix, min_items=least, max_items=most):
            is_fixed = bool(prefix) and most == len(prefix)
            return {
                "type": "array",
                "items": False if is_fixed else _node(item),
                **({"prefixItems": [_node(one) for one in prefix]} if prefix else {}),
                "minItems": least,
                **({} if most is None else {"maxItems": most}),
            }
        case UnionField(options=options):
            return {"anyOf": [_node(one) for one in options]}
        case LeafField(kind="enum", choices=choices):
            return {"enum": list(choices)}
        case LeafField(kind=kind):
            return _LEAVES[kind]


def _lengths(shape: tuple[int | None, ...]) -> dict[str, Any]:
    if not shape:
        return {"maxItems": 0}
    return {"prefixItems": [{"minimum": 0} if n is None else {"const": n} for n in shape]}
