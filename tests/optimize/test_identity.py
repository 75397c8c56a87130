"""Identities: equal for the same run in another process, different for anything that matters."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import optax
import pytest

from tesseract_flow.optimize import AugmentedLagrangian, Constraint, Evaluation, Problem, build_driver
from tesseract_flow.optimize.identity import compare, digest_of, identity_of
from tesseract_flow.optimize.returned import check_evaluation


def evaluate(design):
    return Evaluation(design["x"].sum(), {"volume": design["x"].sum()})


def problem(**changes) -> Problem:
    design = {
        "x": jnp.arange(1.0, 7.0),
        "mesh": jnp.arange(6),
        "label": "a",
        "act": jnp.tanh,
        "part": functools.partial(jnp.roll, shift=2),
        "key": jax.random.key(1),
        **changes.pop("design", {}),
    }
    return Problem(design, evaluate, **{"constraints": {"volume": Constraint(equals=1.0)}, **changes})


def identity(driver=None, method=None, tol=1e-4, problem=problem, **changes):
    method = method or AugmentedLagrangian.for_steps()
    made = problem(**changes)
    return identity_of(made, driver or build_driver("adam", 0.01), method, tol, check_evaluation(made))


def changes_between(old, new):
    compared = compare(old, new)
    assert compared.doubts == ()
    return list(compared.changes)


def test_the_same_run_has_the_same_identity():
    assert changes_between(identity(), json.loads(json.dumps(identity()))) == []
    assert digest_of(identity()) == digest_of(json.loads(json.dumps(identity())))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"design": {"x": jnp.arange(2.0, 8.0)}}, r"varying.x: "),
        ({"design": {"x": jnp.arange(1.0, 7.0, dtype=jnp.float32)}}, "varying.x: "),
        ({"design": {"label": "b"}}, """fixed.label: "str 'a'" -> "str 'b'\""""),
        ({"design": {"mesh": jnp.arange(6) + 1}}, "fixed.mesh: "),
        ({"design": {"act": jnp.sin}}, 'fixed.act: "callable tanh" -> "callable sin"'),
        ({"design": {"part": functools.partial(jnp.roll, shift=3)}}, "fixed.part: "),
        ({"design": {"key": jax.random.key(2)}}, "fixed.key: "),
        ({"design": {"more": 1}}, 'fixed.more: (absent) -> "int 1"'),
        ({"bounds": (0.0, None)}, 'lower.x: "float64[6] = -inf" -> "float64[6] = 0.0"'),
        ({"constraints": {"volume": Constraint(equals=2.0)}}, 'constraints.volume.equals: "float64[] = 1.0" -> '),
        ({"constraints": {"volume": Constraint(upper=1.0)}}, "constraints.volume.upper: (absent) -> "),
        ({"scale": 2.0}, 'scale.x: "float64[6] = 1.0" -> "float64[6] = 2.0"'),
        ({"settings": {"n": 50}}, "settings.n: (absent) -> 50"),
        ({"name": "other"}, 'problem: "problem" -> "other"'),
        ({"driver": build_driver("adam", 0.02)}, "driver.learning_rate: 0.01 -> 0.02"),
        ({"driver": build_driver("adam", 0.01, {"b1": 0.8})}, "driver.b1: (absent) -> 0.8"),
        ({"driver": build_driver("nadam", 0.01)}, 'driver.name: "adam" -> "nadam"'),
        ({"method": AugmentedLagrangian.for_searches()}, 'constraint_method.penalty: "3.0" -> "10.0"'),
        ({"tol": 1e-3}, "constraint_method.feasibility_tol: "),
    ],
)
def test_whatever_matters_shows_in_the_difference(changes, line):
    lines = changes_between(identity(), identity(**changes))
    assert any(found.startswith(line) for found in lines), lines


def test_what_does_not_matter_does_not_show():
    assert changes_between(identity(), identity(picture=print)) == []


OBJECTS = {
    "adam": lambda rate: optax.adam(rate),
    "chain": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate)),
    "schedule": lambda rate: optax.adam(optax.cosine_decay_schedule(rate, 20)),
    "lbfgs": lambda rate: optax.lbfgs(rate, linesearch=None),
    "search": lambda rate: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(9, max_learning_rate=rate)),
    "injected": lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate),
    # What three updates on a small problem do not show:
    "clip": lambda rate: optax.chain(optax.clip_by_global_norm(500.0 * rate), optax.sgd(0.1)),
    "later": lambda rate: optax.sgd(optax.join_schedules([lambda _: 0.1, lambda _: rate], [1000])),
    "when": lambda rate: optax.sgd(optax.piecewise_constant_schedule(0.1, {int(1e4 * rate): 0.1})),
    "tiny": lambda rate: optax.adamw(0.1, weight_decay=rate * 1e-12),
    "bound of a search": lambda rate: optax.lbfgs(
        linesearch=optax.scale_by_zoom_linesearch(20, max_learning_rate=rate * 1e9)
    ),
}


@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_an_optax_object_is_known_by_its_text(make):
    first, second, other = (identity(build_driver(make(rate))) for rate in (0.01, 0.01, 0.02))
    assert changes_between(first, json.loads(json.dumps(second))) == []
    lines = changes_between(first, other)
    assert lines and all(line.startswith("driver") for line in lines)


def test_behaviour_decides_where_another_version_wrote_an_objects_text():
    object_of = OBJECTS["adam"]
    old, same, other = (identity(build_driver(object_of(rate))) for rate in (0.01, 0.01, 0.02))
    old["versions"]["optax"] = "0.0.1"
    old["driver_text"] = {"digest": "another", "lines": ["x"]}
    assert compare(old, same).changes == ()
    assert compare(old, same).doubts == (
        "the driver's text, which another version writes another way "
        f'(optax: "0.0.1" -> "{same["versions"]["optax"]}")',
    )
    assert all(line.startswith("driver.behaviour") for line in compare(old, other).changes)
    assert compare(old, other).changes
    del old["driver_text"]  # a journal of before
    assert compare(old, same).changes == ()


def test_random_keys_do_not_disturb():
    first, second = (identity(build_driver(optax.noisy_sgd(0.1, key=3))) for _ in range(2))
    assert changes_between(first, second) == []
