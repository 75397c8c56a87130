"""A design (any pytree, mixed) as named leaves: arrays for files and plots, everything else as text.

A leaf is named by its path, such as `mesh.knots.[0]`, the way Tesseract schemas write paths.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey


def named_leaves(design: Any) -> dict[str, Any]:
    """Every leaf by its path, `None` included; a design that is a single leaf is called `design`."""
    leaves: dict[str, Any] = {}
    # None is an empty node to JAX, but to the reader of a report it is a setting.
    for path, leaf in jax.tree_util.tree_flatten_with_path(design, is_leaf=lambda x: x is None)[0]:
        name = unique = ".".join(map(_part, path)) or "design"
        n_same = 1
        while unique in leaves:  # {"a.b": ...} next to {"a": {"b": ...}}
            n_same += 1
            unique = f"{name}#{n_same}"
        leaves[unique] = leaf
    return leaves


def _part(key: Any) -> str:
    match key:
        case DictKey(key=k):
            return str(k)
        case GetAttrKey(name=name):
            return name
        case SequenceKey(idx=i) | FlattenedIndexKey(key=i):
            return f"[{i}]"
    return str(key)


def split_leaves(design: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays as NumPy, static leaves), both by path."""
    arrays: dict[str, np.ndarray] = {}
    static: dict[str, Any] = {}
    for name, leaf in named_leaves(design).items():
        array = _as_numpy(leaf)
        if array is None:
            static[name] = leaf
        else:
            arrays[name] = array
    return arrays, static


def _as_numpy(leaf: Any) -> np.ndarray | None:
    if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        return None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if array.dtype.kind == "V" and array.dtype.names is None:
        # bfloat16 and its relatives: NumPy's file format has no name for them, and float32 holds every value exactly.
        array = array.astype(np.float32)
    return None if array.dtype.hasobject else array


def design_rows(design: Any) -> list[dict[str, Any]]:
    """One row per leaf: shape, dtype and range of arrays, the value of everything else."""
    arrays, static = split_leaves(design)
    rows = []
    for name in named_leaves(design):
        row = dict.fromkeys(("leaf", "shape", "dtype", "smallest", "mean", "largest", "value"))
        row["leaf"] = name
        if name in arrays:
            x = arrays[name]
            row |= {"shape": " x ".join(map(str, x.shape)) or "scalar", "dtype": str(x.dtype)}
            if x.dtype.kind in "biufc" and x.size:
                y = np.abs(x) if x.dtype.kind == "c" else x.astype(np.float64)
                row |= {"smallest": y.min().item(), "mean": y.mean().item(), "largest": y.max().item()}
            if x.size == 1:
                row["value"] = x.reshape(-1)[0].item()
        else:
            text = repr(static[name]) if not isinstance(static[name], str) else static[name]
            row |= {"dtype": type(static[name]).__name__, "value": text if len(text) <= 200 else text[:197] + "..."}
        rows.append(row)
    return rows
