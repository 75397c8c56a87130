"""Problems by name: `package.module:factory` or `folder/problem.py:factory` → a `Problem`.

This is how a form, a command line or a deployment names a problem without holding it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tesseract_flow.errors import ProblemError, TesseractFlowError, did_you_mean
from tesseract_flow.optimize.problem import Problem

_FORM = "Name a problem as folder/problem.py:factory or package.module:factory."


def load_problem(path: str, settings: Mapping[str, Any] | None = None) -> Problem:
    """The problem that a factory makes of `settings`.

    Args:
        path: `folder/problem.py:factory` (relative to the working directory) or `package.module:factory`.
        settings: keyword arguments of the factory.

    Raises:
        ProblemError: there is no such file, module, function or setting; the message names the nearest ones.
    """
    settings = dict(settings or {})
    where, colon, name = path.strip().rpartition(":")
    # A colon can also be that of a Windows drive.
    if not colon or not name or "/" in name or "\\" in name:
        raise ProblemError(f"{path!r} does not say which function makes the problem. {_FORM}")
    module = _module_from_file(Path(where)) if where.endswith(".py") else _module_by_name(where)
    factory = _factory(module, name, where)
    _check_settings(factory, settings, path)
    problem = factory(**settings)
    if not isinstance(problem, Problem):
        raise ProblemError(f"{path} returned {type(problem).__name__}, not a tesseract_flow.Problem.")
    return problem


def _module_from_file(file: Path) -> ModuleType:
    if not file.is_file():
        folder = file.parent
        near = sorted(p.name for p in folder.glob("*.py")) if folder.is_dir() else []
        there = f" In {folder} there is: {', '.join(near)}.{did_you_mean(file.name, near)}" if near else ""
        raise ProblemError(f"There is no file {file} (working directory: {Path.cwd()}).{there}\n{_FORM}")
    root, name = _package_of(file.resolve())
    # As with a script, a problem may import what lies beside it.
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if "." in name:
        return _executed(lambda: importlib.import_module(name), str(file))
    # Not its bare name: two folders may each have a problem.py.
    name = f"tesseract_flow_problem_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    loader = spec.loader

    def run() -> ModuleType:
        loader.exec_module(module)
        return module

    return _executed(run, str(file))


def _package_of(file: Path) -> tuple[Path, str]:
    """The folder to import from, and the dotted name: `__init__.py` files say where a package begins."""
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        parts.append(root.name)
        root = root.parent
    return root, ".".join(reversed(parts))


def _module_by_name(name: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ProblemError(f"There is no module {name!r} on the Python path. {_FORM}")
    return _executed(lambda: importlib.import_module(name), name)


def _executed(run: Callable[[], ModuleType], what: str) -> ModuleType:
    try:
        return run()
    except TesseractFlowError:
        raise
    except Exception as error:
        raise ProblemError(f"{what} raised while it was imported: {type(error).__name__}: {error}") from error


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


def _check_settings(factory: Callable[..., Any], settings: Mapping[str, Any], path: str) -> None:
    signature = inspect.signature(factory)
    try:
        signature.bind(**settings)
    except TypeError as error:
        known = list(signature.parameters)
        hint = next((did_you_mean(key, known) for key in settings if key not in known), "")
        raise ProblemError(f"{path} does not take these settings: {error}.{hint} It takes: {signature}.") from error
