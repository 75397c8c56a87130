"""What is learned about a component in passing: shapes of its outputs, its noise, and what has been logged.

Here: trees without their arrays, as `abstract_eval` writes them and as keys; a bounded memory per handle. The one
idea: equal handles share what they have learned, and two inputs of one structure have outputs of one structure.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from tesseract_flow.client.base import AbstractTesseract, Tree
from tesseract_flow.schema import TesseractSchema, array_leaves, follow

_REMEMBERED = 1024  # structures per handle
_REMEMBERED_SETTINGS = 64


class Memory:
    """Of one component: shapes and noise by structure of the inputs, and what has been logged."""

    def __init__(self) -> None:
        self.shapes: OrderedDict[Hashable, Tree] = OrderedDict()
        self.noise: OrderedDict[Hashable, float] = OrderedDict()
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def remember_shapes(self, structure: Hashable, tree: Tree) -> None:
        self._remember(self.shapes, structure, tree)

    def remember_noise(self, key: Hashable, noise: float) -> None:
        self._remember(self.noise, key, noise)

    def _remember(self, entries: OrderedDict[Hashable, Any], key: Hashable, value: Any) -> None:
        with self._lock:
            entries[key] = value
            entries.move_to_end(key)
            while len(entries) > _REMEMBERED:
                entries.popitem(last=False)

    def is_first_of(self, endpoint: str, source: str) -> bool:
        with self._lock:
            is_first = (endpoint, source) not in self._told
            self._told.add((endpoint, source))
            return is_first


# By what the handles are anchored in, which it does not keep alive, and then by their settings.
_memories: weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, Memory]] = weakref.WeakKeyDictionary()
_memories_lock = threading.Lock()


def memory_of(handle: AbstractTesseract, settings: Hashable) -> Memory:
    """What has been learned through handles that are equal to this one, and derive in the same way."""
    with _memories_lock:
        memories = _memories.setdefault(handle.anchor, OrderedDict())
        memory = memories.setdefault(settings, Memory())
        memories.move_to_end(settings)
        while len(memories) > _REMEMBERED_SETTINGS:
            memories.popitem(last=False)
        return memory


def described(tree: Tree) -> Tree:
    """`{"shape": ..., "dtype": ...}` in place of each array; descriptions stay what they are."""
    if isinstance(tree, Mapping):
        return {key: described(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [described(item) for item in tree]
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return {"shape": list(tree.shape), "dtype": np.dtype(tree.dtype).name}
    return tree


def described_inputs(schema: TesseractSchema, inputs: Tree) -> Tree:
    """The same for `abstract_eval`, which wants descriptions of all arrays of the schema: of plain numbers as well."""
    tree = described(inputs)
    for keys, field in array_leaves(schema.inputs, inputs):
        if not isinstance(follow(tree, keys), Mapping):
            array = np.asarray(follow(inputs, keys), field.dtype)
            tree = _replaced(tree, keys, described(array))
    return tree


def structure_of(tree: Tree) -> Hashable:
    """Equal for trees with the same shapes and dtypes and the same plain values: 1, 1.0 and True differ."""
    return _frozen(described(tree))


def _frozen(tree: Any) -> Hashable:
    if isinstance(tree, Mapping):
        if tree.keys() == {"shape", "dtype"}:
            return "array", str(list(tree["shape"])), str(tree["dtype"])
        return "dict", tuple((str(key), _frozen(tree[key])) for key in sorted(tree, key=str))
    if isinstance(tree, list):
        return "list", tuple(_frozen(item) for item in tree)
    return type(tree).__name__, repr(tree)


def _replaced(tree: Any, keys: tuple[Any, ...], value: Any) -> Any:
    if not keys:
        return value
    copy = dict(tree) if isinstance(tree, Mapping) else list(tree)
    copy[keys[0]] = _replaced(tree[keys[0]], keys[1:], value)
    return copy
