"""Checks of trees: the wording of faults, abstract values, places of arrays."""

import collections
import copy
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from tesseract_flow.schema import (
    ArrayField,
    DictField,
    LeafField,
    ListField,
    ModelField,
    UnionField,
    array_leaves,
    array_templates,
    check_inputs,
    format_path,
    resolve,
    template_of,
)

COMPONENTS = ["arrays", "containers", "leaves", "recursive", "root_only", "roots", "unions"]


def faults_of(root, tree):
    return [(fault.path, fault.kind) for fault in check_inputs(root, tree)]


# ------------------------------------------------------------------------------------------------ wording of one fault

MESH = ModelField({"points": ArrayField("float64", (None, 3), True), "tag": LeafField("str")}, frozenset({"points"}))
SPHERE = ModelField(
    {"kind": LeafField("enum", ("sphere",)), "radius": ArrayField("float64", (), True)}, frozenset({"kind", "radius"})
)
BOX = ModelField(
    {"kind": LeafField("enum", ("box",)), "sides": ArrayField("float64", (3,), True)}, frozenset({"kind", "sides"})
)
ROOT = ModelField(
    {
        "mesh": MESH,
        "parts": DictField(MESH),
        "layers": ListField(ArrayField("int32", (4,), False)),
        "rows": ListField(LeafField("float")),
        "pair": ListField(LeafField("int"), (LeafField("int"), LeafField("int")), 2, 2),
        "opt": UnionField((ArrayField("float64", (None,), True), LeafField("null"))),
        "shape": UnionField((SPHERE, BOX)),
        "any": ArrayField(None, None, False),
        "mode": LeafField("enum", ("fast", "exact")),
        "load": ModelField({"root": MESH}, frozenset({"root"}), is_root=True),
        "maybe_load": UnionField((ModelField({"root": MESH}, frozenset(), is_root=True), LeafField("null"))),
        "axes": DictField(LeafField("int"), ("left", "right")),
    },
    frozenset(),
)


