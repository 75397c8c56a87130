"""How much of a run becomes task runs."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.execute import InlineSubmitter
from tesseract_flow.tasks.observe import AutoObservation, ObservedSubmitter, observation_of
from tesseract_flow.testing import FunctionTesseract


@pytest.mark.parametrize(
    ("level", "calls", "step"), [("calls", True, True), ("steps", False, True), ("run", False, False)]
)
def test_fixed_levels_are_the_same_at_every_step(level, calls, step):
    observation = observation_of(level)
    observation.note_call(1.0e-3)
    assert {observation.shows_calls(k) for k in range(300)} == {calls}
    assert {observation.shows_step(k) for k in range(300)} == {step}


def test_auto_shows_every_call_of_slow_solvers():
    observation = AutoObservation()
    observation.note_call(2.0)
    assert all(observation.shows_calls(k) for k in range(1000))


def test_auto_samples_fast_solvers_once_the_run_gets_long():
    observation = AutoObservation()
    for _ in range(100):
        observation.note_call(2.0e-3)
    shown = [k for k in range(1001) if observation.shows_calls(k)]
    assert shown[:20] == list(range(20))
    assert shown[20:38] == list(range(20, 200, 10))
    assert shown[38:] == list(range(200, 1001, 100))


def test_auto_shows_fewer_of_the_first_steps_where_there_are_hundreds_of_calls():
    observation, shown = AutoObservation(), []
    for step in range(40):
        shown += [step] if observation.shows_calls(step) else []
        for _ in range(300):
            observation.note_call(2.0e-3)
    assert shown == [0, 1, 2, 3, 10, 20, 30]


class Shown(InlineSubmitter):
    step = 0


def test_calls_do_not_look_slow_because_they_are_shown():
    square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)})
    observation = AutoObservation()
    clock = itertools.count(step=30.0)  # each call takes half a minute, with all that is around it
    submitter = ObservedSubmitter(Shown(), InlineSubmitter(), observation, clock=lambda: float(next(clock)))
    fn = tf.concurrent(lambda x: tf.apply_tesseract(square, {"x": x})["y"], submitter=submitter)
    for step in range(3):
        submitter.begin_step(step)
        fn(jnp.ones(3))
    assert submitter.graph.rows()[0]["seconds each"] == 30.0
    assert not observation.shows_calls(21)
