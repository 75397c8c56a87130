"""How a design is scaled: `u = (x - origin) / scale`, entry by entry, from what the user says of it.

Three ways to say it, of which each leaf takes one: a typical magnitude (`scale=`), its bounds (`scale="bounds"`: the
range becomes 0 to 1), or two values that become 0 and 1 (`ref0=`, `ref=`, as OpenMDAO has them).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.autodiff.prefixes import as_leaf_array, path_name, spread
from tesseract_flow.errors import ProblemError, did_you_mean
from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.partition import Partition, entries

BY_BOUNDS = "bounds"


def scaled(partition: Partition, box: Box, scale: PyTree = None, ref: PyTree = None, ref0: PyTree = None) -> Partition:
    """The partition with a scaling, each part of it a value, or a prefix of the varying part.

    Raises:
        ProblemError: a scale that is not positive, a range without an end, `ref` and `ref0` that are equal, or more
            than one way for a leaf. The message names the leaves.
    """
    paths_and_leaves, treedef = jtu.tree_flatten_with_path(partition.varying)
    given = [
        spread(prefix, partition.varying, what=what, error=ProblemError)
        for what, prefix in (("scale", scale), ("ref", ref), ("ref0", ref0))
    ]
    sides = zip(jax.tree.leaves(box.lower), jax.tree.leaves(box.upper), strict=True)
    unbounded, spans, origins = [], [], []
    for (path, leaf), size, one, zero, (lower, upper) in zip(paths_and_leaves, *given, sides, strict=True):
        name = path_name(path)
        if size is not None and not (one is None and zero is None):
            raise ProblemError(
                f"'{name}' has a scale and a {'ref' if one is not None else 'ref0'}: each says what its unit is.\n"
                "Give scale=..., or ref=... and ref0=...."
            )
        if isinstance(size, str):
            if size != BY_BOUNDS:
                raise ProblemError(
                    f"scale of '{name}' must be positive numbers or 'bounds', received {size!r}."
                    f"{did_you_mean(size, (BY_BOUNDS,))}"
                )
            low, high = np.asarray(lower), np.asarray(upper)
            if not _have_ranges(low, high).all():
                unbounded.append(f"'{name}' ({entries(np.argwhere(~_have_ranges(low, high)), 'unbounded')})")
                continue
            spans.append(np.where(high > low, high - low, np.ones_like(low)))
            origins.append(low)
        elif one is None and zero is None:
            spans.append(_magnitude(name, leaf, 1.0 if size is None else size))
            origins.append(np.zeros_like(spans[-1]))
        else:
            span, origin = _between(name, leaf, 0.0 if zero is None else zero, 1.0 if one is None else one)
            spans.append(span)
            origins.append(origin)
    if unbounded:
        raise ProblemError(
            f"scale='bounds' makes the range between the bounds the unit, and there is none for {', '.join(unbounded)}."
            "\nGive bounds, or say what is typical for these leaves: scale={'name': 0.1, 'other': 'bounds'}."
        )
    has_origin = any(np.any(origin) for origin in origins)
    return dataclasses.replace(
        partition,
        scale=treedef.unflatten([jnp.asarray(span) for span in spans]),
        origin=treedef.unflatten([jnp.asarray(origin) for origin in origins]) if has_origin else None,
    )


def _have_ranges(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(upper - lower)


def _magnitude(name: str, leaf: jax.Array, given: Any) -> np.ndarray:
    size = as_leaf_array(given, leaf, name, "scale", ProblemError)
    if not (np.isfinite(size) & (size > 0)).all():
        raise ProblemError(
            f"scale of '{name}' must be positive and finite, received {given!r}.\n"
            "A scale is the typical magnitude of the variable, such as 0.1 for thicknesses around 10 cm."
        )
    return size


def _between(name: str, leaf: jax.Array, zero: Any, one: Any) -> tuple[np.ndarray, np.ndarray]:
    """The distance of two values, of which either may be the larger: nobody sees in which direction u grows."""
    low, high = (as_leaf_array(x, leaf, name, what, ProblemError) for x, what in ((zero, "ref0"), (one, "ref")))
    if not (np.isfinite(low) & np.isfinite(high)).all():
        raise ProblemError(f"ref and ref0 of '{name}' must be finite, received ref={one!r} and ref0={zero!r}.")
    with np.errstate(over="ignore"):
        span = np.abs(high - low)
    wrong = np.argwhere(~((span > 0) & np.isfinite(span)))
    if len(wrong):
        raise ProblemError(
            f"ref and ref0 of '{name}' are equal or too far apart in {entries(wrong)}: received ref={one!r} and "
            f"ref0={zero!r}.\nThe scaled design is (x - ref0) / (ref - ref0); without ref0 it is x / ref, and without "
            "ref the 1 stands for ref."
        )
    return span, low
