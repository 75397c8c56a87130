"""Documents that are not quite a Tesseract's: read as far as they say something, or refused in our own words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema import ArrayField, TesseractSchema

ODD = st.sampled_from(
    [
        *(None, True, 1, -1, 2.5, 1e300, float("nan"), float("inf"), 10**400, "", "#/", "a.b"),
        *([], {}, [[]], [{}], ["float64"], {"$ref": 7}, {"$ref": ["x"]}, {"anyOf": []}, {"type": ["array"]}),
        *({"enum": [[1]]}, {"enum": [{}]}, {"const": {}}, {"$ref": "#/components/schemas/ApplyInputSchema"}),
        *({"propertyName": {}}, {"propertyName": ["kind"]}, {"allOf": [{}]}),
    ]
)


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(place for key, value in items for place in places(value, (*at, key)))]


def replaced(node: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[at[0]] = replaced(node[at[0]], at[1:], value)
    return copy


@pytest.mark.parametrize("name", ["arrays", "containers", "unions", "roots"])
def test_anything_anywhere(component, name):
    document = component(name).document
    where = places(document)

    @settings(max_examples=150)
    @given(st.lists(st.tuples(st.sampled_from(where), ODD), min_size=1, max_size=3))
    def check(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        odd = document
        for at, value in changes:
            try:
                odd = replaced(odd, at, value)
            except (KeyError, IndexError, TypeError):  # an earlier change has cut it off
                continue
        try:
            schema = TesseractSchema.from_openapi(odd)
        except SchemaError:
            return
        hash((schema, schema.inputs, schema.outputs))
        for field in (*schema.differentiable_inputs.values(), *schema.differentiable_outputs.values()):
            assert isinstance(field, ArrayField)
            assert field.shape is None or all(n is None or n >= 0 for n in field.shape)

    check()


def test_a_document_without_a_bottom(component):
    document = component("arrays").document
    deep: Any = {"type": "string"}
    for _ in range(100_000):
        deep = {"type": "array", "items": deep}
    schema = document["components"]["schemas"]["Apply_InputSchema"]
    odd = {**schema, "properties": {**schema["properties"], "deep": deep}}
    with pytest.raises(SchemaError, match="nested too deeply"):
        TesseractSchema.from_openapi(replaced(document, ("components", "schemas", "Apply_InputSchema"), odd))
