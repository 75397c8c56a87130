"""The command line, as a person types it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tesseract_flow.cli import main
from tesseract_flow.cli.arguments import assignments
from tesseract_flow.client import open_tesseract
from tests.client.keeping import Numbering

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


def test_a_run_is_steered_by_the_folder_or_the_key_of_its_run(problem, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["optimize", problem, "--driver", "adam", "--journal", "runs/bowl/journal", "--max-steps", "3"]
    assert main(arguments) == 0
    for run in ("runs/bowl/journal", "runs/bowl", "bowl"):
        assert main(["steer", run, "--stop", "max_steps=5", "--wait", "0"]) == 0
        assert "The run has not looked at it yet" in capsys.readouterr().out
    assert main(["steer", "bowl", "--bounds", "x=[1, null]", "--wait", "0"]) == 1
    assert "SteeringError: The present design lies outside" in capsys.readouterr().err
    assert main(["steer", "ball", "stop"]) == 1
    assert "There is no run at ball or runs/ball." in capsys.readouterr().err
    assert main(arguments) == 0
    assert "maximum number of steps reached (5)" in capsys.readouterr().err


def test_other_values_for_scheduled_numbers(tmp_path, capsys):
    (tmp_path / "problem.py").write_text(
        "import jax.numpy as jnp\nimport tesseract_flow as tf\n\ndef bowl():\n"
        "    evaluate = lambda x, now: jnp.sum((x - now['at']) ** 2)\n"
        "    return tf.Problem(jnp.zeros(2), evaluate, schedule={'at': 0.5})\n"
    )
    arguments = ["optimize", f"{tmp_path / 'problem.py'}:bowl", "--driver", "lbfgs", "--out", str(tmp_path / "out")]
    for given, reached in (("at=1,2@3", 2.0), ("at=[1, 3]", 3.0), ("at=4", 4.0)):
        assert main([*arguments, "--schedule", given]) == 0
        assert np.load(tmp_path / "out" / "design.npz")["design"] == pytest.approx([reached] * 2)
    assert main([*arguments, "--schedule", "att=1"]) == 1
    assert "does not schedule 'att'. Did you mean 'at'?" in capsys.readouterr().err
    assert main([*arguments, "--schedule", "at=1;2"]) == 1
    assert "expected a number, a list of values" in capsys.readouterr().err


def test_optimize_leaves_the_result_and_goes_on_from_its_journal(problem, tmp_path, capsys):
    arguments = ["optimize", problem, "--set", "center=2", "--driver", "lbfgs", "--journal", str(tmp_path / "journal")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["value"] == pytest.approx(0.0, abs=1e-12)
    assert {"reason", "steps", "constraints", "requests"} <= set(result)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"design.npz", "history.csv", "report.html"}
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "result.json").read_text())["steps"] == result["steps"]


def test_limits_by_name_are_those_of_the_run(problem, tmp_path, capsys):
    arguments = ["optimize", problem, "--driver", "sgd", "--learning-rate", "0.1", "--out", str(tmp_path)]
    assert main([*arguments, "--stop-set", "gradient_tolerance=1e-9", "--stop-set", "max_steps=3"]) == 0
    assert "step 3/3" in capsys.readouterr().err
    assert main([*arguments, "--stop-set", "gradient_tolerance=0.1"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["converged"] and 0 < result["value"] < 0.1


def test_limits_that_are_given_add_to_those_of_the_problem(problem, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(PROBLEM.replace('name="bowl"', 'name="bowl", defaults={"stop": {"gradient_tolerance": 1e-12}}'))
    arguments = ["optimize", f"{own}:bowl", "--driver", "sgd", "--learning-rate", "0.1", "--out", str(tmp_path)]
    assert main([*arguments, "--stop-set", "max_steps=150"]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["value"] < 1e-20


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--stop-set", "gradient_tol=1"], "Did you mean 'gradient_tolerance'"),
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


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder of five answers, the first one used five days ago, and a file that is none of its business."""
    folder = tmp_path / "cache"
    handle = open_tesseract(Numbering(lambda n: {"y": np.zeros(1000)}), cache=folder)
    for i in range(5):
        handle.apply({"i": i})
    now = time.time()
    for age, file in enumerate(sorted(folder.rglob("*.[0-9a-f]*[0-9a-f].json"))):
        os.utime(file, (now - 86400.0 * age - 60.0, now - 86400.0 * age - 60.0))
    (folder / "thesis.tex").write_text("mine")
    return folder


