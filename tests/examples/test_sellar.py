"""Sellar from its file: the known answer with both forms of coupling, and what each takes, with real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import tesseract_flow as tf
from examples.sellar.__main__ import HERE, OPTIMUM
from tesseract_flow.cli import main
from tesseract_flow.client import ServedTesseract
from tesseract_flow.optimize import load_problem
from tests.helpers import assert_close

FILE = str(HERE / "problem.yaml")


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, ServedTesseract]]:
    found = {name: ServedTesseract(HERE / name / "tesseract_api.py", label=name) for name in ("y1", "y2")}
    yield found
    for tesseract in found.values():
        tesseract.stop()


@pytest.mark.server
@pytest.mark.parametrize(
    ("coupling", "is_kept"),
    [
        pytest.param("mdf", True, marks=pytest.mark.slow),
        pytest.param("mdf", False, marks=pytest.mark.slow),
        ("idf", False),
    ],
)
def test_the_known_optimum(coupling: str, is_kept: bool, served: dict[str, Any]):
    cache = tf.MemoryCache()
    opened = {name: tf.open_tesseract(one, cache=cache) if is_kept else one for name, one in served.items()}
    with tf.count_requests() as requests:
        result = tf.optimize(load_problem(FILE, {"coupling": coupling, **opened}))
    assert result.converged
    assert abs(result.value - OPTIMUM) < 1e-7
    assert_close(result.design["z"], jnp.array([1.977639, 0.0]), rtol=1e-6)
    assert requests.n_of("jacobian_vector_product") == requests.n_of("jacobian") == 0
    assert requests.n_of("apply") <= 70
    assert requests.n_solves <= {"mdf": 223, "idf": 60}[coupling]


@pytest.mark.slow
@pytest.mark.server
def test_on_the_command_line(served: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path):
    addresses = [part for name, one in served.items() for part in ("--set", f"{name}={one.url}")]
    assert main(["check", FILE, *addresses, "--set", "coupling=idf"]) == 0
    assert main(["picture", FILE, *addresses]) == 0
    assert "y2 -> y1 (fed back): y2 float64[]" in capsys.readouterr().out
    assert main(["optimize", FILE, *addresses, "--set", "coupling=idf", "--out", str(tmp_path / "out")]) == 0
    assert '"converged": true' in (tmp_path / "out" / "result.json").read_text()
    assert main(["optimize", FILE, "--set", "copling=idf"]) == 1
    assert "Did you mean 'coupling'" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.slow
def test_one_command():
    command = [sys.executable, "-m", "examples.sellar"]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.count("3.18339395 (known optimum 3.18339395)") == 2
