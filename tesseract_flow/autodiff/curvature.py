"""Hessian-vector products by differences of gradients.

Tesseracts have no second derivatives, and a Hessian through one is refused. Where curvature is wanted all the same,
this is an honest way to it, with an error that one can state; it has a name of its own, and nothing falls back to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.autodiff.judging import AbstractCase, judged
from tesseract_flow.autodiff.stepping import moved, real, speed
from tesseract_flow.errors import OptionError

PyTree = Any
_ROUNDINGS = 100.0  # of an entry: less of a step is not felt


def hvp(
    fn: Callable[[PyTree], Any],
    x: PyTree,
    v: PyTree,
    *,
    method: Literal["central", "forward"] = "central",
    noise: float | None = None,
) -> PyTree:
    """H·v for the Hessian H of a scalar function at `x`: a difference of two gradients along `v`.

    Costs two gradients, which `tesseract_flow.concurrent` runs at once: `concurrent(lambda x, v: hvp(loss, x, v))`.
    The step moves no entry x_i by more than `noise**p * s_i`, where s_i = max(|x_i|, the array's largest magnitude up
    to 1), with p = 1/3 for central differences and 1/2 for forward ones. The result is symmetric only up to its error,
    which is about noise**(2/3), or noise**(1/2), of its size for a function whose gradient varies on the scale of x by
    as much as it is large. What is larger in the gradient and does not vary hides it: the error is noise |g| / h, for a
    gradient g and a step h.

    Args:
        fn: tree -> scalar, differentiable once by `jax.grad`.
        x: where. Leaves other than floating-point arrays are constants, and None in the result.
        v: a tree like `x`, the direction; what stands at its constant leaves does not matter.
        method: `"central"` takes the gradients at x + h v and x - h v, `"forward"` at x + h v and x: less exact, for
            where the other side of x is out of bounds. (If the gradient at x is needed anyway, one jitted or
            concurrent function computes it once.)
        noise: relative error of the gradients; default the rounding error of the dtype. Iterative solvers have a larger
            one, say their tolerance.

    Raises:
        OptionError: an unknown method, a noise outside of (0, 1), trees that do not match, or entries of so different
            a size that one step does not move all that v moves.

    Source: J. Nocedal and S. J. Wright, Numerical Optimization (2006), sections 8.1 and 8.2.
    """
    if method not in ("central", "forward"):
        raise OptionError(f"hvp: method={method!r}; expected 'central' or 'forward'.")
    if noise is not None and not 0.0 < noise < 1.0:
        raise OptionError(f"hvp: noise={noise}; expected a relative error between 0 and 1.")
    varying, constant = eqx.partition(x, eqx.is_inexact_array)
    direction = _direction(varying, v)
    leaves = jax.tree_util.tree_leaves(varying)
    if not leaves:
        return varying
    if noise is None:
        noise = max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    h = noise ** (1 / 3 if method == "central" else 1 / 2) / speed(varying, direction)
    can_tell = judged(_Unmoved(), _moves(varying, h, direction))

    def gradient(step: Any) -> PyTree:
        return jax.grad(lambda tree: fn(eqx.combine(tree, constant)))(moved(varying, step, direction))

    if method == "central":
        high, low, width = gradient(h), gradient(-h), 2.0 * h
    else:
        high, low, width = gradient(h), gradient(0.0 * h), h

    def quotient(a: Any, b: Any) -> Any:
        found = ((a - b) / width.astype(real(a.dtype))).astype(a.dtype)
        return jnp.where(can_tell, found, jnp.full_like(found, jnp.nan))

    return jax.tree_util.tree_map(quotient, high, low)


@dataclasses.dataclass(frozen=True)
class _Unmoved(AbstractCase):
    """A step that some entries do not feel."""

    def fault(self, where: tuple[int, ...], is_good: np.ndarray, *facts: np.ndarray) -> OptionError:
        return OptionError(
            "hvp: the entries of x and v are of such different size that the step which moves one of them by its part "
            "moves another one by no more than its rounding.\n"
            "H v is linear in v: ask for it with the small and the large entries of v apart, the others zero."
        )


def _moves(varying: PyTree, h: Any, direction: PyTree) -> Any:
    """Whether each entry that is to move moves by many of its roundings."""

    def of(x: Any, v: Any) -> Any:
        least = _ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.abs(x)
        return jnp.all((v == 0) | (jnp.abs(h * v) >= least))

    return jnp.all(jnp.stack(jax.tree_util.tree_leaves(jax.tree_util.tree_map(of, varying, direction))))


def _direction(varying: PyTree, v: PyTree) -> PyTree:
    """The leaves of `v` that belong to those of `varying`."""
    wanted, treedef = jax.tree_util.tree_flatten(varying, is_leaf=lambda leaf: leaf is None)
    given = treedef.flatten_up_to(v) if _fits(treedef, v) else None
    if given is None or any(a is not None and jnp.shape(a) != jnp.shape(b) for a, b in zip(wanted, given, strict=True)):
        raise OptionError(
            "hvp: v must be a tree like x, with arrays of the same shapes.\n"
            f"x has {jax.tree_util.tree_map(jnp.shape, varying)}, v is {jax.tree_util.tree_map(jnp.shape, v)}."
        )
    return treedef.unflatten(
        [None if a is None else jnp.asarray(b, a.dtype) for a, b in zip(wanted, given, strict=True)]
    )


def _fits(treedef: Any, v: PyTree) -> bool:
    try:
        treedef.flatten_up_to(v)
    except (ValueError, TypeError):
        return False
    return True
