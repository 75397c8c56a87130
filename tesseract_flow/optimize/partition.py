"""Which leaves of a design vary, and how it is scaled.

A design is any pytree. `equinox.partition` splits it by a filter into the part that varies (floating-point arrays) and
the part that never changes (integers, strings, callables, arrays that were left out); `Partition` is that split. Box
arithmetic is in `bounds`, where a scaling comes from in `scaling`; nothing here evaluates anything.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.autodiff.prefixes import keys_fault, listing, path_name
from tesseract_flow.errors import ProblemError
from tesseract_flow.schema import what_is_lost


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """All leaves of a tree with their names, in JAX's order."""
    return [(path_name(path), leaf) for path, leaf in jtu.tree_flatten_with_path(tree)[0]]


def leaf_names(tree: PyTree) -> list[str]:
    """Names of all leaves of a tree, in JAX's order."""
    return [name for name, _ in named_leaves(tree)]


def names_twice(names: Sequence[str]) -> list[str]:
    """Names that more than one leaf has: `{"a": {"b": ...}, "a.b": ...}`."""
    return sorted(name for name, n in collections.Counter(names).items() if n > 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """A design, split: `varying` has `None` where `fixed` has a leaf, and the other way round.

    `scale` holds one array per varying leaf, and so does `origin` if it is not zero everywhere. The optimiser works on
    `u = (varying - origin) / scale`, so that one learning rate means the same for a thickness in millimetres and a
    pressure in pascals.
    """

    varying: PyTree
    fixed: PyTree
    scale: PyTree
    origin: PyTree = None

    @property
    def dtype(self) -> np.dtype:
        """The least precise dtype among the varying leaves: what tolerances have to live with."""
        return max(
            (leaf.dtype for leaf in jax.tree.leaves(self.varying)), key=lambda dtype: float(jnp.finfo(dtype).eps)
        )

    def combine(self, varying: PyTree) -> PyTree:
        """The full design around the given varying part."""
        return eqx.combine(varying, self.fixed)

    def to_scaled(self, varying: PyTree) -> PyTree:
        if self.origin is not None:
            varying = jax.tree.map(jnp.subtract, varying, self.origin)
        return jax.tree.map(jnp.divide, varying, self.scale)

    def from_scaled(self, u: PyTree) -> PyTree:
        varying = jax.tree.map(jnp.multiply, u, self.scale)
        return varying if self.origin is None else jax.tree.map(jnp.add, varying, self.origin)

    def scale_gradient(self, gradient: PyTree) -> PyTree:
        """A gradient by the varying part, as one by `u`: the chain rule for x = scale·u + origin."""
        return jax.tree.map(jnp.multiply, gradient, self.scale)


def partition_design(design: PyTree, vary: Callable[[Any], bool] | PyTree) -> Partition:
    """Split a design by a filter of `equinox.partition`. Its scale is 1 (`scaling` makes another).

    Raises:
        ProblemError: the filter does not fit the design, selects nothing or something that is not a real floating-point
            number, the start is not finite, or a leaf has a mask or a unit. The message names the leaves.
    """
    for what, tree in (("The design", design), ("`vary`", vary)):
        if fault := keys_fault(tree):
            raise ProblemError(f"{what} cannot be used: {fault}")
    for path, leaf in jtu.tree_flatten_with_path(design)[0]:
        if (lost := what_is_lost(leaf)) is not None:
            raise ProblemError(f"'{path_name(path)}' of the design cannot be used: {lost}.")
    try:
        selected, fixed = eqx.partition(design, vary)
    except (ValueError, TypeError) as error:
        raise ProblemError(
            f"`vary` does not fit the design: {error}\n"
            "Give a predicate on leaves (such as equinox.is_inexact_array), or a tree of booleans with the design's "
            "own structure or a prefix of it."
        ) from error
    if twice := names_twice(leaf_names(design)):
        raise ProblemError(
            f"More than one leaf of the design is called {listing(twice)}: a dot joins the names along a path.\n"
            "Journals, reports and messages tell leaves apart by these names, so give keys that differ, without dots."
        )
    paths_and_leaves, treedef = jtu.tree_flatten_with_path(selected)
    if not paths_and_leaves:
        raise ProblemError(
            f"Nothing in the design varies: `vary` selects none of its leaves ({listing(leaf_names(design))}).\n"
            "Make the leaves that should vary floating-point arrays (jax.numpy.asarray(...)), or pass a `vary` that "
            "selects them."
        )
    leaves = [_as_varying_leaf(path_name(path), leaf) for path, leaf in paths_and_leaves]
    varying = treedef.unflatten(leaves)
    return Partition(varying, fixed, jax.tree.map(jnp.ones_like, varying))


def _as_varying_leaf(name: str, leaf: Any) -> jax.Array:
    if isinstance(leaf, bool | int | str) or not eqx.is_array_like(leaf):
        raise ProblemError(
            f"'{name}' cannot vary: expected a floating-point array, received {type(leaf).__name__} {leaf!r}.\n"
            "Leave it out of `vary`, or make it a floating-point array."
        )
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ProblemError(
            f"'{name}' cannot vary: it is complex ({array.dtype}), and gradients of real objectives with respect to "
            "complex numbers need a convention.\nMake its real and imaginary parts two leaves, and put them together "
            "inside `evaluate`."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ProblemError(
            f"'{name}' cannot vary: expected floating point, received dtype {array.dtype}.\n"
            "Leave it out of `vary`, or convert it with .astype(float)."
        )
    bad = np.argwhere(~np.isfinite(np.asarray(array, dtype=np.float64)))
    if len(bad):
        raise ProblemError(
            f"The start is not finite: '{name}' has {entries(bad, 'NaN or infinite')}.\nStart from finite values."
        )
    # A strong dtype of its own, so that a run and its resumption promote alike.
    return jnp.asarray(np.asarray(array))


def entries(where: np.ndarray, what: str = "", limit: int = 8) -> str:
    """`2 NaN entries, at [0], [3]`; of an array without dimensions `a NaN value`."""
    if where.shape[-1] == 0:
        return f"a value that is {what}" if what else "its value"
    shown = ", ".join(str([int(i) for i in index]) for index in where[:limit])
    n = f"{len(where)} {what + ' ' if what else ''}{'entry' if len(where) == 1 else 'entries'}"
    return f"{n}, at {shown}{', ...' if len(where) > limit else ''}"
