"""Searches and L-BFGS with active bounds: what is held, what is remembered, and at what price a problem is solved."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.optimize import (
    AugmentedLagrangian,
    MaxSteps,
    Problem,
    check_evaluation,
    optimize,
)
from tesseract_flow.optimize.bounds import Box, box_from
from tesseract_flow.optimize.drivers.optax import search
from tesseract_flow.optimize.drivers.optax.holding import without_held
from tesseract_flow.optimize.drivers.optax.named import initial_state, lenient_promotion
from tesseract_flow.optimize.drivers.optax.search import Updater
from tesseract_flow.optimize.identity import compare, identity_of
from tests.optimize.helpers import Counted, hs71_problem, optax_driver, rosenbrock, same_bits

N = 20


def chain(x):
    """Ten of twenty entries end at their upper bound; 687 evaluations did not solve it when they were not held."""
    w, c = jnp.linspace(1, 2, N), jnp.where(jnp.arange(N) % 2 == 0, 2.0, 0.3)
    return (w * (x - c) ** 2).sum() + 0.3 * (x[1:] * x[:-1]).sum()


def chain_problem(**kwargs) -> Problem:
    return Problem(jnp.zeros(N), chain, **{"bounds": (-1.0, 1.0), **kwargs})


def scipys(fn, start, lower, upper):
    """The optimum by SciPy's L-BFGS-B, and the values that it evaluated, in order."""
    values, value_and_grad = [], jax.jit(jax.value_and_grad(fn))

    def evaluate(x):
        value, gradient = value_and_grad(x)
        values.append(float(value))
        return values[-1], np.asarray(gradient)

    found = scipy.optimize.minimize(
        evaluate,
        np.clip(start, lower, upper),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(lower, upper),
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    return found.x, values


# --- one update


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_the_direction_is_down_along_the_path_and_mixes_nothing_held_in(seed):
    """Of random memories, many with pairs of no use; a change of the gradient at held entries changes nothing."""
    rng = np.random.default_rng(seed)
    box = Box(-jnp.ones(6), jnp.ones(6))
    u = jnp.asarray(np.clip(rng.normal(size=6) * 1.5, -1, 1))
    gradient = jnp.asarray(rng.normal(size=6))
    memory = optax.scale_by_lbfgs(3)
    state = memory.init(u)._replace(
        count=jnp.asarray(rng.integers(0, 7), jnp.int32),
        params=jnp.asarray(rng.normal(size=6)),
        updates=jnp.asarray(rng.normal(size=6)),
        diff_params_memory=jnp.asarray(rng.normal(size=(3, 6))),
        diff_updates_memory=jnp.asarray(rng.normal(size=(3, 6))),
    )
    held = np.asarray(box.held(u, gradient))

    def direction(gradient):
        with lenient_promotion():
            view = without_held(box, u, gradient, state)
            return -np.asarray(memory.update(box.projected_gradient(u, gradient), view, u)[0])

    found = direction(gradient)
    slope = float(found @ np.asarray(gradient))
    assert (found[held] == 0).all() and np.isfinite(found).all()
    assert slope < 0 or held.all()
    assert (direction(jnp.where(held, 7 * gradient, gradient)) == found).all()


OBJECTS = {
    "lbfgs": optax.lbfgs(),
    "chain": optax.chain(optax.clip_by_global_norm(1e3), optax.lbfgs()),
    "backtracking": optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(20, max_learning_rate=1.0)),
    "no search": optax.lbfgs(1.0, linesearch=None),
    "parts": optax.chain(
        optax.partition(
            {"curved": optax.scale_by_lbfgs(), "plain": optax.scale(0.1)}, {"x": "curved", "y": "plain", "z": "curved"}
        ),
        optax.scale(-1.0),
        optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one"),
    ),
    "one vector": optax.flatten(optax.lbfgs(linesearch=None)),
    "momentum": optax.chain(optax.adam(0.1), optax.scale_by_zoom_linesearch(20, initial_guess_strategy="one")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_and_chains_find_the_optimum_and_move_no_held_entry(name):
    def parts(design):
        return chain(jnp.concatenate([design["x"], design["y"], design["z"]]))

    design = {"x": jnp.zeros(8), "y": jnp.zeros(4), "z": jnp.zeros(8)}
    driver = optax_driver(OBJECTS[name])
    box = box_from((-1.0, 1.0), design)
    update = Updater(driver, box, np.dtype(np.float64))
    evaluate = jax.jit(jax.value_and_grad(parts))
    u, state, n_held = design, initial_state(driver, design), 0
    assert update.is_holding(u, state)
    for _ in range(60):
        value, gradient = evaluate(u)
        held = box.held(u, gradient)
        new, state = update(u, state, gradient, value, evaluate)
        for stays, a, b in zip(*map(jax.tree.leaves, (held, u, new)), strict=True):
            assert (np.asarray(a)[np.asarray(stays)] == np.asarray(b)[np.asarray(stays)]).all()
            n_held += int(stays.sum())
        u = new
    optimum = float(chain(scipys(chain, np.zeros(N), -np.ones(N), np.ones(N))[0]))
    assert n_held > 0
    assert float(parts(u)) == pytest.approx(optimum, rel=1e-2 if name == "momentum" else 1e-6)


# --- what does not change


@pytest.mark.slow
def test_without_bounds_an_update_is_that_of_optax_to_the_letter(monkeypatch):
    """What is about bounds is not even traced, so the program is the one of before, and so are the bits."""

    def refuse(*_):
        raise AssertionError("there are no bounds")

    monkeypatch.setattr(search, "without_held", refuse)
    monkeypatch.setattr(Box, "held", refuse)
    start = {"x": jnp.asarray(-1.2), "y": jnp.asarray(1.0)}
    value_and_grad = jax.jit(jax.value_and_grad(rosenbrock))
    for driver in (optax.lbfgs(), optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(15))):
        built = optax_driver(driver)
        update = Updater(built, box_from(None, start), np.dtype(np.float64))
        state = initial_state(built, start)
        value, gradient = value_and_grad(start)
        moved, _ = update(start, state, gradient, value, value_and_grad)
        assert not update.is_holding(start, state) and float(rosenbrock(moved)) < float(value)


@pytest.mark.parametrize("driver", [optax.adam(0.3), optax.sgd(0.1, momentum=0.9)], ids=["adam", "momentum"])
def test_drivers_that_step_are_projected_as_before(driver):
    box = box_from((-1.0, 1.0), jnp.zeros(N))
    built = optax_driver(driver)
    update = Updater(built, box, np.dtype(np.float64))
    evaluate = jax.jit(jax.value_and_grad(chain))

    @jax.jit
    def plain(u, state, gradient):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = driver.update(box.projected_gradient(u, gradient), state, u)
            return box.project(optax.apply_updates(u, updates)), state

    u = v = jnp.zeros(N)
    mine = theirs = initial_state(built, u)
    assert not update.is_holding(u, mine)
    for _ in range(30):
        value, gradient = evaluate(u)
        u, mine = update(u, mine, gradient, value, evaluate)
        v, theirs = plain(v, theirs, evaluate(v)[1])
        # Compiled with the box as an argument here and as a constant there.
        assert np.allclose(u, v, rtol=1e-13, atol=1e-13)
    assert int(((u == 1.0) | (u == -1.0)).sum()) == N // 2


# --- whole problems


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["lbfgs", optax.lbfgs()], ids=["name", "object"])
def test_twenty_variables_of_which_half_end_at_their_bounds(driver):
    counted = Counted()
    result = optimize(chain_problem(), driver, transform=counted)
    best, _ = scipys(chain, np.zeros(N), -np.ones(N), np.ones(N))
    assert result.converged and np.allclose(result.design, best, atol=1e-5)
    assert counted.n_calls == result.evaluations <= 20  # SciPy: 13; ours of before: 687, and not solved