@pytest.mark.parametrize(
    ("tree", "path", "kind", "words"),
    [
        (None, "", "wrong_kind", ["expected model with fields mesh", "got None"]),
        ([], "", "wrong_kind", ["got a list"]),
        ({"mehs": {}}, "mehs", "unknown_field", ["Did you mean 'mesh'?", "Fields here: mesh, parts"]),
        ({"mesh": {}}, "mesh.points", "missing_field", ["required", "float64 array of shape (*, 3)"]),
        ({"mesh": np.ones(3)}, "mesh", "wrong_kind", ["expected model", "float64 array of shape (3,)"]),
        ({"mesh": "m" * 100}, "mesh", "wrong_kind", ["..."]),
        ({"mesh": {"points": [[1.0]]}}, "mesh.points", "list_for_array", ["jnp.asarray(...)", "got a list"]),
        ({"mesh": {"points": (1.0, 2.0)}}, "mesh.points", "list_for_array", ["got a tuple"]),
        ({"mesh": {"points": 1.0}}, "mesh.points", "wrong_rank", ["(*, 3)", "got a scalar", "jnp.full"]),
        ({"mesh": {"points": np.ones(3)}}, "mesh.points", "wrong_rank", ["(*, 3)", "got shape (3,)"]),
        ({"mesh": {"points": np.ones((5, 2))}}, "mesh.points", "wrong_shape", ["(*, 3)", "got shape (5, 2)"]),
        ({"mesh": {"points": np.ones((5, 3), complex)}}, "mesh.points", "wrong_dtype", ["complex128", ".astype("]),
        ({"mesh": {"points": "text"}}, "mesh.points", "wrong_kind", ["float64 array", "'text'"]),
        ({"mesh": {"points": None}}, "mesh.points", "wrong_kind", ["got None"]),
        ({"mesh": {"points": {}}}, "mesh.points", "wrong_kind", ["got a dict"]),
        ({"parts": {"a.b": {"points": 1}}}, "parts.{a.b}.points", "wrong_rank", ["scalar"]),
        ({"parts": {None: {}}}, "parts.{None}", "wrong_key", ["keys must be text"]),
        ({"layers": [np.ones(4, int), np.ones(4)]}, "layers.[1]", "wrong_dtype", ["float64 cannot", "int32"]),
        ({"layers": [np.ones(5, int)]}, "layers.[0]", "wrong_shape", ["(4,)", "(5,)"]),
        ({"layers": np.ones((2, 4), int)}, "layers", "wrong_kind", ["list(x) splits"]),
        ({"rows": np.ones(3)}, "rows", "wrong_kind", ["x.tolist()"]),
        ({"rows": ["a"]}, "rows.[0]", "wrong_kind", ["expected float, got 'a'"]),
        ({"pair": [1]}, "pair", "wrong_length", ["expected 2 items, got 1"]),
        ({"pair": [1, 2, 3]}, "pair", "wrong_length", ["got 3"]),
        ({"opt": [1.0]}, "opt", "list_for_array", ["jnp.asarray"]),
        ({"opt": "x"}, "opt", "wrong_kind", ["float64 array of shape (*,) or None", "got 'x'"]),
        ({"opt": np.ones((1, 1))}, "opt", "wrong_rank", ["(1, 1)"]),
        # The tag chooses the option whose faults are told, however many there are.
        ({"shape": {"kind": "box"}}, "shape.sides", "missing_field", []),
        ({"shape": {"kind": "sphere"}}, "shape.radius", "missing_field", []),
        ({"shape": {"kind": "box", "sides": np.ones(2)}}, "shape.sides", "wrong_shape", []),
        ({"any": np.array(["a"])}, "any", "wrong_dtype", ["any of bool, int8"]),
        ({"any": jnp.ones(2, "bfloat16")}, "any", "wrong_dtype", ["bfloat16"]),
        ({"any": jax.random.key(0)}, "any", "wrong_dtype", ["key<fry>"]),
        ({"mode": "exakt"}, "mode", "wrong_choice", ["'fast' | 'exact'", "Did you mean 'exact'?"]),
        ({"mode": 3}, "mode", "wrong_choice", ["got 3"]),
        ({"load": {"points": 1}}, "load.root.points", "wrong_rank", []),
        ({"maybe_load": {"points": 1}}, "maybe_load.root.points", "wrong_rank", []),
        ({"maybe_load": 3}, "maybe_load", "wrong_kind", ["or None"]),
        ({"axes": {"lefd": 1}}, "axes.{lefd}", "wrong_key", ["Did you mean 'left'?", "Keys here: left, right"]),
    ],
    ids=str,
)
def test_faults_say_where_and_what(tree, path, kind, words):
    (fault,) = check_inputs(ROOT, tree)
    assert (fault.path, fault.kind) == (path, kind)
    for word in words:
        assert word in fault.message


def test_all_faults_are_reported_at_once():
    tree = {"mesh": {"tag": 3, "pts": 1}, "parts": {"a": {}}, "rows": ["x", 1.0, "y"], "mode": "x"}
    assert set(faults_of(ROOT, tree)) == {
        ("mesh.tag", "wrong_kind"),
        ("mesh.pts", "unknown_field"),
        ("mesh.points", "missing_field"),
        ("parts.{a}.points", "missing_field"),
        ("rows.[0]", "wrong_kind"),
        ("rows.[2]", "wrong_kind"),
        ("mode", "wrong_choice"),
    }


# ------------------------------------------------------------------------------------------------------ abstract values


