"""The page about derived endpoints does what it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesseract_flow.client import count_requests, open_tesseract
from tesseract_flow.client.deriving.routes import EXACT
from tesseract_flow.client.handles import private_folder
from tesseract_flow.client.http import exchange
from tesseract_flow.wire import BinrefPool

PAGE = (Path(__file__).parents[2] / "docs" / "derive.md").read_text(encoding="utf-8")


def test_examples(capsys: pytest.CaptureFixture[str]) -> None:
    first, budget, noise, replaced = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(first, names)
    np.testing.assert_allclose(names["gradient"], 2 * np.arange(5.0), atol=1e-9)
    # One for the value, two per input element for the gradient.
    assert names["counts"] == {"solver.abstract_eval": 1, "solver.apply": 1 + 10}
    exec(budget, names)
    assert "would take 10 requests" in capsys.readouterr().out
    with count_requests() as counts:
        exec(noise, names)
    assert counts["solver.apply"] in [1 + 10 + 8 * n_attempts for n_attempts in range(1, 7)]
    with count_requests() as counts:
        exec(replaced, names)
    # An exact route comes first.
    assert counts == {"function.abstract_eval": 1, "function.apply": 1, "function.jacobian": 1}


def test_page_has_every_route() -> None:
    table = PAGE.split("| wanted | from |")[1].split("\n\n")[0]
    assert all(f"`{source}`" in table for sources in EXACT.values() for source in sources)
    assert all(method in table for method in ("central", "forward", "SPSA"))


def test_examples_of_lanes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lanes.md").read_text(encoding="utf-8")
    handles = []
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        names: dict[str, Any] = {"open_tesseract": open_tesseract}
        exec(block, names)
        handles.append(names["fem"])
    assert [handle.name for handle in handles] == ["fem"] * 5
    assert [handle.n_lanes for handle in handles] == [4, 16, 2, 64, 2]


def test_figures_of_wire() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
    for n_bytes in (exchange.WRITE_FROM, exchange.READ_FROM):
        assert f"{n_bytes // 1024} KiB" in page
    kept = inspect.signature(BinrefPool).parameters["max_bytes"].default
    for n_bytes in (kept, private_folder._LEAST_FREE):
        assert f"{n_bytes // 2**20} MiB" in page
    assert "room for\n  four of them" in page and exchange._ROOM == 4
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "open_tesseract" in first  # which needs a component
    names: dict[str, Any] = {"open_tesseract": open_tesseract}
    exec(second, names)
    assert names["fem"].encoding == "auto"