def quadratic(seed, n, condition, part_active):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = basis @ np.diag(np.logspace(0, np.log10(condition), n)) @ basis.T
    solution, pushes = rng.uniform(-1, 1, n), np.zeros(n)
    at = rng.permutation(n)[: int(part_active * n)]
    solution[at] = rng.choice([-1.0, 1.0], len(at))
    pushes[at] = -solution[at] * np.exp(rng.uniform(np.log(0.01), np.log(10), len(at)))
    a, b = jnp.asarray(matrix), jnp.asarray(matrix @ solution - pushes)
    return lambda x: 0.5 * x @ (a @ x) - b @ x


def banana(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def in_other_units(fn, seed, n):
    units = 10.0 ** np.random.default_rng(seed).uniform(-1, 1, n)
    return lambda x: fn(x / jnp.asarray(units)), units


def family():
    """(fn, start, lower, upper), of 20 variables: none, some, most and all of them end at a bound."""
    ones, rng = np.ones(N), np.random.default_rng(0)
    for part in (0.0, 0.5, 0.9, 1.0):
        yield quadratic(1, N, 100, part), np.zeros(N), -ones, ones
    yield quadratic(2, N, 1000, 0.5), np.zeros(N), -ones, ones
    yield quadratic(3, N, 100, 0.5), rng.choice([-1.0, 1.0], N), -ones, ones  # starts on the bounds
    yield quadratic(4, N, 100, 0.5), 3 * rng.normal(size=N), -ones, ones  # starts outside
    fn, units = in_other_units(quadratic(5, N, 30, 0.5), 6, N)
    yield fn, np.zeros(N), -units, units
    yield banana, rng.uniform(-1.5, 0.5, N), -2 * ones, 0.5 * ones
    yield (
        banana,
        rng.uniform(0.2, 0.8, N),
        np.where(np.arange(N) % 3 == 1, 0.2, -2),
        np.where(rng.random(N) < 0.3, 0.8, 2),
    )
    yield chain, np.zeros(N), -ones, ones


@pytest.mark.slow
def test_a_family_of_bounded_problems_costs_what_scipy_takes():
    """Evaluations until the objective is within 1e-8 of its way to the optimum; the median was 66 times SciPy's."""
    ratios = []
    for fn, start, lower, upper in family():
        values = []

        def transform(fn, values=values):
            compiled = jax.jit(fn)

            def call(*args):
                answer = compiled(*args)
                values.append(float(answer[0][1][0]))
                return answer

            return call

        _, theirs = scipys(fn, start, lower, upper)
        problem = Problem(jnp.asarray(start), fn, bounds=(jnp.asarray(lower), jnp.asarray(upper)))
        result = optimize(problem, "lbfgs", transform=transform, stop={"max_steps": 300, "gradient_tolerance": 1e-7})
        assert result.converged
        goal = min(theirs) + 1e-8 * (theirs[0] - min(theirs))
        ratios.append(
            next(k for k, value in enumerate(values, 1) if value <= goal)
            / next(k for k, value in enumerate(theirs, 1) if value <= goal)
        )
    assert np.median(ratios) <= 1.5 and max(ratios) <= 3.0, ratios


# --- journals


@pytest.mark.slow
def test_a_run_with_active_bounds_goes_on_bit_by_bit(tmp_path):
    whole = optimize(chain_problem(), "lbfgs", stop=MaxSteps(11), transform=jax.jit)
    for n in (4, 7, 11):
        parts = optimize(chain_problem(), "lbfgs", stop=MaxSteps(n), journal=tmp_path / "J", transform=jax.jit)
    assert same_bits(whole, parts)


@pytest.mark.slow
def test_a_journal_from_before_entries_were_held_goes_on_after_a_look(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Updater, "is_holding", lambda *_: False)
        optimize(chain_problem(), "lbfgs", stop=MaxSteps(3), journal=tmp_path / "J", transform=jax.jit)
    went_on = optimize(chain_problem(), "lbfgs", stop=MaxSteps(20), journal=tmp_path / "J", transform=jax.jit)
    assert any("step 3 was evaluated again" in note and "treats active bounds" in note for note in went_on.notes)
    # It is this version's now.
    again = optimize(chain_problem(), "lbfgs", stop=MaxSteps(21), journal=tmp_path / "J", transform=jax.jit)
    assert not any("evaluated again" in note for note in again.notes)


def test_only_runs_that_hold_say_so_in_their_identity():
    def about(problem, driver):
        method, template = AugmentedLagrangian.for_searches(), check_evaluation(problem)
        return identity_of(problem, optax_driver(driver), method, 1e-6, template)["driver"].get("at_bounds")

    assert about(chain_problem(), "lbfgs") == "held" == about(hs71_problem(), "lbfgs")
    assert about(chain_problem(), "adam") is None and about(chain_problem(bounds=None), "lbfgs") is None
    known, now = {"driver": {"name": "lbfgs"}}, {"driver": {"name": "lbfgs", "at_bounds": "held"}}
    assert compare(known, now).changes == () and "active bounds" in compare(known, now).doubts[0]
    other = {"driver": {"name": "lbfgs", "at_bounds": "otherwise"}}
    assert compare(other, now).changes == ('driver.at_bounds: "otherwise" -> "held"',)
