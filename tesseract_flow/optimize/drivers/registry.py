"""Drivers by name: which there are, what settings they take, and how one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax

from tesseract_flow.errors import DriverError, did_you_mean
from tesseract_flow.optimize.drivers import evolution, nlopt, optimistix, scipy
from tesseract_flow.optimize.drivers.base import AbstractDriver
from tesseract_flow.optimize.drivers.least_squares import LeastSquaresDriver
from tesseract_flow.optimize.drivers.library import LibraryDriver
from tesseract_flow.optimize.drivers.optax.named import LEARNING_RATES, driver_of, named_driver, settings_of
from tesseract_flow.optimize.drivers.settings import check_settings, takes

AUTO = "auto"  # what the problem decides; see `automatic`
CHOICES = ("adam", "slsqp")  # by which of these, the first of problems without constraints

_LIBRARIES = scipy.LIBRARIES | nlopt.LIBRARIES
_SETTINGS = scipy.SETTINGS | nlopt.SETTINGS | evolution.SETTINGS | optimistix.SETTINGS


def driver_names() -> tuple[str, ...]:
    """The names that `optimize(driver=...)` knows."""
    return tuple(sorted([*LEARNING_RATES, *_SETTINGS]))


def driver_settings(name: str) -> dict[str, Any]:
    """The settings that a named driver takes, with their defaults; besides `learning_rate`.

    Raises:
        DriverError: an unknown name.
    """
    if name in LEARNING_RATES:
        return settings_of(name)
    if name in _SETTINGS:
        return dict(_SETTINGS[name])
    raise DriverError(
        f"Unknown driver {name!r}.{did_you_mean(name, driver_names())}\n"
        f"Known are: {', '.join(driver_names())}. Any other optax.GradientTransformation can be passed as object."
    )


def build_driver(
    driver: str | AbstractDriver | optax.GradientTransformation,
    learning_rate: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> AbstractDriver:
    """The driver that a name and settings, or an Optax object, stand for.

    Raises:
        DriverError: an unknown name, settings that it does not take, or settings beside an object.
    """
    if isinstance(driver, AbstractDriver):
        return driver
    if not isinstance(driver, str):
        return driver_of(driver, learning_rate, settings)
    known = driver_settings(driver)  # refuses a name that nobody knows
    if driver in LEARNING_RATES:
        return named_driver(driver, learning_rate, settings or {})
    given = dict(settings or {})
    check_settings(driver, given, known)
    if learning_rate is not None:
        raise DriverError(f"Driver {driver!r} does not take a learning_rate.\n{takes(driver, known)}")
    if driver in evolution.SETTINGS:
        return evolution.EvolutionDriver.from_settings(given)
    if driver in optimistix.SETTINGS:
        return LeastSquaresDriver.from_settings(driver, given)
    about = {"name": driver, **{key: given[key] for key in sorted(given)}}
    return LibraryDriver(about, _LIBRARIES[driver](known | given))
