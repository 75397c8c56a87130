"""The arguments of a function whose arrays are probed: which vary, what they are called, what was said of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from tesseract_flow.autodiff.prefixes import as_leaf_array, path_name, spread
from tesseract_flow.errors import BoundsError, OptionError


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm")


def is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def is_complex(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.complexfloating))


def halves(x: Any) -> list[Any]:
    return [jnp.real(x), jnp.imag(x)] if is_complex(x) else [x]


def _prefix(prefix: Any, args: tuple[Any, ...], kwargs: dict[str, Any], what: str, error: Any) -> list[Any]:
    """One value of a prefix, as an array, per array of the arguments; None where it says nothing."""
    tree = args[0] if len(args) == 1 else args
    varying = jtu.tree_map(lambda leaf: leaf if is_array(leaf) and is_inexact(leaf) else None, tree)
    given = iter(spread(prefix, varying, what=f"differences: {what}", error=error))
    found: list[Any] = []
    for path, leaf in jtu.tree_flatten_with_path(tree)[0]:
        if not is_array(leaf):
            continue
        value = next(given) if is_inexact(leaf) else None
        if value is not None:
            real = jnp.zeros(np.shape(leaf), jnp.finfo(leaf.dtype).dtype)
            value = as_leaf_array(value, real, path_name(path), f"differences: {what}", error)
        found.append(value)
    return found + [None] * sum(is_array(leaf) for leaf in jtu.tree_leaves(kwargs))


def typical_of(prefix: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    found = _prefix(prefix, args, kwargs, "typical", OptionError)
    for value in found:
        if value is not None and not (np.isfinite(value) & (value > 0)).all():
            raise OptionError("differences: typical magnitudes must be positive and finite.")
    return found


def bounds_of(bounds: tuple[Any, Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    lower, upper = (None, None) if bounds is None else bounds
    sides = [
        _prefix(lower, args, kwargs, "lower bound", BoundsError),
        _prefix(upper, args, kwargs, "upper bound", BoundsError),
    ]
    for lo, hi in zip(*sides, strict=True):
        low = -np.inf if lo is None else lo
        high = np.inf if hi is None else hi
        if not np.all(np.less(low, high)):
            raise BoundsError(
                "differences: bounds between which nothing can move: every lower bound must lie below its upper one.\n"
                "Take what does not vary out of the arguments, or hold it with jax.lax.stop_gradient."
            )
    return list(zip(*sides, strict=True))


def names_of(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """What messages call the arrays among the arguments: `load`, or `x.load` where there are several arguments."""
    try:
        parameters = list(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        parameters = []
    names = []
    for path, leaf in jtu.tree_flatten_with_path((args, kwargs))[0]:
        if not is_array(leaf):
            continue
        where, index, *rest = path
        if where.idx:
            name = str(index.key)
        else:
            name = parameters[index.idx] if index.idx < len(parameters) else f"argument {index.idx}"
        if rest:
            inner = path_name(tuple(rest))
            name = inner if len(args) == 1 and not kwargs else f"{name}.{inner}"
        names.append(name)
    return names
