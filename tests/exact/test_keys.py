"""Keys are equal if and only if a computation cannot tell the inputs apart."""

from __future__ import annotations

import collections
import datetime
import decimal
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.exact import InputKey, copied
from tests.exact.trees import ARRAYS, PLAIN, TREES, written_out


class Pair(NamedTuple):
    a: Any
    b: Any


@given(TREES, TREES)
def test_keys_are_equal_exactly_if_the_trees_are(a: Any, b: Any) -> None:
    is_same = written_out(a) == written_out(b)
    assert (InputKey(a) == InputKey(b)) is is_same
    if is_same:
        assert hash(InputKey(a)) == hash(InputKey(b))


@given(TREES)
def test_key_finds_its_copy(tree: Any) -> None:
    assert InputKey(tree, copy=True) in {InputKey(copied(tree)): 1}


@given(st.dictionaries(st.text("ab1\x00\ud800", max_size=2), TREES, max_size=3), st.randoms())
def test_order_of_a_dict_says_nothing(tree: dict[str, Any], random: Any) -> None:
    items = list(tree.items())
    random.shuffle(items)
    assert InputKey(tree) == InputKey(dict(items))
    assert hash(InputKey(tree)) == hash(InputKey(dict(items)))
    rotated = dict(zip(tree, [*list(tree.values())[1:], *list(tree.values())[:1]], strict=True))
    assert (InputKey(tree) == InputKey(rotated)) is (written_out(tree) == written_out(rotated))


@pytest.mark.parametrize("a", range(len(PLAIN)))
def test_every_two_plain_leaves_differ(a: int) -> None:
    assert [b for b in range(len(PLAIN)) if InputKey({"n": PLAIN[a]}) == InputKey({"n": PLAIN[b]})] == [a]


def test_every_two_arrays_differ() -> None:
    zeros = [np.zeros(shape, dtype) for shape in (0, (0, 3), (3, 0), 3) for dtype in (np.float64, np.int64, np.int8)]
    for a, b in itertools.combinations([*ARRAYS, *zeros], 2):
        assert (InputKey([a]) == InputKey([b])) is (written_out(a) == written_out(b))
    # NumPy's scalars are arrays without dimensions.
    assert InputKey([np.float64(1.0)]) == InputKey([np.array(1.0)])


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_large_arrays_are_equal_by_their_bytes(dtype: Any) -> None:
    array = np.arange(8 * N_LARGE + 1).astype(dtype)
    for n in (8 * N_LARGE, 8 * N_LARGE + 1):
        first, second = InputKey(array[:n]), InputKey(array[:n].copy())
        assert first == second
        assert hash(first) == hash(second)
        other = array[:n].copy()
        other[-1] += 1
        assert InputKey(other) != first
        assert InputKey(array[:n].reshape(1, n).T) != InputKey(array[:n].reshape(1, n))
    shuffled = np.asfortranarray(array[:-1].reshape(8, -1))
    assert InputKey(shuffled) == InputKey(array[:-1].reshape(8, -1))
    assert hash(InputKey(shuffled)) == hash(InputKey(array[:-1].reshape(8, -1)))


@pytest.mark.parametrize("hashed", [(), (0,), (1,), (0, 1)])
def test_equality_does_not_ask_whether_keys_were_hashed(hashed: tuple[int, ...]) -> None:
    for other, are_equal in (([1.0, 2.0], True), ([1.0, 3.0], False)):
        keys = InputKey(np.array([1.0, 2.0])), InputKey(np.array(other))
        for i in hashed:
            hash(keys[i])
        assert (keys[0] == keys[1]) is are_equal


