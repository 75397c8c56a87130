"""Functions by name: `package.module:function` or `folder/file.py:function`.

This is how a command line, a form, a file or a deployment names a function without holding it. A file is read as it is
now, with the modules beside it that it imports (`folders`). A module is imported, by Python's own rules: once in a
process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tesseract_flow.errors import ProblemError, TesseractFlowError, did_you_mean
from tesseract_flow.named.folders import load_file
from tesseract_flow.storage import require_allowed, require_allowed_module

T = TypeVar("T")

_log = logging.getLogger("tesseract_flow")
_OURS = str(Path(__file__).parents[1])  # a mistake is where we are called


def named_function(path: str, form: str, *, folder: Path | None = None) -> tuple[Callable[..., Any], str, str]:
    """A function, with the file or module where it is, and its name there.

    Args:
        form: how such a name should look like, as a sentence.
        folder: where paths of files begin; default the working directory.

    Raises:
        ProblemError: there is no such file, module or function; the message names the nearest ones.
    """
    where, colon, name = path.strip().rpartition(":")
    # A colon can also be that of a Windows drive.
    if not colon or not name or "/" in name or "\\" in name:
        raise ProblemError(f"{path!r} does not say which function is meant. {form}")
    file = Path(where) if folder is None else folder / where
    module = _module_from_file(file, form) if where.endswith(".py") else _module_by_name(where, form)
    return _function(module, name, where), where, name


def _module_from_file(file: Path, form: str) -> ModuleType:
    require_allowed(file)
    if not file.is_file():
        folder = file.parent
        near = sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []
        there = f" In {folder} there is: {', '.join(near)}.{did_you_mean(file.name, near)}" if near else ""
        raise ProblemError(f"There is no file {file} (working directory: {Path.cwd()}).{there}\n{form}")
    return executed(lambda: load_file(file.resolve()), f"Importing {file}")


def _module_by_name(name: str, form: str) -> ModuleType:
    require_allowed_module(name)
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ProblemError(f"There is no module {name!r} on the Python path. {form}")
    module = executed(lambda: importlib.import_module(name), f"Importing {name}")
    _say_if_stale(module)
    return module


# Module -> digest of its source when this process first loaded a problem from it.
_sources: dict[str, str] = {}


def _say_if_stale(module: ModuleType) -> None:
    """A module that is named as such is imported once, as Python does; an edit since then is not seen."""
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return
    now = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if _sources.setdefault(module.__name__, now) != now:
        _log.warning(
            "%s was edited after this process imported it, and stays as it was. Start again, or name the problem as "
            "%s:factory, which is read anew each time.",
            *(module.__name__, file),
        )


def executed(run: Callable[[], T], what: str) -> T:
    """Run code of the problem's author; what it raises comes back as an error of ours that says where it was raised."""
    try:
        return run()
    except TesseractFlowError:
        raise
    except Exception as error:
        raise ProblemError(f"{what} raised {type(error).__name__}{line_of(error)}: {error}") from error


def line_of(error: Exception) -> str:
    """` (problem.py, line 7)`: the innermost line that is not a library's; a mistake of syntax says its line itself."""
    if isinstance(error, SyntaxError):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "site-packages" not in frame.filename and not frame.filename.startswith(("<", _OURS)):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _function(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    made_here = [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    public = [key for key in made_here if not key.startswith("_")]
    raise ProblemError(
        f"{where} has no function {name!r}.{did_you_mean(name, public)} It has: {', '.join(public) or 'no functions'}."
    )
