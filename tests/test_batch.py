"""A chain of batch jobs without Slurm: `sbatch` is a script that queues, and the tests run the queue, job by job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tesseract_flow.cli import main
from tests.client.helpers import wait_until

JOB = Path(__file__).parents[1] / "deployments" / "slurm" / "job.sh"
PROBLEM = """
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tesseract_flow as tf

jax.config.update("jax_enable_x64", True)
HERE = Path(__file__).parent


def slow(x):
    # It takes much longer than all that was before, if somebody asks for that.
    if (HERE / "slow").exists() and float(x[0]) > 1.0:
        (HERE / "is-slow").touch()
        time.sleep(120)
    return x


def bowl():
    def evaluate(design):
        x = design["x"]
        if (HERE / "slow").exists():
            x = x + 0.0 * jax.pure_callback(slow, x, jax.lax.stop_gradient(x))
        return jnp.sum((x - 3.0) ** 2)

    return tf.Problem({"x": jnp.zeros(2)}, evaluate, name="bowl")
"""
SBATCH = """#!/bin/sh
# Slurm copies the script when it is submitted, and runs the copy.
n=$(ls "$QUEUE" | grep -c sh$); cp "$1" "$QUEUE/$n.sh"; shift
for argument in "$@"; do echo "$argument"; done > "$QUEUE/$n.arguments"
echo "Submitted batch job $n"
"""


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.queue = folder, folder / "queue"
        self.queue.mkdir()
        (folder / "bin").mkdir()
        (folder / "bin" / "sbatch").write_text(SBATCH)
        (folder / "bin" / "sbatch").chmod(0o755)
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": path, "QUEUE": str(self.queue)}

    @property
    def n_submitted(self) -> int:
        return len(list(self.queue.glob("*.sh")))

    def submit(self, *arguments: str) -> None:
        subprocess.run(["sbatch", str(JOB), *arguments], env=self.environment, check=True, capture_output=True)

    def start(self, job: int, seconds: float) -> subprocess.Popen[str]:
        arguments = (self.queue / f"{job}.arguments").read_text().splitlines()
        environment = {
            **self.environment,
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_END_TIME": f"{time.time() + seconds:.0f}",
        }
        command = ["bash", str(self.queue / f"{job}.sh"), *arguments]
        return subprocess.Popen(
            command, env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, job: int, seconds: float) -> tuple[int, str]:
        process = self.start(job, seconds)
        text, _ = process.communicate(timeout=300)
        return process.returncode, text


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    (tmp_path / "problem.py").write_text(PROBLEM)
    return Cluster(tmp_path)


@pytest.mark.slow
def test_each_job_ends_in_time_and_the_next_one_goes_on(cluster, tmp_path):
    options = ["--driver", "adam", "--learning-rate", "0.3", "--max-steps", "12"]
    cluster.submit("problem.py:bowl", "runs/bowl", *options)
    code, text = cluster.run(0, seconds=0)  # there is room for the start, which is always made
    assert code == 0 and cluster.n_submitted == 2, text
    result = json.loads((tmp_path / "runs/bowl/result.json").read_text())
    assert "nearly up" in result["reason"] and not result["converged"] and result["steps"] == 0
    code, text = cluster.run(1, seconds=3600)
    assert code == 0 and cluster.n_submitted == 2, text
    assert json.loads((tmp_path / "runs/bowl/result.json").read_text())["steps"] == 12
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(
        ["tesseract-flow", "optimize", "problem.py:bowl", *options, "--out", str(undisturbed)],
        check=True,
        cwd=tmp_path,
        env=cluster.environment,
        capture_output=True,
    )
    one, other = np.load(tmp_path / "runs/bowl/design.npz"), np.load(undisturbed / "design.npz")
    np.testing.assert_array_equal(one["x"], other["x"])


@pytest.mark.slow
def test_a_job_too_short_for_a_step_is_no_chain_without_an_end(cluster, tmp_path):
    cluster.submit("problem.py:bowl", "runs/bowl", "--driver", "sgd")
    assert cluster.run(0, seconds=0)[0] == 0 and cluster.n_submitted == 2
    code, text = cluster.run(1, seconds=0)
    assert code == 1 and cluster.n_submitted == 2 and "No step was made" in text


@pytest.mark.slow
def test_a_step_that_takes_longer_than_all_before_it_is_given_up_in_the_last_minute(cluster, tmp_path):
    (tmp_path / "slow").touch()
    cluster.submit("problem.py:bowl", "runs/bowl", "--driver", "adam", "--learning-rate", "0.3", "--max-steps", "12")
    process = cluster.start(0, seconds=3600)
    wait_until((tmp_path / "is-slow").exists, 120)
    process.send_signal(signal.SIGUSR1)  # to the script alone, as --signal=B: does it
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and cluster.n_submitted == 2, text
    assert json.loads((tmp_path / "runs/bowl/result.json").read_text())["steps"] > 1
    (tmp_path / "is-slow").unlink()
    process = cluster.start(1, seconds=3600)  # the same step again
    wait_until((tmp_path / "is-slow").exists, 120)
    process.send_signal(signal.SIGUSR1)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and cluster.n_submitted == 2 and "No step was finished" in text


def test_moments(tmp_path, monkeypatch, capsys):
    file = tmp_path / "problem.py"
    file.write_text(PROBLEM)
    command = ["optimize", f"{file}:bowl", "--driver", "adam", "--max-steps", "3", "--journal", str(tmp_path / "run")]
    for moment in ("tomorrow", "inf", "slurm"):
        with pytest.raises(SystemExit):
            main([*command, "--until", moment])
        assert "expected 2026" in (said := capsys.readouterr().err) or "SLURM_JOB_END_TIME is not set" in said
    assert main([*command, "--until", "2001-01-01T00:00"]) == 75
    assert main([*command, "--until", "+0"]) == 1
    assert "No step was made: the time of this process is nearly up (0 s left" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 3600))
    assert main([*command, "--until", "slurm"]) == 0
    assert "maximum number of steps reached (3)" in capsys.readouterr().err
