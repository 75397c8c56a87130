"""These tests need PyTorch, which `make install` leaves to the user. Without it they are left out, and it says so."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None

if not HAS_TORCH:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_collectionfinish() -> list[str]:
    # Not pytest_report_header: pytest prints that before it comes to this folder.
    if HAS_TORCH:
        return []
    return ["tests/torch is left out: PyTorch is not installed (pip install 'tesseract-flow[torch]')"]


@pytest.fixture(scope="session", autouse=True)
def _forward_mode_is_loaded() -> None:
    """PyTorch deprecates torch.jit.script, and uses it itself when it makes the first dual tensor."""
    import torch
    from torch.autograd import forward_ad

    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore")
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@pytest.fixture(scope="session")
def in_process() -> Any:
    """The component with containers, as tesseract-core runs it in this process."""
    from tests.torch.helpers import CONTAINERS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core import Tesseract

        return Tesseract.from_tesseract_api(CONTAINERS)


@pytest.fixture(scope="session")
def served(served: Any) -> Any:
    """The same component in a process of its own."""
    from tests.torch.helpers import CONTAINERS

    return served(CONTAINERS)
