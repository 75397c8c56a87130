"""Drivers by name, with settings from a form; and what is said when they do not fit."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import optax
import pytest

from tesseract_flow.errors import DriverError
from tesseract_flow.optimize import build_driver, driver_names, driver_settings
from tesseract_flow.optimize.bounds import box_from
from tesseract_flow.optimize.drivers import initial_state
from tesseract_flow.optimize.search import Updater

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
@pytest.mark.parametrize("name", [name for name in driver_names() if name != "lbfgs"])
def test_every_named_driver_goes_downhill_with_its_defaults(name):
    points = eager_updates(build_driver(name), 5)
    assert float(points[-1] @ points[-1]) < 5.0


@pytest.mark.parametrize("name", driver_names())
def test_every_default_setting_is_one_the_driver_accepts(name):
    settings = driver_settings(name)
    again = build_driver(name, None, settings)
    # A form hands settings on as JSON.
    assert json.loads(json.dumps(dict(again.description)))["name"] == name
    if name != "lbfgs":
        assert (eager_updates(again, 2)[1] == eager_updates(build_driver(name), 2)[1]).all()


def test_a_name_is_the_optax_function_of_that_name():
    ours = run(build_driver("adam", 0.05, {"b1": 0.8, "nesterov": True}), 4)
    theirs = run(build_driver(optax.adam(0.05, b1=0.8, nesterov=True)), 4)
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
    driver = build_driver("sgd", 0.1, settings)
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
        build_driver(driver, rate, settings)
