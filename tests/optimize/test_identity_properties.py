"""Identities as values: equal in any process, and different after any one change."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesseract_flow.optimize import AugmentedLagrangian, Constraint, Evaluation, Problem, build_driver, load_problem
from tesseract_flow.optimize.canonical import Plain, text_of
from tesseract_flow.optimize.identity import compare, digest_of, identity_of
from tesseract_flow.optimize.problem import Origin
from tesseract_flow.optimize.returned import check_evaluation
from tests.optimize import identities_elsewhere

ROOT = pathlib.Path(__file__).parents[2]
numbers = st.floats(-1e6, 1e6).filter(lambda x: x == x)
others = st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1])


@dataclasses.dataclass(frozen=True)
class Spec:
    """A small problem by its numbers."""

    design: float = 1.0
    fixed: float = 2.0
    literal: float = 3.0
    constant: float = 4.0
    inner: float = 5.0
    lower: float = -7e6
    scale: float = 6.0
    limit: float = 7.0
    setting: float = 8.0
    argument: float = 9.0
    static: float = 10.0

    def identity(self):
        array = np.full(40, self.constant)

        def evaluate(design):
            def body(carry, x):
                return carry * 0.5 + jnp.sin(x) * self.inner, None

            total, _ = jax.lax.scan(body, design["x"].sum(), jnp.arange(3.0))
            objective = total + self.literal * (design["x"] ** 2).sum() + (array * design["x"][0]).sum() + design["c"]
            return Evaluation(objective, {"sum": design["x"].sum()})

        made = Problem(
            {"x": jnp.full(3, self.design), "c": np.float64(self.fixed), "label": self.static},
            evaluate,
            vary={"x": True, "c": False, "label": False},
            bounds=({"x": self.lower}, None),
            scale=abs(self.scale) + 1e-3,
            constraints={"sum": Constraint(upper=self.limit)},
            settings={"n": self.setting},
            origin=Origin("problem:factory", {"a": self.argument}),
        )
        driver = build_driver("adam", 0.01)
        return identity_of(made, driver, AugmentedLagrangian.for_steps(), 1e-4, check_evaluation(made))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Spec)])
@given(pair=others)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
def test_any_one_change_shows(field, pair):
    if field == "scale" and abs(pair[0]) + 1e-3 == abs(pair[1]) + 1e-3:
        return
    if field == "lower":
        pair = tuple(-abs(x) - 2e6 for x in pair)
        if pair[0] == pair[1]:
            return
    one, same, other = (dataclasses.replace(Spec(), **{field: x}).identity() for x in (pair[0], pair[0], pair[1]))
    assert one == same and compare(one, same).changes == () and compare(one, same).doubts == ()
    found = compare(one, other)
    assert found.changes and digest_of(one) != digest_of(other)


def elsewhere(seed: str) -> dict:
    environment = os.environ | {"PYTHONHASHSEED": seed, "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-m", "tests.optimize.identities_elsewhere"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_other_processes_with_other_hash_seeds_find_the_same():
    here = identities_elsewhere.identities()
    for seed in ("1", "2"):
        there = elsewhere(seed)
        assert there.keys() == here.keys()
        for name, identity in here.items():
            assert compare(there[name], json.loads(json.dumps(identity))).changes == (), name
            assert there[name] == json.loads(json.dumps(identity)), name


def text(fn, *arguments) -> tuple[str, ...]:
    closed = jax.make_jaxpr(fn)(*arguments)
    return text_of(closed, [f"in{k}" for k in range(len(arguments))], slice(None), str).lines


def test_wrappers_names_order_and_what_nobody_uses_leave_no_trace():
    def plain(x):
        a, b = jnp.sin(x), jnp.cos(x)
        return a * b

    @jax.jit
    def helper(x):
        return jnp.cos(x)

    def wrapped(x):
        jnp.tan(x)
        b = jax.checkpoint(helper)(x)
        jax.debug.print("{}", b)
        return jnp.sin(x) * b

    assert text(plain, 1.0) == text(wrapped, 1.0)
    assert text(plain, 1.0) != text(lambda x: jnp.sin(x) * jnp.sin(x), 1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), -np.zeros(3)),
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.full(9, np.nan), np.zeros(9)),
        (np.arange(1000.0), np.arange(1000.0) + 1e-13 * (np.arange(1000) == 500)),
        (1, 1.0),
        (True, 1),
        (0.1, 0.1 + 1e-17 * 2),
        ("a", b"a"),
        ({"a": 1}, {"a": 2}),
        ((1, 2), [1, 2]),
        (jax.random.key(0), jax.random.key(1)),
    ],
)
def test_values_that_differ_are_written_differently(one, other):
    same = one if isinstance(one, float) and one == other else None
    assert (Plain().text(one) == Plain().text(other)) == (same is not None)
    assert Plain().text(one) == Plain().text(one)


def test_a_long_chain_is_no_deep_recursion():
    def chain(x):
        for _ in range(3000):
            x = x + 1.0
        return x

    assert len(text(chain, 1.0)) == 3001


def test_where_a_problem_lies_does_not_count(tmp_path):
    source = "import jax.numpy as jnp\nimport tesseract_flow as tf\n\n"
    source += "def problem(n=3, url='http://here', workers=1, mesh='coarse'):\n"
    source += "    return tf.Problem({'x': jnp.ones(n)}, lambda design: (design['x'] ** 2).sum())\n"

    def made(folder, **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "wing.py").write_text(source)
        problem = load_problem(f"{tmp_path / folder}/wing.py:problem", options)
        method = AugmentedLagrangian.for_steps()
        return identity_of(problem, build_driver("adam"), method, 1e-4, check_evaluation(problem))

    first = made("a")
    for options in ({}, {"n": 3}, {"url": "http://bob:planted@there:8000"}, {"workers": 4}, {"url": ["http://a:1"]}):
        assert compare(first, made("b", **options)).changes == ()
        assert "planted" not in json.dumps(made("b", **options))
    assert compare(first, made("b", mesh="fine")).changes == ('factory.settings.mesh: "coarse" -> "fine"',)
    # The same problem, made from Python: there are no settings to compare, and the objective is what it is.
    by_hand = {key: value for key, value in first.items() if key != "factory"}
    for known, now in ((first, by_hand), (by_hand, first)):
        assert compare(known, now).changes == ()
    shorter = {key: value for key, value in made("b", n=2).items() if key != "factory"}
    assert compare(first, shorter).changes
