"""Trees with places for tensors in them.

Here: walking nested dicts and lists, with what stands at their ends. Not here: what the schema says about a place, and
PyTorch. The one idea: a tree is taken apart once into tensors and the rest, and each request fills the rest again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from tesseract_flow.schema import Keys

Tree: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands where a tree has the tensor of that index."""

    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """Stands around a NumPy array where the schema has an array: it gets a batch dimension, and others do not."""

    value: np.ndarray


def map_leaves(fn: Callable[[Keys, Any], Any], tree: Tree, at: Keys = ()) -> Tree:
    """The tree, in new dicts and lists, with `fn(keys, leaf)` at each leaf."""
    if isinstance(tree, Mapping):
        return {key: map_leaves(fn, item, (*at, key)) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [map_leaves(fn, item, (*at, index)) for index, item in enumerate(tree)]
    return fn(at, tree)


def leaves_of(tree: Tree) -> dict[Keys, Any]:
    """Each leaf by the keys that lead to it, in the order of the tree."""
    leaves: dict[Keys, Any] = {}
    map_leaves(leaves.__setitem__, tree)
    return leaves
