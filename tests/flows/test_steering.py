"""A flow run that is paused on Prefect's pages, and resumed with its form."""

import contextlib
import importlib
import threading
import time

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Paused
from prefect.utilities.schema_tools.validation import is_valid_schema

from tesseract_flow.cli import main
from tesseract_flow.flows import Optimizer, Stop, optimize_design
from tesseract_flow.optimize import read_contents
from tesseract_flow.tasks.steering import Steer

PROBLEM = """
import time
import jax
import jax.numpy as jnp
import tesseract_flow as tf

def slow():
    def evaluate(x):
        jax.debug.callback(lambda: time.sleep(0.2))
        return ((x - 1.0) ** 2).sum()

    return tf.Problem(jnp.array([2.0, 3.0]), evaluate, name="slow")
"""


class Person:
    """Somebody before the page of a run: what the buttons there send."""

    def __init__(self):
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join(60)

    def _work(self):
        try:
            with get_client(sync_client=True) as client:
                self.act(client)
        except BaseException as error:
            self.errors.append(error)

    def run_in(self, client, is_so):
        for _ in range(600):
            for run in client.read_flow_runs():
                if run.state is not None and is_so(run.state):
                    return run
            time.sleep(0.1)
        raise AssertionError("no run came to this state")

    def act(self, client):
        run = self.run_in(client, lambda state: state.is_running())
        # As V2 does.
        state = Paused(name="Suspended", timeout_seconds=300, reschedule=True)
        client.set_flow_run_state(run.id, state, force=True)
        # As Prefect does from 3.9 on, in the process of a run that was deployed: the run must not be ended by it.
        with contextlib.suppress(ImportError):
            suspension = importlib.import_module("prefect._flow_run_suspension")
            assert suspension.mark_flow_run_suspension_requested(run.id, state)
        run = self.run_in(client, lambda state: state.is_paused() and state.state_details.run_input_keyset is not None)
        wrong = client.resume_flow_run(run.id, run_input={"learning_rate": -1.0})
        assert wrong.status.value == "REJECT", wrong
        done = client.resume_flow_run(run.id, run_input={"learning_rate": 0.5, "max_steps": 12})
        assert done.status.value == "ACCEPT", done


def test_what_is_typed_can_be_sent_by_the_pages_of_v2_which_take_it_for_a_schema():
    filled = Steer(learning_rate=0.1, max_steps=3, bounds={"x": [0.0, None]}, schedule={"beta": 2.0})
    for form in (Steer(), filled):
        is_valid_schema(form.model_dump(), preprocess=True)
    with pytest.raises(ValueError, match="Invalid schema"):
        is_valid_schema({"then": "go on"}, preprocess=True)


@pytest.mark.prefect
@pytest.mark.slow
def test_a_run_that_is_paused_on_its_page_goes_on_with_what_its_form_says(prefect_harness, tmp_path):
    (tmp_path / "problem.py").write_text(PROBLEM)
    with Person() as person:
        result = optimize_design(
            f"{tmp_path / 'problem.py'}:slow",
            optimizer=Optimizer(name="adam", learning_rate=0.01),
            stop=Stop(max_steps=60),
            run_key="paused",
            folder=str(tmp_path),
            observe="run",
            check=False,
            verify_gradients=None,
        )
    assert not person.errors, person.errors
    actions = read_contents(tmp_path / "paused").actions
    assert sorted(str(action["do"]) for action in actions) == ["None", "go-on", "pause"]
    assert {action["by"] for action in actions} == {"Prefect"}
    assert result["steps"] == 12 and result["reason"] == "maximum number of steps reached (12)"
    assert main(["steer", "paused", "stop", "--folder", str(tmp_path), "--wait", "0"]) == 0
