"""The demo as a user runs it: three processes, Prefect's embedded server, a kill in the middle."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.optimize import load_problem

ROOT = Path(__file__).resolve().parents[2]
OPTIMUM = 23762.153678


@pytest.fixture
def start_demo(tmp_path: Path):
    """Starts the demo in a session of its own, and ends all that is left of it afterwards.

    Killed with -9 the demo leaves Prefect's embedded server behind, as Prefect does.
    """
    started = []

    def start() -> subprocess.Popen:
        log = open(tmp_path / f"demo-{len(started)}.log", "w")  # noqa: SIM115 (the process writes to it)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "JAX"))}
        command = [sys.executable, "-m", "examples.beam.demo", "--folder", str(tmp_path)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def n_steps(folder: Path) -> int:
    history = folder / "demo" / "journal" / "history.jsonl"
    return history.read_text().count("\n") if history.exists() else 0


@pytest.mark.slow
@pytest.mark.server
def test_killed_in_the_middle_and_started_again_it_ends_with_the_bits_of_an_undisturbed_run(tmp_path, start_demo):
    process = start_demo()
    deadline = time.monotonic() + 200
    while n_steps(tmp_path) < 40:
        assert process.poll() is None, (tmp_path / "demo-0.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = n_steps(tmp_path)

    assert start_demo().wait(timeout=280) == 0, (tmp_path / "demo-1.log").read_text()
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert {"value", "reason", "steps", "constraints", "requests"} <= set(result)
    assert result["value"] == pytest.approx(OPTIMUM, rel=1e-3)
    assert result["constraints"]["volume"] == pytest.approx(0.01, rel=1e-4)
    assert result["steps"] > killed_at
    # The steps before the kill were not made again: six calls a step, the one that was under way, and two looks at the
    # design that is called an optimum.
    assert result["extra"]["requests_of_this_run"]["fem.apply"] <= result["steps"] + 1 - killed_at + 1 + 2

    whole = tf.optimize(
        load_problem("examples/beam/problem.py:cantilever"),
        "adam",
        stop={"max_steps": 300, "gradient_tolerance": 1e-6},
    )
    assert result["steps"] == whole.steps
    with np.load(tmp_path / "demo" / "design.npz", allow_pickle=False) as design:
        assert design["thickness"].tobytes() == np.asarray(whole.design["thickness"]).tobytes()
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "demo" / "history.csv").read_text().count("\n") == whole.steps + 2
