"""Curvature that a driver remembers, without the entries that its next step must not mix in.

L-BFGS multiplies the gradient by a matrix. With bounds that matrix must not carry the slope of a free entry over to
one that is held at its bound, nor the slope of a held one to the free ones: what the search is told would not be the
slope of the path that it walks, and it would creep. Taking the held entries out of the remembered pairs leaves a matrix
in two blocks, one that approximates the inverse Hessian of the free entries and a multiple of the identity for the
rest; with such a matrix, minus the gradient times it is a way down along the projected path.

Source: the two-metric projection of Bertsekas, Projected Newton methods (SIAM J. Control Optim. 20, 1982); with pairs
of free entries only, as Kim, Sra and Dhillon, Tackling box-constrained optimization (SIAM J. Sci. Comput. 32, 2010).

Works on Optax's own state, wherever it lies in that of a driver, so an object or a chain is treated as the driver by
name is. All functions are pure.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, Float, PyTree

from tesseract_flow.optimize.bounds import Box

# An entry whose step would leave the box within this part of it is out as well: a path that bends so early is down only
# as far as the bend. Bertsekas takes a distance from the bound, which depends on how the design is scaled.
_EARLY = 0.1


def has_memory(state: PyTree) -> bool:
    """Whether a driver's state holds pairs of L-BFGS."""
    return any(map(_is_memory, jax.tree.leaves(state, is_leaf=_is_memory)))


def without_held(box: Box, u: PyTree, gradient: PyTree, state: PyTree) -> PyTree:
    """The driver's state before an update at `u`, with pairs of entries that are free there, and of no others.

    What is taken out does not come back: it is about another piece of the path. Of pairs along which the free part has
    no positive curvature nothing is used; where no pair is left the driver begins anew.
    """
    held, pushed = box.held(u, gradient), box.projected_gradient(u, gradient)

    def of_free(memory: Any) -> Any:
        if not _is_memory(memory):
            return memory
        own = _matching((held, u, pushed, box.lower, box.upper), memory.params)
        if own is None:
            return memory  # of something else than the design, such as its entries in one vector
        held_here, u_here, pushed_here, lower, upper = own
        view = _restricted(memory, held_here, u_here, pushed_here)
        # As Optax computes it, from a memory of the same size.
        ahead, _ = optax.scale_by_lbfgs(memory.weights_memory.shape[0]).update(pushed_here, view, u_here)
        bends = jax.tree.map(_bends_early, u_here, pushed_here, ahead, lower, upper)
        out = jax.tree.map(lambda at_bound, bend: at_bound | ((view.count > 0) & bend), held_here, bends)
        return _restricted(memory, out, u_here, pushed_here)

    return jax.tree.map(of_free, state, is_leaf=_is_memory)


def _is_memory(node: Any) -> bool:
    return isinstance(node, optax.ScaleByLBFGSState)


def _matching(trees: tuple[PyTree, ...], like: PyTree) -> tuple[PyTree, ...] | None:
    """Of each tree the leaves that `like` has too, in its structure: a driver may have been given a part of the design.
    `None` where it is no part of it."""
    named, treedef = jtu.tree_flatten_with_path(like)
    found = []
    for tree in trees:
        known = dict(jtu.tree_leaves_with_path(tree))
        if not all(path in known and known[path].shape == leaf.shape for path, leaf in named):
            return None
        found.append(treedef.unflatten([known[path] for path, _ in named]))
    return tuple(found)


def _bends_early(x: Array, slope: Array, ahead: Array, lower: Array, upper: Array) -> Bool[Array, ...]:
    """Whether the step `-ahead`, towards a bound that the slope pushes to as well, is there within a part of it."""
    reached = x - jnp.asarray(_EARLY, x.dtype) * ahead
    return ((slope > 0) & (ahead > 0) & (reached <= lower)) | ((slope < 0) & (ahead < 0) & (reached >= upper))


def _restricted(memory: Any, out: PyTree, u: PyTree, pushed: PyTree) -> Any:
    """The memory, with the pair that the update would add, in which the entries `out` are zero."""
    n, dtype = memory.weights_memory.shape[0], memory.weights_memory.dtype
    newest_row, is_first = (memory.count - 1) % n, memory.count == 0

    def rows(known: Array, now: Array, before: Array, is_out: Array, stayed: Array) -> Array:
        # What an entry that stayed has to say is what released it, which is no curvature.
        newest = jnp.where(is_first | stayed, jnp.zeros_like(now), now - before)
        return jnp.where(is_out, jnp.zeros_like(known), known.at[newest_row].set(newest))

    stayed = jax.tree.map(jnp.equal, u, memory.params)
    moves = jax.tree.map(rows, memory.diff_params_memory, u, memory.params, out, stayed)
    changes = jax.tree.map(rows, memory.diff_updates_memory, pushed, memory.updates, out, stayed)
    products, squares, steps = (_by_row(a, b, dtype) for a, b in ((moves, changes), (changes, changes), (moves, moves)))
    rounding = 100 * float(jnp.finfo(dtype).eps)
    is_curved = products > rounding * jnp.sqrt(squares * steps)
    weights = jnp.where(is_curved, 1 / jnp.where(is_curved, products, jnp.ones_like(products)), 0.0)
    any_curved = is_curved.any()
    # The update adds the difference to these once more, and takes the size of its first guess from there. A pair that
    # is the newest twice is as good as once; one without curvature would spoil the guess.
    age = (memory.count - 1 - jnp.arange(n)) % n
    newest = jnp.argmin(jnp.where(is_curved, age, n))

    def before(now: Array, differences: Array) -> Array:
        return now - differences[newest]

    def kept(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.where(any_curved, leaf, jnp.zeros_like(leaf)), tree)

    return optax.ScaleByLBFGSState(
        count=jnp.where(any_curved, memory.count, jnp.zeros_like(memory.count)),
        params=jax.tree.map(before, u, moves),
        updates=jax.tree.map(before, pushed, changes),
        diff_params_memory=kept(moves),
        diff_updates_memory=kept(changes),
        weights_memory=kept(weights.astype(dtype)),
    )


def _by_row(a: PyTree, b: PyTree, dtype: Any) -> Float[Array, " n"]:
    """The inner product of each pair of rows."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((x * y).reshape(x.shape[0], -1).sum(axis=1).astype(dtype) for x, y in pairs)  # type: ignore[return-value]
