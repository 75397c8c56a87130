"""What leaves of trees are called, and how a prefix of a tree spreads over its leaves.

Bounds, scales and typical magnitudes may be given for a whole subtree at once, and left out where there is nothing to
say. What they mean is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import TesseractFlowError, did_you_mean
from tesseract_flow.schema import what_is_lost


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


def spread(prefix: PyTree, varying: PyTree, *, what: str, error: type[TesseractFlowError]) -> list[Any]:
    """One value of `prefix` per varying leaf, in JAX's order; `None` where the prefix says nothing.

    A prefix may stop early (one number for everything below it) and its dictionaries may leave keys out, such as
    those of leaves that do not vary.

    Raises:
        error: the prefix has a key that the design has not.
    """
    paths = [path for path, _ in jtu.tree_flatten_with_path(varying)[0]]
    _refuse_unknown_keys(prefix, paths, (), what, error)
    return [_descend(prefix, path) for path in paths]


def _descend(prefix: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        if prefix is None or isinstance(prefix, str) or eqx.is_array_like(prefix):
            return prefix
        match key:
            case jtu.DictKey():
                prefix = prefix.get(key.key) if isinstance(prefix, Mapping) else None
            case jtu.GetAttrKey():
                prefix = getattr(prefix, key.name, None)
            case jtu.SequenceKey() if isinstance(prefix, list | tuple) and key.idx < len(prefix):
                prefix = prefix[key.idx]
            case _:
                prefix = None
    return prefix


def _refuse_unknown_keys(
    prefix: Any, paths: list[tuple[Any, ...]], at: tuple[Any, ...], what: str, error: type[TesseractFlowError]
) -> None:
    below = [path[len(at) :] for path in paths if path[: len(at)] == at]
    if any(not path for path in below) or not isinstance(prefix, Mapping):
        return
    known = {path[0].key: path[0] for path in below if isinstance(path[0], jtu.DictKey)}
    for name, child in prefix.items():
        if name not in known:
            if child is None:
                continue  # An explicit "nothing here" for a leaf that does not vary.
            raise error(
                f"{what} given for '{path_name((*at, jtu.DictKey(name)))}', which does not vary. Varying leaves are: "
                f"{listing([path_name(path) for path in paths])}.{did_you_mean(str(name), map(str, known))}"
            )
        _refuse_unknown_keys(child, paths, (*at, known[name]), what, error)


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
