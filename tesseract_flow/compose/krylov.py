"""GMRES in traced code: what it asks of an operator is a call like any other, and it says how far it got.

Lineax and `jax.scipy` have it too. The one hides the operator from whoever wants to run its calls side by side, the
other keeps to itself whether it converged, and wants an operator whose transpose JAX can find.

Source: Y. Saad and M. H. Schultz, GMRES: A generalized minimal residual algorithm for solving nonsymmetric linear
systems, SIAM Journal on Scientific and Statistical Computing 7 (1986), 856-869.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tesseract_flow.compose.layout import power_of_two
from tesseract_flow.errors import OptionError


@dataclasses.dataclass(frozen=True)
class Gmres:
    """How linear systems behind derivatives are solved.

    Attributes:
        rtol: what may be left of the right-hand side, in its norm; default the square root of the rounding error.
        size: directions that are kept, each as long as the state; with so many a cycle ends, and the next begins.
        cycles: how many there may be.
    """

    rtol: float | None = None
    size: int = 50
    cycles: int = 10

    def __post_init__(self) -> None:
        if self.rtol is not None and not 0.0 < self.rtol < 1.0:
            raise OptionError(f"Gmres: rtol={self.rtol!r}; expected a number between 0 and 1.")
        if self.size < 1 or self.cycles < 1:
            raise OptionError(f"Gmres: size={self.size!r} and cycles={self.cycles!r} must be 1 or more.")

    def tolerance(self, dtype: Any) -> float:
        return self.rtol if self.rtol is not None else float(jnp.finfo(dtype).eps) ** 0.5


class Basis(NamedTuple):
    """An Arnoldi process under way: A V = V H, and H made triangular by rotations as it grows."""

    vectors: Any
    hessenberg: Any
    rotations: Any
    n: Any
    left: Any  # norm of the residual
    is_closed: Any  # whether the operator leads nowhere else


def cycle(apply: Callable[[Any], Any], rhs: Any, tolerance: Any, size: int) -> tuple[Any, Any, Any]:
    """x with `apply(x)` close to `rhs`, the norm of what is left (by recurrence), and how often `apply` was asked.

    Ends at the tolerance, an absolute one, or with `size` directions. Where nothing is to be done nothing is asked.
    """
    size = min(size, rhs.size)
    dtype = rhs.dtype
    beta = jnp.linalg.norm(rhs)
    first = Basis(
        jnp.zeros((size + 1, rhs.size), dtype).at[0].set(rhs / jnp.where(beta > 0.0, beta, 1.0)),
        jnp.zeros((size + 1, size), dtype),
        jnp.eye(size + 1, dtype=dtype),
        jnp.asarray(0),
        beta,
        jnp.asarray(False),
    )

    def goes_on(basis: Basis) -> Any:
        return (basis.n < size) & (basis.left > tolerance) & ~basis.is_closed

    def extend(basis: Basis) -> Basis:
        k = basis.n
        # Of many systems under vmap some have ended: along zeros nobody is asked.
        vector = jnp.where(goes_on(basis), basis.vectors[k], 0.0)
        new = apply(vector)
        length = jnp.linalg.norm(new)
        parts = basis.vectors @ new
        new = new - parts @ basis.vectors
        again = basis.vectors @ new  # once is not enough for orthogonality to the last digits
        new, parts = new - again @ basis.vectors, parts + again
        rest = jnp.linalg.norm(new)
        is_closed = rest <= 10.0 * jnp.finfo(dtype).eps * length
        rest = jnp.where(is_closed, 0.0, rest)
        column = parts.at[k + 1].set(rest)
        rotated = basis.rotations @ column
        a, b = rotated[k], rotated[k + 1]
        radius = jnp.hypot(a, b)
        safe = jnp.where(radius > 0.0, radius, 1.0)
        cosine, sine = jnp.where(radius > 0.0, a / safe, 1.0), b / safe
        upper, lower = basis.rotations[k], basis.rotations[k + 1]
        turned = basis.rotations.at[k].set(cosine * upper + sine * lower)
        turned = turned.at[k + 1].set(cosine * lower - sine * upper)
        return Basis(
            basis.vectors.at[k + 1].set(new / jnp.where(is_closed, 1.0, rest)),
            basis.hessenberg.at[:, k].set(column),
            turned,
            k + 1,
            jnp.where(radius > 0.0, beta * jnp.abs(turned[k + 1, 0]), basis.left),
            is_closed,
        )

    basis = jax.lax.while_loop(goes_on, extend, first)
    triangle, target = (basis.rotations @ basis.hessenberg)[:size], beta * basis.rotations[:size, 0]
    # Directions that were not used, or lead nowhere, are left out.
    is_used = (jnp.arange(size) < basis.n) & (jnp.diagonal(triangle) != 0.0)
    triangle = jnp.where(is_used[:, None], triangle, jnp.eye(size, dtype=dtype))
    weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(is_used, target, 0.0))
    return weights @ basis.vectors[:size], basis.left, basis.n


class Solved(NamedTuple):
    """Attributes:
    x: the solution.
    beside: what else `apply` gave for it.
    left: norm of the true residual, relative to the right-hand side, at the start and after each cycle.
    is_solved: whether the last of these is small enough.
    n_asked: how often `apply` was asked.
    """

    x: Any
    beside: Any
    left: Any
    is_solved: Any
    n_asked: Any


def solve(apply: Callable[[Any], tuple[Any, Any]], rhs: Any, settings: Gmres, rtol: float) -> Solved:
    """x with `apply(x)[0] = rhs`, checked by applying it to the solution: what else it gives there is the answer.

    Solved for a right-hand side of about one, and what is found is multiplied: `apply` is linear, and the squares of
    a small cotangent underflow. By a power of two, which costs no digit.
    """
    unit = power_of_two(jnp.max(jnp.abs(rhs), initial=0.0))
    rhs = rhs / unit
    norm = jnp.linalg.norm(rhs)
    goal = rtol * norm
    beside = jax.tree_util.tree_map(lambda aval: jnp.zeros(aval.shape, aval.dtype), jax.eval_shape(apply, rhs)[1])
    safe = jnp.where(norm > 0.0, norm, 1.0)
    history = jnp.full(settings.cycles + 1, jnp.nan, rhs.dtype).at[0].set(norm / safe)
    asked = jnp.asarray(0)

    def goes_on(state: Any) -> Any:
        n, _, _, rest, before, _, _ = state
        left = jnp.linalg.norm(rest)
        return (n < settings.cycles) & (left > goal) & (left < 0.9 * before)

    def improve(state: Any) -> Any:
        n, x, _, rest, _, history, asked = state
        before = jnp.linalg.norm(rest)
        # Half of it, as the true residual differs from that of the recurrence by rounding.
        dx, _, n_directions = cycle(lambda v: apply(v)[0], rest, 0.5 * goal, settings.size)
        x = x + dx
        image, beside = apply(x)
        rest = rhs - image
        history = history.at[n + 1].set(jnp.linalg.norm(rest) / safe)
        return n + 1, x, beside, rest, before, history, asked + n_directions + 1

    start = jnp.asarray(0), jnp.zeros_like(rhs), beside, rhs, 2.0 * norm, history, asked
    _, x, beside, rest, _, history, asked = jax.lax.while_loop(goes_on, improve, start)
    x, beside = jax.tree_util.tree_map(
        lambda leaf: leaf * unit.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, (x, beside)
    )
    return Solved(x, beside, history, jnp.linalg.norm(rest) <= goal, asked)
