"""How much of a run becomes task runs."""

import pytest

from tesseract_flow.tasks.observe import AutoObservation, observation_of


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
