"""Runs in which something fails: what is in the log and in the folder, and how the flow run ends."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging.handlers import APILogWorker

from tesseract_flow.errors import EvaluationFailed
from tesseract_flow.flows import Failures, Optimizer, Stop, optimize_design

PROBLEM = """
import numpy as np
import jax.numpy as jnp
import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract


def wall(ends="raises"):
    applied = []

    def before(endpoint, inputs):
        if endpoint != "apply":
            return
        applied.append(float(inputs["x"]))
        if ends == "raises" and inputs["x"] >= 2:
            raise tf.errors.ComponentFailed("mesh has negative volumes; see http://bob:hidden@solver/log")
        if ends == "cancelled" and len(applied) == 4:
            raise SystemExit("cancelled")  # no Exception, as Prefect's own signal

    component = FunctionTesseract(
        lambda i: {"y": -jnp.log(2 - i["x"]) - 5 * i["x"]}, {"x": np.float64(0.0)}, name="wall", before=before
    )
    return tf.Problem(
        {"x": jnp.asarray(0.0)}, lambda d: tf.apply_tesseract(component, {"x": d["x"]})["y"], name="wall"
    )
"""


def run(tmp_path: Path, **options):
    (tmp_path / "walls.py").write_text(PROBLEM)
    settings = {"problem": f"{tmp_path}/walls.py:wall", "folder": str(tmp_path / "runs"), "run_key": "wall"}
    return optimize_design(**{**settings, "observe": "run", "return_state": True, **options})


def log_of(flow_run_id) -> list[str]:
    APILogWorker.drain_all(timeout=30)
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])), limit=200)
    return [log.message for log in logs]


def results(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "runs" / "wall" / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("observe", ["run", "calls"])
def test_failed_evaluations_are_in_log_result_and_report(prefect_harness, tmp_path, observe):
    state = run(tmp_path, optimizer=Optimizer(name="lbfgs"), observe=observe, stop=Stop(max_steps=4))
    assert state.result()["value"] < -7.3 and state.is_completed()
    lines = log_of(state.state_details.flow_run_id)
    failed = [line for line in lines if "the evaluation at x = " in line]
    assert len(failed) == 6 and failed[0].startswith("Step 2: the evaluation at x = 9 failed. mesh has negative")
    assert not any("hidden" in line for line in failed)
    assert len(results(tmp_path)["events"]) == 4
    assert "mesh has negative volumes" in (tmp_path / "runs" / "wall" / "report.html").read_text()


def test_a_run_that_fails_leaves_its_results(prefect_harness, tmp_path):
    state = run(
        tmp_path,
        optimizer=Optimizer(name="sgd", learning_rate=0.25),
        on_failure=Failures(action="raise"),
        observe="run",
    )
    assert state.is_failed()
    with pytest.raises(EvaluationFailed, match=r"^mesh has negative volumes"):
        state.result()
    told = results(tmp_path)
    assert told["steps"] == 1 and told["reason"].startswith("ended by an error: mesh has negative volumes")
    assert "hidden" not in json.dumps(told)
    # Started again with another policy, it does not stick there.
    again = run(tmp_path, optimizer=Optimizer(name="sgd", learning_rate=0.25), stop=Stop(max_steps=3)).result()
    assert again["steps"] == 3 and results(tmp_path)["value"] == again["value"]


def test_a_run_that_is_cancelled_leaves_its_results(prefect_harness, tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, settings={"ends": "cancelled"})
    told = results(tmp_path)
    assert told["reason"] == "interrupted (SystemExit)" and told["steps"] >= 1 and not told["converged"]
    assert {path.name for path in (tmp_path / "runs" / "wall").iterdir()} >= {
        "report.html",
        "history.csv",
        "design.npz",
    }
    with get_client(sync_client=True) as client:
        (last,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(), sort=FlowRunSort.START_TIME_DESC, limit=1)
    assert last.state is not None and last.state.is_crashed()
