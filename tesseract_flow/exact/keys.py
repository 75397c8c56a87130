"""`InputKey`: a whole tree as the key of a mapping; `exact`: one leaf of it.

Trees are dicts, lists and tuples; everything else is a leaf. The one idea: a tree is split into a *description* (nested
tuples of types and values, which Python compares and hashes well) and the arrays, which are compared as bytes.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import struct
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

# By exact type, and asked first: nearly all leaves are of these. Equal ones of one type are alike, unlike floats.
_PLAIN = frozenset({str, int, bool, type(None), bytes})


def exact(leaf: Any) -> tuple[Hashable, ...]:
    """A leaf that is no array, by type and value.

    Raises:
        TypeError: it can be changed in place, so no key can stand for it.
    """
    kind = type(leaf)
    if kind in _PLAIN:
        return kind, leaf
    if isinstance(leaf, enum.Enum):
        return kind, leaf
    if isinstance(leaf, float):
        return kind, struct.pack("<d", leaf)
    if isinstance(leaf, complex):
        return kind, struct.pack("<2d", leaf.real, leaf.imag)
    if isinstance(leaf, set | frozenset):
        return kind, frozenset(exact(item) for item in leaf)
    if isinstance(leaf, decimal.Decimal | datetime.datetime | datetime.time):
        return kind, leaf, str(leaf)  # equal when written differently: Decimal("1.0") and "1.00", 12:00Z and 13:00+01
    try:
        hash(leaf)
    except TypeError:
        raise TypeError(
            f"An input or output is a {kind.__name__}, which is neither an array nor hashable: {leaf!r:.200}. "
            "Expected arrays, text, numbers, booleans, None, enumerations, and dicts, lists and tuples of them."
        ) from None
    return kind, leaf


class InputKey:
    """A whole input: its structure, of each array dtype, shape and bytes, of every other leaf type and value.

    Two dicts with equal entries are equal, in whatever order those were written.

    Args:
        tree: the input.
        copy: whether to keep the arrays as they are now. A key that outlives the call needs it, since whoever made
            the arrays may write into them later.

    Attributes:
        tree: the input; with `copy`, the key's own dicts, lists and read-only arrays.
        description: everything about it but the bytes of its arrays.
        n_leaves: leaves, arrays included.

    Raises:
        TypeError: a leaf can be changed in place (`exact`), or is an array of Python objects.
    """

    __slots__ = ("_arrays", "_hash", "description", "n_leaves", "tree")

    def __init__(self, tree: Any, *, copy: bool = False):
        self.tree = copied(tree, _frozen) if copy else tree
        leaves: list[np.ndarray | None] = []
        self.description = describe(self.tree, leaves)
        self.n_leaves = len(leaves)
        self._arrays = [leaf for leaf in leaves if leaf is not None]
        self._hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.description, *[_digest(array) for array in self._arrays]))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, InputKey)
            and (self._hash == other._hash or None in (self._hash, other._hash))
            and self.description == other.description
            and all(map(_are_same, self._arrays, other._arrays))
        )

    @property
    def n_bytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in self._arrays)


def describe(tree: Any, leaves: list[np.ndarray | None], *, in_order: bool = False) -> Hashable:
    """Nested tuples that say everything about `tree` but the bytes of its arrays, which are appended to `leaves`.

    For each other leaf None is appended. Containers begin with their type, so that subclasses differ. The entries of
    dicts are sorted, unless they are to stay `in_order`.
    """
    kind = type(tree)
    if kind in _PLAIN:
        leaves.append(None)
        return kind, tree
    if kind is np.ndarray and not tree.dtype.hasobject:
        leaves.append(tree)
        return kind, tree.dtype, tree.shape, False
    if isinstance(tree, dict):
        if not in_order and all(type(key) is str for key in tree):
            # The order that `_order` gives, for what nearly all dicts are.
            return kind, tuple([((str, key), describe(tree[key], leaves)) for key in sorted(tree)])
        entries = [(exact(key), value) for key, value in tree.items()]
        if not in_order:
            entries.sort(key=_order)
        return kind, tuple((key, describe(value, leaves, in_order=in_order)) for key, value in entries)
    if isinstance(tree, list | tuple):
        return kind, tuple(describe(item, leaves, in_order=in_order) for item in tree)
    if not is_array(tree):
        leaves.append(None)
        return exact(tree)
    array = np.asarray(tree)
    if array.dtype.hasobject or isinstance(tree, np.ma.MaskedArray):
        raise TypeError(f"A {type(tree).__name__} of dtype {array.dtype} is more than its bytes, so it makes no key.")
    leaves.append(array)
    # np.ndarray stands for "an array", which no other leaf's type is. NumPy's scalars are arrays without dimensions.
    return np.ndarray, array.dtype, array.shape, bool(getattr(tree, "weak_type", False))


def is_array(leaf: Any) -> bool:
    """Whether it has bytes: NumPy's arrays and scalars, JAX's arrays, and what else offers itself as an array."""
    if isinstance(leaf, np.ndarray | np.generic):
        return True
    return hasattr(type(leaf), "__array__") and hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def copied(tree: Any, copy: Callable[[Any], Any] = np.copy) -> Any:
    """The tree in containers of its own, with `copy` of each NumPy array."""
    kind = type(tree)
    if kind in _PLAIN:
        return tree
    if isinstance(tree, dict):
        # An ordered or defaulting dict is told by its type alone, and a plain one holds the same.
        entries = {key: copied(value, copy) for key, value in tree.items()}
        return entries if kind is dict else _with_entries(tree, entries)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(copied(item, copy) for item in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(copied(item, copy) for item in tree)  # pyright: ignore[reportCallIssue]
    return copy(tree) if isinstance(tree, np.ndarray | np.generic) else tree


def _with_entries(like: dict[Any, Any], entries: dict[Any, Any]) -> dict[Any, Any]:
    other = like.copy()  # keeps its type, and what else it may carry
    other.update(entries)
    return other


def _order(entry: tuple[tuple[Hashable, ...], Any]) -> tuple[str, str]:
    kind, value = entry[0][:2]
    return kind.__qualname__, value if isinstance(value, str) else repr(value)  # type: ignore[attr-defined]


def _frozen(array: np.ndarray | np.generic) -> np.ndarray:
    copy = np.array(array, order="C", copy=True)
    copy.flags.writeable = False
    return copy


# Up to this many bytes, a copy as `bytes` and what Python does with those take less than NumPy's comparisons and sums.
_SMALL = 2**18


def _digest(array: np.ndarray) -> int:
    if array.nbytes <= _SMALL:
        return hash(array.tobytes())
    # A sum is a poor digest and costs a tenth of a checksum. It only has to keep most comparisons from being made.
    return int(np.add.reduce(_words(array), dtype=np.uint64))


def _are_same(mine: np.ndarray, yours: np.ndarray) -> bool:
    """Whether two arrays of equal shape and dtype have equal bytes."""
    if mine.nbytes <= _SMALL:
        return mine.tobytes() == yours.tobytes()
    return bool((_words(mine) == _words(yours)).all())


def _words(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, as unsigned integers: equal bytes, equal words."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint64 if flat.nbytes % 8 == 0 else np.uint8)
