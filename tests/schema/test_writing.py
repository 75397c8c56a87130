"""Schemas come back from JSON as they were."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema import (
    ANY,
    ArrayField,
    DictField,
    LeafField,
    ListField,
    ModelField,
    TesseractSchema,
    UnionField,
    openapi_of,
    schema_from_json,
    schema_to_json,
)
from tesseract_flow.schema.fields import NULL

ARRAY = ArrayField("float64", (None, 3), True)
INPUTS = ModelField(
    {
        "a": ARRAY,
        "any rank": ArrayField(None, None, False),
        "dict": DictField(ARRAY, ("x", "y")),
        "list": ListField(UnionField((ARRAY, NULL)), (ARRAY, NULL), 2, 2),
        "many": ListField(ANY),
        "kind": LeafField("enum", ("a", 1, None, True)),
        "nested": ModelField({"root": ARRAY}, frozenset({"root"}), is_root=True),
    },
    frozenset({"a", "list"}),
    extra=LeafField("str"),
)
SCHEMA = TesseractSchema("wing", "1.2", frozenset({"apply"}), INPUTS, ModelField({}), frozenset({"json"}), None, "d")


def test_round_trip() -> None:
    again = schema_from_json(json.loads(json.dumps(schema_to_json(SCHEMA))))
    assert again == SCHEMA
    assert list(again.inputs.fields) == list(INPUTS.fields)
    assert schema_to_json(again) == schema_to_json(SCHEMA)


def test_as_a_document() -> None:
    fields = {name: field for name, field in INPUTS.fields.items() if name != "nested"}
    inputs = dataclasses.replace(INPUTS, fields=fields)
    schema = dataclasses.replace(SCHEMA, inputs=inputs)
    read = TesseractSchema.from_openapi(json.loads(json.dumps(openapi_of(schema))))
    assert dataclasses.replace(read, digest=SCHEMA.digest) == schema
    with pytest.raises(SchemaError, match="RootModel"):
        openapi_of(SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 1},
        {"inputs": None},
        {"inputs": {"leaf": "any", "choices": []}},
        {"outputs": {"?": 1}},
        {"endpoints": 3},
    ],
    ids=str,
)
def test_what_is_none(change: Any) -> None:
    with pytest.raises(SchemaError, match="no schema in writing"):
        schema_from_json({**schema_to_json(SCHEMA), **change})
