"""Least squares under our loop: half the sum of squares of a misfit, from a linear model of the misfit itself.

One step ends at the first point that the method accepts. Trial points before that are asked for values alone, and an
evaluation that fails is a trial like one that is too high: both are stepped back from. The Jacobian is asked for where
a step ends, and nowhere else.

All that is needed to go on is in the state: the model at the current point, and the method's reach. A run that is taken
up again asks nobody for anything.

**The model** of a misfit with m entries in n unknowns is its Jacobian; with more rows than n + 1, the triangle of its
QR factorisation, which has the same sums of squares. Where single products are asked for, it is the Jacobian in the
basis that Golub and Kahan's bidiagonalisation builds from the gradient on: steps in it are those of LSQR, and every
damping uses the same basis. Sources: Golub & Kahan, SIAM J. Numer. Anal. 2 (1965); Paige & Saunders, ACM Trans. Math.
Softw. 8 (1982).

**Bounds** hold for each point. Unknowns at a bound that the gradient pushes against are held; those that a step would
take beyond theirs are set there, and the step is found again for the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from tesseract_flow.errors import DriverError
from tesseract_flow.optimize.constraints import AugmentedLagrangian
from tesseract_flow.optimize.drivers import optimistix
from tesseract_flow.optimize.drivers.base import AbstractEngine, Answers, Manner, NamedDriver, Setting
from tesseract_flow.optimize.drivers.moves import Move, moved
from tesseract_flow.optimize.drivers.optimistix import Method
from tesseract_flow.optimize.drivers.task import Flat
from tesseract_flow.optimize.evaluator import Sample, residual_of
from tesseract_flow.optimize.failures import Failure
from tesseract_flow.optimize.linearised import Linearised, Side, cheaper_side, endpoints_of
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State

_MANY = 200  # rows and columns: from here on single products are asked for, where components have both
_TOO_MANY = 1000  # of them, where there is no choice
_TRIALS = 40
_NOISE = 1e3  # of the residual of a fixed point: what the values of a misfit that is made of it may have of noise
_ROUNDS = 8  # of setting unknowns to their bounds
_NOTHING = 1e-14  # of the largest number: a direction that is as short is rounding


@dataclasses.dataclass(frozen=True, eq=False)
class LeastSquaresDriver(NamedDriver):
    """A method for misfits with its settings."""

    options: Mapping[str, Any]
    method: Method
    may_push_forward = True

    @classmethod
    def from_settings(cls, name: str, given: Mapping[str, Any]) -> LeastSquaresDriver:
        options = optimistix.SETTINGS[name] | dict(given)
        about = {"name": name, **{key: given[key] for key in sorted(given)}}
        return cls(about, options, optimistix.method_of(name, options))

    def engine(self, setting: Setting) -> AbstractEngine:
        return LeastSquaresEngine(self, setting)


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """The misfit next to a point, `residual + jacobian @ step`; with steps in a basis, if there is one."""

    jacobian: np.ndarray
    residual: np.ndarray
    basis: np.ndarray | None

    def unknowns(self, step: np.ndarray) -> np.ndarray:
        return step if self.basis is None else self.basis @ step


class LeastSquaresEngine(AbstractEngine):
    """A method for misfits at work."""

    manner: Manner = "library"
    takes_constraints = False
    is_scaled = True
    slopes = None
    method = dataclasses.replace(AugmentedLagrangian.for_searches(), penalty=0.0)

    def __init__(self, driver: LeastSquaresDriver, setting: Setting):
        self._name, self._method = driver.name, driver.method
        self._flat = Flat(setting.start, setting.box, setting.constraints, setting.problem.partition)
        _refuse(driver, setting, self._flat)
        self._is_free = self._flat.is_free
        self._task = self._flat.task(self._flat.unknowns(setting.start))
        self._scale = self._flat.vector(setting.problem.partition.scale)
        linearised = setting.shared.once(
            "linearised",
            lambda: Linearised(setting.problem, setting.evaluator, setting.transform, self._is_free),
        )
        self._linearised = linearised.of_another_run(setting.evaluator)
        n, m = self._task.n, self._linearised.n_misfit
        side: Side | str = driver.options["jacobian"]
        if side == "auto":
            offered = setting.shared.once("endpoints", lambda: endpoints_of(setting.problem))
            side = cheaper_side(offered, n, m, _MANY)
            if not all("jacobian" in endpoints for endpoints in offered):
                _refuse_too_many(driver, setting, side, n if side == "columns" else m)
        self._side: Any = side
        self._rounding = 8.0 * float(jnp.finfo(setting.evaluator.dtype).eps)
        self._n_products = min(int(driver.options["products"]), n, m)

    # -- the verbs of an engine

    def fresh(self, u: PyTree) -> PyTree:
        n, m = self._task.n, self._linearised.n_misfit
        if self._side == "products":
            k = self._n_products
            shapes = {"jacobian": (k + 1, k), "residual": (k + 1,), "basis": (n, k)}
        else:
            rows = min(m, n + 1)
            shapes = {"jacobian": (rows, n), "residual": (rows,)}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()} | {"reach": jnp.asarray(0.0)}

    def first_look(self, run: Run, u: PyTree) -> Sample:
        varying = run.varying_at(u)
        slopes = run.attempts.attempt(varying, (), lambda: self._slopes(run, varying))
        assert isinstance(slopes, np.ndarray), "a decisive evaluation that fails is raised"
        leaves = self._linearised.values(varying, run.scheduled)
        return Sample(run.evaluator.evaluation(leaves).objective, self._flat.tree(slopes), leaves)

    def begin(self, run: Run, state: State, alone: Sample) -> State:
        return self._begun(run, state, state.u)

    def begin_again(self, run: Run, state: State, u: PyTree) -> State:
        return self._begun(run, state, u)

    def step(self, run: Run, state: State) -> Move:
        self._linearised.forget()
        model, reach = self._model_of(state), float(state.driver["reach"])
        here = self._flat.unknowns(state.u)
        lower, upper = self._task.lower - here, self._task.upper - here
        held = self._held(state)
        value, scale = float(run.evaluator.evaluation(state.here.leaves).objective), float(state.objective_scale)
        residual, fixed_point = residual_of(run.evaluator.evaluation(state.here.leaves))
        noise = _NOISE * residual
        n_rejected, was_evaluated = 0, False
        while n_rejected < _TRIALS:
            step, way = self._way(model, reach, lower, upper, held)
            u = self._flat.design(here + way)
            if not moved(state.u, u):
                break
            leaves = self._values(run, u)
            change = np.inf
            if not isinstance(leaves, Failure):
                was_evaluated = True
                change = (float(run.evaluator.evaluation(leaves).objective) - value) / scale
            accepts, new_reach = self._method.judged(model.jacobian, model.residual, reach, step, change)
            # Cut off at bounds, a step may go up by the model as well, and keep its promise.
            if accepts and change < 0.0:
                new = self._arrived(run, state, u)
                if isinstance(new, State):
                    return Move(self._with_reach(new, new_reach))
                leaves = new
            elif abs(change) * scale <= max(self._rounding, noise) * abs(value):
                # Values do not tell any more which of the two is better; slopes still do.
                new = self._arrived(run, state, u)
                if isinstance(new, State) and self._steepest(new) < self._steepest(state):
                    return Move(self._with_reach(new, max(new_reach, reach)))
                if noise:
                    n_rejected += 1  # neither do slopes; shorter steps would be noise as well
                    break
            reach = min(new_reach, 0.5 * reach)
            if not self._method.starts_over:
                reach *= 0.25**n_rejected  # faster each time: it may be far too large, and each trial is a solve
            n_rejected += 1
            if isinstance(leaves, Failure):
                run.attempts.note(f"{self._name} stepped back")
        if n_rejected and not was_evaluated:
            raise run.attempts.given_up()
        ending = "the model of the misfit leads to no better design"
        if noise:
            ending += f", by more than the noise of fixed point {fixed_point!r}: a smaller rtol makes less"
        return Move(state, stalled=True, ending=ending, doubtful=n_rejected > 0)

    def resume(self, state: State, answers: Answers) -> tuple[State, tuple[str, ...]]:
        return state, ()

    def take_answers(self) -> bytes:
        return b""

    def close(self) -> None:
        self._linearised.forget()

    # -- where to go

    def _way(
        self, model: _Model, reach: float, lower: np.ndarray, upper: np.ndarray, held: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The method's step in the model, and what it is for the unknowns, inside the bounds."""
        if model.basis is not None:
            step = self._method.step(model.jacobian, model.residual, reach)
            return step, np.clip(model.unknowns(step), lower, upper)
        fixed, way = held.copy(), np.zeros_like(lower)
        for _ in range(_ROUNDS):
            jacobian = np.where(fixed, 0.0, model.jacobian)
            residual = model.residual + model.jacobian @ np.where(fixed, way, 0.0)
            way = np.where(fixed, way, self._method.step(jacobian, residual, reach))
            beyond = ~fixed & ((way < lower) | (way > upper))
            way = np.clip(way, lower, upper)
            if not beyond.any():
                break
            fixed |= beyond
        slopes = model.residual @ model.jacobian
        if slopes @ way >= 0.0:
            # What was set at bounds has turned it uphill; against the slope there is always a way down.
            slopes = np.where(held, 0.0, slopes)
            curvature = float(((model.jacobian @ slopes) ** 2).sum())
            far = float(slopes @ slopes) / curvature if curvature > 0.0 else 0.0
            way = np.clip(-min(reach, 1.0) * far * slopes, lower, upper)
        return way, way

    def _held(self, state: State) -> np.ndarray:
        """Unknowns at a bound that the gradient pushes against."""
        u, slopes = self._flat.unknowns(state.u), self._flat.unknowns(state.here.gradient)
        task = self._task
        return ((u <= task.lower) & (slopes > 0)) | ((u >= task.upper) & (slopes < 0))

    def _steepest(self, state: State) -> float:
        """The largest slope of an unknown that is not held."""
        slopes = np.where(self._held(state), 0.0, self._flat.unknowns(state.here.gradient))
        return float(np.abs(slopes).max())

    # -- finding out

    def _values(self, run: Run, u: PyTree) -> list[Array] | Failure:
        varying = run.varying_at(u)
        return run.attempts.attempt(varying, (), lambda: self._linearised.values(varying, run.scheduled))

    def _slopes(self, run: Run, varying: PyTree) -> np.ndarray:
        """The gradient of half the sum of squares, with respect to all entries of the scaled design."""
        misfit = self._linearised.misfit(self._linearised.values(varying, run.scheduled))
        if self._side == "products":
            return self._scale * self._linearised.slopes(varying, run.scheduled)
        return self._scale * (misfit @ self._linearised.jacobian(varying, self._side, run.scheduled))

    def _begun(self, run: Run, state: State, u: PyTree) -> State:
        new = self._arrived(run, state, u)
        assert isinstance(new, State), "a decisive evaluation that fails is raised"
        return self._with_reach(new, self._method.first_reach)

    def _with_reach(self, state: State, reach: float) -> State:
        reach = self._method.first_reach if self._method.starts_over else reach
        return dataclasses.replace(state, driver=state.driver | {"reach": jnp.asarray(reach)})

    def _arrived(self, run: Run, state: State, u: PyTree) -> State | Failure:
        """The state at a point, with its model."""
        varying = run.varying_at(u)
        scale = float(state.objective_scale)

        def ask() -> tuple[np.ndarray, dict[str, np.ndarray]]:
            slopes = self._slopes(run, varying)
            there = dataclasses.replace(state, u=u, here=Sample(jnp.zeros(()), self._flat.tree(slopes), []))
            return slopes, self._model_at(run, varying, slopes[self._is_free], self._held(there), np.sqrt(scale))

        found = run.attempts.attempt(varying, (), ask)
        if isinstance(found, Failure):
            return found
        slopes, model = found
        leaves = self._linearised.values(varying, run.scheduled)
        objective = run.evaluator.evaluation(leaves).objective
        here = Sample(objective / state.objective_scale, self._flat.tree(slopes / scale), leaves)
        driver = state.driver | {name: jnp.asarray(array) for name, array in model.items()}
        return dataclasses.replace(state, u=u, driver=driver, here=here)

    def _model_at(
        self, run: Run, varying: PyTree, slopes: np.ndarray, held: np.ndarray, size: float
    ) -> dict[str, np.ndarray]:
        """What the state keeps of the model, in units of `size`."""
        misfit, scale = (
            self._linearised.misfit(self._linearised.values(varying, run.scheduled)),
            self._scale[self._is_free],
        )
        if self._side != "products":
            jacobian = self._linearised.jacobian(varying, self._side, run.scheduled)[:, self._is_free] * scale
            jacobian, residual = _triangle(jacobian, misfit)
            return {"jacobian": jacobian / size, "residual": residual / size}
        forward, backward = self._linearised.products(varying, run.scheduled)

        def along(tangent: np.ndarray) -> np.ndarray:
            whole = np.zeros(self._flat.n)
            whole[self._is_free] = scale * tangent
            return forward(whole)

        def across(cotangent: np.ndarray) -> np.ndarray:
            return np.where(held, 0.0, scale * backward(cotangent)[self._is_free])

        first = np.where(held, 0.0, slopes)
        jacobian, residual, basis = bidiagonal(along, across, misfit, first, self._n_products)
        return {"jacobian": jacobian / size, "residual": residual / size, "basis": basis}

    @staticmethod
    def _model_of(state: State) -> _Model:
        arrays = {name: np.asarray(array, np.float64) for name, array in state.driver.items() if name != "reach"}
        return _Model(arrays["jacobian"], arrays["residual"], arrays.get("basis"))


