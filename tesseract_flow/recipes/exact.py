"""Trees as values that are equal if and only if a computation cannot tell them apart.

Python's own equality will not do: 1, 1.0 and True are equal and choose different branches, 0.0 and -0.0 are equal and
have different reciprocals, NaN is not equal to itself, and arrays do not compare to a truth value. Here: `Static` for
leaves that JAX does not trace, `InputKey` for whole inputs. Not here: where the keys are used.
"""

from __future__ import annotations

import datetime
import decimal
import struct
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import numpy as np


def exact(leaf: Any) -> Hashable:
    """A leaf that is no array, by type and value.

    Raises:
        TypeError: it can be changed in place, so no key can stand for it.
    """
    kind = type(leaf)
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
            "JAX recipes take arrays, text, numbers, booleans, None, enumerations, and dicts, lists and tuples of them."
        ) from None
    return kind, leaf


@jax.tree_util.register_static
class Static:
    """A tree without arrays that JAX compares and carries along: a constant to the functions that it compiles."""

    __slots__ = ("_hash", "_identity", "tree")

    def __init__(self, tree: Any):
        leaves, structure = jax.tree_util.tree_flatten(tree)
        self.tree = tree
        # As text: the hashes and, for keys such as 1 and True, the equality of tree structures are too coarse.
        self._identity = str(structure), tuple(exact(leaf) for leaf in leaves)
        self._hash = hash(self._identity)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._identity == other._identity


class InputKey:
    """A whole input: its structure, of each array dtype, shape and bytes, of every other leaf type and value.

    Args:
        tree: the input.
        copy: whether to keep the arrays as they are now. A key that outlives the call needs it, since whoever made
            the arrays may write into them later.
    """

    __slots__ = ("_arrays", "_hash", "_identity", "_leaves", "_structure")

    def __init__(self, tree: Any, *, copy: bool = False):
        leaves, self._structure = jax.tree_util.tree_flatten(tree)
        self._leaves = [
            _frozen(leaf) if copy and isinstance(leaf, np.ndarray | np.generic) else leaf for leaf in leaves
        ]
        self._arrays = [_words(leaf) for leaf in self._leaves if eqx.is_array(leaf)]
        self._identity = str(self._structure), tuple(_description(leaf) for leaf in self._leaves)
        # A sum is a poor digest and costs a tenth of a checksum. It only has to keep most comparisons from being made.
        self._hash = hash((self._identity, *(int(np.add.reduce(words, dtype=np.uint64)) for words in self._arrays)))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, InputKey)
            and self._identity == other._identity
            and all(np.array_equal(mine, yours) for mine, yours in zip(self._arrays, other._arrays, strict=True))
        )

    @property
    def tree(self) -> Any:
        """The input, with the key's own arrays."""
        return jax.tree_util.tree_unflatten(self._structure, self._leaves)

    @property
    def n_bytes(self) -> int:
        """Size of all arrays."""
        return sum(words.nbytes for words in self._arrays)


def _description(leaf: Any) -> Hashable:
    # InputKey stands for "an array", which no other leaf's type is.
    if not eqx.is_array(leaf):
        return exact(leaf)
    return InputKey, leaf.dtype, leaf.shape, getattr(leaf, "weak_type", False)


def _frozen(array: np.ndarray | np.generic) -> np.ndarray:
    copy = np.array(array, order="C", copy=True)
    copy.flags.writeable = False
    return copy


def _words(array: Any) -> np.ndarray:
    """The bytes of an array, as unsigned integers: equal bytes, equal words."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint64 if flat.nbytes % 8 == 0 else np.uint8)
