"""NLopt's methods: MMA, CCSAQ and its SLSQP, as functions that ask on a line. The extra `nlopt`.

Derivatives are asked for where a method goes on from, and nowhere else. That is how these methods are called here
(`inner_gradients=0`), and how it is known that they go on: NLopt tells of no iterations.

Their own tolerances are zero: when a run ends is for the loop to say. NLopt never ends then, so it is ended here where
it has looked at many points without going on from one. What is raised in a function of ours passes through NLopt as it
is.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tesseract_flow.errors import DriverError
from tesseract_flow.optimize.drivers.conversation import Line
from tesseract_flow.optimize.drivers.library import STEP_LONG, AbstractLibrary
from tesseract_flow.optimize.drivers.task import Task

_CONSERVATIVE = {"initial_step": 1.0, "rho_init": 1.0, "always_improve": True}
SETTINGS: dict[str, dict[str, Any]] = {"ccsaq": _CONSERVATIVE, "ld_slsqp": {}, "mma": _CONSERVATIVE}

# Trials, each of which goes some tenth as far as the one before. More than evaluations may fail in a row by default, so
# that a run which ends by failures says so.
_PATIENCE = 40


class _Enough(Exception):
    """Ends NLopt's loop from inside one of its questions."""


def _check_installed(name: str) -> None:
    try:
        importlib.import_module("nlopt")
    except ImportError as error:
        raise DriverError(
            f"Driver {name!r} is a method of NLopt, which is not installed: pip install 'tesseract-flow[nlopt]'\n"
            "Without it: 'slsqp' and 'trust-constr' take constraints too."
        ) from error


class _AbstractMethod(AbstractLibrary):
    """What NLopt's methods have in common: how they ask."""

    package = "nlopt"
    takes_constraints = True
    withstands_walls = True

    @abc.abstractmethod
    def method(self, task: Task) -> Any:
        """NLopt's object, which has not heard of the problem yet."""

    def run(self, line: Line, task: Task) -> tuple[np.ndarray, str]:
        import nlopt

        method = self.method(task)
        method.set_lower_bounds(task.lower)
        method.set_upper_bounds(task.upper)
        here, n_trials = np.array(task.start), 0

        def objective(x: np.ndarray, gradient: np.ndarray) -> float:
            nonlocal here, n_trials
            n_trials += 1
            if n_trials > _PATIENCE:
                raise _Enough
            if gradient.size:
                gradient[:] = line.derivatives(x)[0]
                line.accepted(x)
                if (x != here).any():
                    here, n_trials = np.array(x), 0
            return float(line.values(x)[0])

        method.set_min_objective(objective)
        for add, rows, sign, limit in self._sides(method, task):
            add(_rows_of(line, rows, sign, limit), np.zeros(len(rows)))
        try:
            return method.optimize(np.array(task.start)), "no tolerance of its own is larger than zero"
        except _Enough:
            return here, f"it has looked at {_PATIENCE} points without going on from one"
        except nlopt.RoundoffLimited:
            return here, "rounding keeps it from going on"
        except RuntimeError as error:
            return here, f"{error}: the linearised problem has no solution, or none was found"

    @staticmethod
    def _sides(method: Any, task: Task) -> list[tuple[Callable[..., None], np.ndarray, float, np.ndarray]]:
        """What is to be zero, or at most zero: rows of the constraints, with a sign, beyond a limit."""
        lower, upper = task.limits
        is_equal = task.is_equal
        sides = [
            (method.add_equality_mconstraint, np.flatnonzero(is_equal), 1.0, lower),
            (method.add_inequality_mconstraint, np.flatnonzero(~is_equal & np.isfinite(lower)), -1.0, lower),
            (method.add_inequality_mconstraint, np.flatnonzero(~is_equal & np.isfinite(upper)), 1.0, upper),
        ]
        return [side for side in sides if len(side[1])]


def _rows_of(line: Line, rows: np.ndarray, sign: float, limit: np.ndarray) -> Callable[..., None]:
    def constraint(values: np.ndarray, x: np.ndarray, jacobian: np.ndarray) -> None:
        values[:] = sign * (line.values(x)[1][rows] - limit[rows])
        if jacobian.size:
            jacobian[:] = sign * line.derivatives(x)[1][rows]

    return constraint


@dataclasses.dataclass(frozen=True, eq=False)
class Conservative(_AbstractMethod):
    """Conservative convex separable approximations, by moving asymptotes or by quadratics: Svanberg, SIAM J. Optim. 12
    (2002). The design may have any length; a step costs one sweep over it for each iteration of the dual problem.
    """

    algorithm: str  # NLopt's name
    options: Mapping[str, Any]
    takes_equalities = False
    slopes = None

    def method(self, task: Task) -> Any:
        import nlopt

        method = nlopt.opt(getattr(nlopt, self.algorithm), task.n)
        method.set_param("inner_gradients", 0)
        method.set_param("always_improve", int(self.options["always_improve"]))
        method.set_param("rho_init", float(self.options["rho_init"]))
        # NLopt's own, half the room between the bounds, is far where these are wide for safety.
        far = self.options["initial_step"] * np.maximum(1.0, np.abs(task.start))
        method.set_initial_step(np.minimum(far, 0.5 * (task.upper - task.lower)))
        return method


@dataclasses.dataclass(frozen=True, eq=False)
class Slsqp(_AbstractMethod):
    """Sequential least-squares programming as NLopt has it: Kraft, ACM Trans. Math. Softw. 20 (1994)."""

    takes_equalities = True
    slopes = STEP_LONG

    def method(self, task: Task) -> Any:
        import nlopt

        return nlopt.opt(nlopt.LD_SLSQP, task.n)


def _conservative(name: str, algorithm: str) -> Callable[[Mapping[str, Any]], AbstractLibrary]:
    def make(options: Mapping[str, Any]) -> AbstractLibrary:
        for key in ("initial_step", "rho_init"):
            if not 0.0 < options[key] < np.inf:
                raise DriverError(f"Setting {key!r} of driver {name!r} must be positive, received {options[key]!r}.")
        _check_installed(name)
        return Conservative(algorithm, options)

    return make


def _slsqp(options: Mapping[str, Any]) -> AbstractLibrary:
    _check_installed("ld_slsqp")
    return Slsqp()


LIBRARIES: dict[str, Callable[[Mapping[str, Any]], AbstractLibrary]] = {
    "ccsaq": _conservative("ccsaq", "LD_CCSAQ"),
    "ld_slsqp": _slsqp,
    "mma": _conservative("mma", "LD_MMA"),
}
