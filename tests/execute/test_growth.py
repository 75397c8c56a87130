"""Ten thousand calls leave no more behind than two thousand."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests
from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import ServedTesseract, open_tesseract
from tesseract_flow.execute import concurrent

CUBIC = Path(tests.__path__[0]) / "autodiff" / "components" / "cubic" / "tesseract_api.py"
N = 1000  # floats per call: ten thousand forgotten ones would be 80 MB


@pytest.fixture(scope="module")
def cubic() -> Iterator[Any]:
    served = open_tesseract(CUBIC)
    assert isinstance(served, ServedTesseract)
    yield served
    served.stop()


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def grows(run: Callable[[int], object], warm: int, last: int) -> int:
    for k in range(warm):
        run(k)
    before = resident_bytes()
    for k in range(warm, last):
        run(k)
    return resident_bytes() - before


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("how", ["client", "concurrent gradient"])
def test_memory_does_not_grow(how: str, cubic: Any):
    x = np.linspace(0.0, 1.0, N)

    def loss(x: Any) -> Any:
        return jnp.sum(apply_tesseract(cubic, {"x": x})["y"])

    gradient = concurrent(jax.value_and_grad(loss))

    def ask(k: int) -> object:  # other numbers every time
        return cubic.apply({"x": x + k}) if how == "client" else gradient(x + k)

    n = 10_000 if how == "client" else 2_500  # of two requests each
    assert grows(ask, n // 5, n) < 8e6
