"""A study of a component that is served by several workers; and one whose process is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import tesseract_flow as tf
from tesseract_flow.client import ServedTesseract
from tesseract_flow.optimize import MaxSteps
from tests.optimize.helpers import same_bits
from tests.study.helpers import camel_problem, found

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.server
def test_runs_share_the_workers_of_a_component_and_count_their_own_requests(tmp_path):
    section = ServedTesseract(ROOT / "examples" / "beam" / "section" / "tesseract_api.py", n_workers=2)

    def evaluate(design):
        out = tf.apply_tesseract(section, {"thickness": design["h"]})
        return (100.0 * out["volume"] - 1.2) ** 2 + jnp.sum((1e4 * out["inertia"] - 1.0) ** 2)

    problem = tf.Problem({"h": jnp.full(3, 0.1)}, evaluate, bounds=(0.05, 0.2), scale=0.1)
    options = {"driver": "adam", "learning_rate": 0.05, "stop": MaxSteps(2)}
    try:
        with tf.count_requests() as sent:
            study = tf.multi_start(problem, 4, max_workers=4, journal=tmp_path, **options)
        assert [run.requests for run in study.runs] == [2 * found(run).evaluations for run in study.runs]
        assert sent.n_solves == study.requests == study.sent
        with tf.count_requests() as sent:
            again = tf.multi_start(problem, 4, max_workers=4, journal=tmp_path, **options)
        assert sent.n_solves == 0 and not again.notes and again.requests == study.requests
        for run, other in zip(study.runs, again.runs, strict=True):
            assert run.problem is not None
            assert same_bits(found(run), tf.optimize(run.problem, **options))
            assert same_bits(found(run), found(other))
    finally:
        section.stop()


LIFE = """
import os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
import tesseract_flow as tf
from tesseract_flow.optimize import MaxSteps
from tesseract_flow.study import StudyObserver
from tests.study.helpers import camel_problem

def after(index, record):
    if (index, record.step) == (1, 2):
        os.kill(os.getpid(), signal.SIGKILL)

tf.multi_start(
    camel_problem(), 3, "adam", stop=MaxSteps(4), max_workers=2, journal=sys.argv[1],
    observers=[StudyObserver(on_step=after)],
)
"""


@pytest.mark.slow
def test_a_study_that_was_killed_ends_as_one_that_was_not(tmp_path):
    killed = subprocess.run([sys.executable, "-c", LIFE, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    steps = []
    watch = tf.study.StudyObserver(on_step=lambda index, record: steps.append((index, record.step)))
    options = {"driver": "adam", "stop": MaxSteps(4)}
    resumed = tf.multi_start(camel_problem(), 3, journal=tmp_path, observers=[watch], **options)
    whole = tf.multi_start(camel_problem(), 3, **options)
    assert all(same_bits(found(a), found(b)) for a, b in zip(resumed.runs, whole.runs, strict=True))
    assert not {(1, 0), (1, 1), (1, 2)} & set(steps)  # what was finished is not done again
