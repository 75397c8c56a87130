"""Runs for several settings of a factory: each a problem of its own, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import tesseract_flow as tf
from tesseract_flow.errors import EvaluationFailed, OtherRun, ProblemError
from tesseract_flow.optimize import MaxSteps
from tesseract_flow.storage import folder_name
from tesseract_flow.study.settings import all_settings, keyed
from tests.optimize.helpers import same_bits
from tests.study.helpers import found

THREE = MaxSteps(3)

PROBLEM = """
import jax.numpy as jnp
import tesseract_flow as tf

def bowl(center=3.0, width=1, mesh="coarse"):
    if mesh == "none":
        raise RuntimeError("no mesh, no bowl")
    return tf.Problem({"x": jnp.zeros(2)}, lambda d: width * jnp.sum((d["x"] - center) ** 2), name="bowl")
"""


def bowl(center: float = 3.0, width: int = 1, url: str = "") -> tf.Problem:
    return tf.Problem({"x": jnp.zeros(2)}, lambda d: width * jnp.sum((d["x"] - center) ** 2), name="bowl")


@pytest.fixture
def by_name(tmp_path: Path) -> str:
    (tmp_path / "problem.py").write_text(PROBLEM)
    return f"{tmp_path / 'problem.py'}:bowl"


def test_all_combinations_in_order():
    assert all_settings({"a": [1, 2], "b": np.array([0.5, 1.5])}) == [
        {"a": 1, "b": 0.5},
        {"a": 1, "b": 1.5},
        {"a": 2, "b": 0.5},
        {"a": 2, "b": 1.5},
    ]
    assert all_settings({"a": range(3)}) == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert all_settings([{"a": np.float64(1.0)}, {}]) == [{"a": 1.0}, {}]


VALUES = st.one_of(st.integers(-3, 3), st.floats(-2, 2), st.booleans(), st.text("ab=,.-", max_size=3), st.none())


@settings(max_examples=80, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "a=1,b"]), VALUES, max_size=3), max_size=6))
def test_other_settings_have_other_folders_and_the_same_ones_the_same(many):
    def told(one):
        return sorted((name, type(value).__name__, repr(value)) for name, value in one.items())

    different = {str(told(one)): one for one in many}
    keys = list(keyed(list(different.values())))
    assert len({folder_name(key) for key in keys}) == len(different)
    # What else is swept beside it changes no key.
    for key, one in zip(keys, different.values(), strict=True):
        assert list(keyed([dict(reversed(one.items()))])) == [key]


def test_where_something_runs_is_in_a_key_only_if_it_is_swept():
    here = {"load": 1.0, "url": "http://solver:8000"}
    assert list(keyed([here])) == list(keyed([{**here, "url": "http://elsewhere:9000"}])) == ["load=1.0"]
    assert len(keyed([here, {**here, "url": "http://elsewhere:9000"}])) == 2


def test_names_of_any_text_stay_apart():
    assert len(keyed([{"a": 1, "b": 2}, {"a=1,b": 2}])) == 2


def test_secrets_are_in_no_key_and_still_count():
    keys = list(keyed([{"api_token": "s3cr3t-one"}, {"api_token": "s3cr3t-two"}]))
    assert len(keys) == 2 and not any("s3cr3t" in key for key in keys)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({}, "The sweep is empty"),
        ([], "The sweep is empty"),
        ({"center": []}, "'center' is empty"),
        ({"center": 3.0}, r"A list of one|is a list of one"),
        ({"center": "abc"}, "is a list of one"),
        ({"center": {1, 2}}, "is a list of one"),
        ([3.0], "Settings 0 of the sweep are 3.0"),
        ("center", "or a list of settings"),
        ([{"center": 1.0}, {"center": 1.0}], "there twice"),
        ({"center": [1.0, 2.0, 1.0]}, "there twice"),
        ({"centre": [1.0]}, "Did you mean 'center'"),
    ],
)
def test_settings_that_cannot_be_used(wanted: Any, says):
    with pytest.raises(ProblemError, match=says):
        tf.sweep(bowl, wanted, "adam")


@pytest.mark.parametrize(("factory", "says"), [(bowl(), "a function that makes"), (3, "a function that makes")])
def test_what_is_no_factory(factory: Any, says):
    with pytest.raises(ProblemError, match=says):
        tf.sweep(factory, {"center": [1.0]}, "adam")


def test_each_run_is_that_of_its_own_problem(by_name):
    study = tf.sweep(by_name, {"center": [1.0, 2.0], "width": [2]}, "lbfgs")
    assert [run.settings for run in study.runs] == [{"center": center, "width": 2} for center in (1.0, 2.0)]
    for run in study.runs:
        assert np.allclose(found(run).design["x"], run.settings["center"], atol=1e-6)
        assert same_bits(found(run), tf.optimize(tf.optimize.load_problem(by_name, run.settings), "lbfgs"))
        assert run.problem is not None and run.problem.origin is not None
    header = study.table().splitlines()[1].split()
    assert header[:4] == ["rank", "run", "center", "width"]
    assert study.rows()[0]["setting.width"] == 2 and study.optima == []


def test_what_a_factory_raises_is_the_row_of_these_settings(by_name):
    study = tf.sweep(by_name, {"mesh": ["coarse", "none"]}, "adam", stop=THREE)
    assert [run.status for run in study.runs] == ["stopped", "failed"]
    assert "no mesh, no bowl" in str(study.runs[1].error)
    assert "no mesh, no bowl" in study.table()
    nothing = tf.sweep(lambda k: 3, {"k": [1, 2]}, "adam")  # type: ignore[arg-type, return-value]
    assert [run.error for run in nothing.runs] == ["The factory returned int, expected a tesseract_flow.Problem."] * 2
    with pytest.raises(EvaluationFailed, match="The factory returned int"):
        _ = nothing.best
    with pytest.raises(ProblemError, match="no mesh"):
        tf.sweep(by_name, {"mesh": ["none"]}, "adam", on_failure="raise")


def test_settings_that_join_later_do_not_repeat_those_that_are_there(by_name, tmp_path):
    options = {"driver": "adam", "stop": THREE, "journal": tmp_path / "study"}
    first = tf.sweep(by_name, {"center": [1.0, 2.0]}, **options)
    steps = []
    more = tf.sweep(
        by_name,
        {"center": [2.0, 3.0, 1.0]},
        observers=[tf.study.StudyObserver(on_step=lambda index, record: steps.append(index))],
        **options,
    )
    assert set(steps) == {1}
    assert same_bits(found(more.runs[0]), found(first.runs[1])) and same_bits(found(more.runs[2]), found(first.runs[0]))
    assert not more.notes
    fewer = tf.sweep(by_name, {"center": [3.0]}, **options)
    assert "2 other runs are in" in fewer.notes[0]


def test_a_factory_that_was_changed_is_refused(by_name, tmp_path):
    options = {"driver": "adam", "stop": THREE, "journal": tmp_path / "study"}
    tf.sweep(by_name, {"center": [1.0, 2.0]}, **options)
    (tmp_path / "problem.py").write_text(PROBLEM.replace("** 2", "** 4"))
    with pytest.raises(OtherRun, match="objective") as refused:
        tf.sweep(by_name, {"center": [1.0, 2.0]}, **options)
    assert any("center=" in note for note in refused.value.__notes__)
    accepted = tf.sweep(by_name, {"center": [1.0, 2.0]}, accept_changes=True, **options)
    assert all("changed and accepted" in str(found(run).history[-1].events) for run in accepted.runs)


def test_a_factory_is_called_by_one_run_at_a_time():
    inside = []

    def factory(center):
        inside.append(center)
        assert len(inside) == 1
        problem = bowl(center)
        inside.pop()
        return problem

    study = tf.sweep(factory, {"center": [1.0, 2.0, 3.0, 4.0]}, "adam", stop=THREE, max_workers=4)
    assert [run.status for run in study.runs] == ["stopped"] * 4
