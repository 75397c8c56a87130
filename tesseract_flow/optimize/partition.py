"""Which leaves of a design vary, what they are called, and how user-given prefixes spread over them.

A design is any pytree. `equinox.partition` splits it by a filter into the part that varies (floating-point arrays) and
the part that never changes (integers, strings, callables, arrays that were left out); `Partition` is that split. Bounds
and scales may be given for a whole subtree at once: `spread` turns such a prefix into one value per varying leaf.

Box arithmetic is in `bounds`; nothing here evaluates anything.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import OptimizationError, ProblemError, did_you_mean


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

    `scale` holds one array per varying leaf. The optimiser works on `u = varying / scale`, so that one learning rate
    means the same for a thickness in millimetres and a pressure in pascals.
    """

    varying: PyTree
    fixed: PyTree
    scale: PyTree

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
        return jax.tree.map(jnp.divide, varying, self.scale)

    def from_scaled(self, u: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, u, self.scale)

    def scale_gradient(self, gradient: PyTree) -> PyTree:
        """A gradient with respect to the varying part, as one with respect to `u`: the chain rule for x = scale·u."""
        return jax.tree.map(jnp.multiply, gradient, self.scale)


def partition_design(design: PyTree, vary: Callable[[Any], bool] | PyTree, scale: PyTree = None) -> Partition:
    """Split a design by a filter of `equinox.partition`.

    Raises:
        ProblemError: the filter does not fit the design, selects nothing or something that is not a real floating-point
            number, the start is not finite, or a scale is not positive. The message names the leaves.
    """
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
            f"More than one leaf of the design is called {_listing(twice)}: a dot joins the names along a path.\n"
            "Journals, reports and messages tell leaves apart by these names, so give keys that differ, without dots."
        )
    paths_and_leaves, treedef = jtu.tree_flatten_with_path(selected)
    if not paths_and_leaves:
        raise ProblemError(
            f"Nothing in the design varies: `vary` selects none of its leaves ({_listing(leaf_names(design))}).\n"
            "Make the leaves that should vary floating-point arrays (jax.numpy.asarray(...)), or pass a `vary` that "
            "selects them."
        )
    leaves = [_as_varying_leaf(path_name(path), leaf) for path, leaf in paths_and_leaves]
    varying = treedef.unflatten(leaves)
    scales = spread(scale, varying, what="scale", error=ProblemError)
    arrays = []
    for (path, _), leaf, given in zip(paths_and_leaves, leaves, scales, strict=True):
        size = as_leaf_array(1.0 if given is None else given, leaf, path_name(path), "scale", ProblemError)
        if not (np.isfinite(size) & (size > 0)).all():
            raise ProblemError(
                f"scale of '{path_name(path)}' must be positive and finite, received {given!r}.\n"
                "A scale is the typical magnitude of the variable, such as 0.1 for thicknesses around 10 cm."
            )
        arrays.append(jnp.asarray(size))
    return Partition(varying, fixed, treedef.unflatten(arrays))


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


def spread(prefix: PyTree, varying: PyTree, *, what: str, error: type[OptimizationError]) -> list[Any]:
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
        if prefix is None or eqx.is_array_like(prefix):
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
    prefix: Any, paths: list[tuple[Any, ...]], at: tuple[Any, ...], what: str, error: type[OptimizationError]
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
                f"{_listing([path_name(path) for path in paths])}.{did_you_mean(str(name), map(str, known))}"
            )
        _refuse_unknown_keys(child, paths, (*at, known[name]), what, error)


def as_leaf_array(value: Any, leaf: jax.Array, name: str, what: str, error: type[OptimizationError]) -> np.ndarray:
    """`value` as an array of the leaf's shape and dtype.

    Raises:
        error: it is not a number, or does not broadcast to the leaf's shape.
    """
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


def _listing(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "") if names else "it has none"


def entries(where: np.ndarray, what: str = "", limit: int = 8) -> str:
    """`2 NaN entries, at [0], [3]`; of an array without dimensions `a NaN value`."""
    if where.shape[-1] == 0:
        return f"a value that is {what}" if what else "its value"
    shown = ", ".join(str([int(i) for i in index]) for index in where[:limit])
    n = f"{len(where)} {what + ' ' if what else ''}{'entry' if len(where) == 1 else 'entries'}"
    return f"{n}, at {shown}{', ...' if len(where) > limit else ''}"
