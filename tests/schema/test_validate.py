"""Checks of trees: agreement with real components, the wording of faults, abstract values, places of arrays."""

import collections
import copy
import enum
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.schema import (
    DTYPES,
    ArrayField,
    DictField,
    LeafField,
    ListField,
    ModelField,
    UnionField,
    array_leaves,
    check_inputs,
    field_at,
    format_path,
    is_castable,
    resolve,
)

# "recursive" is left out: where a type contains itself we accept everything.
COMPONENTS = ["arrays", "containers", "leaves", "root_only", "roots", "unions"]
# Where we are stricter than the server, on purpose.
DELIBERATE = {"list_for_array", "bool_for_number"}


def faults_of(root, tree):
    return [(fault.path, fault.kind) for fault in check_inputs(root, tree)]


# ------------------------------------------------------------------------------------- agreement with real components


def assert_agrees(component, tree):
    """Our faults are in the fields that the component's own pydantic models refuse, and nowhere else."""
    ours = check_inputs(component.schema.inputs, tree)
    refused = component.refusals(tree)
    blamed = {fault.path.partition(".")[0] for fault in ours if fault.kind not in DELIBERATE}
    deliberate = {fault.path.partition(".")[0] for fault in ours if fault.kind in DELIBERATE}
    assert bool(refused) <= bool(ours), f"the server refuses {refused}"
    if component.schema.inputs.is_root:
        assert bool(blamed) <= bool(refused), f"the server accepts, we say {ours}"
    else:
        theirs = {str(loc[0]) if loc else "" for loc in refused}
        assert blamed <= theirs <= blamed | deliberate, f"we say {ours}, the server refuses {refused}"


@pytest.mark.parametrize("name", COMPONENTS)
def test_valid_inputs_have_no_faults(component, valid_trees, name):
    loaded = component(name)

    @settings(max_examples=50, deadline=None)
    @given(tree=valid_trees(loaded.schema.inputs))
    def check(tree):
        assert loaded.refusals(tree) == []
        assert check_inputs(loaded.schema.inputs, tree) == []

    check()


POOL = [
    *(None, False, 1, 2.0, 2.5, 1j, "text", "3", "on", {}, {"a": 1}, [], [2], ["a"], [[1]], ()),
    *(np.ones(3), np.ones((2, 3), "float32"), np.ones(2, "int32"), np.ones(1, bool), np.ones(3, "complex64")),
    *(np.float32(2.0), np.int8(1), np.bool_(False), np.ones((0, 4), "int64"), np.ones((1, 2, 1, 1))),
]


