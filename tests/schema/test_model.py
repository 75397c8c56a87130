"""The schema as one value: what it says, equality, digest."""

import copy
import json
import pickle
import random

import pytest

from tesseract_flow.schema import ArrayField, TesseractSchema

COMPONENTS = ["arrays", "containers", "leaves", "minimal", "recursive", "root_only", "roots", "unions"]


def shuffled(node, rng):
    """The same JSON with its keys, and the names in its `required` lists, in another order."""
    if isinstance(node, dict):
        mixed = {key: shuffled(node[key], rng) for key in rng.sample(sorted(node), len(node))}
        names = mixed.get("required")
        return {**mixed, "required": rng.sample(names, len(names))} if isinstance(names, list) else mixed
    return [shuffled(item, rng) for item in node] if isinstance(node, list) else node


def retitled(node):
    """The same schema in other words."""
    if isinstance(node, dict):
        # A property may be called "title"; only the text beside a type is commentary.
        return {
            key: "other" if key in ("title", "description") and isinstance(child, str) else retitled(child)
            for key, child in node.items()
        }
    return [retitled(item) for item in node] if isinstance(node, list) else node


def as_json(document):
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("name", COMPONENTS)
def test_schema_does_not_depend_on_key_order(component, name):
    document, schema = as_json(component(name).document), component(name).schema
    again = TesseractSchema.from_openapi(shuffled(document, random.Random(0)))
    assert again == schema
    assert hash(again) == hash(schema)
    assert again.digest == schema.digest


def test_declaration_order_survives_a_store_that_sorts_keys(component):
    document = component("containers").document
    sorted_document = json.loads(json.dumps(document, sort_keys=True))
    schema = TesseractSchema.from_openapi(sorted_document)
    declared = ["wing", "parts", "layers", "knots", "named", "deep", "aside", "opt", "pair", "many", "marks"]
    assert [name for name in schema.inputs.fields if name != "empty"] == declared
    assert list(TesseractSchema.from_openapi(document).inputs.fields) == [*declared, "empty"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_digest_ignores_wording_and_the_server(component, name):
    document = retitled(as_json(component(name).document))
    document["servers"] = [{"url": "http://elsewhere"}]
    document["info"] = {"title": "solver", "version": "2", "description": "the same, renamed"}
    document["x-supported-compressions"] = ["none"]
    del document["paths"]["/test"]  # only in debug mode, and in process
    schema = TesseractSchema.from_openapi(document)
    assert schema.digest == component(name).schema.digest
    assert schema.inputs == component(name).schema.inputs
    assert schema != component(name).schema, "name and version are part of the value"


def test_digest_ignores_what_versions_of_the_server_change(component):
    # The encodings that an array may come in, and the dtypes that it may be cast from, change with tesseract-core.
    document = as_json(component("arrays").document)
    mask = document["components"]["schemas"]["Apply_InputSchema"]["properties"]["mask"]["properties"]
    mask["data"]["oneOf"].pop()
    mask["dtype"] = {"enum": ["bool", "boolean"], "examples": ["bool"]}
    assert TesseractSchema.from_openapi(document).digest == component("arrays").schema.digest


def properties(document, name="Apply_InputSchema"):
    return document["components"]["schemas"][name]["properties"]


CHANGES = {
    "default": lambda d: properties(d)["wing"].update(default={"points": []}),
    "nested default": lambda d: properties(d, "Apply_Mesh")["tag"].update(default="other"),
    "required": lambda d: d["components"]["schemas"]["Apply_InputSchema"]["required"].remove("knots"),
    "new field": lambda d: properties(d).update(title={"type": "string"}),
    "shape": lambda d: properties(d)["knots"]["items"]["properties"]["shape"]["prefixItems"][0].update(enum=[1, 4]),
    "constraint": lambda d: properties(d)["marks"]["items"].update(minimum=0),
    "endpoint": lambda d: d["paths"].pop("/jacobian"),
    "differentiable": lambda d: d["components"]["schemas"]["ApplyInputSchema"]["differentiable_arrays"].pop("opt"),
    "output": lambda d: properties(d, "Apply_OutputSchema").update(note={"type": "integer"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_changes_with_everything_that_matters(component, change):
    document = as_json(component("containers").document)
    CHANGES[change](document)
    schema = TesseractSchema.from_openapi(document)
    assert schema.digest != component("containers").schema.digest
    assert schema != component("containers").schema


def test_digests_of_different_components_differ(component):
    assert len({component(name).schema.digest for name in COMPONENTS}) == len(COMPONENTS)


def test_schemas_travel_between_processes(component):
    schema = copy.copy(component("containers").schema)
    assert schema.differentiable_inputs  # cached values must not get in the way
    received = pickle.loads(pickle.dumps(schema))
    assert received == schema
    assert {schema: 1}[received] == 1


def test_differentiable_arrays_in_order_of_declaration(component):
    schema = component("containers").schema
    assert dict(schema.differentiable_inputs) == {
        "wing.points": ArrayField("float64", (None, 3), True),
        "parts.{}.points": ArrayField("float64", (None, 3), True),
        "layers.[].points": ArrayField("float64", (None, 3), True),
        "knots.[]": ArrayField("float32", (3,), True),
        "named.{}": ArrayField("float64", None, True),
        "deep.{}.[].{}": ArrayField("float64", (None,), True),
        "aside.points": ArrayField("float64", (None, 3), True),
        "opt": ArrayField("float64", (None,), True),
        "pair.[]": ArrayField("float64", (), True),
    }
    assert list(schema.differentiable_inputs)[:3] == ["wing.points", "parts.{}.points", "layers.[].points"]
    assert list(schema.differentiable_outputs) == ["y", "parts.{}.points"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_differentiable_arrays_are_those_that_the_server_lists(component, name):
    schemas, schema = component(name).document["components"]["schemas"], component(name).schema
    assert set(schema.differentiable_inputs) == set(schemas["ApplyInputSchema"]["differentiable_arrays"])
    assert set(schema.differentiable_outputs) == set(schemas["ApplyOutputSchema"]["differentiable_arrays"])


def test_of_two_arrays_at_one_place_the_first_differentiable_one_is_listed(component):
    document = as_json(component("unions").document)
    options = properties(document)["two_arrays"]["anyOf"]
    assert component("unions").schema.differentiable_inputs["two_arrays"] == ArrayField("float64", (None, None), True)
    options[0]["array_flags"] = ["DIFFERENTIABLE"]
    schema = TesseractSchema.from_openapi(document)
    assert schema.differentiable_inputs["two_arrays"] == ArrayField("float32", (None,), True)


def test_what_the_document_says_about_the_server(component):
    schema = component("containers").schema
    assert (schema.name, schema.version) == ("Tesseract", "unknown")
    assert schema.endpoints == {
        *("apply", "jacobian", "jacobian_vector_product", "vector_jacobian_product", "abstract_eval", "health")
    }
    assert component("minimal").schema.endpoints == {"apply", "health"}
    assert schema.encodings == {"json", "base64", "binref"}
    assert schema.compressions is not None
    assert "none" not in schema.compressions


def test_servers_that_do_not_say_what_they_encode(component):
    document = as_json(component("minimal").document)
    for key in ("x-supported-output-formats", "x-supported-compressions"):
        del document[key]
    schema = TesseractSchema.from_openapi(document)
    assert schema.encodings is None
    assert schema.compressions is None
