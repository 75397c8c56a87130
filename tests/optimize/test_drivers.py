"""Drivers by name, with settings from a form; and what is said when they do not fit."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import optax
import optax.contrib as contrib
import pytest

from tesseract_flow.errors import DriverError
from tesseract_flow.optimize import driver_settings
from tesseract_flow.optimize.bounds import box_from
from tesseract_flow.optimize.drivers.optax.named import LEARNING_RATES, initial_state
from tesseract_flow.optimize.drivers.optax.search import Updater
from tests.optimize.helpers import optax_driver

START = {"x": jnp.array([1.0, -2.0]), "y": jnp.asarray(3.0)}


def bowl(u):
    return 0.5 * ((u["x"] ** 2).sum() + u["y"] ** 2), u


def run(driver, n: int, start=START):
    updater = Updater(driver, box_from(None, start), jnp.float64)
    u, state = start, initial_state(driver, start)
    for _ in range(n):
        value, gradient = bowl(u)
        u, state = updater(u, state, gradient, value, bowl)
    return u


def eager_updates(driver, n: int) -> list[jax.Array]:
    u, points = jnp.array([1.0, -2.0]), []
    with jax.numpy_dtype_promotion("standard"):
        state = driver.transformation.init(u)
        for _ in range(n):
            updates, state = driver.transformation.update(u, state, u, value=(u @ u) / 2, grad=u)
            u = u + updates
            points.append(u)
    return points


# L-BFGS wants a value_fn; test_search and test_beam run it.
@pytest.mark.parametrize("name", [name for name in sorted(LEARNING_RATES) if name != "lbfgs"])
def test_every_named_driver_goes_downhill_with_its_defaults(name):
    points = eager_updates(optax_driver(name), 5)
    assert float(points[-1] @ points[-1]) < 5.0


@pytest.mark.parametrize("name", sorted(LEARNING_RATES))
def test_every_default_setting_is_one_the_driver_accepts(name):
    settings = driver_settings(name)
    again = optax_driver(name, None, settings)
    # A form hands settings on as JSON.
    assert json.loads(json.dumps(dict(again.description)))["name"] == name
    if name != "lbfgs":
        assert (eager_updates(again, 2)[1] == eager_updates(optax_driver(name), 2)[1]).all()


def test_a_name_is_the_optax_function_of_that_name():
    ours = run(optax_driver("adam", 0.05, {"b1": 0.8, "nesterov": True}), 4)
    theirs = run(optax_driver(optax.adam(0.05, b1=0.8, nesterov=True)), 4)
    assert (ours["x"] == theirs["x"]).all()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.055, 0.01]),
        ("cosine", [0.1, 0.055, 0.01]),
        ("exponential", [0.1, 0.1 * 0.1**0.5, 0.01]),
    ],
)
def test_schedules_run_from_the_learning_rate_to_its_end_and_stay_there(schedule, expected):
    settings = {"schedule": schedule, "schedule_steps": 2, "schedule_end": 0.1}
    driver = optax_driver("sgd", 0.1, settings)
    state = driver.transformation.init(jnp.asarray(1.0))
    rates = []
    for _ in range(4):
        with jax.numpy_dtype_promotion("standard"):
            update, state = driver.transformation.update(jnp.asarray(1.0), state)
        rates.append(-float(update))
    assert rates == pytest.approx([*expected, expected[-1]])


@pytest.mark.parametrize(
    ("driver", "rate", "settings", "message"),
    [
        ("adm", None, None, "(?s)Unknown driver 'adm'. Did you mean 'adam'.*Known are: adabelief"),
        ("adam", None, {"b3": 0.9}, r"(?s)does not take the setting 'b3'.*adam takes: b1 \(default 0.9\)"),
        ("adam", None, {"learning_rate": 0.1}, "pass it as the argument learning_rate"),
        ("adam", None, {"b1": "high"}, "(?s)'b1'.*expected something like 0.9, received 'high'"),
        ("adam", None, {"nesterov": 1}, "'nesterov'"),
        ("adam", -0.1, None, "learning_rate of driver 'adam' must be a positive number"),
        ("adam", None, {"schedule": "cosinus"}, "Unknown schedule 'cosinus'.*Did you mean 'cosine'"),
        ("polyak_sgd", 0.1, None, "does not take a learning_rate"),
        ("lbfgs", None, {"linesearch": "zom"}, "Unknown linesearch 'zom'.*Did you mean 'zoom'"),
        ("lbfgs", None, {"schedule": "cosine"}, "no learning rate to schedule"),
        ("lbfgs", None, {"memory_size": 0}, "(?s)Driver 'lbfgs'.*memory_size"),
        ("lbfgs", None, {"memory_size": 2.5}, "'memory_size'"),
        (optax.adam(0.1), 0.1, None, "go with a driver's name"),
        (optax.adam(0.1), None, {"b1": 0.9}, "go with a driver's name"),
        (optax.adam, None, None, "a name or an optax.GradientTransformation, received function"),
    ],
)
def test_what_a_driver_does_not_take_is_said_with_what_it_takes(driver, rate, settings, message):
    with pytest.raises(DriverError, match=message):
        optax_driver(driver, rate, settings)


def slope(driver, n=12):
    """Objective of the bowl before and after."""
    u = run(driver, n)
    return float(bowl(START)[0]), float(bowl(u)[0])


SGD = optax.sgd(0.1)
OBJECTS = {
    "lookahead": lambda: optax.lookahead(SGD, 5, 0.5),
    "MultiSteps": lambda: optax.MultiSteps(SGD, 2),
    "MultiSteps as a transformation": lambda: optax.MultiSteps(SGD, 2).gradient_transformation(),
    "sam": lambda: contrib.sam(SGD, optax.chain(contrib.normalize(), optax.sgd(0.05)), 2),
    "schedule_free": lambda: contrib.schedule_free(SGD, 0.1),
    "momo": lambda: contrib.momo(0.1),
    "cocob": lambda: contrib.cocob(),
    "muon": lambda: contrib.muon(0.1),
    "madgrad": lambda: contrib.madgrad(0.1),
    "ademamix": lambda: contrib.ademamix(0.1),
    "adafactor": lambda: optax.adafactor(0.1),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    "flatten": lambda: optax.flatten(SGD),
    "partition": lambda: optax.partition({"a": SGD, "b": optax.adam(0.1)}, {"x": "a", "y": "b"}),
    "apply_if_finite": lambda: optax.apply_if_finite(SGD, 3),
    "noisy_sgd": lambda: optax.noisy_sgd(0.01, key=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTS)
def test_optimisers_of_optax_go_downhill_as_objects(name):
    before, after = slope(optax_driver(OBJECTS[name]()))
    assert after < before


def test_lookahead_is_the_loop_of_its_documentation():
    """With pairs of designs: fast and slow ones."""
    lookahead = optax.lookahead(SGD, 3, 0.5)
    pair = optax.LookaheadParams(START, START)
    with jax.numpy_dtype_promotion("standard"):
        state = lookahead.init(pair)
        for _ in range(7):
            updates, state = lookahead.update(bowl(pair.fast)[1], state, pair)
            pair = optax.apply_updates(pair, updates)
    assert jnp.allclose(run(optax_driver(lookahead), 7)["x"], pair.fast["x"])


def test_multi_steps_move_every_other_step():
    ours, theirs = run(optax_driver(optax.MultiSteps(SGD, 2)), 6), run(optax_driver(SGD), 3)
    assert jnp.allclose(ours["x"], theirs["x"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contrib.sam(SGD, SGD, 2, opaque_mode=True), "(?s)grad_fn.*opaque_mode=False makes the same steps"),
        (lambda: contrib.sophia(0.01), "(?s)obj_fn.*differentiates the objective twice"),
        (
            lambda: optax.chain(contrib.differentially_private_aggregate(1.0, 0.1, 0), SGD),
            "(?s)batch dimension.*first axis of a gradient for examples",
        ),
        (lambda: optax.chain(optax.lookahead(SGD, 5, 0.5), optax.scale(1.0)), "(?s)'fast'.*comes outermost"),
        (lambda: optax.adam, "received function adam, which makes one: optax.adam"),
    ],
)
def test_what_cannot_drive_is_refused_with_the_reason(make, message):
    start = {"x": jnp.ones(3), "y": jnp.asarray(3.0)}
    with pytest.raises(DriverError, match=message):
        run(optax_driver(make()), 1, start)


def test_an_update_of_another_shape_is_refused_although_it_would_broadcast():
    driver = optax_driver(optax.chain(contrib.differentially_private_aggregate(1.0, 0.1, 0), SGD))
    start = jnp.ones(3)
    with pytest.raises(DriverError, match=r"(?s)its update has shapes.*first axis of a gradient for examples"):
        Updater(driver, box_from(None, start), jnp.float64).is_searching(start, initial_state(driver, start))
