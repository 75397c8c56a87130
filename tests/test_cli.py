"""The command line, as a person types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tesseract_flow.cli import main

ROOT = Path(__file__).resolve().parents[1]
PROBLEM = """
import jax.numpy as jnp
import tesseract_flow as tf

def bowl(center=3.0):
    return tf.Problem({"x": jnp.zeros(2)}, lambda design: jnp.sum((design["x"] - center) ** 2), name="bowl")
"""


@pytest.fixture
def problem(tmp_path: Path) -> str:
    (tmp_path / "problem.py").write_text(PROBLEM)
    return f"{tmp_path / 'problem.py'}:bowl"


def test_optimize_leaves_the_result_and_goes_on_from_its_journal(problem, tmp_path, capsys):
    arguments = ["optimize", problem, "--set", "center=2", "--driver", "lbfgs", "--journal", str(tmp_path / "journal")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["value"] == pytest.approx(0.0, abs=1e-12)
    assert {"reason", "steps", "constraints", "requests"} <= set(result)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"design.npz", "history.csv", "report.html"}
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "result.json").read_text())["steps"] == result["steps"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--set", "centre=2"], "Did you mean 'center'"),
        (["--driver", "lbfgz"], "Did you mean 'lbfgs'"),
        (["--driver-set", "b3=1"], "adam takes"),
    ],
)
def test_mistakes_end_with_a_remedy_and_no_traceback(problem, capsys, change, says):
    assert main(["optimize", problem, *change]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_inspect_of_a_server_that_is_down(capsys):
    assert main(["inspect", "http://127.0.0.1:9"]) == 1
    assert "cannot connect" in capsys.readouterr().err


def test_setting_that_is_no_assignment_is_refused(problem):
    with pytest.raises(SystemExit, match="NAME=VALUE"):
        main(["optimize", problem, "--set", "center"])


@pytest.mark.server
def test_serve_and_inspect():
    process = subprocess.Popen(
        [sys.executable, "-m", "tesseract_flow", "serve", "examples/beam/section", "examples/beam/compliance"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        served = dict(process.stdout.readline().strip().split(": ") for _ in range(2))
        assert set(served) == {"section", "compliance"}
        shown = subprocess.run(
            [sys.executable, "-m", "tesseract_flow", "inspect", served["section"]],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert shown.returncode == 0
        assert "thickness" in shown.stdout
        assert "vector_jacobian_product" in shown.stdout
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        process.stdout.close()  # type: ignore[union-attr]
