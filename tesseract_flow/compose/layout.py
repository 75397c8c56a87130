"""A tree of floating-point arrays as one real vector, which is what solvers work on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import OptionError


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How a tree lies in a vector: leaf after leaf, of complex ones the real parts and then the imaginary ones.

    Attributes:
        names: of the leaves, such as `struct.displacement`.
        dtype: of the vector: wide enough for all leaves.
    """

    treedef: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, tree: Any, who: str) -> Layout:
        """Raises:
        OptionError: a leaf is no floating-point array.
        """
        with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        names = tuple(jax.tree_util.keystr(path, simple=True, separator=".") or "the state" for path, _ in with_paths)
        avals = [jax.typeof(jnp.asarray(leaf)) if _is_number(leaf) else None for _, leaf in with_paths]
        for name, aval, (_, leaf) in zip(names, avals, with_paths, strict=True):
            if aval is None or not jnp.issubdtype(aval.dtype, jnp.inexact):
                what = f"{aval.dtype}" if aval is not None else f"{type(leaf).__name__}"
                raise OptionError(
                    f"{who}: {name!r} is of {what}, and a state consists of floating-point arrays.\n"
                    "What does not change from step to step is a parameter."
                )
        dtypes = tuple(np.dtype(aval.dtype) for aval in avals if aval is not None)
        widest = max((jnp.finfo(dtype).dtype for dtype in dtypes), key=lambda d: jnp.finfo(d).bits, default=None)
        widest = np.dtype(np.float32) if widest is None or jnp.finfo(widest).bits < 32 else np.dtype(widest)
        return cls(treedef, names, tuple(aval.shape for aval in avals if aval is not None), dtypes, widest)

    @property
    def sizes(self) -> list[int]:
        """Entries of the vector per leaf."""
        return [
            int(np.prod(shape)) * (2 if np.issubdtype(dtype, np.complexfloating) else 1)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]

    @property
    def owner(self) -> np.ndarray:
        """Per entry of the vector, the number of its leaf."""
        return np.repeat(np.arange(len(self.shapes)), self.sizes)

    def part(self, leaves: np.ndarray) -> Layout:
        """Of some leaves, given as a mask; without their tree."""
        kept = np.flatnonzero(leaves)
        names = tuple(self.names[k] for k in kept)
        shapes = tuple(self.shapes[k] for k in kept)
        dtypes = tuple(self.dtypes[k] for k in kept)
        return Layout(jax.tree_util.tree_structure([0] * len(kept)), names, shapes, dtypes, self.dtype)

    def only(self, leaves: np.ndarray) -> np.ndarray:
        """The entries of some leaves, given as a mask."""
        return np.flatnonzero(leaves[self.owner])

    def vector(self, leaves: Any) -> jax.Array:
        """Leaves in a row."""
        parts = [part for leaf in leaves for part in self._halves(jnp.asarray(leaf))]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, self.dtype)

    def _halves(self, leaf: Any) -> list[Any]:
        halves = [jnp.real(leaf), jnp.imag(leaf)] if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else [leaf]
        return [half.ravel().astype(self.dtype) for half in halves]

    def leaves(self, vector: Any) -> list[Any]:
        """The leaves that a vector stands for."""
        leaves, end = [], 0
        for shape, dtype, size in zip(self.shapes, self.dtypes, self.sizes, strict=True):
            part, end = vector[end : end + size], end + size
            if np.issubdtype(dtype, np.complexfloating):
                part = jax.lax.complex(*(part.reshape(2, -1).astype(jnp.finfo(dtype).dtype)))
            leaves.append(part.reshape(shape).astype(dtype))
        return leaves

    def tree(self, vector: Any) -> Any:
        return self.treedef.unflatten(self.leaves(vector))

    def rms(self, vector: Any) -> jax.Array:
        """The root mean square of each leaf's entries."""
        n = len(self.shapes)
        # In units of the largest entry: squares of what is small or large leave the range of floating point.
        largest = jnp.zeros(n, self.dtype).at[self.owner].max(jnp.abs(vector))
        unit = jnp.where((largest > 0.0) & jnp.isfinite(largest), largest, 1.0)
        sums = jnp.zeros(n, self.dtype).at[self.owner].add((vector / unit[self.owner]) ** 2)
        return unit * jnp.sqrt(sums / jnp.maximum(np.array(self.sizes), 1).astype(self.dtype))

    def spread(self, per_leaf: Any) -> jax.Array:
        """A number per leaf, as one per entry."""
        return per_leaf[self.owner]


def power_of_two(size: Any) -> Any:
    """One of that magnitude, to divide by at the cost of no digit; 1 for what is zero or not finite."""
    _, exponent = jnp.frexp(size)
    return jnp.where((size > 0.0) & jnp.isfinite(size), jnp.ldexp(jnp.ones_like(size), exponent - 1), 1.0)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex | int) and not (
        isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "OSUMm"
    )
