"""What a sweep goes through: settings of a factory, as a product of values or a list, each under its own key."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize import Problem, load_problem
from tesseract_flow.optimize.identity import is_about_where, setting_text
from tesseract_flow.optimize.loading import check_settings, load_factory
from tesseract_flow.storage import told_apart

Factory = Callable[..., Problem] | str


def all_settings(sweep: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings of each run, in order: of a mapping all combinations of its values, the last name fastest.

    Raises:
        ProblemError: something that has no values to go through.
    """
    if isinstance(sweep, Mapping):
        for name, values in sweep.items():
            is_array = isinstance(values, np.ndarray | jax.Array) and values.ndim > 0
            if isinstance(values, str | bytes) or not (is_array or isinstance(values, Sequence)):
                raise ProblemError(
                    f"A sweep goes through lists of values, and {name!r} has {values!r}.\n"
                    f"One value is a list of one: {{{name!r}: [{values!r}]}}."
                )
            if not len(values):
                raise ProblemError(f"The list of values for {name!r} is empty: there is nothing to run.")
        names = list(sweep)
        found = [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(map(_plain, values) for values in sweep.values()))
        ]
    else:
        if isinstance(sweep, str) or not isinstance(sweep, Sequence):
            raise ProblemError(
                f"A sweep takes lists of values by name, or a list of settings, received {sweep!r}.\n"
                'For example {"load": [1.0, 2.0]}, or [{"load": 1.0}, {"load": 2.0, "width": 3}].'
            )
        for k, one in enumerate(sweep):
            if not isinstance(one, Mapping):
                raise ProblemError(
                    f"Settings {k} of the sweep are {one!r}, expected a mapping such as {{'load': 1.0}}."
                )
        found = [{name: _plain(value) for name, value in one.items()} for one in sweep]
    if not found or (len(found) == 1 and not found[0] and isinstance(sweep, Mapping)):
        raise ProblemError("The sweep is empty: there is nothing to run.")
    return found


def keyed(settings: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings by the key of their run.

    A key has every setting, but for those that say where something runs (`url`, `workers`) and are the same in all
    runs: servers may have moved when a study goes on. Secrets are not in it.

    Raises:
        ProblemError: the same settings twice.
    """
    everywhere = {
        name
        for name in {name for one in settings for name in one}
        if len({setting_text(one.get(name), name) for one in settings}) == 1
        and all(is_about_where(name, one.get(name)) for one in settings)
    }
    found: dict[str, dict[str, Any]] = {}
    for k, one in enumerate(settings):
        told = {name: setting_text(value, name) for name, value in one.items() if name not in everywhere}
        # A name may be any text where a factory takes **settings.
        parts = (f"{name if name.isidentifier() else repr(name)}={told[name]}" for name in sorted(told))
        key = ",".join(parts) or "factory"
        if key in found:
            raise ProblemError(
                f"Settings {k} of the sweep ({_shown(one)}) are there twice: each run has settings of its own.\n"
                "Leave one of them out."
            )
        found[key] = dict(one)
    return found


def check_factory(factory: Factory, settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what no run could begin with.

    Raises:
        ProblemError: what is no factory, or settings that it does not take.
    """
    if not isinstance(factory, str) and (isinstance(factory, Problem) or not callable(factory)):
        raise ProblemError(
            f"A sweep takes a factory, a function that makes a problem of settings, received "
            f"{type(factory).__name__}.\n"
            "Give the function itself, or its name as folder/problem.py:factory."
        )
    function = load_factory(factory) if isinstance(factory, str) else factory
    for one in settings:
        check_settings(function, one, factory_name(factory))


def make_problem(factory: Factory, settings: Mapping[str, Any]) -> Problem:
    """The problem of these settings.

    Raises:
        ProblemError: the factory gives something else; by name, it is not there, or does not take them.
    """
    if isinstance(factory, str):
        return load_problem(factory, settings)
    problem = factory(**settings)
    if not isinstance(problem, Problem):
        raise ProblemError(f"The factory returned {type(problem).__name__}, expected a tesseract_flow.Problem.")
    return problem


def factory_name(factory: Factory) -> str:
    if isinstance(factory, str):
        return factory.strip()
    return str(getattr(factory, "__qualname__", None) or type(factory).__qualname__)


def _plain(value: Any) -> Any:
    """NumPy's and JAX's numbers as Python's own: 0.5 is one setting, wherever it comes from."""
    is_number = isinstance(value, np.generic) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0)
    return value.item() if is_number else value


def _shown(settings: Mapping[str, Any]) -> str:
    return json.dumps(told_apart(dict(settings)), default=repr)
