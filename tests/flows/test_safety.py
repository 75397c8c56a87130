"""What a form may name, and what is refused before any of it is run."""

from __future__ import annotations

import os
import sys

import pytest

from tesseract_flow.client import open_tesseract
from tesseract_flow.errors import NotAllowed, ProblemError
from tesseract_flow.flows.check import resolved, settings_of_form
from tesseract_flow.flows.of_problem import flow_of
from tesseract_flow.flows.optimize import optimize_design
from tesseract_flow.optimize import load_problem

# Says that it was run by the file that it leaves.
PROBLEM = """
import pathlib
pathlib.Path(__file__).with_suffix(".was-run").touch()
import jax.numpy as jnp
import tesseract_flow as tf

def bowl(center, *, width=1.0):
    return tf.Problem(jnp.zeros(2), lambda x: width * ((x - center) ** 2).sum())
"""


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An allowed folder and another one, with a problem in each."""
    for name in ("allowed", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "problem.py").write_text(PROBLEM)
        (tmp_path / name / "problem.yaml").write_text("pipeline: {}")
        (tmp_path / name / "tesseract_api.py").write_text(PROBLEM)
    monkeypatch.setenv("TESSERACT_FLOW_ROOTS", os.pathsep.join([str(tmp_path / "allowed"), str(tmp_path / "absent")]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def was_run(places):
    return [str(path.relative_to(places)) for path in places.rglob("*.was-run")]


def test_problems_outside_of_the_allowed_folders_are_refused_before_they_are_run(places, monkeypatch):
    (places / "allowed" / "link.py").symlink_to(places / "other" / "problem.py")
    (places / "other" / "named_module_of_ours.py").write_text(PROBLEM)
    monkeypatch.syspath_prepend(str(places / "other"))
    for name in (
        "other/problem.py:bowl",
        "allowed/../other/problem.py:bowl",
        "allowed/link.py:bowl",
        "other/problem.yaml",
        "named_module_of_ours:bowl",
        "named_module_of_ours.inner:bowl",
        "os:system",
        "sys:exit",
        "json.decoder:JSONDecoder",
        "prefect.flows:flow",
    ):
        for run in (load_problem, flow_of, lambda path: optimize_design.fn(path, {"center": 1.0})):
            with pytest.raises(NotAllowed, match=r"outside of the folders .*allowed"):
                run(name)
    assert "named_module_of_ours" not in sys.modules and not was_run(places)
    load_problem("allowed/problem.py:bowl", {"center": 1.0})
    assert was_run(places) == ["allowed/problem.was-run"]


def test_components_outside_of_them_are_not_served(places):
    with pytest.raises(NotAllowed):
        open_tesseract(str(places / "other"))
    with pytest.raises(NotAllowed):
        open_tesseract("other/tesseract_api.py")
    assert not was_run(places)


def test_no_folder_at_all_allows_nothing(places, monkeypatch):
    monkeypatch.setenv("TESSERACT_FLOW_ROOTS", "")
    with pytest.raises(NotAllowed, match="there are none"):
        load_problem("allowed/problem.py:bowl", {"center": 1.0})


def test_settings_that_the_factory_does_not_take_are_refused_before_it_is_imported(places):
    for settings, says in (
        ({"centre": 1.0, "center": 2.0}, "Did you mean 'center'"),
        ({"width": 1.0}, "needs the setting 'center'"),
    ):
        with pytest.raises(ProblemError, match=says):
            optimize_design.fn("allowed/problem.py:bowl", settings)
    assert not was_run(places)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fem", "http://bob:pw@solver:8000"),
        ("fem", "http://solver:8000?token=abc"),
        ("fem", ["http://solver:8000", "http://:pw@solver:8001"]),
        ("api_token", "abc"),
        ("options", {"headers": {"Authorization": "Bearer abcdefgh"}}),
        ("note", "Bearer abcdefgh"),
    ],
)
def test_a_credential_in_a_form_is_refused_and_not_repeated(places, name, value):
    with pytest.raises(ProblemError, match="endpoint block") as refused:
        settings_of_form("other:thing", {name: value})
    assert "abc" not in str(refused.value) and "pw" not in str(refused.value)


def test_what_is_no_credential_is_let_through():
    for name, value in (("pin", 3), ("token", ""), ("token", None), ("fem", "http://solver:8000"), ("n_tokens", "12")):
        assert resolved(value, name) == value
