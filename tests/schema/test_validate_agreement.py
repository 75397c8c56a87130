"""Checks of trees against the opinion of real components: faults exactly where pydantic refuses."""

import copy
import enum
import functools

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
    ModelField,
    UnionField,
    check_inputs,
    field_at,
    is_castable,
)

# "recursive" is left out: where a type contains itself we accept everything.
COMPONENTS = ["arrays", "containers", "leaves", "root_only", "roots", "unions"]
# Where we are stricter than the server, on purpose.
DELIBERATE = {"list_for_array", "bool_for_number"}


def faults_of(root, tree):
    return [(fault.path, fault.kind) for fault in check_inputs(root, tree)]


def assert_agrees(component, tree):
    """Our faults are in the fields that the component's own pydantic models refuse, and nowhere else."""
    ours = check_inputs(component.schema.inputs, tree)
    blamed = {fault.path.partition(".")[0] for fault in ours if fault.kind not in DELIBERATE}
    # Of keys an OpenAPI schema says at most which there are, and not that they are numbers.
    refused = [place for place in component.refusals(tree) if place[-1:] != ("[key]",) or str(place[0]) in blamed]
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


@pytest.mark.slow
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
