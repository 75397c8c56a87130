"""Problems by name: `package.module:factory`, `folder/problem.py:factory` or `folder/problem.yaml` → a `Problem`.

This is how a form, a command line or a deployment names a problem without holding it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from tesseract_flow.errors import ProblemError, did_you_mean
from tesseract_flow.named import executed, named_function
from tesseract_flow.optimize.problem import Origin, Problem
from tesseract_flow.optimize.problem_file import is_problem_file, problem_file
from tesseract_flow.storage import require_allowed

_FORM = "Name a problem as folder/problem.py:factory, package.module:factory or folder/problem.yaml."


def load_problem(path: str | Callable[..., Any], settings: Mapping[str, Any] | None = None) -> Problem:
    """The problem that a factory makes of `settings`, or that a file describes.

    Args:
        path: `folder/problem.py:factory` or `folder/problem.yaml` (relative to the working directory), or
            `package.module:factory`; or the factory itself.
        settings: keyword arguments of the factory, or settings that the file declares; with its name they are part of
            the identity of a run.

    Raises:
        ProblemError: there is no such file, module, function or setting; the message names the nearest ones.
    """
    settings = dict(settings or {})
    factory, name = _found(path) if isinstance(path, str) else (path, _name_of(path))
    path = path if isinstance(path, str) else name
    check_settings(factory, settings, path)
    problem = executed(lambda: factory(**settings), _called(path, settings))
    if not isinstance(problem, Problem):
        raise ProblemError(f"{path} returned {type(problem).__name__}, not a tesseract_flow.Problem.")
    return dataclasses.replace(problem, origin=Origin(name, _arguments(factory, settings)))


def load_factory(path: str) -> Callable[..., Any]:
    """The factory that `load_problem` would call.

    Raises:
        ProblemError: there is no such file, module or function; the message names the nearest ones.
    """
    return _found(path)[0]


def check_named_settings(path: str, settings: Collection[str]) -> None:
    """Refuse names of settings that a factory in a file does not take, as far as its text tells: nothing is run.

    Raises:
        ProblemError: it does not take one of them, or needs another one.
        NotAllowed: the file lies outside of `TESSERACT_FLOW_ROOTS`.
    """
    where, _, name = path.strip().rpartition(":")
    if not where.endswith(".py") or not Path(where).is_file():
        return
    require_allowed(where)
    try:
        body = ast.parse(Path(where).read_bytes()).body
    except (SyntaxError, ValueError):  # which is said, with its line, when it is imported
        return
    found = [one for one in body if isinstance(one, ast.FunctionDef) and one.name == name and not one.decorator_list]
    if len(found) != 1:
        return
    about = found[0].args
    names = [one.arg for one in (*about.args, *about.kwonlyargs)]
    unknown = [key for key in settings if key not in names and about.kwarg is None]
    n_needed = len(about.args) - len(about.defaults)
    needed = [one.arg for one in about.args[:n_needed]]
    needed += [one.arg for one, default in zip(about.kwonlyargs, about.kw_defaults, strict=True) if default is None]
    if unknown:
        raise ProblemError(
            f"{path} does not take a setting {unknown[0]!r}.{did_you_mean(unknown[0], names)} "
            f"It takes: {', '.join(names) or 'none'}."
        )
    if missing := [one for one in needed if one not in settings]:
        raise ProblemError(f"{path} needs the setting {missing[0]!r}. It takes: {', '.join(names)}.")


def _name_of(factory: Callable[..., Any]) -> str:
    """The name that a factory has where it is written, which is that of its runs however they begin."""
    function = inspect.unwrap(factory)
    name = getattr(function, "__qualname__", type(function).__name__)
    file = inspect.getsourcefile(function) if inspect.isroutine(function) else None
    return f"{Path(file).stem if file else getattr(function, '__module__', 'problem').rpartition('.')[2]}:{name}"


def _found(path: str) -> tuple[Callable[..., Any], str]:
    """A factory, and its name wherever its folder lies."""
    text = path.strip()
    if is_problem_file(text):
        return problem_file(text).factory, Path(text).name
    factory, where, name = named_function(text, _FORM)
    # Not the whole path: a folder that was moved has the same problem in it.
    stem = Path(where).stem if where.endswith(".py") else where.rpartition(".")[2]
    return factory, f"{stem}:{name}"


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


def _called(path: str, settings: Mapping[str, Any]) -> str:
    # A setting can be a secret: numbers are shown.
    shown = [
        f"{key}={value!r}" if isinstance(value, bool | int | float) else f"{key}=..." for key, value in settings.items()
    ]
    return f"{path}({', '.join(shown)})"


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
