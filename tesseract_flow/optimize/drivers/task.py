"""The problem as a library sees it: one flat vector, bounds and limits as arrays.

Unknowns are the entries of the scaled design that can move; an entry whose bounds are equal is left out. Values are the
objective over its size, and of each demand the entries in units of its measure, so a library's absolute thresholds mean
the same in every problem. All functions are pure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import ConstraintSet, Duals
from tesseract_flow.optimize.oracle import Derivatives
from tesseract_flow.optimize.partition import Partition
from tesseract_flow.optimize.promised import Promised


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a library is given, and nothing of it changes while it runs.

    Attributes:
        start: where it begins.
        lower, upper: bounds of the unknowns; infinite where there is none.
        limits: lower and upper ones of the constraints' entries; equal for an equality.
        is_linear: which of these are A x + b for good.
        linear: of them A, a row each, and b.
    """

    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    limits: tuple[np.ndarray, np.ndarray]
    is_linear: np.ndarray
    linear: tuple[np.ndarray, np.ndarray]

    @property
    def n(self) -> int:
        return len(self.start)

    @property
    def is_equal(self) -> np.ndarray:
        """Which constraints are equalities."""
        return self.limits[0] == self.limits[1]

    @property
    def has_bounds(self) -> bool:
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())


class Flat:
    """The way between trees and flat vectors of all entries, and to the unknowns among them.

    Args:
        like: the scaled design's start; of it structure, shapes and dtypes count, and entries that cannot move.

    Attributes:
        is_free: which entries are unknowns.
        lower, upper: bounds of all entries.
        limits: lower and upper ones of the entries of all demands.
    """

    def __init__(self, like: PyTree, box: Box, constraints: ConstraintSet, partition: Partition):
        leaves, self._treedef = jax.tree.flatten(like)
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._shapes = [leaf.shape for leaf in leaves]
        self._ends = np.cumsum([leaf.size for leaf in leaves])
        self._box, self._constraints, self._partition = box, constraints, partition
        self.lower, self.upper = self.vector(box.lower), self.vector(box.upper)
        self.is_free = self.lower < self.upper
        self._start = self.vector(box.project(like))
        self._keys = list(constraints.names)
        self.limits = (
            _chained([constraints.lower[key] for key in self._keys]),
            _chained([constraints.upper[key] for key in self._keys]),
        )

    @property
    def n(self) -> int:
        return len(self._start)

    @property
    def n_constraints(self) -> int:
        return len(self.limits[0])

    @property
    def names(self) -> list[str]:
        """Of the constraint that each entry is of."""
        known = self._constraints
        return [known.names[key] for key in self._keys for _ in range(known.size[key].size)]

    def task(self, unknowns: np.ndarray, promised: Promised | None = None) -> Task:
        """What is given to a library that begins at these unknowns."""
        is_free, is_linear = self.is_free, np.zeros(self.n_constraints, bool)
        rows, rest = np.empty((0, len(unknowns))), np.empty(0)
        if promised is not None:
            is_linear = promised.is_linear
            rows = promised.rows[is_linear][:, is_free]
            rest = promised.values[is_linear] - rows @ promised.at[is_free]
        return Task(unknowns, self.lower[is_free], self.upper[is_free], self.limits, is_linear, (rows, rest))

    def vector(self, tree: PyTree) -> np.ndarray:
        """All entries, in double precision."""
        return _chained(jax.tree.leaves(tree))

    def unknowns(self, u: PyTree) -> np.ndarray:
        return self.vector(u)[self.is_free]

    def design(self, unknowns: np.ndarray) -> PyTree:
        """The scaled design, inside its bounds."""
        full = self._start.copy()
        full[self.is_free] = unknowns
        return self._box.project(self.tree(full))

    def tree(self, vector: np.ndarray) -> PyTree:
        """A vector of all entries as a tree of the design's shapes and dtypes."""
        parts = zip(np.split(vector, self._ends[:-1]), self._shapes, self._dtypes, strict=True)
        return self._treedef.unflatten([jnp.asarray(part.reshape(shape), dtype) for part, shape, dtype in parts])

    def values(self, constraints: Mapping[str, Array], duals: Duals) -> np.ndarray:
        """The entries of all demands, in units of their measures."""
        scaled = self._constraints.scaled(constraints, duals)
        return _chained([scaled[key] for key in self._keys])

    def sizes(self, duals: Duals) -> np.ndarray:
        """What the entries of all demands are measured in."""
        sizes = self._constraints.sizes(duals)
        return _chained([sizes[key] for key in self._keys])

    def gradient(self, derivatives: Derivatives) -> np.ndarray:
        """Of the objective, with respect to the scaled design."""
        return self.vector(self._partition.scale_gradient(derivatives.gradient))

    def jacobian(self, derivatives: Derivatives, duals: Duals) -> np.ndarray:
        """A row for each entry of each demand, in units of its measure; zeros where it was not asked for."""
        sizes, rows = self._constraints.sizes(duals), []
        for key in self._keys:
            size = np.asarray(sizes[key], np.float64)
            if (found := derivatives.jacobians.get(self._constraints.names[key])) is None:
                rows.append(np.zeros((size.size, self.n)))
                continue
            jacobian = self._partition.scale_gradient(found)
            parts = [
                np.asarray(leaf, np.float64).reshape(size.size, math.prod(leaf.shape[size.ndim :]))
                for leaf in jax.tree.leaves(jacobian)
            ]
            rows.append(np.concatenate(parts, axis=1) / size.reshape(-1, 1))
        return np.concatenate(rows) if rows else np.empty((0, self.n))

    def by_demand(self, vector: np.ndarray) -> dict[str, Array]:
        """One number for each entry of each demand, as arrays of their shapes."""
        found, position = {}, 0
        for key in self._keys:
            size = self._constraints.size[key]
            part = vector[position : position + size.size]
            found[key] = jnp.asarray(part.reshape(size.shape), size.dtype)
            position += size.size
        return found


def _chained(arrays: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.empty(0), *(np.asarray(array, np.float64).ravel() for array in arrays)])
