"""Problems from folders: each gets its own modules, as they are now, and nothing else is touched."""

from __future__ import annotations

import logging
import pathlib
import subprocess
import sys

import pytest

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize import load_problem

PROBLEM = """
import jax.numpy as jnp
import tesseract_flow as tf
{imports}

def problem(start=0.0):
    return tf.Problem({{"x": jnp.asarray(start)}}, lambda design: (design["x"] - {target}) ** 2)
"""


def value_at_zero(path: pathlib.Path) -> float:
    problem = load_problem(f"{path}:problem")
    return float(problem.evaluate({"x": 0.0}))


def folder(path: pathlib.Path, target: float, imports: str = "import helpers", at: str = "helpers.TARGET"):
    path.mkdir(parents=True)
    (path / "problem.py").write_text(PROBLEM.format(imports=imports, target=at))
    (path / "helpers.py").write_text(f"TARGET = {target}\n")
    return path / "problem.py"


def test_two_folders_have_helpers_of_their_own_and_edits_are_seen(tmp_path):
    before, path_before = set(sys.modules), list(sys.path)
    one, two = folder(tmp_path / "one", 1.0), folder(tmp_path / "two", -2.0)
    assert [value_at_zero(one), value_at_zero(two), value_at_zero(one)] == [1.0, 4.0, 1.0]
    (tmp_path / "one" / "helpers.py").write_text("TARGET = 3.0\n")  # same length, same second
    assert [value_at_zero(one), value_at_zero(two)] == [9.0, 4.0]
    assert "helpers" not in sys.modules and "problem" not in sys.modules and sys.path == path_before
    assert all(name.startswith("tesseract_flow_problem_") for name in set(sys.modules) - before if "helpers" in name)


def test_an_import_at_call_time_means_the_folder_of_whoever_wrote_it(tmp_path):
    lazy = "def target():\n    from helpers import TARGET\n    import helpers\n    assert helpers.TARGET == TARGET\n"
    lazy += "    return TARGET\n"
    files = [folder(tmp_path / name, k, lazy, "target()") for k, name in ((1.0, "one"), (-2.0, "two"))]
    problems = [load_problem(f"{file}:problem") for file in files]
    assert [float(problem.evaluate({"x": 0.0})) for problem in problems] == [1.0, 4.0]


@pytest.mark.parametrize(
    ("imports", "at"),
    [
        ("from . import helpers", "helpers.TARGET"),
        ("from .helpers import TARGET", "TARGET"),
        ("import wing.helpers", "wing.helpers.TARGET"),
        ("import wing.helpers as h", "h.TARGET"),
        ("from wing import helpers", "helpers.TARGET"),
        ("from wing.parts.rib import TARGET", "TARGET"),
    ],
)
def test_the_same_for_packages_of_one_name(tmp_path, imports, at):
    files = []
    for k, name in ((1.0, "one"), (-2.0, "two")):
        files.append(folder(tmp_path / name / "wing", k, imports, at))
        (tmp_path / name / "wing" / "__init__.py").write_text("")
        (tmp_path / name / "wing" / "parts").mkdir()
        (tmp_path / name / "wing" / "parts" / "__init__.py").write_text("")
        (tmp_path / name / "wing" / "parts" / "rib.py").write_text("from ..helpers import TARGET\n")
    assert [value_at_zero(file) for file in files] == [1.0, 4.0]
    (tmp_path / "one" / "wing" / "helpers.py").write_text("TARGET = 3.0\n")
    assert [value_at_zero(file) for file in files] == [9.0, 4.0]
    assert "wing" not in sys.modules


def test_helpers_import_helpers_and_a_module_that_is_loaded_already_is_not_taken(tmp_path, monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "helpers", types.ModuleType("helpers"))
    file = folder(tmp_path / "one", 1.0, "import middle", "middle.helpers.TARGET")
    (tmp_path / "one" / "middle.py").write_text("import helpers\n")
    assert value_at_zero(file) == 1.0
    assert not hasattr(sys.modules["helpers"], "TARGET")


def test_a_folder_beside_the_problem_does_not_hide_a_package_of_its_name(tmp_path):
    file = folder(tmp_path / "one", 1.0, "import helpers\nimport xml.dom, json", "helpers.TARGET")
    (tmp_path / "one" / "xml").mkdir()
    (tmp_path / "one" / "json").mkdir()
    assert value_at_zero(file) == 1.0


def test_classes_of_a_problem_know_their_module(tmp_path):
    text = (
        "import dataclasses\n\n@dataclasses.dataclass\nclass Load:\n    size: 'float' = 1.0\n\nTARGET = Load().size\n"
    )
    file = folder(tmp_path / "one", 0.0)
    (tmp_path / "one" / "helpers.py").write_text("from __future__ import annotations\n" + text)
    assert value_at_zero(file) == 1.0


def test_what_raises_while_it_is_imported_is_said_and_can_be_mended(tmp_path):
    file = folder(tmp_path / "one", 0.0)
    (tmp_path / "one" / "helpers.py").write_text("1 / 0\n")
    with pytest.raises(ProblemError, match="ZeroDivisionError"):
        load_problem(f"{file}:problem")
    (tmp_path / "one" / "helpers.py").write_text("TARGET = 2.0\n")
    assert value_at_zero(file) == 4.0


def test_what_a_factory_raises_is_said_with_its_line(tmp_path):
    file = tmp_path / "problem.py"
    file.write_text("import jax.numpy as jnp\n\ndef problem(n, key):\n    return jnp.zeros(n, 'float7')\n")
    with pytest.raises(
        ProblemError, match=r"problem.py:problem\(n=-1, key=\.\.\.\) raised TypeError \(problem.py, line 4\)"
    ):
        load_problem(f"{file}:problem", {"n": -1, "key": "a secret"})
    file.write_text("def problem(:\n")
    with pytest.raises(ProblemError, match=r"problem.py raised SyntaxError: "):
        load_problem(f"{file}:problem")


def test_a_module_by_name_is_imported_once_and_that_is_said_when_it_matters(tmp_path, monkeypatch, caplog):
    (tmp_path / "module_by_name.py").write_text(PROBLEM.format(imports="", target="1.0"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert float(load_problem("module_by_name:problem").evaluate({"x": 0.0})) == 1.0
    assert not caplog.records
    (tmp_path / "module_by_name.py").write_text(PROBLEM.format(imports="", target="3.0"))
    with caplog.at_level(logging.WARNING):
        assert float(load_problem("module_by_name:problem").evaluate({"x": 0.0})) == 1.0
    assert "edited after this process imported it" in caplog.text
    del sys.modules["module_by_name"]


def test_factory_and_arguments_are_recorded_with_their_defaults(tmp_path):
    file = folder(tmp_path / "one", 1.0)
    origins = [load_problem(f"{file}:problem", settings).origin for settings in ({}, {"start": 0.0}, {"start": 2.0})]
    assert [origin and (origin.factory, dict(origin.settings)) for origin in origins] == [
        ("problem:problem", {"start": 0.0}),
        ("problem:problem", {"start": 0.0}),
        ("problem:problem", {"start": 2.0}),
    ]


@pytest.mark.slow
def test_a_problem_in_a_checkout_of_ours_uses_the_tesseract_flow_that_runs(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    code = "from tesseract_flow.optimize import load_problem; load_problem('examples/beam/problem.py:cantilever')"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
