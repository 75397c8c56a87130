"""The derivative of a root, by the implicit function theorem: a linear system where it lies, not the way there.

With r(x, p) = 0, -dr/dx dx = dr/dp dp. Forward mode solves this by pushforwards of r (or differences, where a component
has none), reverse mode solves its transpose by pullbacks alone: (-dr/dx)^T l = c, and then (dr/dp)^T l. Each
application is one round through all components.

Source: A. Griewank and A. Walther, Evaluating Derivatives (2008), chapter 15.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from tesseract_flow.autodiff import linear_map
from tesseract_flow.autodiff.stepping import moved, speed
from tesseract_flow.compose.krylov import Gmres, Solved, solve
from tesseract_flow.compose.layout import Layout
from tesseract_flow.compose.newton import Directions, uses_differences
from tesseract_flow.compose.system import weights_at
from tesseract_flow.compose.verdicts import Case, verdict


@dataclasses.dataclass(frozen=True, eq=False)
class Root:
    """x with residual(x, arrays) = 0, as a function of the arrays.

    Attributes:
        residual: (x, arrays) -> what is left; closes over nothing that is traced.
        layout: of x.
        name: for messages.
        linear: how linear systems are solved.
        directions, noise: as of `NewtonKrylov`.
    """

    residual: Callable[[Any, list[Any]], Any]
    layout: Layout
    name: str
    linear: Gmres
    directions: Directions
    noise: float | None

    def differentiable(self, x: Any, arrays: Sequence[Any]) -> Any:
        """`x`, which now has derivatives with respect to the arrays."""

        @jax.custom_jvp
        def root(x: Any, arrays: list[Any]) -> Any:
            return x

        def rule(primals: Any, tangents: Any) -> Any:
            x, arrays = primals
            active = [k for k, dot in enumerate(tangents[1]) if not isinstance(dot, SymbolicZero)]
            if not active:
                return x, jnp.zeros_like(x)
            return x, self._tangent(active, x, arrays, [tangents[1][k] for k in active])

        root.defjvp(rule, symbolic_zeros=True)
        return root(x, list(arrays))

    def _tangent(self, active: list[int], x: Any, arrays: list[Any], dots: list[Any]) -> Any:
        def forward(at: list[Any], dots: list[Any]) -> list[Any]:
            return [self._pushed(at[0], at[1:], active, dots)]

        def transpose(at: list[Any], cotangents: list[Any]) -> list[Any]:
            return self._pulled(at[0], at[1:], active, cotangents[0])

        (x_dot,) = linear_map(forward, transpose, [x, *arrays], dots, f"fixed point {self.name!r}")
        return x_dot

    def _of_active(self, arrays: list[Any], active: list[int]) -> Callable[[Any, list[Any]], Any]:
        def residual(x: Any, values: list[Any]) -> Any:
            full = list(arrays)
            for k, value in zip(active, values, strict=True):
                full[k] = value
            return self.residual(x, full)

        return residual

    def _pushed(self, x: Any, arrays: list[Any], active: list[int], dots: list[Any]) -> Any:
        residual, at = self._of_active(arrays, active), (x, [arrays[k] for k in active])
        by_differences = uses_differences(self.directions, residual, *at)
        rtol = self.linear.tolerance(x.dtype)
        if by_differences:
            relative = float(jnp.finfo(x.dtype).eps) if self.noise is None else self.noise
            rtol = max(rtol, 10.0 * relative ** (2 / 3))

            def push(v: Any, dots: list[Any]) -> Any:
                h = (relative ** (1 / 3) / speed(at, (v, dots))).astype(x.dtype)
                return (residual(*moved(at, h, (v, dots))) - residual(*moved(at, -h, (v, dots)))) / (2.0 * h)
        else:
            push = jax.linearize(residual, *at)[1]

        weights = weights_at(self.layout, x)
        nothing = [jnp.zeros_like(dot) for dot in dots]
        rhs = push(jnp.zeros_like(x), dots)
        solved = solve(lambda v: (-weights * push(v / weights, nothing), ()), weights * rhs, self.linear, rtol)
        return self._judged("tangent", solved, rtol, [solved.x / weights])[0]

    def _pulled(self, x: Any, arrays: list[Any], active: list[int], cotangent: Any) -> list[Any]:
        residual = self._of_active(arrays, active)
        pull = jax.vjp(residual, x, [arrays[k] for k in active])[1]
        weights = weights_at(self.layout, x)
        rtol = self.linear.tolerance(x.dtype)

        def apply(price: Any) -> Any:
            x_bar, bars = pull(weights * price)
            return -x_bar / weights, bars

        solved = solve(apply, cotangent / weights, self.linear, rtol)
        return self._judged("adjoint", solved, rtol, solved.beside)

    def _judged(self, part: str, solved: Solved, rtol: float, results: list[Any]) -> list[Any]:
        case = Case(self.name, part, "GMRES", (), rtol)
        zero = jnp.asarray(0)
        nothing = jnp.zeros(0, solved.x.dtype)
        is_good = verdict(case, solved.is_solved, zero, solved.left, solved.n_asked, nothing)
        return [jnp.where(is_good, result, jnp.full_like(result, jnp.nan)) for result in results]