def containers(tree, keys=()):
    """Every dict and list of a tree with its key tuple."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if isinstance(tree, dict | list):
        yield keys, tree
    for key, child in children:
        yield from containers(child, (*keys, key))


def options(field):
    """The fields that a value may be read as, root models opened."""
    if isinstance(field, UnionField):
        return [inner for option in field.options for inner in options(option)]
    if isinstance(field, ModelField) and field.is_root:
        return options(field.fields["root"])
    return [field]


def is_comparable(root, keys, value):
    """Whether our verdict on this value at this place is a statement about the server at all."""
    field = field_at(root, keys)
    if field is None:
        return True
    if any(option == LeafField("any") for option in options(field)):
        return False  # the server's own business
    # On the wire an array is a JSON object, which fits a dict of anything.
    is_encoded = isinstance(value, np.ndarray) and value.ndim > 0
    return not (is_encoded and any(isinstance(option, DictField) or is_open(option) for option in options(field)))


def is_open(field):
    return isinstance(field, ModelField) and field.extra is not None


def damage(draw, root, tree):
    """Replaces, removes or adds one value somewhere in a tree."""
    keys, container = draw(st.sampled_from(list(containers(tree))))
    action, value = draw(st.sampled_from(["replace", "replace", "remove", "add"])), draw(st.sampled_from(POOL))
    if isinstance(container, dict):
        declared = field_at(root, keys)
        known = {*container, *(declared.fields if isinstance(declared, ModelField) else ())}
        # A number, because a schema does not tell a dict[int, ...] from a dict[str, ...].
        key = "7" if action == "add" or not known else draw(st.sampled_from(sorted(known)))
    else:
        key = len(container) if action == "add" or not container else draw(st.integers(0, len(container) - 1))
    if not is_comparable(root, (*keys, key), value):
        return
    if action == "remove":
        if key in container if isinstance(container, dict) else container:
            del container[key]
    elif isinstance(container, dict) or key < len(container):
        container[key] = copy.deepcopy(value)
    else:
        container.append(copy.deepcopy(value))


@pytest.mark.parametrize("name", COMPONENTS)
def test_damaged_inputs_have_faults_where_the_server_refuses(component, valid_trees, name):
    loaded = component(name)
    root = loaded.schema.inputs

    @settings(max_examples=150, deadline=None)
    @given(tree=valid_trees(root), data=st.data())
    def check(tree, data):
        tree = copy.deepcopy(tree)
        for _ in range(data.draw(st.integers(1, 2))):
            damage(data.draw, root, tree)
        assert_agrees(loaded, tree)

    check()


LEAVES = {"text": "t", "count": 1, "factor": 1.0, "flag": True}


class Mode(enum.Enum):
    fast = "fast"
    slow = "slow"


class Level(enum.IntEnum):
    low = 1


@pytest.mark.parametrize(
    ("field", "value", "is_fine"),
    [
        ("text", "", True),
        ("text", 1, False),
        ("text", None, False),
        ("text", np.ones(2), False),
        ("text", Mode.fast, True),
        ("count", 3, True),
        ("count", -3, True),
        ("count", 2**70, True),
        ("count", 3.0, True),
        ("count", 3.5, False),
        ("count", float("nan"), False),
        ("count", float("inf"), False),
        ("count", 1e300, False),
        ("count", "3", True),
        ("count", " -3.0 ", True),
        ("count", "1_000", True),
        ("count", "1e3", False),
        ("count", "x", False),
        ("count", "", False),
        ("count", 1j, False),
        ("count", np.int8(3), True),
        ("count", np.asarray(3), True),
        ("count", np.float32(3.0), True),
        ("count", np.float32(3.5), False),
        ("count", np.ones(1, int), False),
        ("count", Level.low, True),
        ("count", [1], False),
        ("factor", 3, True),
        ("factor", "1e3", True),
        ("factor", "x", False),
        ("factor", np.float32(0.5), True),
        ("factor", np.int64(1), True),
        ("flag", False, True),
        ("flag", 0, True),
        ("flag", 1.0, True),
        ("flag", 2, False),
        ("flag", "TRUE", True),
        ("flag", "off", True),
        ("flag", "x", False),
        ("flag", np.bool_(True), True),
        ("mode", "fast", True),
        ("mode", Mode.fast, True),
        ("mode", Mode.slow, False),
        ("mode", "FAST", False),
        ("mode", None, False),
        ("mode", np.ones(2), False),
        ("level", 2, True),
        ("level", Level.low, True),
        ("level", 2.0, True),
        ("level", 3, False),
        ("level", np.int64(2), True),
        ("choice", "a", True),
        ("choice", True, True),
        ("choice", 1.0, True),
        ("choice", 2, False),
        ("only", "fixed", True),
        ("only", "free", False),
        ("maybe", None, True),
        ("maybe", 3, True),
        ("maybe", "x", False),
        ("where", "a/b", True),
        ("where", 3, False),
        ("bare_dict", {"a": [1, {"b": None}]}, True),
        ("bare_dict", [], False),
        ("bare_list", [1, "a", None], True),
        ("bare_list", (), True),
        ("bare_list", {}, False),
        ("bare_list", "abc", False),
        ("table", {"a": 1}, True),
        ("table", {"a": 1.5}, False),
        ("table", {1: 1}, True),  # JSON makes it text
        ("numbered", {1: 2.0}, True),
        ("axes", {"u": 1.0}, True),
        ("axes", {"w": 1.0}, False),
        ("rows", [[1], []], True),
        ("rows", [[1], ["x"]], False),
        ("rows", [1], False),
        ("short", [1, 2], True),
        ("short", [1, 2, 3], False),
        ("opened", {"size": 1, "more": "x"}, True),
        ("opened", {"size": "x"}, False),
        ("typed", {"a": 1.5}, True),
        ("typed", {"a": "x"}, False),
        ("lenient", {"size": 1, "more": "x"}, True),
        ("lenient", {"more": "x"}, False),
    ],
    ids=str,
)
def test_plain_values(component, field, value, is_fine):
    loaded = component("leaves")
    tree = {**LEAVES, field: value}
    assert (check_inputs(loaded.schema.inputs, tree) == []) == is_fine
    assert_agrees(loaded, tree)


@pytest.mark.parametrize("field", ["count", "factor", "level"])
def test_a_bool_is_not_a_number(component, field):
    # pydantic takes it; for us 1 and True are different inputs.
    faults = faults_of(component("leaves").schema.inputs, {**LEAVES, field: True})
    assert [path for path, _ in faults] == [field]


@functools.cache
def array_adapter(shape, dtype):
    from tesseract_core.runtime import Array

    return pydantic.TypeAdapter(Array[shape, dtype])


def is_accepted(shape, dtype, value):
    """Whether tesseract-core accepts a value where its schema says `Array[shape, dtype]`."""
    try:
        array_adapter(shape, dtype).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


@pytest.mark.parametrize("expected", [*DTYPES, None])
def test_casts_are_those_of_tesseract_core(expected):
    root = ModelField({"x": ArrayField(expected, (None,), False)}, frozenset())
    for dtype in DTYPES:
        accepted = is_accepted((None,), expected, np.ones(2, dtype))
        assert is_castable(dtype, expected) == accepted, dtype
        assert (faults_of(root, {"x": np.ones(2, dtype)}) == []) == accepted, dtype


NUMBERS = [True, 0, -1, 300, 2**40, 2**63, 2**64, 10**400, 0.5, 1e39, 7e4, 1e300, float("inf"), float("nan"), 1j, 1e39j]


@pytest.mark.parametrize("dtype", [*DTYPES, None])
def test_python_numbers_become_scalars_as_in_tesseract_core(dtype):
    root = ModelField({"x": ArrayField(dtype, (), False)}, frozenset())
    for value in NUMBERS:
        assert (faults_of(root, {"x": value}) == []) == is_accepted((), dtype, value), value


@pytest.mark.parametrize("wanted", [(), (None,), (1,), (3,), (0,), (None, 3), (1, None), (2, 3), ...], ids=str)
def test_shapes_are_those_of_tesseract_core(wanted):
    root = ModelField({"x": ArrayField("float64", None if wanted is ... else wanted, False)}, frozenset())
    for shape in [(), (0,), (1,), (2,), (3,), (1, 1), (1, 3), (2, 3), (3, 2), (0, 3), (3, 1), (1, 1, 1)]:
        value = np.ones(shape)
        assert (faults_of(root, {"x": value}) == []) == is_accepted(wanted, "float64", value), shape


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


@pytest.mark.parametrize("name", [*COMPONENTS, "recursive"])
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
            assert array in options(field_at(root, keys))

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
    ids=str,
)
def test_unions_are_resolved_by_the_value(alternatives, value, expected):
    assert resolve(UnionField(alternatives), value) == expected


def test_what_is_no_union_resolves_to_itself():
    assert resolve(VECTOR, "anything") is VECTOR
