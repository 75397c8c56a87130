"""`tesseract-flow init`: the folder that it makes, used as its README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tesseract_flow.cli import main
from tesseract_flow.errors import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert main(["init", str(tmp_path / "rod")]) == 0
    return tmp_path / "rod"


def run_in(folder: Path, *command: str) -> str:
    """With nothing of this checkout's tests: neither its settings for JAX nor those for pytest."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_folder_has_what_its_readme_names(folder):
    readme = (folder / "README.md").read_text()
    for name in re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE):
        assert (folder / name / "tesseract_api.py").is_file()
    assert (folder / ".gitignore").read_text().split() == ["runs/", "__pycache__/", ".tesseract-venv/"]
    assert not list(folder.rglob("__pycache__"))


@pytest.mark.slow
def test_own_tests_of_the_folder_pass(folder):
    assert "2 passed" in run_in(folder, "pytest", "-q", "-p", "no:cacheprovider")


@pytest.mark.slow
@pytest.mark.server
def test_commands_of_the_readme_do_what_they_say(folder):
    commands = re.findall(r"^\$ tesseract-flow (.*?)(?: *#.*)?$", (folder / "README.md").read_text(), re.MULTILINE)
    done = [command.split()[0] for command in commands if not command.startswith("up")]
    assert done == ["check", "check-gradients", "optimize"]
    for command in commands:
        if not command.startswith("up"):
            run_in(folder, "tesseract_flow", *command.split())
    result = json.loads((folder / "runs" / "rod" / "result.json").read_text())
    assert result["converged"]
    assert result["value"] == pytest.approx(882.0, rel=1e-6)  # (6 + 5 + ... + 1)^2 / 0.5
    assert (folder / "runs" / "rod" / "report.html").is_file()


def test_folder_that_is_not_empty_is_refused_by_what_is_in_it(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["init", str(tmp_path)]) == 1
    assert "thesis.tex" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_empty_folder_is_filled(tmp_path, capsys):
    assert main(["init", str(tmp_path)]) == 0
    assert "tesseract-flow check problem.py:problem" in capsys.readouterr().out
    assert (tmp_path / "problem.py").is_file()


def test_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file")]) == 1
    assert StorageError.__name__ in capsys.readouterr().err
    assert main(["init", str(tmp_path / "file" / "below")]) == 1
