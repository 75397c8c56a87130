"""Optax at work: the way from one point to the next is a step, or a search along a line.

A driver that steps (`_step_by_step`) moves, and the new point is evaluated. A driver that searches (`_step_by_search`)
has evaluated the new point as one of its trials. Multipliers never cost an evaluation with drivers that step: they
change between two points. A search needs the new Lagrangian where it stands, so each of its few changes costs one.

Where an evaluation fails (`failures`), a search steps back, a step is shortened or dropped, and both go on from good
points alone.

What a search tried is a `Search`, for whoever wants to know whether values and slopes fit together. What a step is
worth, and its record, are in `steps`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.constraints import AugmentedLagrangian, change_duals, count_step, mean_residuals
from tesseract_flow.optimize.drivers.base import AbstractEngine, Answers, Manner, Setting
from tesseract_flow.optimize.drivers.moves import Move, Search, Trial, moved
from tesseract_flow.optimize.drivers.optax.named import OptaxDriver, initial_state
from tesseract_flow.optimize.drivers.optax.search import Updater
from tesseract_flow.optimize.evaluator import Sample, Weights
from tesseract_flow.optimize.failures import Failure
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State


class OptaxEngine(AbstractEngine):
    """A gradient transformation at work. All that it knows is in the state."""

    takes_constraints = False
    is_scaled = False
    slopes = None

    def __init__(self, driver: OptaxDriver, setting: Setting):
        self._driver = driver
        self.update = Updater(driver, setting.box, setting.evaluator.dtype)
        is_searching = self.update.is_searching(setting.start, self.fresh(setting.start))
        self.manner: Manner = "searches" if is_searching else "steps"
        self.method = AugmentedLagrangian.for_searches() if is_searching else AugmentedLagrangian.for_steps()

    def fresh(self, u: PyTree) -> PyTree:
        return initial_state(self._driver, u)

    def first_look(self, run: Run, u: PyTree) -> Sample:
        return run.sample(u, Weights(jnp.ones((), run.evaluator.dtype), run.constraints.silent()))

    def begin(self, run: Run, state: State, alone: Sample) -> State:
        if not run.is_scaled:
            return dataclasses.replace(state, here=alone)
        # A start that is feasible up to rounding needs no second look.
        rounding = 100 * float(jnp.finfo(run.evaluator.dtype).eps)
        is_priced = any(bool((price != 0).any()) for price in state.duals.price.values())
        residual = run.constraints.largest_residual(_values(run, alone), state.duals)
        if run.has_constraints and (is_priced or float(residual) > rounding):
            return dataclasses.replace(state, here=run.sample(state.u, state.weights))
        # Nothing to add, so the Lagrangian is the objective, and scaling it needs no solver.
        scale = state.objective_scale
        divided = jax.tree.map(lambda g: g / scale.astype(g.dtype), alone.gradient)
        return dataclasses.replace(state, here=Sample(alone.lagrangian / scale, divided, alone.leaves))

    def begin_again(self, run: Run, state: State, u: PyTree) -> State:
        # A driver that searches forgets what it learned of the old problem; averages of gradients fade by themselves.
        forgets = self.manner == "searches" or moved(state.u, u)
        driver = self.fresh(u) if forgets else state.driver
        return dataclasses.replace(state, u=u, driver=driver, here=run.sample(u, state.weights))

    def step(self, run: Run, state: State) -> Move:
        return (_step_by_search if self.manner == "searches" else _step_by_step)(self, run, state)

    def resume(self, state: State, answers: Answers) -> tuple[State, tuple[str, ...]]:
        return state, ()

    def take_answers(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def _step_by_step(engine: OptaxEngine, run: Run, state: State) -> Move:
    """The driver moves on, multipliers move on if it is time, and the new point is evaluated.

    Raises:
        EvaluationFailed: no point on the way to it can be evaluated, or the policy is not to look for one.
    """
    u, driver = engine.update(state.u, state.driver, state.here.gradient, state.here.lagrangian, _no_trials)
    duals, tally = state.duals, state.tally
    if run.has_constraints:
        tally = count_step(tally, run.constraints.residuals(_values(run, state.here), duals))
        if int(tally.n_steps) >= run.method.every:
            duals, tally = change_duals(duals, tally, mean_residuals(tally), run.method)
    weights = Weights(state.objective_scale, duals)
    here = run.look(u, weights)
    if isinstance(here, Failure):
        policy = run.attempts.policy
        if policy.action == "skip":
            run.attempts.note("the update was dropped")
            fresh = engine.fresh(state.u) if policy.memory == "reset" else driver
            return Move(dataclasses.replace(state, driver=fresh))
        u, driver, here = _shortened(engine, run, state, u, driver, weights)
    return Move(State(u, driver, state.objective_scale, duals, tally, here, state.best))


def _shortened(
    engine: OptaxEngine, run: Run, state: State, u: PyTree, driver: PyTree, weights: Weights
) -> tuple[PyTree, PyTree, Sample]:
    """Where a step ends that could not be evaluated at its end `u`: back along it; if that fails, the same once more
    for a driver that remembers nothing of what led there."""
    policy = run.attempts.policy
    for is_restart in (False, True):
        if is_restart:
            fresh = engine.fresh(state.u)
            u, driver = engine.update(state.u, fresh, state.here.gradient, state.here.lagrangian, _no_trials)
        for k in range(0 if is_restart else 1, policy.shrinks + 1):
            fraction = policy.factor**k
            point = run.box.project(
                jax.tree.map(lambda a, b, t=fraction: a + (b - a) * jnp.asarray(t, a.dtype), state.u, u)
            )
            if not moved(state.u, point):
                break
            here = run.look(point, weights)
            if isinstance(here, Sample):
                memory = "the driver's memory was cleared, and " if is_restart else ""
                run.attempts.note(f"{memory}the step was shortened to {fraction:.3g} of its length")
                return point, driver, here
    raise run.attempts.given_up()


def _step_by_search(engine: OptaxEngine, run: Run, state: State) -> Move:
    """The driver searches; if it fails, once more with its memory cleared; then multipliers, if it is time.

    Raises:
        EvaluationFailed: too many trials in a row cannot be evaluated, or the policy is not to step back.
    """
    searches = [_search(engine, run, state, state.driver)]
    if searches[-1].here is None:
        searches.append(_search(engine, run, state, engine.fresh(state.u)))
    u, driver, here = searches[-1].u, searches[-1].driver, searches[-1].here
    failed = here is None
    if here is None:
        u, driver, here = state.u, engine.fresh(state.u), state.here
    duals, tally = state.duals, state.tally
    if run.has_constraints:
        residuals = run.constraints.residuals(_values(run, here), duals)
        tally = count_step(tally, residuals)
        slope = _max_norm(run.box.projected_gradient(u, here.gradient))
        is_time = (
            failed or slope <= run.method.inner_goal(int(tally.n_changes)) or int(tally.n_steps) >= run.method.every
        )
        unsettled = max(float(jnp.abs(t).max(initial=0.0)) for t in residuals.values()) > run.method.target
        if is_time and unsettled:
            changed = change_duals(duals, tally, residuals, run.method)
            there = run.look(u, Weights(state.objective_scale, changed[0]))
            if isinstance(there, Failure):
                run.attempts.note("multipliers stay as they were")
            else:
                # The driver's memory is about another Lagrangian now.
                (duals, tally), here, driver, failed = changed, there, engine.fresh(u), False
    if any(trial.sample is None for search in searches for trial in search.trials):
        run.attempts.note("the line search stepped back")
    return Move(State(u, driver, state.objective_scale, duals, tally, here, state.best), failed, tuple(searches))


def _search(engine: OptaxEngine, run: Run, state: State, driver_state: PyTree) -> Search:
    """One search from where the state is."""
    trials: list[Trial] = []
    # Worse than any value, and flat. NaN would do for Optax, but what is compared with it is neither worse nor better.
    wall = jnp.full_like(state.here.lagrangian, jnp.inf), jax.tree.map(jnp.zeros_like, state.here.gradient)

    def sample(u):
        found = run.look(u, state.weights)
        trials.append(_trial(state, u, None if isinstance(found, Failure) else found))
        return wall if isinstance(found, Failure) else (found.lagrangian, found.gradient)

    u, driver = engine.update(state.u, driver_state, state.here.gradient, state.here.lagrangian, sample)
    if not moved(state.u, u) or not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(u)):
        return Search(tuple(trials), u, driver, None)
    twin = _accepted(state.u, u, trials)
    u, here = (twin.u, twin.sample) if twin else (u, run.look(u, state.weights))
    if not isinstance(here, Sample):
        return Search(tuple(trials), u, driver, None)
    before, after = float(state.here.lagrangian), float(here.lagrangian)
    # Searches accept what rounding blurs (Hager & Zhang 2006, equation 23), and so do we.
    slack = max(1e-6, 10 * float(jnp.finfo(run.evaluator.dtype).eps)) * abs(before)
    return Search(tuple(trials), u, driver, here if after <= before + slack else None)


def _trial(state: State, u: PyTree, sample: Sample | None) -> Trial:
    way = [_double(b) - _double(a) for a, b in zip(jax.tree.leaves(state.u), jax.tree.leaves(u), strict=True)]
    distance = math.sqrt(sum(float((leaf * leaf).sum()) for leaf in way))
    predicted = _along(way, state.here.gradient)
    if sample is None:
        return Trial(u, None, distance, predicted, found=math.inf, slope=math.nan)
    found = float(sample.lagrangian) - float(state.here.lagrangian)
    return Trial(u, sample, distance, predicted, found, _along(way, sample.gradient) / distance if distance else 0.0)


def _along(way: Sequence[np.ndarray], gradient: PyTree) -> float:
    return sum(float((x * _double(g)).sum()) for x, g in zip(way, jax.tree.leaves(gradient), strict=True))


def _double(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def _accepted(before: PyTree, u: PyTree, trials: Sequence[Trial]) -> Trial | None:
    """The trial that `u` is, up to the rounding of how it was put together; `None` if the driver made something else
    of it.

    Going on from the trial itself, digit for digit, saves the evaluation of its twin.
    """

    def is_twin(a, b, origin):
        eps = jnp.finfo(a.dtype).eps
        return bool((jnp.abs(a - b) <= 4 * eps * (jnp.abs(a) + jnp.abs(origin))).all())

    for trial in reversed(trials):
        if all(jax.tree.leaves(jax.tree.map(is_twin, u, trial.u, before))):
            return trial
    return None


def _no_trials(u: PyTree) -> Any:
    raise AssertionError("a driver without trials asked for one")


def _values(run: Run, sample: Sample) -> dict[str, jax.Array]:
    return run.evaluator.evaluation(sample.leaves).constraints


def _max_norm(tree: PyTree) -> float:
    return max(float(jnp.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(tree))
