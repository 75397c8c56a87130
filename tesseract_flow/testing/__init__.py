"""Testing pipelines: components that are functions, recordings, faults, and what a test wants to claim.

Nothing is imported before it is used: pytest loads this package for everybody who has it installed. The fixtures are in
`plugin`, faults in `faults`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesseract_flow.testing.assertions import assert_gradients as assert_gradients
    from tesseract_flow.testing.assertions import assert_requests as assert_requests
    from tesseract_flow.testing.faults import FaultyServer as FaultyServer
    from tesseract_flow.testing.faults import faulty as faulty
    from tesseract_flow.testing.function import FunctionTesseract as FunctionTesseract
    from tesseract_flow.testing.inside import in_process as in_process
    from tesseract_flow.testing.lives import assert_resumes as assert_resumes

_EXPORTS = {
    "FaultyServer": "tesseract_flow.testing.faults",
    "FunctionTesseract": "tesseract_flow.testing.function",
    "assert_gradients": "tesseract_flow.testing.assertions",
    "assert_requests": "tesseract_flow.testing.assertions",
    "assert_resumes": "tesseract_flow.testing.lives",
    "faulty": "tesseract_flow.testing.faults",
    "in_process": "tesseract_flow.testing.inside",
}

__all__ = [
    "FaultyServer",
    "FunctionTesseract",
    "assert_gradients",
    "assert_requests",
    "assert_resumes",
    "faulty",
    "in_process",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_EXPORTS[name]), name)
    return value
