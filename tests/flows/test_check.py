"""The check as a flow of its own and as the beginning of an optimisation, on Prefect's test server."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

import tesseract_flow as tf
from tesseract_flow.errors import OptionError, ProblemError, Unreachable
from tesseract_flow.flows import Optimizer, Stop, check_design, check_gradients_of_design, optimize_design

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


WRONG = """
import jax.numpy as jnp
import numpy as np
import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract

class Wrong(FunctionTesseract):
    def request(self, endpoint, payload, *, run_id=None):
        answer = super().request(endpoint, payload, run_id=run_id)
        is_pullback = endpoint == "vector_jacobian_product"
        # With the wrong sign beyond 1.5.
        return {"x": np.where(payload["inputs"]["x"] > LIMIT, -1.0, 1.0) * answer["x"]} if is_pullback else answer

LIMIT = 0.0
mesh = FunctionTesseract(lambda i: {"y": jnp.sin(i["x"])}, {"x": np.ones(3)}, name="mesh")
drag = Wrong(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="drag")

def evaluate(design):
    nodes = tf.apply_tesseract(mesh, {"x": design["x"]})["y"]
    return jnp.sum(tf.apply_tesseract(drag, {"x": nodes + 1.0})["y"])

def wrong(limit=0.0):
    global LIMIT
    LIMIT = limit
    return tf.Problem({"x": jnp.linspace(0.1, 0.3, 3)}, evaluate, name="Wrong drag")
"""


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    return f"{file}:wrong"


@pytest.fixture
def problem(tmp_path: Path) -> str:
    file = tmp_path / "square.py"
    file.write_text(PROBLEM)
    return f"{file}:square"


def artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_=key)), sort=ArtifactSort.CREATED_DESC
        )
    return str(found[0].data)


def test_a_sound_problem(prefect_harness, problem):
    report = check_design(problem)
    assert report["ok"]
    assert [finding["kind"] for finding in report["findings"]] == ["fixed-number"]
    assert "does not vary" in artifact("square-sums-%-check")


@pytest.mark.slow
def test_faults_end_the_run_before_a_solve(prefect_harness, problem, tmp_path):
    settings = {"n": 0, "endpoints": ["apply", "abstract_eval"]}
    with pytest.raises(ProblemError, match=r"(?s)expected shape \(\), got shape \(3,\)"):
        check_design(problem, settings)
    with tf.count_requests() as requests, pytest.raises(ProblemError, match="Nothing was solved"):
        optimize_design(problem, settings, folder=str(tmp_path / "runs"), run_key="faulty")
    assert requests.n_of("apply") == 0
    assert "expected shape" in artifact("square-sums-%-check")


@pytest.mark.slow
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


def test_gradients_that_are_right(prefect_harness, problem):
    report = check_gradients_of_design(problem, components=True)
    assert report["ok"]
    assert [verdict["component"] for verdict in report["verdicts"]] == ["total", "square"]
    assert "| right | square.vector_jacobian_product |" in artifact("square-sums-%-gradients")


def test_gradients_that_are_wrong_end_the_run_with_whose_they_are(prefect_harness, wrong):
    with pytest.raises(ProblemError, match=r"(?s)are wrong: look at drag.*drag\.vector_jacobian_product: y by x"):
        check_gradients_of_design(wrong)
    assert "its sign is wrong" in artifact("wrong-drag-%-gradients")
    with pytest.raises(OptionError, match="max_requests is 3"):
        check_gradients_of_design(wrong, max_requests=3)


@pytest.mark.slow
def test_gradients_are_looked_at_where_a_run_is(prefect_harness, wrong, tmp_path):
    """Right at the start, which is its best design, and wrong where a step too long ended."""
    settings = {"limit": 1.5}
    options = {"folder": str(tmp_path), "run_key": "to look at", "verify_gradients": None}
    too_long = Optimizer(name="sgd", learning_rate=2.07)
    out = optimize_design(wrong, settings, too_long, Stop(max_steps=1), **options)["folder"]
    assert check_gradients_of_design(wrong, settings)["ok"]
    assert check_gradients_of_design(wrong, settings, at=out)["ok"]
    with pytest.raises(ProblemError, match="look at drag"):
        check_gradients_of_design(wrong, settings, at=out, at_design="last")


def test_a_run_that_contradicts_itself_says_whose_gradients_are_wrong(prefect_harness, wrong, tmp_path, caplog):
    """In its artifact and its log; the budget for it is kept, and the run ends as it is."""
    with tf.count_requests() as requests:
        result = optimize_design(wrong, folder=str(tmp_path), run_key="contradicts")
    assert "check the gradients of drag, mesh" in result["reason"]
    assert requests.n_total - requests.n_of("abstract_eval") <= 500 + result["requests"]
    page = artifact("wrong-drag-%-gradients")
    assert "| wrong | drag.vector_jacobian_product: y by x |" in page
    assert "| right | mesh.vector_jacobian_product |" in page
    assert "drag.vector_jacobian_product: y by x: its sign is wrong" in caplog.text


def test_a_component_that_is_gone_when_it_is_to_be_blamed(prefect_harness, wrong, tmp_path, monkeypatch, caplog):
    """The run's own end is told in any case."""

    def gone(*args, **options):
        raise Unreachable("drag is down")

    monkeypatch.setattr("tesseract_flow.flows.check.check_gradients", gone)
    result = optimize_design(wrong, folder=str(tmp_path), run_key="gone")
    assert "check the gradients of" in result["reason"]
    assert "Whose gradients are wrong could not be found out: drag is down" in caplog.text