class Untouchable:
    """An array that must not be converted."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype

    def __array__(self, *args, **kwargs):
        raise AssertionError("a check converted an abstract value")

    __float__ = __int__ = __index__ = __bool__ = __len__ = __array__


class ForeignDtype:
    """A dtype that NumPy does not know, as torch has them."""

    def __str__(self):
        return "torch.float32"


@pytest.mark.parametrize(
    "make",
    [
        lambda shape: jax.ShapeDtypeStruct(shape, "float32"),
        lambda shape: Untouchable(shape, np.dtype("float32")),
        lambda shape: Untouchable(list(shape), ForeignDtype()),
        lambda shape: jnp.ones(shape, "float32"),
        lambda shape: np.ones(shape, ">f4"),
    ],
    ids=["ShapeDtypeStruct", "untouchable", "foreign dtype", "jax", "big-endian"],
)
def test_values_may_be_abstract(make):
    for shape, kinds in [((5, 3), []), ((5, 1), []), ((0, 3), []), ((5, 4), ["wrong_shape"]), ((3,), ["wrong_rank"])]:
        tree = {"mesh": {"points": make(shape)}}
        assert [kind for _, kind in faults_of(ROOT, tree)] == kinds
        assert [keys for keys, _ in array_leaves(ROOT, tree)] == [("mesh", "points")]
    assert faults_of(ROOT, {"layers": [make((4,))]}) == [("layers.[0]", "wrong_dtype")]
    assert faults_of(ROOT, {"rows": [make((2,))]}) == [("rows.[0]", "wrong_kind")]
    assert faults_of(ROOT, {"rows": [make(())]}) == []
    assert [path for path, _ in faults_of(ROOT, {"mode": make(())})] == ["mode"]


def test_tracers_pass_and_are_told_apart():
    seen = {}

    @jax.jit
    @jax.vmap
    def traced(points, count):
        fine = {"mesh": {"points": points}, "rows": [count], "any": count, "opt": points[0]}
        seen["fine"] = faults_of(ROOT, fine)
        seen["leaves"] = [format_path(ROOT, keys) for keys, _ in array_leaves(ROOT, fine)]
        seen["wrong"] = faults_of(ROOT, {"mesh": {"points": count, "tag": count}, "pair": [points[0, 0], 1]})
        return points

    traced(jnp.ones((2, 5, 3)), jnp.ones(2, int))
    assert seen["fine"] == []
    assert seen["leaves"] == ["any", "mesh.points", "opt"]
    assert set(seen["wrong"]) == {
        ("mesh.points", "wrong_rank"),
        ("mesh.tag", "wrong_kind"),
        ("pair.[0]", "wrong_kind"),  # a float may be an integer, but a traced one cannot be asked
    }


def test_what_knows_how_to_become_an_array_counts_as_one():
    class Lazy:
        def __array__(self, *args, **kwargs):
            raise AssertionError("not here")

    assert faults_of(ROOT, {"mesh": {"points": Lazy()}}) == []
    assert [keys for keys, _ in array_leaves(ROOT, {"mesh": {"points": Lazy()}})] == [("mesh", "points")]


def test_file_paths_may_be_path_objects():
    root = ModelField({"where": LeafField("path")}, frozenset())
    assert faults_of(root, {"where": pathlib.Path("a")}) == []
    assert faults_of(root, {"where": 1}) == [("where", "wrong_kind")]


def test_trees_are_not_changed():
    tree = {"mesh": {"points": np.ones((2, 3))}, "parts": collections.OrderedDict(b={"points": 1})}
    before = copy.deepcopy(tree)
    check_inputs(ROOT, tree)
    array_leaves(ROOT, tree)
    assert repr(tree) == repr(before)


# ----------------------------------------------------------------------------------------------------- places of arrays


@pytest.mark.parametrize("name", COMPONENTS)
def test_array_leaves_come_in_the_order_of_jax(component, valid_trees, name):
    root = component(name).schema.inputs

    @settings(max_examples=50, deadline=None)
    @given(tree=valid_trees(root))
    def check(tree):
        found = [keys for keys, _ in array_leaves(root, tree)]
        flattened = [
            tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)
            for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
        ]
        assert found == [keys for keys in flattened if keys in found]
        assert len(set(found)) == len(found)
        for keys, array in array_leaves(root, tree):
            assert (template_of(root, keys), array) in list(array_templates(root))

    check()


def test_every_array_is_found(component):
    tree = {
        "wing": {"points": np.ones((1, 3)), "cells": None, "tag": "t"},
        "parts": {"b": {"points": np.ones((1, 3))}, "a": {"points": np.ones((1, 3)), "cells": np.ones((1, 4), int)}},
        "layers": [{"points": np.ones((1, 3))}],
        "knots": [np.ones(3), np.ones(3)],
        "named": {"x": 1.0},
        "deep": {"k": [{"z": np.ones(1), "y": np.ones(1)}, {}]},
        "aside": None,
        "opt": np.ones(1),
        "pair": (1, 2.0),
        "stranger": np.ones(1),
    }
    root = component("containers").schema.inputs
    assert [format_path(root, keys) for keys, _ in array_leaves(root, tree)] == [
        *("deep.{k}.[0].{y}", "deep.{k}.[0].{z}", "knots.[0]", "knots.[1]", "layers.[0].points", "named.{x}", "opt"),
        *("pair.[1]", "parts.{a}.cells", "parts.{a}.points", "parts.{b}.points", "wing.points"),
    ]


def test_ordered_dicts_keep_their_order_and_odd_keys_do_not_crash():
    root = DictField(ArrayField("float64", None, False))
    ordered = collections.OrderedDict(b=1.0, a=2.0)
    assert [keys for keys, _ in array_leaves(root, ordered)] == [("b",), ("a",)]
    assert {keys for keys, _ in array_leaves(root, {1: 1.0, "a": 2.0})} == {(1,), ("a",)}


def test_wrong_trees_do_not_crash():
    for tree in [None, [], {"mesh": 3, "parts": [1], "layers": {"a": 1}, "pair": [1, 2, 3], "shape": "x", "opt": {}}]:
        array_leaves(ROOT, tree)


VECTOR, MATRIX = ArrayField("float32", (None,), False), ArrayField("float64", (None, None), True)
FLOAT, STR, NULL, INT = LeafField("float"), LeafField("str"), LeafField("null"), LeafField("int")


@pytest.mark.parametrize(
    ("alternatives", "value", "expected"),
    [
        ((VECTOR, NULL), None, NULL),
        ((VECTOR, NULL), np.ones(2), VECTOR),
        ((NULL, VECTOR), [1.0], VECTOR),
        ((VECTOR, MATRIX), np.ones((2, 2)), MATRIX),
        ((FLOAT, ArrayField("float64", (), True)), 1.0, FLOAT),
        ((ArrayField("float64", (), True), FLOAT), 1.0, FLOAT),
        ((ArrayField("float64", (), True), STR), 1.0, ArrayField("float64", (), True)),
        ((FLOAT, ArrayField("float64", (), True)), jnp.ones(()), ArrayField("float64", (), True)),
        ((INT, STR), "3", STR),
        ((INT, FLOAT), 3.0, FLOAT),
        ((FLOAT, INT), 3, INT),
        ((STR, LeafField("enum", ("a",))), "a", STR),
        ((SPHERE, BOX), {"kind": "box", "sides": np.ones(3)}, BOX),
        ((SPHERE, BOX), {"kind": "box", "sides": np.ones(4)}, BOX),
        ((MESH, ListField(MESH), DictField(MESH)), [{"points": np.ones((1, 3))}], ListField(MESH)),
        ((MESH, ListField(MESH), DictField(MESH)), {"a": {"points": np.ones((1, 3))}}, DictField(MESH)),
    ],
    # Not by their text: sets print in another order in every process, and the processes of a run must agree.
    ids=lambda value: type(value).__name__,
)
def test_unions_are_resolved_by_the_value(alternatives, value, expected):
    assert resolve(UnionField(alternatives), value) == expected


def test_what_is_no_union_resolves_to_itself():
    assert resolve(VECTOR, "anything") is VECTOR
