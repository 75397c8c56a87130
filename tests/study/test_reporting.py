"""What a person sees of a study: lines while it runs, a picture, files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import queue
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from tesseract_flow.cli import main
from tesseract_flow.optimize import StepRecord
from tesseract_flow.report import parallel_figure
from tesseract_flow.study import MultiStart, StudyProgress, Sweep
from tesseract_flow.study.crew import Stop, at_once
from tests.study.helpers import failed, run

CAMEL = """
import jax
import jax.numpy as jnp
import tesseract_flow as tf

jax.config.update("jax_enable_x64", True)

def camel(tilt=0.0, broken=False):
    def evaluate(d):
        x, y = d["x"], d["y"]
        value = (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (-4 + 4 * y**2) * y**2 + tilt * x
        return jnp.log(-value - 99.0) if broken else value

    return tf.Problem({"x": jnp.asarray(2.5), "y": jnp.asarray(1.5)}, evaluate, bounds=(-2.0, 2.0), name="camel")
"""


@pytest.fixture
def problem(tmp_path):
    (tmp_path / "camel.py").write_text(CAMEL)
    return f"{tmp_path / 'camel.py'}:camel"


def step(k):
    none = dict.fromkeys(("gradient_norm",))
    zeros = dict.fromkeys(("value", "violation", "residual", "best_value", "move", "seconds"), 0.0)
    counts = dict.fromkeys(("best_step", "changes", "evaluations", "requests"), 0)
    return StepRecord(step=k, feasible=True, best_feasible=True, **none, **zeros, **counts)  # type: ignore[arg-type]


def test_a_line_per_run_and_now_and_then_one_about_those_at_work():
    now = [0.0]
    text = io.StringIO()
    progress = StudyProgress(Console(file=text, width=200), clock=lambda: now[0], every=5.0)
    progress.on_start("camel", 3)
    for k in range(12):
        progress.on_step(k % 2, step(k // 2))
        now[0] += 0.5
    progress.on_run(run(0, -1.5))
    progress.on_run(dataclasses.replace(failed(1), settings={"load": 2.0, "token": "abc"}))
    progress.on_run(run(2, 1.0, feasible=False, violation=0.25, converged=False))
    progress.on_finish(
        MultiStart("camel", [run(0), dataclasses.replace(failed(1), sent=1), dataclasses.replace(run(2), sent=3)])
    )
    lines = text.getvalue().splitlines()
    assert lines[0] == "running camel: 3 runs"
    assert lines[1] == "0/3 over  run 0 at step 5, 1 at step 4"
    assert lines[2:5] == [
        "1/3 over  run 0 converged: value -1.5, 3 steps, 8 requests, 0.5 s",
        "2/3 over  run 1 (load=2, token=***) failed: 1 requests, 0 s: mesh has negative volumes",
        "3/3 over  run 2 stopped: value 1, 3 steps, violation 0.25, 8 requests, 0.5 s",
    ]
    assert lines[5] == "3 runs, 2 converged, 1 failed; 17 requests, 4 of them now"
    assert len(lines) == 6


def swept():
    runs = [run(k, float(k), (k, -k)) for k in range(3)] + [failed(3)]
    meshes = ("coarse", "fine", "coarse", "none")
    return [
        dataclasses.replace(one, settings={"load": 1.5 * k, "mesh": mesh, "n": 5, "token": f"secret-{k}"})
        for k, (one, mesh) in enumerate(zip(runs, meshes, strict=True))
    ]


def words(figure: Figure) -> set[str]:
    return {text.get_text() for ax in figure.axes for text in ax.texts}


def test_a_picture_has_what_runs_differ_in():
    figure = Sweep("fin", swept()).picture()
    assert figure is not None
    assert words(figure) >= {"load", "mesh", "objective", "coarse", "fine", "none", "0", "4.5", "2"}
    assert "n" not in words(figure) and not any("secret" in word for word in words(figure))
    lines = figure.axes[0].lines
    assert len([line for line in lines if len(np.atleast_1d(line.get_xdata())) == 3]) == 4
    assert Sweep("fin", swept()[:1]).picture() is None
    assert MultiStart("fin", [failed(0), failed(1)]).picture() is None


@pytest.mark.parametrize("values", [(math.nan, 1.0, 2.0), (math.inf, -1.7e308, 1.7e308), (None, 1, 2)])
def test_a_picture_of_numbers_that_are_none(values):
    rows = [{"status": "stopped", "a": k, "value": value} for k, value in enumerate(values)]
    figure = parallel_figure(rows, {"a": "a", "value": "objective"})
    assert figure is not None
    figure.savefig(io.BytesIO())


def test_of_many_axes_those_that_tell_most_are_drawn():
    rows = [
        {"status": "stopped", **{f"x{j}": (k if j % 2 else k % 2) for j in range(40)}, "value": k} for k in range(5)
    ]
    figure = parallel_figure(rows, {**{f"x{j}": f"x{j}" for j in range(40)}, "value": "objective"}, limit=6)
    assert figure is not None
    assert {word for word in words(figure) if word.startswith("x")} == {"x1", "x3", "x5", "x7", "x9"}


def test_a_report_is_that_of_the_best_run_with_all_runs_beside(tmp_path):
    written = Sweep("fin", swept(), ["a note"]).report(tmp_path)
    assert set(written) >= {"runs.txt", "runs.csv", "result.json", "report.html", "design.npz", "history.csv"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["value"] == 0.0 and result["extra"]["study"]["best"] == "run-0"
    assert len(result["extra"]["runs"]) == 4
    page = (tmp_path / "report.html").read_text()
    assert "All runs" in page and "mesh has negative volumes" in page
    assert (tmp_path / "runs.txt").read_text().startswith("sweep of 'fin': 4 runs, 3 converged, 1 failed")
    assert not any(b"secret-" in file.read_bytes() for file in tmp_path.iterdir())
    nothing = Sweep("fin", [failed(0)]).report(tmp_path / "none")
    assert sorted(nothing) == ["runs.csv", "runs.txt"]


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_multi_start_on_the_command_line(problem, tmp_path, capsys):
    command = ["multi-start", problem, "-n", "3", "--driver", "adam", "--learning-rate", "0.05", "--max-steps", "3"]
    more = ["--seed", "3", "--journal", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main([*command, *more]) == 0
    said = capsys.readouterr()
    assert "multi-start of 'camel': 3 runs, 3 stopped" in said.out and "Written to" in said.out
    assert "3/3 over" in said.err
    rows = read(tmp_path / "out" / "runs.csv")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["value"] == float(rows[0]["value"])
    assert main([*command, *more]) == 0
    assert read(tmp_path / "out" / "runs.csv") == rows
    assert main([*command, "--starts", "sobl"]) == 1
    assert "Did you mean 'sobol'" in capsys.readouterr().err


def test_sweep_on_the_command_line(problem, tmp_path, capsys):
    command = ["sweep", problem, "--driver", "adam", "--max-steps", "1"]
    assert main([*command, "--over", "tilt=0.5, 1", "--over", "broken=[false, true]"]) == 0
    said = capsys.readouterr().out
    assert "4 runs, 2 stopped, 2 failed" in said
    assert main([*command, "--over", "tilt=0.5", "--set", "broken=true"]) == 1
    assert "1 runs, 1 failed" in capsys.readouterr().out
    assert main([*command, "--over", "tlt=0.5"]) == 1
    assert "Did you mean 'tilt'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="in --set and in --over"):
        main([*command, "--over", "tilt=0.5", "--set", "tilt=1"])


def test_settings_of_jax_are_those_of_the_caller_and_a_problem_may_change_them():
    """A module that turns 64 bits on when a run loads it means all of the process."""

    def precision():
        return str(jnp.ones(1).dtype)

    def both():
        found = []
        at_once([precision], 1, Stop(), queue.SimpleQueue(), lambda k, result: found.append(result))
        return found

    with jax.enable_x64(False):
        assert both() == ["float32"]
    assert both() == ["float64"]
    changed = threading.Event()

    def change():
        jax.config.update("jax_enable_x64", False)
        changed.set()
        return precision()

    try:
        found = []
        at_once([change], 1, Stop(), queue.SimpleQueue(), lambda k, result: found.append(result))
    finally:
        jax.config.update("jax_enable_x64", True)
    assert changed.is_set() and found == ["float32"]