@given(st.integers(0, 2**64 - 1), st.integers(0, 63))
def test_every_bit_counts(bits: int, which: int) -> None:
    """Among them the payloads of NaN and the sign of zero."""
    a, b = (np.array([0.5, 0.0]) for _ in range(2))
    a.view(np.uint64)[1], b.view(np.uint64)[1] = bits, bits ^ (1 << which)
    assert InputKey(a) == InputKey(a.copy())
    assert InputKey(a) != InputKey(b)
    assert InputKey(float(a[1])) != InputKey(float(b[1])) or np.isnan(a[1])  # a signalling NaN is made a quiet one


N_LARGE = 2**16  # beyond what is digested as bytes


@pytest.mark.parametrize(
    "a, b",
    [
        (-1, -2),
        (np.tile([1.0, 2.0], N_LARGE // 2), np.tile([2.0, 1.0], N_LARGE // 2)),
        (np.full(N_LARGE, 0.5), np.tile([0.25, 1.0], N_LARGE // 2)),
    ],
    ids=["minus one", "permutation", "same sum of bits"],
)
def test_equality_decides_where_hashes_collide(a: Any, b: Any) -> None:
    """CPython's hash of -1 is that of -2; of large arrays only the sum of their bits is hashed."""
    first, second = InputKey({"x": a}), InputKey({"x": b})
    assert hash(first) == hash(second)
    assert first != second
    assert {first: "first", second: "second"}[InputKey({"x": b})] == "second"


@pytest.mark.parametrize(
    "a, b",
    [
        ({"a": 1}, {"b": 1}),
        ({1: "x"}, {True: "x"}),
        ({1: "x", "1": "y"}, {1: "y", "1": "x"}),
        ([], ()),
        ({}, []),
        ({"a": None}, {}),
        ([1, [2]], [[1], 2]),
        ((1, 2), Pair(1, 2)),
        ({"a": 1}, collections.OrderedDict(a=1)),
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
    assert InputKey(a) == InputKey(a, copy=True)
    assert InputKey(b) == InputKey(b, copy=True)


def test_key_keeps_what_was_there_when_it_was_made() -> None:
    x, items = np.array([1.0, 2.0]), [1]
    key = InputKey({"x": x, "n": items}, copy=True)
    x[0] = 5.0
    items.append(2)
    assert key == InputKey({"x": np.array([1.0, 2.0]), "n": [1]})
    assert key != InputKey({"x": x, "n": [1]})
    assert key.tree["x"].tolist() == [1.0, 2.0]
    assert key.tree["n"] == [1]
    with pytest.raises(ValueError, match="read-only"):
        key.tree["x"][0] = 3.0


def test_layout_in_memory_does_not_matter() -> None:
    x = np.arange(6.0).reshape(2, 3)
    assert InputKey(x) == InputKey(np.asfortranarray(x)) == InputKey(np.repeat(x, 2, axis=0)[::2])
    assert InputKey(x) == InputKey(jnp.asarray(x))
    assert InputKey(x).n_bytes == 48
    assert InputKey([x, 1]).n_leaves == 2


@pytest.mark.parametrize(
    "leaf, name",
    [
        (bytearray(b"1"), "bytearray, which is neither an array nor hashable"),
        (np.array([object()]), "ndarray of dtype object"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "MaskedArray of dtype float64"),
    ],
)
def test_leaf_that_is_more_than_its_bytes_is_refused(leaf: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        InputKey({"x": leaf})


@given(TREES)
def test_a_copy_is_the_same_tree_in_arrays_of_its_own(tree: Any) -> None:
    twin = copied(tree)
    assert written_out(twin) == written_out(tree)
    for mine, yours in zip(*map(jax.tree_util.tree_leaves, (twin, tree)), strict=True):
        assert not (isinstance(mine, np.ndarray) and np.shares_memory(mine, yours))


@pytest.mark.parametrize(
    "tree", [Pair([1], 2), collections.OrderedDict(b=[1], a=2), collections.defaultdict(list, a=[1])]
)
def test_a_copy_keeps_the_kind_of_each_container(tree: Any) -> None:
    twin = copied(tree)
    assert type(twin) is type(tree)
    assert twin == tree
    assert twin is not tree