def test_cache_stats(cache, capsys):
    assert main(["cache", "stats", str(cache)]) == 0
    said = capsys.readouterr().out
    assert "5 answers, 4" in said
    assert "kB" in said
    assert "4 days ago (the longest unused) to 1 minute ago" in said


@pytest.mark.parametrize(
    ("how", "n_left"),
    [
        (["--all"], 0),
        (["--older-than", "2.5"], 3),
        (["--older-than", "30"], 5),
        (["--max-bytes", "18k"], 2),
        (["--max-bytes", "1G"], 5),
        (["--max-bytes", "0"], 0),
    ],
)
def test_cache_prune_takes_no_more_than_it_should(cache, capsys, how, n_left):
    assert main(["cache", "prune", str(cache), *how]) == 0
    left = sorted(cache.rglob("*.[0-9a-f]*[0-9a-f].json"), key=lambda file: file.stat().st_mtime)
    assert len(left) == n_left
    said = capsys.readouterr().out
    assert f"removed {5 - n_left} answer" in said
    assert f"left: {n_left} answer" in said
    assert (cache / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("action", [["stats"], ["prune", "--all"]])
def test_folder_that_is_no_cache_is_left_alone(tmp_path, capsys, action):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["cache", action[0], str(tmp_path), *action[1:]]) == 1
    assert "is no result cache" in capsys.readouterr().err
    assert main(["cache", action[0], str(tmp_path / "nowhere"), *action[1:]]) == 1
    assert "There is no folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "one of the arguments --max-bytes --older-than --all is required"),
        (["--max-bytes", "lots"], "expected a size such as 500M"),
        (["--max-bytes", "-1"], "expected"),
        (["--older-than", "nan"], "expected a number of days"),
        (["--older-than", "yesterday"], "expected a number of days"),
        (["--all", "--older-than", "1"], "not allowed with"),
    ],
)
def test_cache_prune_wants_to_know_how_much(cache, capsys, arguments, says):
    with pytest.raises(SystemExit):
        main(["cache", "prune", str(cache), *arguments])
    assert says in capsys.readouterr().err
    assert len(list(cache.rglob("*.[0-9a-f]*[0-9a-f].json"))) == 5


