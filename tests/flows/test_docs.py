"""The examples of docs/prefect.md run as they stand there, and what they define does what the page says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesseract_flow.flows.of_problem import flow_of, form_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_examples_of_the_page_run(prefect_harness, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "prefect.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text.count("\n", 0, block.start()) + 1
        exec(compile("\n" * line + block[1], "docs/prefect.md", "exec"), names)
    thickness = np.full(4, 0.1)
    tip = names["stiffness"](thickness)[-1, 0]
    value, slope = names["sensitivity"](thickness)
    np.testing.assert_allclose(value, tip)
    np.testing.assert_allclose(slope @ thickness, -3.0 * value, rtol=1e-9)  # of degree -3 in the thickness
    fields = form_of(flow_of(names["problem"])).properties
    assert fields["span"]["description"] == "from tip to tip. [m]"
    assert fields["span"]["maximum"] == 60
