"""Differentiable pipelines of Tesseracts in JAX, and their optimisation as Prefect flows.

Here are the public names, and nothing is imported until one of them is used: `import tesseract_flow` loads neither
JAX nor Prefect, so that a command line answers at once and a component that only needs `tesseract_flow.recipes` stays
small. What the names do is written where they are defined.
"""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesseract_flow import errors as errors
    from tesseract_flow.autodiff import apply_tesseract as apply_tesseract
    from tesseract_flow.autodiff import differences as differences
    from tesseract_flow.autodiff import hvp as hvp
    from tesseract_flow.autodiff import save_intermediates as save_intermediates
    from tesseract_flow.autodiff import sow as sow
    from tesseract_flow.checks import check as check
    from tesseract_flow.checks import check_gradients as check_gradients
    from tesseract_flow.client import Derive as Derive
    from tesseract_flow.client import DirectoryCache as DirectoryCache
    from tesseract_flow.client import MemoryCache as MemoryCache
    from tesseract_flow.client import count_requests as count_requests
    from tesseract_flow.client import open_tesseract as open_tesseract
    from tesseract_flow.compose import fixed_point as fixed_point
    from tesseract_flow.derivatives import Differences as Differences
    from tesseract_flow.execute import concurrent as concurrent
    from tesseract_flow.optimize import Constraint as Constraint
    from tesseract_flow.optimize import Evaluation as Evaluation
    from tesseract_flow.optimize import FailurePolicy as FailurePolicy
    from tesseract_flow.optimize import Phase as Phase
    from tesseract_flow.optimize import Problem as Problem
    from tesseract_flow.optimize import Result as Result
    from tesseract_flow.optimize import Schedule as Schedule
    from tesseract_flow.optimize import epigraph as epigraph
    from tesseract_flow.optimize import optimize as optimize
    from tesseract_flow.optimize import read_journal as read_journal
    from tesseract_flow.optimize import steer as steer
    from tesseract_flow.pictures import picture as picture
    from tesseract_flow.pipeline import Pipeline as Pipeline
    from tesseract_flow.report import report as report
    from tesseract_flow.study import multi_start as multi_start
    from tesseract_flow.study import sweep as sweep

    __version__: str

# Public name -> the module that defines it. The imports above say the same to type checkers; a test compares the two.
_EXPORTS = {
    "Constraint": "tesseract_flow.optimize",
    "Derive": "tesseract_flow.client",
    "Differences": "tesseract_flow.derivatives",
    "DirectoryCache": "tesseract_flow.client",
    "Evaluation": "tesseract_flow.optimize",
    "FailurePolicy": "tesseract_flow.optimize",
    "MemoryCache": "tesseract_flow.client",
    "Phase": "tesseract_flow.optimize",
    "Pipeline": "tesseract_flow.pipeline",
    "Problem": "tesseract_flow.optimize",
    "Result": "tesseract_flow.optimize",
    "Schedule": "tesseract_flow.optimize",
    "apply_tesseract": "tesseract_flow.autodiff",
    "check": "tesseract_flow.checks",
    "check_gradients": "tesseract_flow.checks",
    "concurrent": "tesseract_flow.execute",
    "count_requests": "tesseract_flow.client",
    "differences": "tesseract_flow.autodiff",
    "epigraph": "tesseract_flow.optimize",
    "errors": "tesseract_flow.errors",
    "fixed_point": "tesseract_flow.compose",
    "hvp": "tesseract_flow.autodiff",
    "multi_start": "tesseract_flow.study",
    "open_tesseract": "tesseract_flow.client",
    "optimize": "tesseract_flow.optimize",
    "picture": "tesseract_flow.pictures",
    "read_journal": "tesseract_flow.optimize",
    "report": "tesseract_flow.report",
    "save_intermediates": "tesseract_flow.autodiff",
    "sow": "tesseract_flow.autodiff",
    "steer": "tesseract_flow.optimize",
    "sweep": "tesseract_flow.study",
}

__all__ = [
    "Constraint",
    "Derive",
    "Differences",
    "DirectoryCache",
    "Evaluation",
    "FailurePolicy",
    "MemoryCache",
    "Phase",
    "Pipeline",
    "Problem",
    "Result",
    "Schedule",
    "__version__",
    "apply_tesseract",
    "check",
    "check_gradients",
    "concurrent",
    "count_requests",
    "differences",
    "epigraph",
    "errors",
    "fixed_point",
    "hvp",
    "multi_start",
    "open_tesseract",
    "optimize",
    "picture",
    "read_journal",
    "report",
    "save_intermediates",
    "sow",
    "steer",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _EXPORTS:
        if name == "open_tesseract" and "jax" in sys.modules:
            # Registers handles with JAX, which has to know them before it meets one among the arguments of a function.
            _imported("tesseract_flow.autodiff")
        module = _imported(_EXPORTS[name])
        # `optimize` and `report` are functions and the packages they live in. Importing the package makes it an
        # attribute of this one, whoever does it first, so the answer is always the package, which can be called like
        # the function.
        value = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _imported(module: str) -> ModuleType:
    """A module, with those that it brings, JAX among them."""
    # What they make stays, and the garbage collector would look through all of JAX for what does not.
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if was_collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; pyproject.toml is the only place where it is written."""
    from importlib import metadata

    try:
        return metadata.version("tesseract-flow")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
