"""Keywords that `optimize` does not take: where they belong, said in place of Python's bare `TypeError`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

from tesseract_flow.errors import DriverError, UnknownArgument, did_you_mean
from tesseract_flow.optimize.drivers.registry import AUTO, CHOICES, driver_settings
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.stopping import STOP_SETTINGS

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


def with_remedies(fn: Callable[_Arguments, _Answer]) -> Callable[_Arguments, _Answer]:
    """`fn`, which says of a keyword that it does not take where it belongs.

    Raises:
        UnknownArgument: a `TypeError` as well, as Python's own would be.
    """
    known = inspect.signature(fn).parameters

    @functools.wraps(fn)
    def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        for name, value in kwargs.items():
            if name not in known:
                driver = kwargs.get("driver", args[1] if len(args) > 1 else known["driver"].default)
                raise UnknownArgument(f"{fn.__name__} does not take {name!r}.{remedy_of(name, value, driver, known)}")
        return fn(*args, **kwargs)

    return checked


def remedy_of(name: str, value: Any, driver: Any, known: Collection[str]) -> str:
    """Where a keyword belongs that is none of `known`, as the rest of a sentence."""
    if name in STOP_SETTINGS:
        return f"\nIt says when to stop: stop={{{name!r}: {value!r}}}."
    if name == "schedule":
        return "\nIt belongs to the problem: Problem(design, evaluate, schedule=...), or problem.with_schedule({...})."
    if name in {field.name for field in dataclasses.fields(Problem)} - set(known):
        return f"\nIt belongs to the problem: Problem(design, evaluate, {name}=...)."
    try:
        names = CHOICES if driver == AUTO else (driver,) if isinstance(driver, str) else ()
        settings = {key: value for known_name in names for key, value in driver_settings(known_name).items()}
    except DriverError:
        settings = {}
    if name in settings:
        return f"\nIt is a setting of the driver: driver_settings={{{name!r}: {value!r}}}."
    return did_you_mean(name, [*known, *STOP_SETTINGS]) + f"\nIt takes: {', '.join(known)}."
