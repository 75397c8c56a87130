"""Runs that somebody else makes: read from their journals, held against the problem here, and not made twice."""

from __future__ import annotations

import time

import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import OtherRun, ProblemError
from tesseract_flow.optimize import MaxSteps
from tesseract_flow.storage import folder_name, place_in
from tesseract_flow.study import AbstractElsewhere
from tests.optimize.helpers import same_bits
from tests.study.helpers import camel, camel_component, camel_problem, found

THREE = MaxSteps(3)


def asked(component):
    return camel_problem(lambda d: tf.apply_tesseract(component, {"x": d["x"], "y": d["y"]})["value"])


class Here(AbstractElsewhere):
    """Runs them in this process after all, as somebody would who has loaded the problem anew."""

    def __init__(self, problem, **options):
        self.problem, self.options, self.keys = problem, options, []

    def run(self, errand, sleep):
        self.keys.append(errand.key)
        folder = place_in(errand.folder, folder_name(errand.key))
        start = self.problem.starting_at(errand.problem.start)
        tf.optimize(start, **self.options, journal=place_in(folder, "journal"))


def test_what_was_made_elsewhere_is_read_and_asks_for_nothing(tmp_path):
    options = {"driver": "adam", "stop": THREE}
    whole = tf.multi_start(asked(camel_component()), 3, **options)
    elsewhere = Here(asked(camel_component()), **options)
    study = tf.multi_start(asked(camel_component()), 3, journal=tmp_path, elsewhere=elsewhere, **options)
    for run, other in zip(study.runs, whole.runs, strict=True):
        assert found(run).value == found(other).value and found(run).reason == found(other).reason
        assert run.requests == other.requests and found(run).history[-1].step == 3
        for name in ("x", "y", "label", "n"):
            assert np.array_equal(found(run).design[name], found(other).design[name])
    assert study.table() and study.best.value == whole.best.value and study.picture() is not None
    assert len(elsewhere.keys) == 3 and study.sent == study.requests > 0
    with tf.count_requests() as sent:
        again = tf.multi_start(asked(camel_component()), 3, journal=tmp_path, elsewhere=elsewhere, **options)
    assert sent.n_solves == again.sent == 0 and len(elsewhere.keys) == 3
    assert all(same_bits(found(a), found(b)) for a, b in zip(again.runs, whole.runs, strict=True))
    # With room for more steps they go on, elsewhere.
    options["stop"] = elsewhere.options["stop"] = MaxSteps(4)
    more = tf.multi_start(asked(camel_component()), 3, journal=tmp_path, elsewhere=elsewhere, **options)
    assert 0 < more.sent == more.requests - again.requests
    assert len(elsewhere.keys) == 6 and [found(run).steps for run in more.runs] == [4, 4, 4]


def test_a_failure_is_a_row_and_another_problem_is_refused(tmp_path):
    options = {"driver": "adam", "stop": THREE, "max_workers": 1}

    class Broken(AbstractElsewhere):
        def run(self, errand, sleep):
            raise RuntimeError("no room")

    with pytest.raises(ProblemError, match="need a journal="):
        tf.multi_start(camel_problem(), 2, elsewhere=Broken(), **options)
    broken = tf.multi_start(camel_problem(), 2, journal=tmp_path / "a", elsewhere=Broken(), **options)
    assert [run.error for run in broken.runs] == ["RuntimeError: no room"] * 2
    other = Here(camel_problem(lambda design: 2.0 * camel(design)), driver="adam", stop=THREE)
    with pytest.raises(OtherRun, match="objective"):
        tf.multi_start(camel_problem(), 2, journal=tmp_path / "b", elsewhere=other, **options)


def test_what_is_made_elsewhere_is_called_off_when_the_time_is_up(tmp_path):
    class Slow(AbstractElsewhere):
        def run(self, errand, sleep):
            assert errand.until == until
            while True:  # for as long as the study does not call it off
                sleep(0.01)

    until = time.time() + 31.0  # thirty are kept for writing results
    study = tf.multi_start(camel_problem(), 2, "adam", stop=THREE, journal=tmp_path, elsewhere=Slow(), until=until)
    assert [run.status for run in study.runs] == ["waiting"] * 2
    assert all("start the study again to go on" in run.why for run in study.runs)


def test_a_run_starts_from_the_design_that_another_one_left_as_a_file(tmp_path):
    problem = camel_problem()
    left = tf.optimize(problem, "adam", stop=THREE)
    np.savez(tmp_path / "design.npz", x=np.asarray(left.design["x"]), y=np.asarray(left.design["y"]), n=np.ones(2))
    started = tf.optimize(problem, "adam", stop=MaxSteps(0), start_from=tmp_path / "design.npz")
    assert (started.design["x"], started.design["y"]) == (left.design["x"], left.design["y"])
    assert started.design["n"] == 3 and "started from the design in" in started.history[0].events[-1]
    (tmp_path / "torn.npz").write_bytes(b"PK")
    np.savez(tmp_path / "x.npz", x=np.ones(()))
    np.savez(tmp_path / "long.npz", x=np.ones(7), y=jnp.ones(()))
    for name, why in (("torn", "cannot be read"), ("gone", "cannot be read"), ("x", "no 'y'"), ("long", r"\(7,\)")):
        with pytest.raises(ProblemError, match=why):
            tf.optimize(problem, start_from=str(tmp_path / f"{name}.npz"))
