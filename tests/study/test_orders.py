"""A study that is asked to stop, to pause and to go on, or that has a time: what has begun, and what begins later."""

from __future__ import annotations

import time

import jax
import pytest

import tesseract_flow as tf
from tesseract_flow.cli import main
from tesseract_flow.errors import EvaluationFailed, SteeringError
from tesseract_flow.optimize import FileJournal, MaxSteps
from tesseract_flow.study.orders import Orders
from tesseract_flow.study.place import Place
from tests.optimize.helpers import same_bits
from tests.study.helpers import camel_component, camel_problem, found

OPTIONS = {"driver": "adam", "stop": MaxSteps(7), "max_workers": 1}


def asked(component):
    return camel_problem(lambda d: tf.apply_tesseract(component, {"x": d["x"], "y": d["y"]})["value"])


def test_a_study_stops_with_the_best_so_far_and_goes_on_when_it_is_told(tmp_path):
    n_asked = 0

    def before(endpoint, inputs):
        nonlocal n_asked
        n_asked += endpoint == "apply"
        if n_asked == 10 and endpoint == "apply":  # in the first step of the second run
            assert tf.steer(tmp_path, "stop", wait=60.0).is_heard
        if n_asked >= 10:  # it hears of it within a quarter of a second, and has six steps for that
            time.sleep(0.4)

    study = tf.multi_start(asked(camel_component(before)), 4, journal=tmp_path, **OPTIONS)
    assert [run.status for run in study.runs] == ["stopped", "stopped", "waiting", "waiting"]
    assert "stopped by hand" in study.runs[1].why and found(study.runs[1]).steps < 7
    assert study.runs[2].why == "the study was stopped by hand" and study.summary.endswith("2 stopped, 2 waiting")
    assert study.best.value == min(found(run).value for run in study.runs[:2]) and study.picture() is not None
    again = tf.multi_start(asked(camel_component()), 4, journal=tmp_path, **OPTIONS)
    assert [found(run).steps < 7 for run in again.runs] == [False, True, False, False]
    assert not tf.steer(tmp_path, "go-on").is_heard  # there is nobody now
    whole = tf.multi_start(asked(camel_component()), 4, journal=tmp_path, **OPTIONS)
    undisturbed = tf.multi_start(asked(camel_component()), 4, **OPTIONS)
    assert [found(run).steps for run in whole.runs] == [7, 7, 7, 7]
    for a, b in zip(whole.runs, undisturbed.runs, strict=True):
        assert found(a).value == found(b).value


def test_a_paused_study_begins_nothing(tmp_path):
    tf.multi_start(asked(camel_component()), 1, journal=tmp_path, **OPTIONS)
    tf.steer(tmp_path, "pause")
    waits = []

    def wait(why):
        if not waits:
            assert tf.steer(tmp_path, "go-on", wait=0.0).step is None
        waits.append(why)

    class Watch(tf.study.StudyObserver):
        def on_wait(self, why):
            wait(why)

    study = tf.multi_start(asked(camel_component()), 2, journal=tmp_path, observers=[Watch()], **OPTIONS)
    assert waits[0] == "The study is paused." and waits[-1] is None
    assert [found(run).steps for run in study.runs] == [7, 7]
    with pytest.raises(SteeringError, match="folder of a study"):
        tf.steer(tmp_path, learning_rate=0.1)
    with pytest.raises(SteeringError, match="folder of a study"):
        tf.steer(tmp_path, "release")


def test_a_run_that_begins_while_a_study_is_told_to_pause_is_told_too(tmp_path):
    study = tf.multi_start(asked(camel_component()), 1, journal=tmp_path, **OPTIONS)
    journal = str(study.runs[0].journal)
    place = Place(tmp_path, {"kind": "multi-start"}, shares_problem=True)
    with place.opened(), Orders(place) as orders:
        assert orders.why_not(time.sleep) == ""
        assert tf.steer(tmp_path, "pause", wait=60.0).is_heard
        with orders.reaching(journal):
            end = time.monotonic() + 60.0
            while not FileJournal(journal).inbox():
                assert time.monotonic() < end
                time.sleep(0.05)


def test_a_study_stops_in_time_and_the_next_one_goes_on(tmp_path, capsys):
    problem = asked(camel_component())
    tf.multi_start(problem, 1, journal=tmp_path, **OPTIONS)
    late = tf.multi_start(problem, 3, journal=tmp_path, until=time.time(), **OPTIONS)
    assert [run.status for run in late.runs] == ["stopped", "waiting", "waiting"]
    assert "time of this process" in late.runs[1].why
    with pytest.raises(EvaluationFailed, match="first waiting of: the time"):
        _ = tf.multi_start(problem, 2, until=time.time(), **OPTIONS).best
    whole = tf.multi_start(problem, 3, journal=tmp_path, until=time.time() + 3600.0, **OPTIONS)
    alone = tf.multi_start(problem, 3, **OPTIONS)
    assert all(same_bits(found(a), found(b)) for a, b in zip(whole.runs, alone.runs, strict=True))
    file = tmp_path / "bowl.py"
    file.write_text(
        "import jax.numpy as jnp\nimport tesseract_flow as tf\n"
        "def bowl():\n    return tf.Problem({'x': jnp.ones(2)}, lambda d: (d['x'] ** 2).sum(), bounds=(-1.0, 1.0))\n"
    )
    command = ["multi-start", f"{file}:bowl", "-n", "2", "--journal", str(tmp_path / "cli"), "--driver", "l-bfgs-b"]
    with jax.enable_x64(True):
        assert main([*command, "--until", "+1"]) == 75
        assert "waiting" in capsys.readouterr().out
        assert main([*command, "--until", "+3600"]) == 0
