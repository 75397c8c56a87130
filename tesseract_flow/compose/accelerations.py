"""Solvers that ask for one round per step: sweeps as they are, and what is made of the last few of them.

Each works on a state whose leaves have been scaled to the same size.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tesseract_flow.compose.system import Found, System, begin
from tesseract_flow.compose.verdicts import GROWS
from tesseract_flow.errors import OptionError

_TOO_FAR = 1e8  # times the residual of the start: it will not come back
_N_FOLLOW = 3  # steps from a start that would do: the second is the first one that has seen a step


class AbstractAcceleration(abc.ABC):
    """What the next state is, after a state x and what a round has left there, r = phi(x) - x."""

    @abc.abstractmethod
    def start(self, x: Any) -> Any:
        """What is remembered before anything was seen: arrays."""

    @abc.abstractmethod
    def propose(self, memory: Any, n: Any, x: Any, r: Any) -> tuple[Any, Any]:
        """The next state, and what is remembered. n: steps before this one."""

    def solve(self, system: System, x: Any) -> Found:
        start, known = begin(system, x, _N_FOLLOW)
        at_start = jnp.linalg.norm(known.weights * start.residual)

        def goes_on(state: Any) -> Any:
            return state[0].goes_on(system)

        def step(state: Any) -> Any:
            found, memory = state
            scaled, memory = self.propose(
                memory, found.n_steps, known.weights * found.x, known.weights * found.residual
            )
            x = scaled / known.weights
            now = found.after(system, known, x, *system.residual(x), 1)
            # Not the relative residual, as the state grows with it.
            is_lost = jnp.linalg.norm(known.weights * now.residual) > _TOO_FAR * at_start
            return now._replace(status=jnp.where(is_lost, GROWS, now.status)), memory

        return jax.lax.while_loop(goes_on, step, (start, self.start(x)))[0].or_start(start)


@dataclasses.dataclass(frozen=True)
class Picard(AbstractAcceleration):
    """x + damping * r. With components by name all of them at once, from the state before."""

    damping: float = 1.0
    is_sweep_at_once: bool = dataclasses.field(default=True, repr=False)

    def __post_init__(self) -> None:
        _positive(self, "damping")

    def __str__(self) -> str:
        return "picard" if self.is_sweep_at_once else "gauss-seidel"

    def start(self, x: Any) -> Any:
        return ()

    def propose(self, memory: Any, n: Any, x: Any, r: Any) -> tuple[Any, Any]:
        return x + self.damping * r, memory


def GaussSeidel(damping: float = 1.0) -> Picard:
    """The same with components one after the other, each from what those before it have just given."""
    return Picard(damping, is_sweep_at_once=False)


@dataclasses.dataclass(frozen=True)
class Aitken(AbstractAcceleration):
    """x + omega * r, with the omega that would have been best for the last step.

    Attributes:
        first: omega of the first step.

    Source: U. Küttler and W. A. Wall, Fixed-point fluid-structure interaction solvers with dynamic relaxation,
    Computational Mechanics 43 (2008), 61-72, equation 44 (after Irons and Tuck 1969).
    """

    first: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "first")

    def __str__(self) -> str:
        return "aitken"

    def start(self, x: Any) -> Any:
        return jnp.asarray(self.first, x.dtype), jnp.zeros_like(x)

    def propose(self, memory: Any, n: Any, x: Any, r: Any) -> tuple[Any, Any]:
        omega, before = memory
        change = r - before
        square = change @ change
        better = -omega * (before @ change) / jnp.where(square > 0.0, square, 1.0)
        omega = jnp.where((n > 0) & (square > 0.0) & (better != 0.0), better, omega)
        return x + omega * r, (omega, r)


@dataclasses.dataclass(frozen=True)
class Anderson(AbstractAcceleration):
    """The best combination of the last rounds, type II: least squares over their residuals.

    Attributes:
        depth: how many are remembered.
        damping: of the residual of the combination.

    Source: H. F. Walker and P. Ni, Anderson acceleration for fixed-point iterations, SIAM Journal on Numerical
    Analysis 49 (2011), 1715-1735.
    """

    depth: int = 5
    damping: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "depth", "damping")

    def __str__(self) -> str:
        return "anderson"

    def start(self, x: Any) -> Any:
        shape = (min(self.depth, max(x.size, 1)), x.size)
        return jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype), jnp.zeros_like(x), jnp.zeros_like(x)

    def propose(self, memory: Any, n: Any, x: Any, r: Any) -> tuple[Any, Any]:
        moves, changes, x_before, r_before = memory
        row = jnp.where(n > 0, (n - 1) % moves.shape[0], 0)
        moves = moves.at[row].set(jnp.where(n > 0, x - x_before, moves[row]))
        changes = changes.at[row].set(jnp.where(n > 0, r - r_before, changes[row]))
        # To the same length, so that old and large changes do not hide the new ones from the rank.
        lengths = jnp.linalg.norm(changes, axis=1)
        scaled = changes / jnp.where(lengths > 0.0, lengths, 1.0)[:, None]
        weights = jnp.linalg.lstsq(scaled.T, r)[0] / jnp.where(lengths > 0.0, lengths, 1.0)
        new = x + self.damping * r - weights @ (moves + self.damping * changes)
        return new, (moves, changes, x, r)


@dataclasses.dataclass(frozen=True)
class Broyden(AbstractAcceleration):
    """Quasi-Newton with the inverse Jacobian kept as a few updates of rank one (Broyden's good method).

    Attributes:
        memory: how many; then it starts over.
        first: the inverse Jacobian at the start, as a multiple of the identity.

    Source: C. T. Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), chapter 7.
    """

    memory: int = 30
    first: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "memory", "first")

    def __str__(self) -> str:
        return "broyden"

    def start(self, x: Any) -> Any:
        rows = jnp.zeros((self.memory, x.size), x.dtype)
        return rows, rows, jnp.asarray(0), jnp.zeros_like(x), jnp.zeros_like(x)

    def propose(self, memory: Any, n: Any, x: Any, r: Any) -> tuple[Any, Any]:
        left, right, count, x_before, r_before = memory

        def inverse(v: Any, left: Any, right: Any) -> Any:
            return self.first * v + (right @ v) @ left

        move, change = x - x_before, r_before - r  # change of x - phi(x)
        image = inverse(change, left, right)
        along = move @ image
        is_usable = (n > 0) & (jnp.abs(along) > 1e-12 * (move @ move))
        is_full = count >= self.memory
        left, right, count = (jnp.where(is_full & is_usable, jnp.zeros_like(a), a) for a in (left, right, count))
        image = jnp.where(is_full, self.first * change, image)
        along = jnp.where(is_usable, move @ image, 1.0)
        row = jnp.minimum(count, self.memory - 1)
        turned = self.first * move + (left @ move) @ right  # the transpose of the inverse, applied
        left = left.at[row].set(jnp.where(is_usable, (move - image) / along, left[row]))
        right = right.at[row].set(jnp.where(is_usable, turned, right[row]))
        count = count + is_usable.astype(count.dtype)
        return x + inverse(r, left, right), (left, right, count, x, r)


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise OptionError(f"{type(settings).__name__}: {name}={value!r}; expected a positive number.")
