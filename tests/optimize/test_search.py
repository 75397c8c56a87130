"""Updates with trials as calls: the same trajectories as plain Optax, and every trial counted once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from tesseract_flow.errors import DriverError
from tesseract_flow.optimize.bounds import box_from
from tesseract_flow.optimize.drivers.optax.named import initial_state
from tesseract_flow.optimize.drivers.optax.search import Updater
from tests.optimize.helpers import optax_driver, rosenbrock

START = {"x": jnp.asarray(-1.2), "y": jnp.asarray(1.0)}
VALUE_AND_GRAD = jax.jit(jax.value_and_grad(rosenbrock))

# By name where a name exists: other test modules drive the same problem, and named drivers share what they compiled.
SEARCHES = {
    "zoom": optax_driver("lbfgs"),
    "backtracking": optax_driver("lbfgs", None, {"linesearch": "backtracking"}),
    "backtracking with gradient": optax_driver(
        optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(15, store_grad=True))
    ),
}
STEPS = {
    "adam": optax_driver(optax.adam(0.01)),
    "plain transformation": optax_driver(optax.GradientTransformation(*optax.sgd(1e-3)[:2])),
    "polyak": optax_driver(optax.polyak_sgd(max_learning_rate=1e-3)),
    "plateau": optax_driver(optax.chain(optax.adam(0.01), optax.contrib.reduce_on_plateau(patience=2))),
    "noise": optax_driver(optax.noisy_sgd(1e-3, key=0)),
}


def plain(transformation, n: int) -> list[dict]:
    """What Optax's own documentation says to do, all inside jit."""

    @jax.jit
    def step(u, state):
        value, gradient = jax.value_and_grad(rosenbrock)(u)
        transform = optax.with_extra_args_support(transformation)
        updates, state = transform.update(gradient, state, u, value=value, grad=gradient, value_fn=rosenbrock)
        return optax.apply_updates(u, updates), state

    points, u = [], START
    with jax.numpy_dtype_promotion("standard"):
        state = transformation.init(START)
        for _ in range(n):
            u, state = step(u, state)
            points.append(u)
    return points


DRIVERS = SEARCHES | STEPS


def ours(name: str, n: int, sample) -> list[dict]:
    driver = DRIVERS[name]
    update = Updater(driver, box_from(None, START), jnp.float64)
    points, u, state = [], START, initial_state(driver, START)
    for _ in range(n):
        value, gradient = VALUE_AND_GRAD(u)
        u, state = update(u, state, gradient, value, sample)
        points.append(u)
    return points


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
def test_trajectories_are_those_of_plain_optax_and_trials_are_calls(name):
    trials = []

    def sample(u):
        assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(u))
        trials.append(u)
        return VALUE_AND_GRAD(u)

    mine, theirs = ours(name, 6, sample), plain(DRIVERS[name].transformation, 6)
    for ours_, theirs_ in zip(mine, theirs, strict=True):
        for key in START:
            # Rounding differs where XLA fuses differently, and searches amplify it a little.
            assert np.isclose(float(ours_[key]), float(theirs_[key]), rtol=1e-7)
    if name in SEARCHES:
        # The accepted point is one of the trials, up to rounding.
        assert len(trials) >= 6
        assert min(abs(float(trial["x"] - mine[-1]["x"])) for trial in trials) < 1e-14
    else:
        assert trials == []


@pytest.mark.parametrize("name", DRIVERS)
def test_searching_is_recognised_without_running_anything(name):
    update = Updater(DRIVERS[name], box_from(None, START), jnp.float64)
    assert update.is_searching(START, initial_state(DRIVERS[name], START)) == (name in SEARCHES)