def _triangle(jacobian: np.ndarray, misfit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A model with n + 1 rows at most, and the same sums of squares."""
    m, n = jacobian.shape
    if m <= n + 1:
        return jacobian, misfit
    triangle = np.asarray(np.linalg.qr(np.column_stack([jacobian, misfit]), mode="r"))
    return triangle[:, :n], triangle[:, n]


def bidiagonal(
    forward: Callable[[np.ndarray], np.ndarray],
    backward: Callable[[np.ndarray], np.ndarray],
    misfit: np.ndarray,
    slopes: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bidiagonal matrix, right-hand side and basis of k steps from Jᵀ misfit, which is `slopes`, with zeros for what is
    not needed: the model `residual + matrix @ y` for steps `basis @ y`.

    Costs a forward and a backward product for each step, less one backward.
    """
    matrix, residual, basis = np.zeros((k + 1, k)), np.zeros(k + 1), np.zeros((len(slopes), k))
    beta = float(np.linalg.norm(misfit))
    residual[0] = beta
    if beta == 0.0:
        return matrix, residual, basis
    left = misfit / beta
    right = slopes / beta
    lefts, largest = [left], 0.0
    for j in range(k):
        alpha = float(np.linalg.norm(right))
        if alpha <= _NOTHING * largest:
            break
        largest = max(largest, alpha)
        basis[:, j], matrix[j, j] = right / alpha, alpha
        # Orthogonal to all before it, twice, as rounding undoes what is so by itself.
        left = forward(basis[:, j])
        for _ in range(2):
            left = left - sum((other @ left) * other for other in lefts)
        beta = float(np.linalg.norm(left))
        matrix[j + 1, j] = beta
        if beta <= _NOTHING * largest or j == k - 1:
            break
        left = left / beta
        lefts.append(left)
        right = backward(left)
        for _ in range(2):
            right = right - basis[:, : j + 1] @ (basis[:, : j + 1].T @ right)
    return matrix, residual, basis


def _refuse(driver: LeastSquaresDriver, setting: Setting, flat: Flat) -> None:
    """Refuse what these methods cannot do, before anything is evaluated."""
    name, problem = driver.name, setting.problem
    if setting.evaluator.template.misfit is None:
        raise DriverError(
            f"Driver {name!r} is for least squares, and evaluate of problem {problem.name!r} returns no misfit.\n"
            "Return Evaluation(misfit=...), any tree of arrays: the objective is then half the sum of their squares. "
            "For other objectives use 'lbfgs' or 'l-bfgs-b'."
        )
    if names := sorted(problem.constraints or {}):
        raise DriverError(
            f"Driver {name!r} takes bounds, and no constraints; problem {problem.name!r} has "
            f"{', '.join(map(repr, names))}.\n"
            "Use 'slsqp' or 'trust-constr', which minimise half the sum of squares of the misfit under them, or add "
            "what a violation costs to the misfit."
        )
    if not flat.is_free.any():
        raise DriverError(f"Driver {name!r}: nothing is left to vary, as all lower bounds equal the upper ones.")


def _refuse_too_many(driver: LeastSquaresDriver, setting: Setting, side: Side | str, n: int) -> None:
    """Refuse a Jacobian that would cost thousands of products at each step, unless it is asked for."""
    if side == "products" or n <= _TOO_MANY:
        return
    what, lacking, entries = "pullbacks", "pushforwards", "entry of the misfit"
    if side == "columns":
        what, lacking, entries = lacking, what, "unknown"
    raise DriverError(
        f"Driver {driver.name!r} would ask for {n} {what} at each step of problem {setting.problem.name!r}, one for "
        f"each {entries}, as not all of its components have {lacking}.\n"
        f"Use 'lbfgs', which asks for one pullback; or driver_settings={{'jacobian': {side!r}}}, if so many are meant."
    )
