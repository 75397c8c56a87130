"""Constants of compiled functions are equal if and only if a computation cannot tell them apart."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import jax
import numpy as np
import pytest

from tesseract_flow.recipes.exact import Skeleton, Static, split
from tests.exact.trees import PLAIN


@pytest.mark.parametrize("a", range(len(PLAIN)))
def test_every_two_plain_leaves_differ(a: int) -> None:
    assert [b for b in range(len(PLAIN)) if Static({"n": PLAIN[a]}) == Static({"n": PLAIN[b]})] == [a]


@pytest.mark.parametrize(
    "a, b",
    [
        ({"a": 1}, {"b": 1}),
        ({1: "x"}, {True: "x"}),
        ([], ()),
        ({}, []),
        ({"a": None}, {}),
        ([1, [2]], [[1], 2]),
        ({1, 2}, {1.0, 2.0}),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (
            datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC),
            datetime.datetime(2026, 1, 1, 13, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
        ),
    ],
)
def test_near_misses(a: Any, b: Any) -> None:
    assert Static(a) != Static(b)
    assert Static(a) == Static(a)
    assert hash(Static(b)) == hash(Static(b))


def test_leaf_that_can_change_in_place_is_refused() -> None:
    with pytest.raises(TypeError, match="bytearray, which is neither an array nor hashable"):
        Static({"x": bytearray(b"1")})


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray)


def skeleton_of(tree: Any) -> Skeleton:
    return split(tree, is_array)[1]


def test_a_tree_is_its_arrays_in_its_skeleton() -> None:
    x, y, z = np.ones(2), np.zeros(3), np.array(1.0)
    tree = {"b": [x, "text", (y, None, {})], "a": {"n": 3, "z": z}}
    arrays, skeleton = split(tree, is_array)
    assert [id(array) for array in arrays] == [id(z), id(x), id(y)]  # as JAX sorts them
    assert skeleton.filled(arrays) == tree
    assert skeleton.filled(range(3)) == {"b": [1, "text", (2, None, {})], "a": {"n": 3, "z": 0}}
    assert skeleton.filled(arrays)["b"] is not skeleton.filled(arrays)["b"]


def test_skeletons_differ_by_all_but_their_arrays() -> None:
    a, b = np.ones(2), np.zeros(3)
    assert skeleton_of({"x": a, "n": 1}) == skeleton_of({"n": 1, "x": b})
    assert hash(skeleton_of({"x": a})) == hash(skeleton_of({"x": b}))
    different = [{"x": a, "n": n} for n in (1, 1.0, True, -1, -2, 0.0, -0.0, None)]
    different += [{"x": 1, "n": a}, {"x": a, "m": 1}, {"x": [a], "n": 1}, {"x": (a,), "n": 1}, {"x": a}]
    skeletons = [skeleton_of(tree) for tree in different]
    assert [[one == other for other in skeletons] for one in skeletons] == np.eye(len(skeletons), dtype=bool).tolist()
    assert Static({"n": 1}) != skeleton_of({"n": 1})


def test_a_skeleton_has_no_leaves_for_jax() -> None:
    skeleton = skeleton_of({"x": np.ones(2), "n": 1})
    assert jax.tree_util.tree_leaves(skeleton) == []
    assert jax.jit(lambda x, skeleton: skeleton.filled([x])["x"])(np.ones(2), skeleton).tolist() == [1.0, 1.0]
