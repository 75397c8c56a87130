"""Documents of real components against schemas written by hand, and documents that are broken."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema import ArrayField, DictField, LeafField, ListField, ModelField, TesseractSchema, UnionField

ANY, NULL, STR, INT = LeafField("any"), LeafField("null"), LeafField("str"), LeafField("int")
FLOAT, BOOL = LeafField("float"), LeafField("bool")


def array(dtype, *shape, diff=False):
    return ArrayField(dtype, None if shape == (...,) else shape, diff)


def model(fields, optional=(), **kwargs):
    return ModelField(fields, frozenset(fields) - frozenset(optional), **kwargs)


def root(field):
    return ModelField({"root": field}, frozenset({"root"}), is_root=True)


def union(*options):
    return UnionField(options)


def choice(*choices):
    return LeafField("enum", choices)


MESH = model(
    {"points": array("float64", None, 3, diff=True), "cells": union(array("int32", None, 4), NULL), "tag": STR},
    optional=("cells", "tag"),
)
SCALAR = array("float64", diff=True)
LINE = array("float64", None, diff=True)
BOX = {"kind": choice("box"), "sides": array("float64", 3, diff=True), "name": STR}
SPHERE = {"kind": choice("sphere"), "radius": SCALAR}
TAGGED = union(model(SPHERE), model(BOX, optional=("name",)))
POINTS = model({"points": array("float64", None, 3, diff=True)})
OPEN = model({"size": INT}, optional=("size",), extra=ANY)

GOLDEN = {
    "minimal": (model({"x": array("float64")}), model({"y": array("float64")})),
    "arrays": (
        model(
            {
                "any_rank": array("float64", ..., diff=True),
                "any_all": array(None, ...),
                "any_dtype": array(None, None),
                "scalar": SCALAR,
                "int_scalar": array("int64"),
                "vector": array("float32", 3, diff=True),
                "odd": array("float64", 1, None, 0, 2),
                "half": array("float16", None),
                "small": array("uint8", None),
                "signed": array("int8", None),
                "mask": array("bool", None),
                "phase": array("complex128", None, diff=True),
                "phase_single": array("complex64", None),
                "start": array("float64", 2),
            },
            optional=("start",),
        ),
        model({"scalar": SCALAR, "index": array("int32", None)}),
    ),
    "containers": (
        model(
            {
                "wing": MESH,
                "parts": DictField(MESH),
                "layers": ListField(MESH),
                "knots": ListField(array("float32", 3, diff=True)),
                "named": DictField(array("float64", ..., diff=True)),
                "deep": DictField(ListField(DictField(LINE))),
                "aside": union(MESH, NULL),
                "opt": union(LINE, NULL),
                "pair": ListField(union(INT, SCALAR), (INT, SCALAR), 2, 2),
                "many": ListField(array("float64", 2)),
                "marks": ListField(INT),
                "empty": model({}),
            },
            optional=("aside", "opt", "pair", "many", "marks", "empty"),
        ),
        model({"y": LINE, "note": STR, "parts": DictField(MESH)}),
    ),
    "leaves": (
        ModelField(
            {
                "text": STR,
                "count": INT,
                "factor": FLOAT,
                "flag": BOOL,
                "mode": choice("fast", "exact"),
                "level": choice(1, 2),
                "choice": choice("a", 1, True),
                "only": choice("fixed"),
                "maybe": union(INT, NULL),
                "limited": INT,
                "anything": ANY,
                "where": LeafField("path"),
                "when": union(ANY, NULL),
                "raw": ANY,
                "bare_dict": DictField(ANY),
                "bare_list": ListField(ANY),
                "table": DictField(INT),
                "numbered": DictField(FLOAT),
                "axes": DictField(FLOAT, ("u", "v")),
                "rows": ListField(ListField(INT)),
                "short": ListField(INT, max_items=2),
                "opened": OPEN,
                "typed": DictField(FLOAT),
                "lenient": union(model({"size": INT}, extra=ANY), NULL),
            },
            frozenset({"text", "count", "factor", "flag"}),
        ),
        model({"total": array("float64")}),
    ),
    "unions": (
        ModelField(
            {
                "tagged": TAGGED,
                "untagged": union(model(SPHERE, optional=("kind",)), POINTS, NULL),
                "shapes": ListField(TAGGED),
                "number_or_array": union(FLOAT, LINE),
                "two_arrays": union(array("float32", None), array("float64", None, None, diff=True)),
                "one_or_many": union(POINTS, ListField(POINTS), DictField(POINTS), NULL),
                "text_or_number": union(STR, INT),
            },
            frozenset({"tagged", "two_arrays"}),
        ),
        model(
            {
                "shape": union(model(SPHERE, optional=("kind",)), model(BOX, optional=("kind", "name"))),
                "y": union(LINE, NULL),
            }
        ),
    ),
    "roots": (
        model(
            {
                "knots": root(ListField(array("float64", 3, diff=True))),
                "load": root(LINE),
                "named": root(DictField(root(LINE))),
                "either": root(union(LINE, STR)),
                "label": root(STR),
                "plain": model({"root": array("float64", 2, diff=True)}),
                "loads": ListField(root(LINE)),
                "maybe_knots": union(root(ListField(array("float64", 3, diff=True))), NULL),
                "maybe_load": union(root(LINE), NULL),
            },
            optional=("loads", "maybe_knots", "maybe_load"),
        ),
        model({"load": root(LINE)}),
    ),
    "root_only": (root(DictField(array("float64", 3, diff=True))), root(LINE)),
    "recursive": (
        model(
            {
                "tree": model({"value": INT, "children": ListField(ANY)}),
                "case": model({"load": array("float64", None), "factor": FLOAT}, optional=("factor",)),
                "x": LINE,
            }
        ),
        model({"y": LINE}),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_schemas_of_real_components(component, name):
    inputs, outputs = GOLDEN[name]
    schema = component(name).schema
    # Field by field first, because a failure then names the field.
    for field in schema.inputs.fields:
        assert schema.inputs.fields[field] == inputs.fields[field], field
    assert schema.inputs == inputs
    assert schema.outputs == outputs


# --------------------------------------------------------------------------------------------- documents made by hand


def document(inputs, schemas=None, **more):
    """The document of a Tesseract with this input schema."""
    body = {"properties": {"inputs": inputs}, **more}
    out = {"type": "object", "properties": {}, "additionalProperties": False}
    content = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}}
    answer = {"200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Out"}}}}}
    return {
        "info": {"title": "by hand"},
        "paths": {"/apply": {"post": {"requestBody": content, "responses": answer}}},
        "components": {"schemas": {"Body": body, "Out": out, **(schemas or {})}},
    }


def field(node, schemas=None, **more):
    inputs = {"type": "object", "properties": {"f": node}, "required": ["f"]}
    return TesseractSchema.from_openapi(document(inputs, schemas, **more)).inputs.fields["f"]


def ref(name):
    return {"$ref": f"#/components/schemas/{name}"}


ARRAY = {"array_flags": ["DIFFERENTIABLE"], "properties": {"object_type": {"const": "array"}}}


def test_references_count_and_not_names():
    inputs = {"type": "object", "properties": {"f": {"type": "string"}}, "additionalProperties": False}
    made = document(ref("Anything"), {"Anything": inputs, "Apply_InputSchema": {"type": "object"}})
    assert TesseractSchema.from_openapi(made).inputs == ModelField({"f": STR}, frozenset())


def test_names_count_where_there_are_no_references():
    schemas = {
        "ApplyInputSchema": {"properties": {"inputs": {"type": "object", "properties": {"f": {"type": "string"}}}}},
        "ApplyOutputSchema": {"type": "object", "properties": {"y": {"type": "integer"}}},
    }
    made = {"paths": {"/apply": {"post": {"summary": "Apply"}}}, "components": {"schemas": schemas}}
    schema = TesseractSchema.from_openapi(made)
    assert dict(schema.inputs.fields) == {"f": STR}
    assert dict(schema.outputs.fields) == {"y": INT}
    assert (schema.name, schema.version) == ("", "")


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({}, ANY),
        (True, ANY),
        (False, ANY),
        (None, ANY),
        (3, ANY),
        ({"type": "quaternion"}, ANY),
        ({"type": ["string", "null"]}, union(STR, NULL)),
        ({"type": []}, ANY),
        ({"type": {"a": 1}}, ANY),
        ({"type": "string", "nullable": True}, union(STR, NULL)),
        ({"type": "string", "format": "date-time"}, ANY),
        ({"allOf": [{"type": "string"}], "description": "as pydantic once wrote it"}, STR),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, ANY),
        ({"not": {"type": "string"}}, ANY),
        ({"anyOf": []}, ANY),
        ({"anyOf": "?"}, ANY),
        ({"anyOf": [{"type": "string"}]}, STR),
        ({"oneOf": [{"type": "string"}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}]}, union(STR, INT, NULL)),
        ({"enum": [[1], [2]]}, ANY),
        ({"enum": []}, ANY),
        ({"const": 3}, choice(3)),
        ({"type": "object"}, DictField(ANY)),
        ({"type": "object", "patternProperties": {"^x": {"type": "string"}}}, DictField(STR)),
        ({"type": "object", "properties": "?", "required": 5}, DictField(ANY)),
        ({"properties": {"a": {"type": "string"}}}, ModelField({"a": STR}, frozenset(), extra=ANY)),
        ({"type": "array"}, ListField(ANY)),
        ({"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}, ListField(ANY, (STR, INT))),
        (
            {"type": "array", "prefixItems": [{"type": "string"}], "items": False},
            ListField(STR, (STR,), max_items=1),
        ),
        ({"type": "array", "minItems": 1.0, "maxItems": "many"}, ListField(ANY, min_items=1)),
        ({"$ref": "#/components/schemas/Missing"}, ANY),
        ({"$ref": "https://elsewhere/schema.json"}, ANY),
        ({"$ref": 7}, ANY),
        (ref("Loop"), ANY),
        (ref("A~1b%20c"), INT),
        ({**ref("Text"), "default": "x"}, STR),
    ],
    ids=str,
)
def test_unusual_constructs(node, expected):
    schemas = {"Loop": ref("Pool"), "Pool": ref("Loop"), "A/b c": {"type": "integer"}, "Text": {"type": "string"}}
    assert field(node, schemas) == expected


def test_a_default_behind_a_reference_is_a_default():
    inputs = {"type": "object", "properties": {"f": {**ref("T"), "default": 1}, "g": ref("T")}, "required": ["f", "g"]}
    schema = TesseractSchema.from_openapi(document(inputs, {"T": {"type": "integer"}}))
    assert schema.inputs.required == {"g"}


def test_recursive_models_are_cut_at_their_second_appearance():
    node = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [ref("Node"), {"type": "null"}]}},
        "additionalProperties": False,
    }
    cut = ModelField({"value": INT, "next": union(ANY, NULL)}, frozenset())
    assert field(ref("Node"), {"Node": node}) == cut
    assert field({"type": "array", "items": ref("Node")}, {"Node": node}) == ListField(cut)


def test_models_used_twice_are_not_recursive():
    point = {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": False}
    node = {"type": "object", "properties": {"a": ref("P"), "b": ref("P")}, "additionalProperties": False}
    read = field(node, {"P": point})
    assert isinstance(read, ModelField)
    assert read.fields["a"] == read.fields["b"] == ModelField({"x": FLOAT}, frozenset())


@pytest.mark.parametrize(
    ("words", "entry", "expected"),
    [
        # Without examples, the list of differentiable arrays decides.
        ({}, {"dtype": "float32", "shape": [None, 2]}, array("float32", None, 2, diff=True)),
        ({}, {"dtype": "float32", "shape": None}, array("float32", ..., diff=True)),
        ({}, {"dtype": "float32"}, array("float32", ..., diff=True)),
        ({}, {}, array(None, ..., diff=True)),
        ({}, {"dtype": "bfloat16", "shape": [2.0]}, array(None, 2, diff=True)),
        ({}, None, array(None, ...)),
        # Without that too, the widest of the castable dtypes.
        ({"dtype": {"enum": ["int8", "int64", "bool"]}}, None, array("int64", ...)),
        ({"dtype": {"enum": ["bool", "float16", "float32", "float64"]}}, None, array("float64", ...)),
        ({"dtype": {"const": "bool"}}, None, array("bool", ...)),
        ({"dtype": {"enum": "?"}, "shape": {"prefixItems": "?"}}, None, array(None)),
        ({"shape": {"type": "array", "maxItems": 0}}, None, array(None)),
        ({"shape": {"type": "array", "items": {"type": "integer"}}}, None, array(None, ...)),
        (
            {"shape": {"prefixItems": [{"minimum": 0}, {"enum": [1, 3]}, {"const": 1}, {"enum": [3, 1]}, True]}},
            None,
            array(None, None, 3, 1, 3, None),
        ),
    ],
    ids=str,
)
def test_arrays_in_incomplete_documents(words, entry, expected):
    node = {"array_flags": ["DIFFERENTIABLE"], "properties": {"object_type": {"const": "array"}, **words}}
    arrays = {} if entry is None else {"f": entry}
    assert field(node, differentiable_arrays=arrays) == expected


def test_arrays_by_their_object_type_alone():
    words = {"object_type": {"const": "array"}, "shape": {"maxItems": 0}, "dtype": {"enum": ["bool"]}}
    assert field({"properties": words}) == array("bool")
    assert field(ref("Arr"), {"Arr": {"properties": words}}) == array("bool")


def test_array_flags_decide_where_differentiable_arrays_are_not_listed():
    assert field(ARRAY) == array(None, ..., diff=True)
    assert field({**ARRAY, "array_flags": []}) == array(None, ...)


@pytest.mark.parametrize(
    ("broken", "missing"),
    [
        ({}, "POST /apply"),
        ([], "a JSON object (got list)"),
        (None, "a JSON object (got NoneType)"),
        ({"info": {"title": "petstore"}, "paths": {"/pets": {"get": {}}}}, "POST /apply"),
        ({"info": {"title": "petstore"}, "paths": {"/apply": {"get": {}}}}, "POST /apply"),
        ({"paths": {"/apply": {"post": {"summary": "?"}}}}, "property 'inputs'"),
        (document({"type": "string"}), "as the inputs"),
        (document({"$ref": "#/nowhere"}), "property 'inputs'"),
    ],
    ids=str,
)
def test_what_is_not_a_tesseract_is_refused(broken, missing):
    with pytest.raises(SchemaError, match="Is this URL a Tesseract") as caught:
        TesseractSchema.from_openapi(broken)
    assert missing in str(caught.value)
    if isinstance(broken, dict) and "info" in broken:
        assert broken["info"]["title"] in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.floats() | st.sampled_from(["", "object", "array", "#/x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["$ref", "type", "items"]), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_documents_are_read_or_refused(component, data):
    damaged = json.loads(json.dumps(component(data.draw(st.sampled_from(["containers", "roots", "unions"]))).document))
    schemas = damaged["components"]["schemas"]
    node = schemas[data.draw(st.sampled_from(["ApplyInputSchema", "Apply_InputSchema", "Apply_OutputSchema"]))]
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.integers(0, 3)) == 0:
            break
        node = node[key]
    node[key] = data.draw(JUNK)
    try:
        schema = TesseractSchema.from_openapi(damaged)
    except SchemaError:
        return
    assert schema == TesseractSchema.from_openapi(damaged)
    hash(schema.inputs)
