"""The way from one point to the next: a step of a driver, or a search along a line.

A driver that steps (`step_by_step`) moves, and the new point is evaluated. A driver that searches (`step_by_search`)
has evaluated the new point as one of its trials. Multipliers never cost an evaluation with drivers that step: they
change between two points. A search needs the new Lagrangian where it stands, so each of its few changes costs one.

Where an evaluation fails (`failures`), a search steps back, a step is shortened or dropped, and both go on from good
points alone.

What a search tried is a `Search`, for whoever wants to know whether values and slopes fit together. What a step is
worth, and its record, are in `steps`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.optimize.constraints import change_duals, count_step, mean_residuals
from tesseract_flow.optimize.drivers import initial_state
from tesseract_flow.optimize.evaluator import Sample, Weights
from tesseract_flow.optimize.failures import Failure
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State

_FAR = 100.0  # times the first trial's distance; searches double theirs, some twenty times


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One point that a search looked at: what the gradient where it began predicts there, and what was found.

    Attributes:
        u: the point, in scaled units and inside the bounds.
        sample: what was found there; `None` if the evaluation failed.
        distance: from where the search began, in the Euclidean norm.
        predicted: change of the Lagrangian from there to here, by the gradient there.
        found: the same change, by the values; infinite if the evaluation failed.
        slope: of the Lagrangian here, along the way from there, per unit of `distance`; NaN if the evaluation failed.
    """

    u: PyTree
    sample: Sample | None
    distance: float
    predicted: float
    found: float
    slope: float


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """What one search along a line tried, in order, and where it ended.

    Attributes:
        trials: every point it looked at.
        u, driver: where the driver wants to go on, and its state.
        here: the sample at `u`; `None` where the search failed: it did not move, ended higher than it began, or where
            the evaluation fails.
    """

    trials: tuple[Trial, ...]
    u: PyTree
    driver: PyTree
    here: Sample | None

    @property
    def is_endless(self) -> bool:
        """Whether it went straight down, hundreds of times as far as it first looked, and met no end."""
        if self.here is None or len(self.trials) < 2 or self.trials[0].distance == 0.0:
            return False
        found = [0.0, *(trial.found for trial in self.trials)]
        last = self.trials[-1]
        return (
            all(after < before for before, after in itertools.pairwise(found))
            and last.distance >= _FAR * self.trials[0].distance
            and last.found <= 0.9 * last.predicted < 0.0
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """What a step came to: the next state, whether the driver could not improve on this one, its searches."""

    state: State
    stalled: bool = False
    searches: tuple[Search, ...] = ()

    @property
    def is_endless(self) -> bool:
        return bool(self.searches) and self.searches[-1].is_endless


def step_by_step(run: Run, state: State) -> Move:
    """The driver moves on, multipliers move on if it is time, and the new point is evaluated.

    Raises:
        EvaluationFailed: no point on the way to it can be evaluated, or the policy is not to look for one.
    """
    u, driver = run.update(state.u, state.driver, state.here.gradient, state.here.lagrangian, _no_trials)
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
            fresh = initial_state(run.driver, state.u) if policy.memory == "reset" else driver
            return Move(dataclasses.replace(state, driver=fresh))
        u, driver, here = _shortened(run, state, u, driver, weights)
    return Move(State(u, driver, state.objective_scale, duals, tally, here, state.best))


def _shortened(run: Run, state: State, u: PyTree, driver: PyTree, weights: Weights) -> tuple[PyTree, PyTree, Sample]:
    """Where a step ends that could not be evaluated at its end `u`: back along it; if that fails, the same once more
    for a driver that remembers nothing of what led there."""
    policy = run.attempts.policy
    for is_restart in (False, True):
        if is_restart:
            fresh = initial_state(run.driver, state.u)
            u, driver = run.update(state.u, fresh, state.here.gradient, state.here.lagrangian, _no_trials)
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


def step_by_search(run: Run, state: State) -> Move:
    """The driver searches; if it fails, once more with its memory cleared; then multipliers, if it is time.

    Raises:
        EvaluationFailed: too many trials in a row cannot be evaluated, or the policy is not to step back.
    """
    searches = [_search(run, state, state.driver)]
    if searches[-1].here is None:
        searches.append(_search(run, state, initial_state(run.driver, state.u)))
    u, driver, here = searches[-1].u, searches[-1].driver, searches[-1].here
    failed = here is None
    if here is None:
        u, driver, here = state.u, initial_state(run.driver, state.u), state.here
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
                (duals, tally), here, driver, failed = changed, there, initial_state(run.driver, u), False
    if any(trial.sample is None for search in searches for trial in search.trials):
        run.attempts.note("the line search stepped back")
    return Move(State(u, driver, state.objective_scale, duals, tally, here, state.best), failed, tuple(searches))


def _search(run: Run, state: State, driver_state: PyTree) -> Search:
    """One search from where the state is."""
    trials: list[Trial] = []
    # Worse than any value, and flat. NaN would do for Optax, but what is compared with it is neither worse nor better.
    wall = jnp.full_like(state.here.lagrangian, jnp.inf), jax.tree.map(jnp.zeros_like, state.here.gradient)

    def sample(u):
        found = run.look(u, state.weights)
        trials.append(_trial(state, u, None if isinstance(found, Failure) else found))
        return wall if isinstance(found, Failure) else (found.lagrangian, found.gradient)

    u, driver = run.update(state.u, driver_state, state.here.gradient, state.here.lagrangian, sample)
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


def moved(a: PyTree, b: PyTree) -> bool:
    return any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _values(run: Run, sample: Sample) -> dict[str, jax.Array]:
    return run.evaluator.evaluation(sample.leaves).constraints


def _max_norm(tree: PyTree) -> float:
    return max(float(jnp.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(tree))
