"""The examples of the pages in docs/ run as they stand there, each page from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tesseract_flow.client import ServedTesseract

ROOT = Path(__file__).parents[1]
PAGES = [
    "problem",
    "batch",
    "caching",
    "checking",
    "coming-from-tesseract-jax",
    "derivatives",
    "concurrent",
    "drivers",
    "coupling",
    "pipelines",
    "failures",
    "journals",
    "phases",
    "steering",
    "study",
    "testing",
]


@pytest.mark.server
@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert blocks
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydantic|tesseract_core")  # their remarks about themselves
        for block in blocks:
            line = text.count("\n", 0, block.start()) + 1
            code = compile("\n" * line + block[1], f"docs/{page}.md", "exec")
            exec(code, names)
    for value in names.values():
        if isinstance(value, ServedTesseract):
            value.stop()


def suite(folder: Path, *arguments: str, cwd: Path | None = None) -> str:
    """What pytest says of the tests in a folder, as a user starts it; in a process of its own."""
    plugin = ["-p", "tesseract_flow.testing.plugin", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    command = [sys.executable, "-m", "pytest", "-q", *plugin, "-c", os.devnull, "--rootdir", str(folder), *arguments]
    done = subprocess.run([*command, str(folder)], cwd=cwd or folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pipeline_that_is_tested_in_five_minutes(tmp_path: Path):
    """The files of the page, in an empty folder, with nothing but what the page says."""
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    files = re.findall(r"```python file=(\S+)\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in files] == ["pipeline.py", "test_pipeline.py"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    assert "4 passed" in suite(tmp_path)


def test_the_tests_of_the_readme(tmp_path: Path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def test_" in block)
    (tmp_path / "test_readme.py").write_text(block)
    assert "2 passed" in suite(tmp_path, cwd=ROOT)  # it names a component of the checkout


@pytest.mark.server
@pytest.mark.slow
def test_the_test_with_a_recording(tmp_path: Path):
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "(cassette" in block)
    test = tmp_path / "test_recorded.py"
    component = str(ROOT / "examples" / "beam" / "section")
    test.write_text(block.replace("http://sections:8000", component))
    assert "1 passed" in suite(tmp_path, "--cassettes=record")
    test.write_text(block)
    assert "1 passed" in suite(tmp_path)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
