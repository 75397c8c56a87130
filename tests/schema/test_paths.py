"""Paths: what the server reads, what we write, and back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.errors import SchemaError
from tesseract_flow.schema import (
    ArrayField,
    DictField,
    LeafField,
    ListField,
    ModelField,
    UnionField,
    array_leaves,
    array_templates,
    field_at,
    format_path,
    parse_path,
    template_of,
)

COMPONENTS = ["arrays", "containers", "recursive", "root_only", "roots", "unions"]
X = ArrayField("float64", (None,), True)
STR, NULL = LeafField("str"), LeafField("null")


def places(tree, keys=()):
    """The key tuples of everything in a tree."""
    yield keys
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from places(child, (*keys, key))
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            yield from places(child, (*keys, index))


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_place_of_a_tree_survives_the_round_trip(component, valid_trees, name):
    root = component(name).schema.inputs

    @settings(max_examples=40, deadline=None)
    @given(tree=valid_trees(root))
    def check(tree):
        for keys in places(tree):
            text = format_path(root, keys)
            assert parse_path(text, root) == keys
            assert field_at(root, keys) is not None
            if name not in ("roots", "root_only"):
                assert parse_path(text) == keys, "without root models, the text says it all"

    check()


SERVER_READS = ["arrays", "containers", "root_only", "roots", "unions"]


@pytest.mark.parametrize("name", SERVER_READS)
def test_the_server_finds_every_array_at_our_path(component, valid_trees, name):
    from tesseract_core.runtime.tree_transforms import get_at_path

    loaded = component(name)
    root = loaded.schema.inputs
    listed = loaded.document["components"]["schemas"]["ApplyInputSchema"]["differentiable_arrays"]

    @settings(max_examples=40, deadline=None)
    @given(tree=valid_trees(root))
    def check(tree):
        inputs = loaded.validated(tree)
        for keys, array in array_leaves(root, tree):
            there = np.asarray(get_at_path(inputs, format_path(root, keys)))
            assert there.dtype == (array.dtype or there.dtype)
            assert there.ndim == len(array.shape if array.shape is not None else there.shape)
            assert not array.differentiable or template_of(root, keys) in listed

    check()


def test_derivatives_of_root_models_go_through_root(component):
    from tesseract_core import Tesseract

    root = component("roots").schema.inputs
    tree = {
        "knots": [np.ones(3)],
        "load": np.ones(2),
        "named": {"a b": np.ones(1)},
        "either": "x",
        "label": "l",
        "plain": {"root": np.ones(2)},
    }
    paths = [format_path(root, keys) for keys in [("load",), ("knots", 0)]]
    assert paths == ["load.root", "knots.root.[0]"]
    tesseract = Tesseract.from_tesseract_api(Path(__file__).parent / "components" / "roots" / "tesseract_api.py")
    gradients = tesseract.vector_jacobian_product(tree, paths, ["load.root"], {"load.root": np.ones(2)})
    assert set(gradients) == set(paths)


ANYTHING = st.text(min_size=1, max_size=6)


@given(key=st.text(max_size=8), index=st.integers(0, 10**6))
def test_dict_keys_may_be_anything(key, index):
    root = ModelField({"parts": DictField(ListField(DictField(X)))}, frozenset())
    keys = ("parts", key, index, key)
    assert parse_path(format_path(root, keys)) == keys
    assert template_of(root, keys) == "parts.{}.[].{}"


@given(key=ANYTHING)
def test_escapes_are_those_of_tesseract_core(key):
    from tesseract_core.runtime.tree_transforms import get_at_path

    root = ModelField({"parts": DictField(X)}, frozenset())
    assert get_at_path({"parts": {key: 1.0}}, format_path(root, ("parts", key))) == 1.0


@pytest.mark.parametrize(
    ("keys", "text", "template"),
    [
        ((), "", ""),
        (("wing", "points"), "wing.points", "wing.points"),
        (("parts", "wing", "points"), "parts.{wing}.points", "parts.{}.points"),
        (("parts", "a.b [0]", "tag"), "parts.{a.b [0]}.tag", "parts.{}.tag"),
        (("parts", "{x\\}", "tag"), r"parts.{\{x\\\}}.tag", "parts.{}.tag"),
        (("layers", 3, "points"), "layers.[3].points", "layers.[].points"),
        (("knots", 0), "knots.[0]", "knots.[]"),
        (("deep", "k", 2, "7"), "deep.{k}.[2].{7}", "deep.{}.[].{}"),
        (("aside", "points"), "aside.points", "aside.points"),
        (("pair", 1), "pair.[1]", "pair.[]"),
        # What the schema does not know is spelled by the type of the key.
        (("wing", "nose", 3, "x"), "wing.nose.[3].x", "wing.nose.[3].x"),
        (("pair", 2), "pair.[2]", "pair.[2]"),
        (("layers", "wing"), "layers.wing", "layers.wing"),
    ],
)
def test_spelling(component, keys, text, template):
    root = component("containers").schema.inputs
    assert format_path(root, keys) == text
    assert template_of(root, keys) == template
    assert parse_path(text) == keys


@pytest.mark.parametrize(
    "text", [".", "a.", ".a", "a..b", "a.[x]", "a.[]", "a.[1]b", "a.{k", "a.k}", "a.{k}x", "a.{\\}", "[1", "a[0]"]
)
def test_what_is_not_a_path_is_refused(text):
    with pytest.raises(SchemaError, match="is not a path"):
        parse_path(text)


def test_fields_at_places(component):
    root = component("unions").schema.inputs
    assert field_at(root, ()) is root
    assert field_at(root, ("tagged", "radius")) == ArrayField("float64", (), True)
    assert field_at(root, ("shapes", 4, "sides")) == ArrayField("float64", (3,), True)
    assert field_at(root, ("untagged",)) == root.fields["untagged"]
    for keys in [("nothing",), ("tagged", "height"), ("tagged", 0), ("shapes", "x"), ("shapes", -1)]:
        assert field_at(root, keys) is None, keys


def test_fields_behind_root_models(component):
    root = component("roots").schema.inputs
    array = ArrayField("float64", (None,), True)
    assert field_at(root, ("load",)) == array
    assert field_at(root, ("maybe_load",)) == array
    assert field_at(root, ("loads", 0)) == array
    assert field_at(root, ("named", "k")) == array
    assert field_at(root, ("label",)) == STR
    assert field_at(root, ("plain", "root")) == ArrayField("float64", (2,), True)
    assert template_of(root, ("maybe_load",)) == "maybe_load.root"
    assert parse_path("named.root.{root}.root", root) == ("named", "root")
    assert parse_path("plain.root", root) == ("plain", "root")
    assert parse_path("maybe_knots.root.[1]", root) == ("maybe_knots", 1)


def test_a_plain_array_beside_a_root_model_needs_no_root():
    wrapped = ModelField({"root": X}, frozenset({"root"}), is_root=True)
    root = ModelField({"wrapped": UnionField((wrapped, NULL)), "both": UnionField((wrapped, X))}, frozenset())
    assert format_path(root, ("wrapped",)) == "wrapped.root"
    assert format_path(root, ("both",)) == "both"


def test_the_rest_of_the_keys_decides_between_options():
    first = ModelField({"x": STR}, frozenset())
    second = ModelField({"x": DictField(X)}, frozenset())
    root = ModelField({"u": UnionField((NULL, first, second, DictField(STR)))}, frozenset())
    assert field_at(root, ("u", "x", "k")) == X
    assert format_path(root, ("u", "x", "k")) == "u.x.{k}"
    assert format_path(root, ("u", "x")) == "u.x"
    assert format_path(root, ("u", "other")) == "u.{other}"


def test_inside_anything_keys_are_spelled_by_type():
    root = ModelField({"f": LeafField("any")}, frozenset(), extra=X)
    assert format_path(root, ("f", "a", 0)) == "f.a.[0]"
    assert field_at(root, ("f", "a", 0)) == LeafField("any")
    assert format_path(root, ("more",)) == "more"
    assert field_at(root, ("more",)) == X


def test_numbers_as_dict_keys_are_keys():
    root = DictField(X)
    assert format_path(root, (3,)) == "{3}"
    assert template_of(root, (3,)) == "{}"


@pytest.mark.parametrize("name", COMPONENTS)
def test_array_templates_cover_the_differentiable_ones(component, name):
    schema = component(name).schema
    found = [(template, array) for template, array in array_templates(schema.inputs) if array.differentiable]
    assert dict(found) == dict(schema.differentiable_inputs)
