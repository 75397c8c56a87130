"""The check as a flow of its own and as the beginning of an optimisation, on Prefect's test server."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

import tesseract_flow as tf
from tesseract_flow.errors import ProblemError
from tesseract_flow.flows import Stop, check_design, optimize_design

PROBLEM = """
import jax.numpy as jnp
import numpy as np
import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract

def square(n=3, endpoints=("apply", "abstract_eval", "vector_jacobian_product"), weight=True):
    solver = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones((n,) if n else ())}, name="square",
                               endpoints=endpoints)
    design = {"x": jnp.ones(3), **({"weight": 2.0} if weight else {})}
    return tf.Problem(design, lambda d: jnp.sum(tf.apply_tesseract(solver, {"x": d["x"]})["y"]), name="Square sums")
"""


@pytest.fixture
def problem(tmp_path: Path) -> str:
    file = tmp_path / "square.py"
    file.write_text(PROBLEM)
    return f"{file}:square"


def artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])), sort=ArtifactSort.CREATED_DESC
        )
    return str(found[0].data)


def test_a_sound_problem(prefect_harness, problem):
    report = check_design(problem)
    assert report["ok"]
    assert [finding["kind"] for finding in report["findings"]] == ["fixed-number"]
    assert "does not vary" in artifact("square-sums-check")


def test_faults_end_the_run_before_a_solve(prefect_harness, problem, tmp_path):
    settings = {"n": 0, "endpoints": ["apply", "abstract_eval"]}
    with pytest.raises(ProblemError, match=r"(?s)expected shape \(\), got shape \(3,\)"):
        check_design(problem, settings)
    with tf.count_requests() as requests, pytest.raises(ProblemError, match="Nothing was solved"):
        optimize_design(problem, settings, folder=str(tmp_path / "runs"), run_key="faulty")
    assert requests.n_of("apply") == 0
    assert "expected shape" in artifact("square-sums-check")


def test_the_report_of_a_run_has_what_was_found(prefect_harness, problem, tmp_path):
    options = {"folder": str(tmp_path), "stop": Stop(max_steps=1)}
    result = optimize_design(problem, run_key="checked", **options)
    page = (Path(result["folder"]) / "report.html").read_text()
    assert "<h2>Check</h2>" in page
    assert "does not vary" in page
    extra = json.loads((Path(result["folder"]) / "result.json").read_text())["extra"]
    assert extra["check"][0]["where"] == "design: weight"
    result = optimize_design(problem, run_key="unchecked", check=False, **options)
    assert "Check" not in (Path(result["folder"]) / "report.html").read_text()
    result = optimize_design(problem, {"weight": False}, run_key="clean", **options)
    assert "Nothing is wrong with" in (Path(result["folder"]) / "report.html").read_text()
