"""The page about PyTorch does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tesseract_flow.client import open_tesseract

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.server
def test_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "torch.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    try:
        exec(code, names)
    finally:
        open_tesseract("examples/beam/section").stop()  # type: ignore[attr-defined]
    # d volume / d h = b L / n, and d inertia / d h = b h² / 4.
    expected = torch.full((10,), 0.1 / 10 + 1e3 * 0.1 * 0.05**2 / 4, dtype=torch.float64)
    assert torch.allclose(names["thickness"].grad, expected, rtol=1e-12)
    assert "tensor" in capsys.readouterr().out