@pytest.mark.slow
def test_a_search_follows_the_projected_path():
    """The unconstrained step leaves the box; every trial stays inside, and so does the result."""
    box = box_from(({"x": -1.5, "y": None}, {"x": 0.5, "y": 0.8}), START)
    driver = DRIVERS["zoom"]
    update = Updater(driver, box, jnp.float64)
    u, state = box.project(START), initial_state(driver, START)

    def sample(trial):
        assert box.contains(trial)
        return VALUE_AND_GRAD(trial)

    for _ in range(40):
        value, gradient = VALUE_AND_GRAD(u)
        u, state = update(u, state, gradient, value, sample)
    # On x <= 0.5 the minimum over y is at y = x², and the objective (1 - x)² falls towards the bound.
    assert float(u["x"]) == 0.5 and float(u["y"]) == pytest.approx(0.25, abs=1e-5)


def test_a_driver_that_wants_what_nobody_offers_is_refused():
    def update(updates, state, params=None, *, hessian, **_):
        return updates, state

    driver = optax_driver(optax.GradientTransformationExtraArgs(lambda params: (), update))
    with pytest.raises(DriverError, match=r"(?s)cannot drive this design.*hessian"):
        Updater(driver, box_from(None, START), jnp.float64).is_searching(START, ())


def test_a_driver_that_changes_shapes_is_refused():
    bad = optax.stateless(lambda updates, params: jax.tree.map(lambda g: jnp.stack([g, g]), updates))
    with pytest.raises(DriverError, match="its update has shapes"):
        Updater(optax_driver(bad), box_from(None, START), jnp.float64).is_searching(START, optax.EmptyState())


def test_a_driver_may_try_points_in_any_loop():
    """A grid of steps along the gradient, of which it takes the best: one trial for each, in their order."""
    sizes = jnp.asarray([1e-4, 3e-4, 1e-3, 3e-3])

    def update(updates, state, params=None, *, value_fn, **_):
        def ahead(size):
            return jax.tree.map(lambda x, g: x - size * g, params, updates)

        _, values = jax.lax.scan(lambda carry, size: (carry, value_fn(ahead(size))), 0, sizes)
        return jax.tree.map(lambda g: -sizes[jnp.argmin(values)] * g, updates), state

    driver = optax_driver(optax.GradientTransformationExtraArgs(lambda params: (), update))
    updater = Updater(driver, box_from(None, START), jnp.float64)
    assert updater.is_searching(START, ())
    value, gradient = VALUE_AND_GRAD(START)
    trials = []
    u, _ = updater(START, (), gradient, value, lambda u: trials.append(u) or VALUE_AND_GRAD(u))
    expected = [jax.tree.map(lambda x, g, size=size: x - size * g, START, gradient) for size in sizes]
    assert [float(t["x"]) for t in trials] == [float(e["x"]) for e in expected]
    assert float(u["x"]) == min(expected, key=lambda e: float(rosenbrock(e)))["x"]


def test_a_trial_that_only_a_compiler_could_make_is_refused():
    def update(updates, state, params=None, *, value_fn, **_):
        value = jax.lax.reduce(params["x"][None], 0.0, lambda x, y: value_fn({"x": x, "y": y}), (0,))
        return jax.tree.map(lambda g: g * value, updates), state

    driver = optax_driver(optax.GradientTransformationExtraArgs(lambda params: (), update))
    with pytest.raises(DriverError, match="'trial' is run on the host, which is out of reach in 'reduce'"):
        Updater(driver, box_from(None, START), jnp.float64).is_searching(START, ())


@pytest.mark.slow
def test_float32_designs_stay_float32():
    start = jax.tree.map(lambda x: x.astype(jnp.float32), START)
    driver = optax_driver("lbfgs")
    update = Updater(driver, box_from(None, start), jnp.float32)
    value, gradient = VALUE_AND_GRAD(start)
    u, _ = update(start, initial_state(driver, start), gradient, value, VALUE_AND_GRAD)
    assert {leaf.dtype for leaf in jax.tree.leaves(u)} == {jnp.dtype(jnp.float32)}
    assert float(rosenbrock(u)) < float(rosenbrock(start))
