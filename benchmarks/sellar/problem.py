"""Sellar's problem: two disciplines that feed each other, and a design to improve under constraints.

    y1 = z1² + z2 + x − 0.2 y2,    y2 = √y1 + z1 + z2
    minimise x² + z2 + y1 + exp(−y2)  subject to  y1 ≥ 3.16,  y2 ≤ 24,  z1 in [−10, 10],  z2 and x in [0, 10]

The one idea: where the disciplines agree is found by applies alone, and differentiated where it lies, by one pullback
of each. How the steps on the way were made is no part of the derivative.

Source: R. S. Sellar, S. M. Batill and J. E. Renaud, Response surface based, concurrent subspace optimization for
multidisciplinary system design (1996).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import tesseract_flow as tf
from tesseract_flow.client import AbstractTesseract

OPTIMUM = 3.18339395  # at z = (1.977639, 0), x = 0, where y1 is at its bound
BEST_Z1 = 1.977639
TOLERANCE = 1e-13  # of the two disciplines' agreement on y2, relative
MAX_SWEEPS = 50

# (z, x) -> (y1, y2)
Coupled = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def sellar(y1: AbstractTesseract, y2: AbstractTesseract) -> tf.Problem:
    """The problem, with a handle of each discipline."""
    jax.config.update("jax_enable_x64", True)  # the components work in float64
    states = coupled(y1, y2)

    def evaluate(design: dict[str, Any]) -> tf.Evaluation:
        z, x = design["z"], design["x"]
        state1, state2 = states(z, x)
        return tf.Evaluation(
            objective=x**2 + z[1] + state1 + jnp.exp(-state2), constraints={"y1": state1, "y2": state2}
        )

    return tf.Problem(
        design={"z": jnp.array([5.0, 2.0]), "x": jnp.array(1.0)},
        evaluate=evaluate,
        bounds=({"z": jnp.array([-10.0, 0.0]), "x": 0.0}, {"z": 10.0, "x": 10.0}),
        constraints={"y1": tf.Constraint(lower=3.16), "y2": tf.Constraint(upper=24.0)},
        name="sellar",
    )


def coupled(first: AbstractTesseract, second: AbstractTesseract) -> Coupled:
    """Both states where the disciplines agree, in reverse mode differentiable in the design; NaN where none is found.

    A sweep asks the first discipline for y1 at a y2, and the second for its y2 at that y1. Secant steps (in one
    unknown, Aitken's Δ²) close what is between the two in some 6 sweeps, where repeated sweeps take twice as many and
    Newton's would ask for two pullbacks with each. They begin at y2 = 0, whatever was solved before. To begin at the
    last solution would save a sweep, but then the same design would be solved along another path when it is asked for
    again, and no call would be one that a cache has seen.
    """

    def y1_of(z: Any, x: Any, y2: Any) -> Any:
        return tf.apply_tesseract(first, {"z": z, "x": x, "y2": y2})["y1"]

    def y2_of(z: Any, y1: Any) -> Any:
        return tf.apply_tesseract(second, {"z": z, "y1": y1})["y2"]

    def is_found(y2: Any, gap: Any) -> Any:
        return jnp.abs(gap) <= TOLERANCE * (1.0 + jnp.abs(y2))

    @jax.custom_vjp
    def states(z: Any, x: Any) -> Any:
        def sweep(y2: Any) -> Any:
            y1 = y1_of(z, x, y2)
            return y1, y2, y2_of(z, y1) - y2

        def goes_on(carry: Any) -> Any:
            n, _, (_, y2, gap) = carry
            return (n < MAX_SWEEPS) & ~is_found(y2, gap)

        def secant_step(carry: Any) -> Any:
            n, (_, before, gap_before), last = carry
            _, y2, gap = last
            return n + 1, last, sweep(y2 - gap * (y2 - before) / (gap - gap_before))

        first_sweep = sweep(jnp.zeros_like(x))
        second_sweep = sweep(first_sweep[2])
        _, _, (y1, y2, gap) = jax.lax.while_loop(goes_on, secant_step, (jnp.asarray(2), first_sweep, second_sweep))
        return tuple(jnp.where(is_found(y2, gap), y, jnp.nan) for y in (y1, y2))

    def solved(z: Any, x: Any) -> Any:
        y1, y2 = states(z, x)
        return (y1, y2), (z, x, y1, y2)

    def pulled_back(solution: Any, cotangents: Any) -> Any:
        """The transposed linear system of both disciplines, λ1 = c1 + ∂y2/∂y1 λ2 and λ2 = c2 + ∂y1/∂y2 λ1.

        Each has one number as output, so its pullback of 1 is its whole Jacobian, and serves every cotangent.
        """
        z, x, y1, y2 = solution
        c1, c2 = cotangents
        one = jnp.ones_like(y1)
        z_bar1, x_bar1, slope12 = jax.vjp(y1_of, z, x, y2)[1](one)
        z_bar2, slope21 = jax.vjp(y2_of, z, y1)[1](one)
        price1 = (c1 + slope21 * c2) / (1.0 - slope12 * slope21)
        price2 = c2 + slope12 * price1
        return price1 * z_bar1 + price2 * z_bar2, price1 * x_bar1

    states.defvjp(solved, pulled_back)
    return states
