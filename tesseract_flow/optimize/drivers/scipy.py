"""SciPy's methods: SLSQP, L-BFGS-B and trust-constr, as functions that ask on a line.

Their own tolerances are set as small as they go: when a run ends is for the loop to say, by one measure for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.optimize

from tesseract_flow.optimize.drivers.conversation import Line
from tesseract_flow.optimize.drivers.library import STEP_LONG, AbstractLibrary
from tesseract_flow.optimize.drivers.task import Task

_NO_END = 10**9  # iterations

SETTINGS: dict[str, dict[str, Any]] = {
    "l-bfgs-b": {"maxcor": 10, "maxls": 20, "ftol": 0.0, "gtol": 0.0},
    "slsqp": {"ftol": 1e-30},  # it wants less than that, so zero would never be enough
    "trust-constr": {
        "xtol": 1e-15,
        "gtol": 1e-15,
        "barrier_tol": 1e-15,
        "initial_tr_radius": 1.0,
        "initial_constr_penalty": 1.0,
        "initial_barrier_parameter": 0.1,
        "initial_barrier_tolerance": 0.1,
    },
}


@dataclasses.dataclass(frozen=True, eq=False)
class LbfgsB(AbstractLibrary):
    """Limited-memory BFGS with bounds: Byrd, Lu, Nocedal & Zhu, SIAM J. Sci. Comput. 16 (1995)."""

    options: Mapping[str, Any]
    package = "scipy"
    takes_constraints = False
    takes_equalities = True  # there are none
    withstands_walls = False  # its search asks for a slope at each trial
    slopes = None

    def run(self, line: Line, task: Task) -> tuple[np.ndarray, str]:
        def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
            answer = line.both(x)
            return answer.value, answer.gradient

        def callback(intermediate_result: Any) -> None:
            line.accepted(intermediate_result.x)

        found = scipy.optimize.minimize(
            fun,
            task.start,
            method="L-BFGS-B",
            jac=True,
            bounds=_bounds(task),
            callback=callback,
            options={**self.options, "maxiter": _NO_END, "maxfun": _NO_END},
        )
        return found.x, found.message


@dataclasses.dataclass(frozen=True, eq=False)
class Slsqp(AbstractLibrary):
    """Sequential least-squares programming: Kraft, DFVLR-FB 88-28 (1988).

    It asks for derivatives where it goes on from, and nowhere else; its search halves a step, or more, by values alone.
    """

    options: Mapping[str, Any]
    package = "scipy"
    takes_constraints = True
    takes_equalities = True
    withstands_walls = True
    slopes = STEP_LONG

    def run(self, line: Line, task: Task) -> tuple[np.ndarray, str]:
        def fun(x: np.ndarray) -> float:
            return line.values(x)[0]

        def jac(x: np.ndarray) -> np.ndarray:
            gradient = line.derivatives(x)[0]
            line.accepted(x)
            return gradient

        found = scipy.optimize.minimize(
            fun,
            task.start,
            method="SLSQP",
            jac=jac,
            bounds=_bounds(task),
            constraints=list(_old_style(line, task)),
            options={**self.options, "maxiter": _NO_END},
        )
        return found.x, found.message


def _old_style(line: Line, task: Task) -> list[dict[str, Any]]:
    lower, upper = task.limits
    is_equal = task.is_equal
    sides = [
        ("eq", np.flatnonzero(is_equal), 1.0, lower),
        ("ineq", np.flatnonzero(~is_equal & np.isfinite(lower)), 1.0, lower),
        ("ineq", np.flatnonzero(~is_equal & np.isfinite(upper)), -1.0, upper),
    ]

    def functions(rows: np.ndarray, sign: float, limit: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        return {
            "fun": lambda x: sign * (line.values(x)[1][rows] - limit[rows]),
            "jac": lambda x: sign * line.derivatives(x)[1][rows],
        }

    return [{"type": kind, **functions(rows, sign, limit)} for kind, rows, sign, limit in sides if len(rows)]


class _Bfgs(scipy.optimize.BFGS):
    """SciPy's, without its warning about a function whose gradient does not change: it may well be linear."""

    def update(self, delta_x: np.ndarray, delta_grad: np.ndarray) -> None:
        if np.any(delta_grad != 0.0) and np.any(delta_x != 0.0):
            super().update(delta_x, delta_grad)


@dataclasses.dataclass(frozen=True, eq=False)
class TrustConstr(AbstractLibrary):
    """A trust-region method with a barrier for inequalities: Byrd, Hribar & Nocedal, SIAM J. Optim. 9 (1999).

    Its quasi-Newton matrix wants the derivatives of each trial. Bounds are kept by the barrier, so it begins inside.
    """

    options: Mapping[str, Any]
    package = "scipy"
    takes_constraints = True
    takes_equalities = True
    withstands_walls = False
    slopes = None

    def run(self, line: Line, task: Task) -> tuple[np.ndarray, str]:
        lower, upper = task.limits
        is_limited = np.isfinite(lower) | np.isfinite(upper)
        rows = np.flatnonzero(is_limited & ~task.is_linear)
        constraints: list[Any] = []
        if len(rows):
            constraints.append(
                scipy.optimize.NonlinearConstraint(
                    lambda x: line.both(x).constraints[rows],
                    lower[rows],
                    upper[rows],
                    jac=lambda x: line.both(x).jacobian[rows],  # type: ignore[arg-type]
                    hess=_Bfgs(),
                )
            )
        if (is_limited & task.is_linear).any():
            # For these it adds no curvature of its own. With them among the others, and nothing else there, it would
            # add that of a ball, which is where its approximation begins.
            matrix, rest = task.linear
            low, high = (side[task.is_linear] - rest for side in task.limits)
            constraints.append(scipy.optimize.LinearConstraint(matrix, low, high))  # type: ignore[arg-type]

        def callback(intermediate_result: Any) -> None:
            line.accepted(intermediate_result.x)

        found = scipy.optimize.minimize(
            lambda x: line.both(x).value,
            _inside(task),
            method="trust-constr",
            jac=lambda x: line.both(x).gradient,
            hess=_Bfgs(),
            bounds=_bounds(task, keep_feasible=True),
            constraints=constraints,
            callback=callback,
            options={**self.options, "maxiter": _NO_END, "sparse_jacobian": False},
        )
        return found.x, found.message


def _inside(task: Task) -> np.ndarray:
    """The start, moved off its bounds by a hundredth of the room between them, or of its size."""
    width = np.minimum(task.upper - task.lower, np.maximum(1.0, np.abs(task.start)))
    gap = 1e-2 * width
    return np.clip(task.start, task.lower + gap, task.upper - gap)


def _bounds(task: Task, **keywords: Any) -> scipy.optimize.Bounds | None:
    if not task.has_bounds:
        return None
    return scipy.optimize.Bounds(task.lower, task.upper, **keywords)  # type: ignore[arg-type]


LIBRARIES: dict[str, Callable[[Mapping[str, Any]], AbstractLibrary]] = {
    "l-bfgs-b": LbfgsB,
    "slsqp": Slsqp,
    "trust-constr": TrustConstr,
}
