"""`plain_tree`: what the schema says decides, arrays pass as they are, and what does not fit stays to be named."""

from __future__ import annotations

import collections
import dataclasses
import enum
import types
from typing import Any

import numpy as np
import pydantic
import pytest

from tesseract_flow.schema import (
    ANY,
    ArrayField,
    DictField,
    LeafField,
    ListField,
    ModelField,
    UnionField,
    check_inputs,
    plain_tree,
)

VECTOR = ArrayField("float64", (None,), True)
TEXT = LeafField("str")
MESH = ModelField({"points": VECTOR, "tag": TEXT}, frozenset({"points"}))
X = np.ones(3)

MeshTuple = collections.namedtuple("MeshTuple", ["points", "tag"])


@dataclasses.dataclass
class MeshData:
    points: Any
    tag: str


@dataclasses.dataclass(slots=True)
class Slotted:
    points: Any
    tag: str


class MeshModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="allow")
    points: Any = pydantic.Field(alias="pts")
    tag: str = "a"


class Points(pydantic.RootModel):
    root: Any


class Colour(enum.Enum):
    RED = "red"


class Abstract:
    """Shape and dtype, and no numbers: conversion would fail."""

    shape, dtype = (3,), np.dtype("float64")

    def __array__(self, *arguments: Any) -> np.ndarray:
        raise AssertionError("an array was looked into")


@pytest.mark.parametrize(
    "make",
    [
        MeshTuple,
        MeshData,
        Slotted,
        lambda points, tag: MeshModel(pts=points, tag=tag),
        lambda points, tag: types.MappingProxyType({"points": points, "tag": tag}),
        lambda points, tag: collections.UserDict(points=points, tag=tag),
        lambda points, tag: types.MappingProxyType({"points": Points(points), "tag": tag}),
    ],
    ids=["named tuple", "dataclass", "slots", "pydantic", "proxy", "user dict", "root model"],
)
@pytest.mark.parametrize("field", [MESH, UnionField((TEXT, MESH)), ListField(MESH), DictField(MESH)], ids=str)
def test_records(make: Any, field: Any):
    wrap = {ListField: lambda v: [v], DictField: lambda v: {"a": v}}.get(type(field), lambda v: v)
    array = Abstract()
    tree = plain_tree(field, wrap(make(array, "b")))
    assert tree == wrap({"points": array, "tag": "b"})
    assert not check_inputs(field, tree)


def test_aliases_are_taken_where_the_component_wants_them():
    model = MeshModel(pts=X, more=1)
    assert plain_tree(MESH, model).keys() == {"points", "tag", "more"}
    assert plain_tree(ModelField({"pts": VECTOR, "tag": TEXT}), model).keys() == {"pts", "tag", "more"}


def test_a_model_of_shape_and_dtype_is_no_array():
    class Grid(pydantic.BaseModel):
        shape: tuple[int, ...]
        dtype: str

    assert plain_tree(ANY, {"grid": Grid(shape=(2, 3), dtype="float64")}) == {
        "grid": {"shape": [2, 3], "dtype": "float64"}
    }


def test_the_schema_tells_a_list_from_a_record():
    pair = MeshTuple(X, X)
    assert plain_tree(ListField(VECTOR), pair) == [pair.points, pair.tag]
    assert plain_tree(ANY, pair) == [pair.points, pair.tag]
    assert plain_tree(ListField(LeafField("int")), {3, 1, 2}) == [1, 2, 3]


@pytest.mark.parametrize("value", [(1.0, 2.0), [1.0], {1.0}, MeshTuple(1.0, 2.0)], ids=lambda v: type(v).__name__)
def test_what_does_not_fit_stays_to_be_named(value: Any):
    for field in (VECTOR, UnionField((VECTOR, LeafField("null")))):
        assert plain_tree(field, value) is value
        assert check_inputs(field, plain_tree(field, value))


@pytest.mark.parametrize(
    "value", [None, "text", b"raw", 1, 2.5, True, 1j, X, np.float64(2.0), Abstract(), MeshData, int]
)
def test_values_pass(value: Any):
    assert plain_tree(ANY, value) is value


def test_enum_members_give_their_values_as_values_and_as_keys():
    tree = {Colour.RED: [Colour.RED, (Colour.RED,)]}
    assert plain_tree(ANY, tree) == {"red": ["red", ["red"]]}
    assert tree == {Colour.RED: [Colour.RED, (Colour.RED,)]}


def test_numbers_of_other_classes_become_those_that_json_knows():
    class Metres(float):
        pass

    class Count(int):
        pass

    tree = plain_tree(ANY, [Metres(2.5), Count(3), True])
    assert tree == [2.5, 3, True] and [type(item) for item in tree] == [float, int, bool]


def test_what_is_given_is_not_changed():
    inner = (X, [X])
    given = {"a": inner, "b": MeshData(X, "t")}
    tree = plain_tree(ANY, given)
    tree["a"].append(1)
    tree["b"]["tag"] = "changed"
    assert given["a"] is inner and given["b"].tag == "t"
