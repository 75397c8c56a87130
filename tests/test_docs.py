"""The examples of the pages in docs/ run as they stand there, each page from top to bottom."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from tesseract_flow.client import ServedTesseract

ROOT = Path(__file__).parents[1]
PAGES = [
    "problem",
    "caching",
    "checking",
    "coming-from-tesseract-jax",
    "derivatives",
    "concurrent",
    "drivers",
    "coupling",
    "failures",
    "journals",
    "study",
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


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
