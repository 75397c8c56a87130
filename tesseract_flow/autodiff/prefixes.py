"""What leaves of trees are called, and how a prefix of a tree spreads over its leaves.

Bounds, scales and typical magnitudes may be given for a whole subtree at once, and left out where there is nothing to
say. What they mean is not known here.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import TesseractFlowError, did_you_mean
from tesseract_flow.schema import what_is_lost

SORTED = "Make all keys of a dictionary texts."


def path_name(path: tuple[Any, ...]) -> str:
    """A readable name for a pytree path: `mesh.knots.[0]`, or `(root)` for a design that is a single leaf."""
    return ".".join(_step_name(key) for key in path) or "(root)"


def _step_name(key: Any) -> str:
    match key:
        case jtu.DictKey():
            return str(key.key)
        case jtu.GetAttrKey():
            return key.name
        case jtu.SequenceKey():
            return f"[{key.idx}]"
        case jtu.FlattenedIndexKey():
            return f"[{key.key}]"
        case _:
            return str(key)


def keys_fault(tree: PyTree) -> str | None:
    """Of a tree that JAX cannot flatten, as it sorts the keys of dictionaries, why, and the remedy; else None."""

    def look(node: Any, path: tuple[Any, ...]) -> str | None:
        if isinstance(node, dict) and type(node) is not collections.OrderedDict:
            try:
                sorted(node)
            except TypeError:
                kinds = {type(key).__name__: key for key in reversed(node)}
                keys = " and ".join(f"{key!r} ({kind})" for kind, key in reversed(kinds.items()))
                where = f"at {path_name(path)!r} " if path else ""
                return f"the keys {keys} {where}have no order, and JAX sorts them.\n{SORTED}"
        below = (((*path, key), child) for key, child in _children(node) or ())
        return next((fault for place, child in below if (fault := look(child, place))), None)

    return look(tree, ())


def spread(prefix: PyTree, varying: PyTree, *, what: str, error: type[TesseractFlowError]) -> list[Any]:
    """One value of `prefix` per varying leaf, in JAX's order; `None` where the prefix says nothing.

    A prefix may stop early (one number for everything below it) and its dictionaries may leave keys out, such as
    those of leaves that do not vary. A dictionary may also stand for a dataclass, by the names of its fields.

    Raises:
        error: the prefix says something for a place that the varying part has not.
    """
    if fault := keys_fault(prefix):
        raise error(f"The {what} cannot be used: {fault}")
    paths = [path for path, _ in jtu.tree_flatten_with_path(varying)[0]]
    return _spread(prefix, paths, 0, what, error)


def _spread(
    prefix: Any, paths: list[tuple[Any, ...]], depth: int, what: str, error: type[TesseractFlowError]
) -> list[Any]:
    """For the leaves at `paths`, which share their first `depth` steps and are all that lies there."""
    if prefix is None or not paths or len(paths[0]) == depth or (given := _children(prefix)) is None:
        return [prefix] * len(paths)
    below: dict[str, list[tuple[Any, ...]]] = {}
    for path in paths:
        below.setdefault(_step_name(path[depth]), []).append(path)
    children = {_step_name(key): child for key, child in given}
    # A dataclass like that of the design cannot leave fields out, so those that do not vary may have values.
    kind = type(paths[0][depth])
    is_whole = kind in (jtu.GetAttrKey, jtu.FlattenedIndexKey) and all(type(key) is kind for key, _ in given)
    for key, child in given if not is_whole or below.keys().isdisjoint(children) else ():
        # What has no leaves says nothing: for a leaf that does not vary, or a branch in which none does.
        if _step_name(key) not in below and jax.tree.leaves(child):
            raise error(
                f"{what} given for '{path_name((*paths[0][:depth], key))}', which does not vary. Varying leaves are: "
                f"{listing([path_name(path) for path in paths])}.{did_you_mean(_step_name(key), below)}"
            )
    # In JAX's order, as leaves of one branch come one after the other.
    return [
        value for name, ours in below.items() for value in _spread(children.get(name), ours, depth + 1, what, error)
    ]


def _children(prefix: Any) -> list[tuple[Any, Any]] | None:
    """One level of a prefix; None if it is a value."""
    if isinstance(prefix, Mapping):
        return [(jtu.DictKey(name), child) for name, child in prefix.items()]
    found = jtu.tree_flatten_with_path(prefix, is_leaf=lambda node: node is not prefix)[0]
    return None if any(not path for path, _ in found) else [(path[0], child) for path, child in found]


def as_leaf_array(value: Any, leaf: jax.Array, name: str, what: str, error: type[TesseractFlowError]) -> np.ndarray:
    """`value` as an array of the leaf's shape and dtype.

    Raises:
        error: it is not a number, or does not broadcast to the leaf's shape, or has a mask or a unit.
    """
    if (lost := what_is_lost(value)) is not None:
        raise error(f"{what} of '{name}' cannot be used: {lost}.")
    try:
        array = np.asarray(value, dtype=leaf.dtype)
        return np.broadcast_to(array, leaf.shape)
    except (ValueError, TypeError) as problem:
        raise error(
            f"{what} of '{name}' does not fit: expected a number or an array that broadcasts to shape {leaf.shape}, "
            f"received {_describe(value)}."
        ) from problem


def _describe(value: Any) -> str:
    return f"an array of shape {np.shape(value)}" if hasattr(value, "shape") else repr(value)


def listing(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "") if names else "it has none"
