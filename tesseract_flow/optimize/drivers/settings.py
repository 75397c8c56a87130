"""Settings of named drivers, as they come from a form or a command line: known ones, of the right kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tesseract_flow.errors import DriverError, did_you_mean


def check_settings(name: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse settings that a driver does not take.

    Raises:
        DriverError: an unknown one, or a value unlike its default.
    """
    for key, value in settings.items():
        if key not in known:
            hint = "; pass it as the argument learning_rate" if key == "learning_rate" else ""
            raise DriverError(
                f"Driver {name!r} does not take the setting {key!r}{hint}.{did_you_mean(key, known)}\n"
                f"{takes(name, known)}"
            )
        if not _fits(value, known[key]):
            raise DriverError(
                f"Setting {key!r} of driver {name!r}: expected something like {known[key]!r}, received {value!r}.\n"
                f"{takes(name, known)}"
            )


def takes(name: str, known: Mapping[str, Any]) -> str:
    """What settings a driver takes, as a sentence."""
    if not known:
        return f"{name} takes no settings."
    return f"{name} takes: {', '.join(f'{key} (default {value!r})' for key, value in known.items())}."


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, str):
        return isinstance(value, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        return is_number and float(value).is_integer()
    return is_number or (default is None and value is None)
