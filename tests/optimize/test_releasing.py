"""A call that hangs is given up when somebody asks for it, and the run does what it would do after a time-out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import HttpTesseract
from tesseract_flow.errors import RunStopped
from tesseract_flow.optimize import Evaluation, MaxSteps, Observer, Problem, optimize
from tesseract_flow.optimize.commands import Command
from tesseract_flow.testing.faults import FaultyServer, at, of_function
from tests.faults.component import tesseract_api
from tests.faults.conftest import document
from tests.optimize.test_steering import put

MATRIX = np.arange(12.0).reshape(2, 6) / 10


@pytest.fixture
def server():
    with FaultyServer(of_function(tesseract_api.answer, document())) as server:
        yield server


def run(server, journal, **options):
    """Four steps; the third apply asks for something and gets no answer."""

    def evaluate(design):
        answer = apply_tesseract(
            HttpTesseract(server.url), {"x": design["x"], "w": MATRIX, "s": jnp.asarray(0.5), "mode": "plain"}
        )
        return Evaluation((answer["y"] ** 2).sum() + answer["e"])

    problem = Problem({"x": jnp.linspace(0.5, 2.0, 6)}, evaluate, name="hanging")
    return optimize(problem, "adam", stop=MaxSteps(4), journal=journal, **options)


def hang_and_ask(journal, command: Command):
    def act(exchange):
        exchange.read()
        put(journal, command)
        exchange.hang()  # until the client goes

    return act


def test_a_call_that_hangs_is_asked_again_and_nothing_else_changes(server, tmp_path):
    whole = run(server, tmp_path / "whole")
    server.plant(at("apply", hang_and_ask(tmp_path / "run", Command(do="release", again=True)), nth=3))
    released = run(server, tmp_path / "run")
    assert server.n_faulty == 1
    assert [record.value for record in released.history] == [record.value for record in whole.history]
    events = released.history[2].events
    assert "did not wait for evaluation 1 of the next step any longer" in events[0]
    assert "was made once more: 'apply' of Tesseract" in events[1]


def test_a_call_that_is_released_counts_as_failed_and_does_so_again_when_the_step_is_repeated(server, tmp_path):
    server.plant(at("apply", hang_and_ask(tmp_path / "run", Command(do="release")), nth=3))
    released = run(server, tmp_path / "run")
    assert [record.failures for record in released.history] == [0, 0, 1, 1, 1]
    assert "shortened to 0.5" in released.history[2].events[-1]
    # Killed in the next step, with the checkpoint of this one gone: now nothing hangs, and it fails all the same.
    server.plant(at("apply", hang_and_ask(tmp_path / "killed", Command(do="release")), nth=3))

    def die(record, design, evaluation):
        if record.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(server, tmp_path / "killed", observers=[Observer(on_step=die)])
    (tmp_path / "killed" / "step-00000002.ckpt").unlink()
    server.plant()
    again = run(server, tmp_path / "killed")
    assert [r.value for r in again.history] == [r.value for r in released.history]
    assert [r.events for r in again.history][3:] == [r.events for r in released.history][3:]
    assert again.history[2].events[0] == released.history[2].events[0]


def test_stopped_while_a_call_hangs_it_has_the_best_so_far_and_goes_on_from_there(server, tmp_path):
    whole = run(server, tmp_path / "whole")
    server.plant(at("apply", hang_and_ask(tmp_path / "run", Command(do="stop")), nth=3))
    stopped = run(server, tmp_path / "run")
    assert stopped.steps == 1 and "stopped by hand after step 1" in stopped.reason
    assert stopped.value == min(record.value for record in whole.history[:2])
    put(tmp_path / "run", Command(do="go-on"))
    assert [record.value for record in run(server, tmp_path / "run").history] == [r.value for r in whole.history]


def test_stopped_in_its_first_evaluation_it_has_no_design(server, tmp_path):
    server.plant(at("apply", hang_and_ask(tmp_path / "run", Command(do="stop")), nth=1))
    with pytest.raises(RunStopped, match="before there was a design"):
        run(server, tmp_path / "run")
    assert run(server, tmp_path / "run").steps == 4
