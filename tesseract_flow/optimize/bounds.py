"""Bounds by projection: a box, the nearest point in it, and the part of a gradient that can still move the design.

All functions are pure and work leaf by leaf on trees of arrays. Where the box comes from (user-given prefixes) is
settled once, in `box_from`.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.autodiff.prefixes import as_leaf_array, path_name, spread
from tesseract_flow.errors import BoundsError
from tesseract_flow.optimize.partition import Partition


class Box(eqx.Module):
    """Lower and upper bounds, one array per varying leaf; infinite where there is no bound."""

    lower: PyTree
    upper: PyTree

    def project(self, point: PyTree) -> PyTree:
        """Nearest point inside the box, in the Euclidean norm."""
        return jax.tree.map(jnp.clip, point, self.lower, self.upper)

    def contains(self, point: PyTree) -> bool:
        inside = jax.tree.map(lambda x, lo, hi: bool(((x >= lo) & (x <= hi)).all()), point, self.lower, self.upper)
        return all(jax.tree.leaves(inside))

    @property
    def is_finite(self) -> bool:
        """Whether every entry has both bounds."""
        return all(bool(jnp.isfinite(bound).all()) for bound in jax.tree.leaves((self.lower, self.upper)))

    def projected_gradient(self, point: PyTree, gradient: PyTree) -> PyTree:
        """The gradient without the components that push against an active bound.

        Zero exactly where `point` satisfies the first-order conditions of the bound-constrained problem. Also right
        for a point outside the box whose projection was evaluated: the projection is constant there, hence so is the
        objective.

        Source: Nocedal & Wright, Numerical Optimization (2006), section 16.7 and equation (16.72).
        """

        def leaf(x, g, lo, hi):
            blocked = ((x <= lo) & (g > 0)) | ((x >= hi) & (g < 0)) | (x < lo) | (x > hi)
            return jnp.where(blocked, jnp.zeros_like(g), g)

        return jax.tree.map(leaf, point, gradient, self.lower, self.upper)

    def reachable_gradient(self, point: PyTree, gradient: PyTree, sizes: PyTree) -> PyTree:
        """The gradient, each entry by the part of its leaf's size that the design may move against it inside the box.

        Zero where `projected_gradient` is, and small next to a bound, where there is nearly nothing to win: for points
        that come close to an active bound and never meet it, as those of interior-point methods.

        Args:
            sizes: a scalar per leaf.
        """

        def leaf(x, g, lo, hi, size):
            room = jnp.where(g > 0, x - lo, hi - x)
            return g * jnp.clip(room / size.astype(room.dtype), 0, 1)

        return jax.tree.map(leaf, point, gradient, self.lower, self.upper, sizes)

    def held(self, point: PyTree, gradient: PyTree) -> PyTree:
        """Where `point` lies at a bound that minus the gradient pushes against."""

        def leaf(x, g, lo, hi):
            return ((x <= lo) & (g > 0)) | ((x >= hi) & (g < 0))

        return jax.tree.map(leaf, point, gradient, self.lower, self.upper)

    @property
    def is_bounded(self) -> bool:
        """Whether there is a bound at all."""
        return any(bool(jnp.isfinite(side).any()) for side in jax.tree.leaves((self.lower, self.upper)))

    def scaled(self, partition: Partition) -> Box:
        """The same box for the scaled design."""
        return Box(partition.to_scaled(self.lower), partition.to_scaled(self.upper))


def box_from(bounds: tuple[PyTree, PyTree] | None, varying: PyTree) -> Box:
    """The box that `bounds=(lower, upper)` describes; each may be `None`, a number, or a prefix of the varying part.

    Raises:
        BoundsError: not a pair, a shape that does not fit, NaN, or some `lower > upper`; the message lists the indices.
    """
    if bounds is None:
        bounds = (None, None)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise BoundsError(
            f"bounds must be a pair (lower, upper), received {bounds!r}.\n"
            "Use None for a missing side: bounds=(0.0, None)."
        )
    paths_and_leaves, treedef = jtu.tree_flatten_with_path(varying)
    sides = []
    for what, side, default in zip(("lower bound", "upper bound"), bounds, (-np.inf, np.inf), strict=True):
        given = spread(side, varying, what=what, error=BoundsError)
        sides.append(
            [
                as_leaf_array(default if value is None else value, leaf, path_name(path), what, BoundsError)
                for (path, leaf), value in zip(paths_and_leaves, given, strict=True)
            ]
        )
    for (path, _), lower, upper in zip(paths_and_leaves, *sides, strict=True):
        _refuse_empty(path_name(path), lower, upper)
    lower, upper = (treedef.unflatten([jnp.asarray(array) for array in side]) for side in sides)
    return Box(lower, upper)


def _refuse_empty(name: str, lower: np.ndarray, upper: np.ndarray) -> None:
    # Written so that NaN fails too.
    wrong = np.argwhere(~(lower <= upper))
    if not len(wrong):
        return
    sides = [
        f"{f'{index.tolist()}: ' if lower.ndim else ''}lower {lower[tuple(index)]} > upper {upper[tuple(index)]}"
        for index in wrong[:8]
    ]
    shown = "; ".join(sides)
    what = f"{len(wrong)} {'entry' if len(wrong) == 1 else 'entries'} with " if lower.ndim else ""
    is_unknown = np.isnan(lower).any() or np.isnan(upper).any()
    raise BoundsError(
        f"No design satisfies the bounds of '{name}': expected lower <= upper, received {what}"
        f"{shown}{'; ...' if len(wrong) > 8 else ''}.\n"
        + (
            "NaN is no limit; where there is none, give None, or -inf and inf."
            if is_unknown
            else "Swap the sides, or correct these entries."
        )
    )
