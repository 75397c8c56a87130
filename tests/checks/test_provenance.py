"""The numbers of a run, traced to the kept answers that they are made of."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.checks.provenance import provenance
from tesseract_flow.cli import main
from tesseract_flow.errors import NotRecorded
from tesseract_flow.testing import FunctionTesseract

X = np.array([1.0, 2.0])


def problem(folder: Path | None, factor: float = 1.0, **kwargs) -> tf.Problem:
    cache = None if folder is None else tf.DirectoryCache(folder)
    spring = FunctionTesseract(lambda i: {"f": 3.0 * i["x"] ** 2}, {"x": X}, name="spring", version="1.4")
    weight = FunctionTesseract(lambda i: {"w": jnp.sum(i["f"])}, {"f": X}, name="weight", version="2.0")
    handles = [tf.open_tesseract(one, cache=cache) for one in (spring, weight)]

    def evaluate(x, scheduled=None):
        load = 1.0 if scheduled is None else scheduled["load"]
        force = tf.apply_tesseract(handles[0], {"x": x})["f"]
        total = tf.apply_tesseract(handles[1], {"f": load * force})["w"]
        return tf.Evaluation(factor * total, {"sum": x.sum()})

    return tf.Problem(jnp.asarray(X), evaluate, constraints={"sum": tf.Constraint(lower=1.0)}, name="springs", **kwargs)


def test_numbers_of_the_best_design_are_made_of_answers_that_are_there(tmp_path):
    result = tf.optimize(problem(tmp_path / "answers"), "slsqp", journal=tmp_path / "run")
    with tf.count_requests() as requests:
        found = provenance(problem(tmp_path / "answers"), tmp_path / "run")
    assert found.ok and requests.n_solves == 0 and result.converged
    assert {name: float(said) for name, (said, _) in found.numbers.items()} == {
        "objective": result.value,
        "sum": float(result.constraints["sum"]),
    }
    asked = [(row["component"]["name"], row["component"]["version"], row["endpoint"]) for row in found.answers]
    assert asked == [("spring", "1.4", "apply"), ("weight", "2.0", "apply")]
    assert all((tmp_path / "answers").rglob(row["file"]) for row in found.answers)


def test_a_schedule_gives_the_numbers_of_the_stage_of_the_best_design(tmp_path):
    asked = {"schedule": {"load": [1.0, 2.0]}}
    result = tf.optimize(problem(tmp_path / "answers", **asked), "slsqp", journal=tmp_path / "run")
    found = provenance(problem(tmp_path / "answers", **asked), tmp_path / "run")
    assert found.ok and result.value == pytest.approx(3.0) and float(found.numbers["objective"][1]) == result.value


def test_numbers_of_another_problem_are_not_called_those_of_the_run(tmp_path):
    tf.optimize(problem(tmp_path / "answers"), "slsqp", journal=tmp_path / "run")
    found = provenance(problem(tmp_path / "answers", factor=1.5), tmp_path / "run")
    assert found.differing == ["objective"] and "changed" in found.headline


@pytest.mark.parametrize(("folder", "says"), [(None, "'spring' keeps no answers"), ("elsewhere", "has no answer to")])
def test_what_is_not_kept_is_said_and_not_asked_for(tmp_path, folder, says):
    tf.optimize(problem(tmp_path / "answers"), "slsqp", journal=tmp_path / "run")
    with tf.count_requests() as requests, pytest.raises(NotRecorded, match=says):
        provenance(problem(None if folder is None else tmp_path / folder), tmp_path / "run")
    assert requests.n_solves == 0


FILE = """
import jax.numpy as jnp, numpy as np
import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract

def bowl(folder: str):
    cup = tf.open_tesseract(
        FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(2)}, name="cup", version="3"),
        cache=tf.DirectoryCache(folder),
    )
    return tf.Problem(jnp.ones(2), lambda x: tf.apply_tesseract(cup, {"x": x})["y"].sum())
"""


def test_the_command_lists_them(tmp_path, capsys):
    (tmp_path / "bowl.py").write_text(FILE)
    where = [f"{tmp_path / 'bowl.py'}:bowl", "--set", f"folder={tmp_path / 'answers'}"]
    journal = str(tmp_path / "run")
    assert main(["optimize", *where, "--journal", journal, "--driver", "slsqp"]) == 0
    capsys.readouterr()
    assert main(["cache", "trace", where[0], journal, *where[1:], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and [row["component"]["name"] for row in told["answers"]] == ["cup"]
    assert main(["cache", "trace", where[0], journal, *where[1:]]) == 0
    assert "objective: 0 in the run, 0 from these answers" in capsys.readouterr().out