@pytest.mark.slow
def test_check_says_what_is_wrong_and_whether_a_run_can_start(problem, tmp_path, capsys):
    assert main(["check", problem]) == 0
    assert "Nothing is wrong with 'bowl'" in capsys.readouterr().out
    file = tmp_path / "dead.py"
    file.write_text(
        "import jax.numpy as jnp\nimport tesseract_flow as tf\n"
        "def dead():\n"
        "    evaluate = lambda d: jnp.sum(tf.apply_tesseract('http://127.0.0.1:9', d)['y'])\n"
        "    return tf.Problem({'x': jnp.ones(2), 'weight': 1.0}, evaluate)\n"
    )
    assert main(["check", f"{file}:dead"]) == 1
    assert "cannot connect" in capsys.readouterr().out
    assert main(["check", f"{file}:dead", "--json", "--patience", "5"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in report["findings"]] == ["unreachable", "fixed-number"]


def test_a_pipe_gets_all_of_a_table(tmp_path, capsys):
    """Whatever width a terminal would have: a row is a line, and no cell is cut."""
    file = tmp_path / "long.py"
    file.write_text(
        "import jax.numpy as jnp\nimport numpy as np\nimport tesseract_flow as tf\n"
        "from tesseract_flow.testing import FunctionTesseract\n"
        "def problem():\n"
        "    name = 'solver-of-' + 'a-very-' * 20 + 'long-name'\n"
        "    solver = FunctionTesseract(lambda i: {'y': i['x']}, {'x': np.ones(2)}, name=name)\n"
        "    evaluate = lambda d: jnp.sum(tf.apply_tesseract(solver, {'x': d['x']})['y'])\n"
        "    return tf.Problem({'x': jnp.ones(2), 'weight': 1.0}, evaluate)\n"
    )
    assert main(["check", f"{file}:problem"]) == 0
    shown = capsys.readouterr().out
    for whole in (
        "solver-of-" + "a-very-" * 20 + "long-name",
        "abstract_eval, apply, jacobian, jacobian_vector_product, vector_jacobian_product",
        "1 apply, 1 vector_jacobian_product",
        "To vary it, make it an array: jnp.asarray(1.0). Otherwise it is fine as it is.",
    ):
        assert any(whole in line for line in shown.splitlines()), shown
    assert "…" not in shown


FALLING = """
import jax.numpy as jnp
import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract

def before(endpoint, inputs):
    if endpoint == "apply" and inputs["x"] >= 2:
        raise tf.errors.ComponentFailed("mesh has negative volumes")

wall = FunctionTesseract(lambda i: {"y": -5 * i["x"]}, {"x": jnp.zeros(())}, name="wall", before=before)

def problem():
    return tf.Problem({"x": jnp.zeros(())}, lambda design: tf.apply_tesseract(wall, {"x": design["x"]})["y"])
"""


def test_a_run_that_fails_leaves_its_results_and_report_makes_them_again(tmp_path, capsys):
    (tmp_path / "falling.py").write_text(FALLING)
    out, journal = tmp_path / "out", tmp_path / "journal"
    command = ["optimize", f"{tmp_path}/falling.py:problem", "--driver", "sgd", "--learning-rate", "0.15"]
    for options in ([], ["--journal", str(journal)]):
        assert main([*command, "--on-failure", "raise", "--out", str(out), *options]) == 1
        result = json.loads((out / "result.json").read_text())
        assert result["reason"] == "ended by an error: mesh has negative volumes" and result["steps"] == 2
        assert "EvaluationFailed: mesh has negative volumes" in capsys.readouterr().err
    assert main(["report", str(journal), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "result.json").read_text() == (out / "result.json").read_text()
    assert main([*command, "--failure-set", "shrinks=3", "--out", str(out), "--journal", str(journal)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] > 2 and result["value"] < -9.8 and "failed in a row" in result["reason"]
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "There is no journal" in capsys.readouterr().err


LIMITED = """
import jax
import jax.numpy as jnp
import tesseract_flow as tf

limited = jax.custom_vjp(lambda x: jnp.minimum(4.0 * x, 2.0))
limited.defvjp(lambda x: (jnp.minimum(4.0 * x, 2.0), None), lambda _, c: (4.0 * c,))

def problem():
    return tf.Problem({"x": jnp.asarray(0.2)}, lambda d: limited(d["x"]) - 5.0 * d["x"], name="limited")
"""


def test_gradients_are_looked_at_where_a_run_is(tmp_path, capsys):
    """Right at the start, and wrong where the run is: a limiter is active there."""
    (tmp_path / "limited.py").write_text(LIMITED)
    problem, journal = f"{tmp_path}/limited.py:problem", str(tmp_path / "journal")
    command = ["optimize", problem, "--driver", "sgd", "--learning-rate", "1", "--max-steps", "1"]
    assert main([*command, "--journal", journal, "--verify-gradients", "never"]) == 0
    assert main(["check-gradients", problem]) == 0
    assert main(["check-gradients", problem, "--at", journal, "--at-design", "last"]) == 1
    assert main(["check-gradients", problem, "--at", journal]) == 1
    assert main(["check-gradients", problem, "--at", f"file://{journal}"]) == 1
    assert "are wrong" in capsys.readouterr().out
    assert main(["check-gradients", problem, "--at", str(tmp_path / "nowhere")]) == 1
    assert "There is no journal" in capsys.readouterr().err


def test_check_gradients_says_whose_are_wrong(problem, tmp_path, capsys):
    assert main(["check-gradients", problem]) == 0
    assert "are right, as far as was looked (0 requests)" in capsys.readouterr().out
    file = tmp_path / "wrong.py"
    file.write_text(
        "import jax, jax.numpy as jnp\nimport tesseract_flow as tf\n"
        "def wrong():\n"
        "    half = jax.custom_vjp(lambda x: x / 2)\n"
        "    half.defvjp(lambda x: (x / 2, None), lambda _, c: (-c,))\n"
        "    return tf.Problem({'x': jnp.ones(2), 'y': jnp.ones(2)}, lambda d: jnp.sum(half(d['x']) * d['y']))\n"
    )
    assert main(["check-gradients", f"{file}:wrong", "--json"]) == 1
    (fault,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert (fault["component"], fault["input"], fault["status"]) == ("total", "x", "wrong")


def test_settings_are_json_python_or_text():
    given = assignments(
        ["n=3", "x=1e-3", "a=[1,2]", "on=False", "none=null", "name=fin", "top=inf", "low=-inf", "q='nan'"]
    )
    assert given == {
        "n": 3,
        "x": 1e-3,
        "a": [1, 2],
        "on": False,
        "none": None,
        "name": "fin",
        "top": math.inf,
        "low": -math.inf,
        "q": "'nan'",
    }
    assert math.isnan(assignments(["c=nan"])["c"])
