"""Newton-Krylov: the linear system of each step solved as far as is worth it, by directions alone.

It converges whatever the loop gain is, as long as it is not 1 exactly.

Sources: D. A. Knoll and D. E. Keyes, Jacobian-free Newton-Krylov methods, Journal of Computational Physics 193 (2004),
357-397; S. C. Eisenstat and H. F. Walker, Choosing the forcing terms in an inexact Newton method, SIAM Journal on
Scientific Computing 17 (1996), 16-32, choice 2; C. T. Kelley, Solving Nonlinear Equations with Newton's Method (2003),
section 1.7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tesseract_flow.autodiff import calls_of, pushforward_p
from tesseract_flow.autodiff.stepping import speed
from tesseract_flow.compose import krylov
from tesseract_flow.compose.system import Found, Measure, Residual, System, begin, select
from tesseract_flow.compose.verdicts import NO_DESCENT
from tesseract_flow.errors import OptionError

Directions = Literal["auto", "pushforwards", "differences"]


@dataclasses.dataclass(frozen=True)
class NewtonKrylov:
    """Attributes:
    directions: how the components answer along a direction: by `"pushforwards"`, by `"differences"` of two rounds, or
        as they can (`"auto"`).
    size: most directions per step.
    forcing: what of the residual may be left of the linear system at first; later as little as the progress is worth.
    noise: relative error of a round, for differences; default the rounding error.
    trials: of the line search.
    """

    directions: Directions = "auto"
    size: int = 40
    forcing: float = 0.1
    noise: float | None = None
    trials: int = 10

    def __post_init__(self) -> None:
        if self.directions not in ("auto", "pushforwards", "differences"):
            raise OptionError(
                f"NewtonKrylov: directions={self.directions!r}; expected 'auto', 'pushforwards' or 'differences'."
            )
        if not 0.0 < self.forcing < 1.0 or (self.noise is not None and not 0.0 < self.noise < 1.0):
            raise OptionError("NewtonKrylov: forcing and noise are relative errors between 0 and 1.")
        if self.size < 1 or self.trials < 1:
            raise OptionError(f"NewtonKrylov: size={self.size!r} and trials={self.trials!r} must be 1 or more.")

    def __str__(self) -> str:
        return "newton-krylov"

    def solve(self, system: System, x: Any) -> Found:
        start, known = begin(system, x, 1, self.noise)
        by_differences = uses_differences(self.directions, lambda x: system.residual(x)[0], x)
        forcing = jnp.asarray(self.forcing, system.layout.dtype)

        def goes_on(state: Any) -> Any:
            return state[0].goes_on(system)

        def step(state: Any) -> Any:
            found, forcing = state
            return self._step(system, known, by_differences, found, forcing)

        return jax.lax.while_loop(goes_on, step, (start, forcing))[0].or_start(start)

    def _step(self, system: System, known: Measure, by_differences: bool, found: Found, forcing: Any) -> Any:
        weights, own = known.weights, known.residual_weights
        push = direction_of(system.residual, found.x, found.residual, by_differences, self.noise)
        rhs = own * found.residual
        norm = jnp.linalg.norm(rhs)
        move, _, n_asked = krylov.cycle(lambda v: -own * push(v / weights), rhs, forcing * norm, self.size)
        move = move / weights
        x, residual, beside, is_better, n_trials = self._search(system, known, found, move, norm, forcing)
        now = found.after(system, known, x, residual, beside, n_asked + n_trials)
        now = now._replace(status=jnp.where(is_better, now.status, NO_DESCENT))
        if not system.is_map:
            # A start close to the solution has a residual that is small already; there the step tells.
            is_tiny = is_better & (jnp.linalg.norm(weights * move) <= system.rtol * jnp.linalg.norm(weights * x))
            now = now._replace(errors=jnp.where(is_tiny, jnp.minimum(now.errors, 1.0), now.errors))
        # Worth solving as far as the step has brought the residual down, and no further than the tolerance.
        ratio = jnp.linalg.norm(own * residual) / norm
        wanted = 0.9 * ratio**2
        wanted = jnp.where(0.9 * forcing**2 > 0.1, jnp.maximum(wanted, 0.9 * forcing**2), wanted)
        enough = 0.5 / jnp.maximum(jnp.max(now.errors, initial=0.0), 1.0)
        forcing = jnp.clip(jnp.maximum(wanted, enough), 1e-6, 0.9).astype(forcing.dtype)
        return now, forcing

    def _search(
        self, system: System, known: Measure, found: Found, move: Any, norm: Any, forcing: Any
    ) -> tuple[Any, Any, Any, Any, Any]:
        """Backtracking along Newton's direction until the residual is smaller by what the direction promises."""

        def trial(state: Any) -> Any:
            n, length, *_ = state
            x = found.x + length * move
            residual, beside = system.residual(x)
            now = jnp.linalg.norm(known.residual_weights * residual)
            is_better = now <= (1.0 - 1e-4 * length * (1.0 - forcing)) * norm
            # The minimum of the parabola through both values and the slope at the start.
            shorter = norm**2 * length**2 / (now**2 - norm**2 + 2.0 * norm**2 * length)
            shorter = jnp.where(jnp.isfinite(now), jnp.clip(shorter, 0.1 * length, 0.5 * length), 0.25 * length)
            return n + 1, jnp.where(is_better, length, shorter), x, residual, beside, is_better

        def goes_on(state: Any) -> Any:
            return ~state[-1] & (state[0] < n_most)

        # Where the start would do, no search is worth its rounds.
        n_most = jnp.where(found.n_follow > 0, 1, self.trials)
        start = (jnp.asarray(0), jnp.ones_like(norm), found.x, found.residual, found.beside, jnp.asarray(False))
        n, _, x, residual, beside, is_better = jax.lax.while_loop(goes_on, trial, start)
        x, residual, beside = select(is_better, (x, residual, beside), (found.x, found.residual, found.beside))
        return x, residual, beside, is_better, n


def direction_of(
    residual: Residual, x: Any, at_x: Any, by_differences: bool, noise: float | None
) -> Callable[[Any], Any]:
    """v -> the derivative of a residual along v: by pushforwards, or by one more round."""
    if not by_differences:
        return jax.linearize(lambda x: residual(x)[0], x)[1]
    relative = float(jnp.finfo(x.dtype).eps) if noise is None else noise

    def along(v: Any) -> Any:
        h = relative**0.5 / speed(x, v)
        return (residual(x + h * v)[0] - at_x) / h

    return along


def uses_differences(directions: Directions, fn: Callable[..., Any], *x: Any) -> bool:
    """Whether differences have to stand in for pushforwards, as somebody inside does not offer them."""
    if directions != "auto":
        return directions == "differences"
    try:
        closed = jax.make_jaxpr(lambda x, v: jax.jvp(fn, x, v))(x, x)
        for eqn in calls_of(closed.jaxpr.eqns):
            if eqn.primitive is pushforward_p:
                eqn.params["call"].tesseract.require("jacobian_vector_product")
    except Exception:  # no endpoint, no derivative by the schema, a rule for reverse mode only, ...
        return True
    return False
