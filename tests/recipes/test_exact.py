"""Keys are equal if and only if a computation cannot tell the inputs apart."""

from __future__ import annotations

import datetime
import decimal
import enum
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.recipes.exact import InputKey, Static


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


# Few and treacherous, so that random trees are often equal, or almost.
PLAIN = [
    0,
    1,
    -1,
    -2,
    True,
    False,
    None,
    0.0,
    -0.0,
    1.0,
    -1.0,
    math.nan,
    math.inf,
    "",
    "1",
    "a",
    1j,
    0j,
    Size.SMALL,
    b"",
]
ARRAYS = [
    np.array([1.0, 2.0]),
    np.array([2.0, 1.0]),
    np.array([[1.0, 2.0]]),
    np.array([1.0, 2.0], np.float32),
    np.array([1, 2]),
    np.array([1.0, 2.0]).view(np.int64),
    np.array([0.0, np.nan]),
    np.array([-0.0, np.nan]),
    np.array(1.0),
    np.float64(1.0),
    np.array(True),
    np.array([], np.float32),
    np.array([], np.float64),
    np.arange(3, dtype=np.int8),
    np.array([1.0 + 2.0j]),
]
LEAVES = st.sampled_from([*PLAIN, *ARRAYS])
TREES = st.recursive(
    LEAVES,
    lambda trees: st.one_of(
        st.dictionaries(st.sampled_from(["a", "b"]), trees, max_size=2),
        st.lists(trees, max_size=2),
        st.lists(trees, max_size=2).map(tuple),
    ),
    max_leaves=4,
)


def written_out(tree: Any) -> Any:
    """Everything about a tree as text, by other means than the keys use."""
    if isinstance(tree, dict):
        return {"dict": [[repr(key), written_out(tree[key])] for key in sorted(tree)]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [written_out(item) for item in tree]}
    if isinstance(tree, np.ndarray | np.generic):
        return ["array", tree.dtype.str, str(tree.shape), np.asarray(tree).tobytes().hex()]
    return [type(tree).__qualname__, repr(tree)]


@given(TREES, TREES)
def test_keys_are_equal_exactly_if_the_trees_are(a: Any, b: Any) -> None:
    is_same = written_out(a) == written_out(b)
    assert (InputKey(a) == InputKey(b)) is is_same
    if is_same:
        assert hash(InputKey(a)) == hash(InputKey(b))


@given(TREES)
def test_key_finds_its_copy(tree: Any) -> None:
    copied = jax.tree_util.tree_map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)
    assert InputKey(tree, copy=True) in {InputKey(copied): 1}


@pytest.mark.parametrize("a", range(len(PLAIN)))
def test_every_two_plain_leaves_differ(a: int) -> None:
    for kind in (InputKey, Static):
        assert [b for b in range(len(PLAIN)) if kind({"n": PLAIN[a]}) == kind({"n": PLAIN[b]})] == [a]


def test_every_two_arrays_differ() -> None:
    zeros = [np.zeros(shape, dtype) for shape in (0, (0, 3), (3, 0), 3) for dtype in (np.float64, np.int64, np.int8)]
    for a, b in itertools.combinations([*ARRAYS, *zeros], 2):
        assert (InputKey([a]) == InputKey([b])) is (written_out(a) == written_out(b))
    # NumPy's scalars are arrays without dimensions.
    assert InputKey([np.float64(1.0)]) == InputKey([np.array(1.0)])


@pytest.mark.parametrize(
    "a, b",
    [(-1, -2), (np.array([1.0, 2.0]), np.array([2.0, 1.0])), (np.array([0.5] * 4), np.array([0.25, 1.0] * 2))],
    ids=["minus one", "permutation", "same sum of bits"],
)
def test_equality_decides_where_hashes_collide(a: Any, b: Any) -> None:
    """CPython's hash of -1 is that of -2; of arrays only the sum of their bits is hashed."""
    first, second = InputKey({"x": a}), InputKey({"x": b})
    assert hash(first) == hash(second)
    assert first != second
    assert {first: "first", second: "second"}[InputKey({"x": b})] == "second"


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
        (jnp.asarray(1.0), jnp.asarray(np.float64(1.0))),  # the first one gives way to the dtypes of others
        (
            datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC),
            datetime.datetime(2026, 1, 1, 13, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
        ),
    ],
)
def test_near_misses(a: Any, b: Any) -> None:
    assert InputKey(a) != InputKey(b)
    if not isinstance(a, jax.Array):
        assert Static(a) != Static(b)


def test_key_keeps_what_was_there_when_it_was_made() -> None:
    x = np.array([1.0, 2.0])
    key = InputKey({"x": x}, copy=True)
    x[0] = 5.0
    assert key == InputKey({"x": np.array([1.0, 2.0])})
    assert key != InputKey({"x": x})
    assert key.tree["x"].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        key.tree["x"][0] = 3.0


def test_layout_in_memory_does_not_matter() -> None:
    x = np.arange(6.0).reshape(2, 3)
    assert InputKey(x) == InputKey(np.asfortranarray(x)) == InputKey(np.repeat(x, 2, axis=0)[::2])
    assert InputKey(x) == InputKey(jnp.asarray(x))


@pytest.mark.parametrize("kind", [InputKey, Static])
def test_leaf_that_can_change_in_place_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="bytearray, which is neither an array nor hashable"):
        kind({"x": bytearray(b"1")})
