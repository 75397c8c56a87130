"""Problems by name: `package.module:factory` or `folder/problem.py:factory` → a `Problem`.

This is how a form, a command line or a deployment names a problem without holding it. A file is read as it is now, with
the modules beside it that it imports (`folders`). A module is imported, by Python's own rules: once in a process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tesseract_flow.errors import ProblemError, TesseractFlowError, did_you_mean
from tesseract_flow.optimize.folders import load_file
from tesseract_flow.optimize.problem import Origin, Problem

T = TypeVar("T")

_log = logging.getLogger("tesseract_flow")

_FORM = "Name a problem as folder/problem.py:factory or package.module:factory."


def load_problem(path: str, settings: Mapping[str, Any] | None = None) -> Problem:
    """The problem that a factory makes of `settings`.

    Args:
        path: `folder/problem.py:factory` (relative to the working directory) or `package.module:factory`.
        settings: keyword arguments of the factory; with its name they are part of the identity of a run.

    Raises:
        ProblemError: there is no such file, module, function or setting; the message names the nearest ones.
    """
    settings = dict(settings or {})
    factory, where, name = _found(path)
    check_settings(factory, settings, path)
    problem = _executed(lambda: factory(**settings), _called(path, settings))
    if not isinstance(problem, Problem):
        raise ProblemError(f"{path} returned {type(problem).__name__}, not a tesseract_flow.Problem.")
    # Not the whole path: a folder that was moved has the same problem in it.
    stem = Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]
    return dataclasses.replace(problem, origin=Origin(f"{stem}:{name}", _arguments(factory, settings)))


def load_factory(path: str) -> Callable[..., Any]:
    """The factory that `load_problem` would call.

    Raises:
        ProblemError: there is no such file, module or function; the message names the nearest ones.
    """
    return _found(path)[0]


def _found(path: str) -> tuple[Callable[..., Any], str, str]:
    """A factory, with the file or module where it is, and its name there."""
    where, colon, name = path.strip().rpartition(":")
    # A colon can also be that of a Windows drive.
    if not colon or not name or "/" in name or "\\" in name:
        raise ProblemError(f"{path!r} does not say which function makes the problem. {_FORM}")
    module = _module_from_file(Path(where)) if where.endswith(".py") else _module_by_name(where)
    return _factory(module, name, where), where, name


def _arguments(factory: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments, defaults included: saying a default is not a change, and changing it is one."""
    signature = inspect.signature(factory)
    bound = signature.bind(**settings)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            arguments.pop(parameter.name)
    return arguments


def _module_from_file(file: Path) -> ModuleType:
    if not file.is_file():
        folder = file.parent
        near = sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []
        there = f" In {folder} there is: {', '.join(near)}.{did_you_mean(file.name, near)}" if near else ""
        raise ProblemError(f"There is no file {file} (working directory: {Path.cwd()}).{there}\n{_FORM}")
    return _executed(lambda: load_file(file.resolve()), f"Importing {file}")


def _module_by_name(name: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ProblemError(f"There is no module {name!r} on the Python path. {_FORM}")
    module = _executed(lambda: importlib.import_module(name), f"Importing {name}")
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


def _executed(run: Callable[[], T], what: str) -> T:
    """Run code of the problem's author; what it raises comes back as an error of ours that says where it was raised."""
    try:
        return run()
    except TesseractFlowError:
        raise
    except Exception as error:
        raise ProblemError(f"{what} raised {type(error).__name__}{_where(error)}: {error}") from error


def _where(error: Exception) -> str:
    """The innermost line that is not a library's; a mistake of syntax says its line itself."""
    if isinstance(error, SyntaxError):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "site-packages" not in frame.filename and not frame.filename.startswith("<") and frame.filename != __file__:
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _called(path: str, settings: Mapping[str, Any]) -> str:
    # A setting can be a secret: numbers are shown.
    shown = [
        f"{key}={value!r}" if isinstance(value, bool | int | float) else f"{key}=..." for key, value in settings.items()
    ]
    return f"{path}({', '.join(shown)})"


def _factory(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    factory = getattr(module, name, None)
    if callable(factory):
        return factory
    made_here = [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    public = [key for key in made_here if not key.startswith("_")]
    raise ProblemError(
        f"{where} has no function {name!r}.{did_you_mean(name, public)} It has: {', '.join(public) or 'no functions'}."
    )


def check_settings(factory: Callable[..., Any], settings: Mapping[str, Any], path: str) -> None:
    """Refuse settings that a factory does not take.

    Raises:
        ProblemError: the message says what it takes.
    """
    try:
        signature = inspect.signature(factory)
    except ValueError:  # of code that is not Python's, nobody knows
        return
    try:
        signature.bind(**settings)
    except TypeError as error:
        known = list(signature.parameters)
        hint = next((did_you_mean(key, known) for key in settings if key not in known), "")
        raise ProblemError(f"{path} does not take these settings: {error}.{hint} It takes: {signature}.") from error
