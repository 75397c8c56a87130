"""What solvers solve: a residual of a vector, one round through the components, and when it is small enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tesseract_flow.compose.layout import Layout, power_of_two
from tesseract_flow.compose.verdicts import FAR

_FAR = 0.01  # of the state
# A start that would do is left all the same: the state follows parameters that have moved by less than the tolerance
# shows. To this part of what was left there, as far as a few steps do it.
_FOLLOWED = 0.1
_ROUNDING = 10.0  # rounding errors of the state, below which there is nothing to follow

# x -> what is left at x (phi(x) - x, or -R(x)), and what else the round has given
Residual = Callable[[Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """Attributes:
    residual: one round.
    layout: of the vector.
    rtol: of each leaf's residual, relative to the leaf; to what it was at the start where the residual is another
        quantity than the state.
    atol: the same in the leaf's own unit, per leaf.
    is_map: whether the residual is the difference of two states.
    max_steps: how many there may be.
    yardstick: what it was at the start -> what counts as that.
    follows: whether a start that would do is left all the same.
    """

    residual: Residual
    layout: Layout
    rtol: float
    atol: tuple[float, ...]
    is_map: bool
    max_steps: int
    yardstick: Callable[[Any], Any]
    follows: Any


class Measure(NamedTuple):
    """What counts as large, found at the start.

    Attributes:
        start: magnitude per leaf of the residual's yardstick there.
        weights: of the state's entries; a state times these has the norm 1 or so, each leaf with the same say.
        residual_weights: the same for the residual.
    """

    start: Any
    weights: Any
    residual_weights: Any


def measure(system: System, x: Any, residual: Any) -> Measure:
    layout = system.layout
    state = jnp.maximum(layout.rms(x), layout.rms(x + residual) if system.is_map else 0.0)
    start = state if system.is_map else system.yardstick(layout.rms(residual))
    weights = _weights(layout, state)
    return Measure(start, weights, weights if system.is_map else _weights(layout, start))


def _weights(layout: Layout, magnitude: Any) -> Any:
    """One over magnitude and root of the number of entries; a leaf of zeros counts like the largest one."""
    largest = jnp.max(magnitude, initial=0.0)
    usual = jnp.where(jnp.isfinite(largest) & (largest > 0.0), largest, 1.0)
    magnitude = jnp.where(jnp.isfinite(magnitude) & (magnitude > 0.0), magnitude, usual)
    sizes = jnp.asarray(layout.sizes, layout.dtype)
    return layout.spread(1.0 / (magnitude * jnp.sqrt(jnp.maximum(sizes, 1.0))))


def weights_at(layout: Layout, x: Any) -> Any:
    """The say of each entry against the others, at most one or so: products with it stay in range."""
    weights = _weights(layout, layout.rms(x))
    return weights / power_of_two(jnp.max(weights, initial=0.0))


def errors(system: System, known: Measure, x: Any, residual: Any) -> Any:
    """Per leaf, the residual in units of what may be left: at most 1 where it is small enough."""
    layout, rtol = system.layout, system.rtol
    if system.is_map:
        # Of where it is now, as a start from zero says nothing; and a leaf that becomes zero ends somewhere.
        yardstick = jnp.maximum(jnp.maximum(layout.rms(x), layout.rms(x + residual)), rtol * known.start)
    else:
        yardstick = known.start
    allowed = rtol * yardstick + jnp.asarray(system.atol, layout.dtype)
    left = layout.rms(residual)
    return jnp.where(left > 0.0, left / jnp.where(allowed > 0.0, allowed, jnp.finfo(layout.dtype).tiny), left)


class Found(NamedTuple):
    """How far a solver has come.

    Attributes:
        x: the state.
        residual: what is left there.
        beside: what else the last round has given.
        errors: per leaf, in units of what may be left.
        history: the largest of these at the start and after each step, times the tolerance: relative residuals.
        n_steps, n_rounds: so far.
        status: why it has ended, if not because it is there.
        away: how far the solution may be, relative to the state, by the secant of the last step: what is left, times
            what a step of that length has changed of it. A loop whose gain is almost one leaves little anywhere.
        n_follow: how many steps may be made although the start would do; 0 where it would not.
    """

    x: Any
    residual: Any
    beside: Any
    errors: Any
    history: Any
    n_steps: Any
    n_rounds: Any
    status: Any
    away: Any
    n_follow: Any

    @property
    def is_there(self) -> Any:
        return (jnp.max(self.errors, initial=0.0) <= 1.0) & (self.away <= _FAR)

    def goes_on(self, system: System) -> Any:
        # A residual that is not finite is not above 1 either, and ends it.
        is_above = (jnp.max(self.errors, initial=0.0) > 1.0) | (self.away > _FAR)
        is_behind = self.history[self.n_steps] > _FOLLOWED * self.history[0]
        follows = self.n_follow > 0
        n_most = jnp.where(follows, self.n_follow, system.max_steps)
        return jnp.where(follows, is_behind, is_above) & (self.n_steps < n_most) & (self.status == 0)

    def or_start(self, start: Found) -> Found:
        """Where a start that would do was left for nothing better: that start, at what has been asked."""
        is_better = self.is_there & (self.history[self.n_steps] < self.history[0])
        return select((self.n_follow > 0) & ~is_better, start._replace(n_rounds=self.n_rounds), self)

    def after(self, system: System, known: Measure, x: Any, residual: Any, beside: Any, rounds: Any) -> Found:
        """A step further."""
        now = errors(system, known, x, residual)
        n = self.n_steps + 1
        history = self.history.at[n].set(jnp.max(now, initial=0.0) * system.rtol)
        away, is_legible = self._away(system, known, x, residual)
        is_lost = (jnp.max(now, initial=0.0) <= 1.0) & ~(away <= _FAR) & ~is_legible
        status = jnp.where(is_lost, FAR, self.status)
        return Found(x, residual, beside, now, history, n, self.n_rounds + rounds, status, away, self.n_follow)

    def _away(self, system: System, known: Measure, x: Any, residual: Any) -> tuple[Any, Any]:
        """See `away`; and whether a smaller residual can be read at all."""
        layout, own = system.layout, known.residual_weights
        weights = _weights(layout, jnp.maximum(layout.rms(x), layout.rms(self.x)))
        moved, turned = jnp.linalg.norm(weights * (x - self.x)), jnp.linalg.norm(own * (residual - self.residual))
        rounding = jnp.finfo(layout.dtype).eps * (jnp.linalg.norm(own * x) if system.is_map else 1.0)
        left = jnp.linalg.norm(own * residual)
        away = jnp.where(moved > 0.0, jnp.maximum(left, rounding) * moved / turned, self.away)
        return away, left > rounding


def begin(system: System, x: Any, n_follow: int, noise: float | None = None) -> tuple[Found, Measure]:
    """The start: one round.

    Args:
        n_follow: steps to make from a start that would do.
        noise: relative error of a round; default a few rounding errors.
    """
    residual, beside = system.residual(x)
    known = measure(system, x, residual)
    now = errors(system, known, x, residual)
    largest = jnp.max(now, initial=0.0)
    history = jnp.full(system.max_steps + 1, jnp.nan, system.layout.dtype)
    history = history.at[0].set(largest * system.rtol)
    noise = _ROUNDING * float(jnp.finfo(system.layout.dtype).eps) if noise is None else noise
    own = known.residual_weights
    is_legible = jnp.linalg.norm(own * residual) > noise * (jnp.linalg.norm(own * x) if system.is_map else 1.0)
    follow = jnp.where((largest <= 1.0) & is_legible & system.follows, min(n_follow, system.max_steps), 0)
    zero = jnp.asarray(0)
    away = jnp.zeros((), system.layout.dtype)
    return Found(x, residual, beside, now, history, zero, zero + 1, zero, away, follow), known


def select(condition: Any, a: Any, b: Any) -> Any:
    return jax.tree_util.tree_map(lambda x, y: jnp.where(condition, x, y), a, b)
