"""Studies as flows, on Prefect's test server: the table and the best run as artifacts, and all of it resumable."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

import tesseract_flow as tf
from tesseract_flow.errors import EvaluationFailed, ProblemError
from tesseract_flow.flows import Optimizer, Stop
from tesseract_flow.flows.multi_start import multi_start
from tesseract_flow.flows.sweep import sweep

PROBLEM = """
import jax.numpy as jnp
import numpy as np
import tesseract_flow as tf
from tesseract_flow.errors import ComponentFailed
from tesseract_flow.testing import FunctionTesseract

def before(endpoint, inputs):
    if endpoint == "apply" and np.sum(inputs["x"]) > 100.0:
        raise ComponentFailed("too large")

square = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(2)}, name="square", before=before, version="1")

def bowl(center=0.0):
    evaluate = lambda d: jnp.sum(tf.apply_tesseract(square, {"x": d["x"] - center})["y"])
    return tf.Problem({"x": jnp.full(2, 0.5)}, evaluate, bounds=(-1.0, 1.0), name="Square sums")
"""
FEW: dict[str, Any] = {"optimizer": Optimizer(name="adam", learning_rate=0.05), "stop": Stop(max_steps=2)}


@pytest.fixture
def problem(tmp_path: Path) -> str:
    (tmp_path / "bowls.py").write_text(PROBLEM)
    return f"{tmp_path / 'bowls.py'}:bowl"


def artifacts(prefix: str) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return {str(one.key): str(one.data) for one in found if str(one.key).startswith(prefix)}


def test_a_multi_start_leaves_table_picture_and_best_run_and_goes_on_by_its_key(prefect_harness, problem, tmp_path):
    options = {"n": 3, "run_key": "study", "folder": str(tmp_path / "runs"), **FEW}
    first: Any = multi_start(problem, **options)
    out = Path(first["folder"])
    assert first["runs"] == {"converged": 0, "stopped": 3, "failed": 0} and first["requests"] > 0
    assert {path.name for path in out.iterdir()} >= {"runs", "runs.csv", "runs.txt", "report.html", "result.json"}
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and float(rows[0]["value"]) == first["value"]
    shown = artifacts("square-sums-study-")
    assert {"progress", "runs", "all-runs", "best"} <= {key.removeprefix("square-sums-study-") for key in shown}
    assert len(json.loads(shown["square-sums-study-runs"])) == 3
    assert "multi-start of Square sums" in shown["square-sums-study-best"]
    with tf.count_requests() as requests:
        again = multi_start(problem, **options)
    assert requests.n_solves == 0 and again == first


def test_a_sweep_has_failures_as_rows(prefect_harness, problem, tmp_path):
    options = {"folder": str(tmp_path / "runs"), **FEW}
    found: Any = sweep(problem, {"center": [0.0, -1000.0]}, run_key="both", **options)
    assert found["runs"] == {"converged": 0, "stopped": 1, "failed": 1} and found["run"] == 0
    assert "too large" in (Path(found["folder"]) / "runs.txt").read_text()
    with pytest.raises(EvaluationFailed, match="None of the 1 runs"):
        sweep(problem, {"center": [-1000.0]}, run_key="none", **options)
    with pytest.raises(ProblemError, match="Did you mean 'center'"):
        sweep(problem, {"centre": [0.0]}, run_key="wrong", **options)
