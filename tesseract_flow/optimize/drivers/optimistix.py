"""Optimistix's methods for least squares: Gauss-Newton, Levenberg-Marquardt, Powell's dog leg. The extra `optimistix`.

Of the library these are the parts that know where to go, its descents, and how far, its searches; both are functions of
a linear model of the misfit. Its own loop is not used: that wants a Jacobian at each trial point, and solvers that can
be traced into one program. Ours asks for values alone until a point is accepted (`least_squares`).

All that a method remembers from one step to the next is one number, its `reach`: the step along a line, the size of the
trust region in units of the Gauss-Newton step, or one over the damping in units of the largest diagonal entry of JᵀJ.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import DriverError

_COMMON = {"jacobian": "auto", "products": 30}
SETTINGS: dict[str, dict[str, Any]] = {
    "dogleg": _COMMON,
    "gauss-newton": _COMMON,
    "levenberg-marquardt": {"damping": 1e-3, **_COMMON},
}
_SIDES = ("auto", "rows", "columns", "products")
# The library's own trust region grows where 99 % of what was promised came; a misfit that stays never gets there.
_GROWS_FROM = 0.75


@dataclasses.dataclass(frozen=True)
class Method:
    """How to go on from a point with a linear model `residual + jacobian @ step` of the misfit.

    Attributes:
        name: as drivers are called.
        first_reach: what it begins with.
        starts_over: the reach begins anew at each point.
        largest_reach: more is the same as this.
    """

    name: str
    first_reach: float
    starts_over: bool
    largest_reach: float

    def step(self, jacobian: np.ndarray, residual: np.ndarray, reach: float) -> np.ndarray:
        """Where to look next."""
        jacobian, residual, _ = _normed(jacobian, residual)
        return np.asarray(_functions(self.name)[0](jacobian, residual, jnp.asarray(reach)), np.float64)

    def judged(
        self, jacobian: np.ndarray, residual: np.ndarray, reach: float, step: np.ndarray, change: float
    ) -> tuple[bool, float]:
        """Whether to go to a point, and the reach from then on.

        Args:
            change: of half the sum of squares there; infinite where that is not known.
        """
        jacobian, residual, size = _normed(jacobian, residual)
        judge = _functions(self.name)[1]
        accepts, found = judge(jacobian, residual, jnp.asarray(reach), jnp.asarray(step), jnp.asarray(change / size**2))
        return bool(accepts), min(float(found), self.largest_reach)


def _normed(jacobian: np.ndarray, residual: np.ndarray) -> tuple[Any, Any, float]:
    """A model whose columns have a length of one at most, and what it was divided by for that."""
    size = float(np.sqrt((jacobian**2).sum(axis=0).max(initial=0.0))) or 1.0
    return jnp.asarray(jacobian / size), jnp.asarray(residual / size), size


@functools.cache
def _functions(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    import equinox as eqx
    import lineax as lx
    import optimistix as optx

    # Of columns that depend on each other, or are zero, the shortest step.
    any_rank = lx.SVD()
    descent, search = {
        "dogleg": lambda: (optx.DoglegDescent(linear_solver=any_rank), _trust_region(optx)),
        "gauss-newton": lambda: (optx.NewtonDescent(linear_solver=any_rank), optx.BacktrackingArmijo()),
        "levenberg-marquardt": lambda: (optx.DampedNewtonDescent(linear_solver=lx.QR()), _trust_region(optx)),
    }[name]()

    def model(jacobian: Any, residual: Any) -> tuple[Any, Any]:
        info = optx.FunctionInfo.ResidualJac(residual, lx.MatrixLinearOperator(jacobian))
        return info, jnp.zeros(jacobian.shape[1], jacobian.dtype)

    @jax.jit
    def step(jacobian: Any, residual: Any, reach: Any) -> Any:
        info, here = model(jacobian, residual)
        state = descent.query(here, info, descent.init(here, eqx.filter_eval_shape(lambda: info)))
        return descent.step(reach, state)[0]

    @jax.jit
    def judge(jacobian: Any, residual: Any, reach: Any, step: Any, change: Any) -> tuple[Any, Any]:
        info, here = model(jacobian, residual)
        state = search.init(here, eqx.filter_eval_shape(lambda: info))
        state = eqx.tree_at(lambda state: state.step_size, state, reach)
        there = optx.FunctionInfo.Eval(info.as_min() + change)
        new, accepts, _, _ = search.step(jnp.asarray(False), here, step, info, there, state)
        return accepts, new

    return step, judge


def _trust_region(optx: Any) -> Any:
    return optx.ClassicalTrustRegion(high_cutoff=_GROWS_FROM)


def method_of(name: str, options: Mapping[str, Any]) -> Method:
    """The method that a name and settings stand for.

    Raises:
        DriverError: Optimistix is not installed, or a setting that cannot be used.
    """
    try:
        importlib.import_module("optimistix")
    except ImportError as error:
        raise DriverError(
            f"Driver {name!r} is a method of Optimistix, which is not installed: "
            "pip install 'tesseract-flow[optimistix]'\n"
            "Without it: 'lbfgs' and 'l-bfgs-b' take half the sum of squares of a misfit as their objective."
        ) from error
    if options["jacobian"] not in _SIDES:
        raise DriverError(
            f"Setting 'jacobian' of driver {name!r} must be one of {', '.join(map(repr, _SIDES))}, received "
            f"{options['jacobian']!r}."
        )
    if options["products"] < 1:
        raise DriverError(f"Setting 'products' of driver {name!r} must be 1 or more, received {options['products']!r}.")
    if name != "levenberg-marquardt":
        return Method(name, first_reach=1.0, starts_over=name == "gauss-newton", largest_reach=1.0)
    if not 0.0 < options["damping"] < np.inf:
        raise DriverError(f"Setting 'damping' of driver {name!r} must be positive, received {options['damping']!r}.")
    least = 100.0 * float(jnp.finfo(jnp.zeros(()).dtype).eps)
    return Method(name, 1.0 / max(options["damping"], least), starts_over=False, largest_reach=1.0 / least)
