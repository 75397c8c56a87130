"""Units of measurement, by pint (extra `units`): what one becomes in another, as a factor and an offset.

Only needed where a pipeline names units. Inside of JAX there are numbers alone: units are compared and converted where
values pass from one node to the next.
"""

from __future__ import annotations

import functools
from typing import Any

from tesseract_flow.errors import PipelineError


@functools.lru_cache(maxsize=1024)
def conversion(given: str, wanted: str) -> tuple[float, float]:
    """(a, b), so that x in the given unit is a · x + b in the wanted one.

    Raises:
        PipelineError: a text is no unit, the two measure different things, or pint is missing.

    >>> conversion("degC", "K")
    (1.0, 273.15)
    """
    registry = _registry()
    units = [unit_of(text) for text in (given, wanted)]
    if units[0] == units[1]:
        return 1.0, 0.0
    if units[0].dimensionality != units[1].dimensionality:
        raise PipelineError(
            f"{given!r} ({units[0].dimensionality}) cannot become {wanted!r} ({units[1].dimensionality}): they measure "
            "different things"
        )
    at = [registry.Quantity(x, units[0]).to(units[1]).magnitude for x in (0.0, 1.0, 2.0)]
    if abs(at[2] - (2.0 * at[1] - at[0])) > 1e-12 * max(map(abs, at)):
        raise PipelineError(f"{given!r} becomes {wanted!r} by no straight line; convert it in a function")
    # A kelvin is as large as a degree: exactly, which 274.15 - 273.15 is not.
    steps = [registry.Quantity(1.0, unit) - registry.Quantity(0.0, unit) for unit in units]
    return float(steps[0].to(steps[1].units).magnitude), float(at[0])


@functools.lru_cache(maxsize=1024)
def unit_of(text: str) -> Any:
    """The unit that a text names.

    Raises:
        PipelineError: it names none, or pint is missing.
    """
    registry = _registry()
    try:
        return registry.Unit(text)
    except Exception as error:  # pint raises whatever its tokenizer does
        raise PipelineError(f"{text!r} is no unit that pint knows ({error})") from None


@functools.lru_cache(maxsize=1)
def _registry() -> Any:
    try:
        import pint
    except ImportError:
        raise PipelineError(
            'units are converted by pint, which is not installed: pip install "tesseract-flow[units]"'
        ) from None
    return pint.UnitRegistry(autoconvert_offset_to_baseunit=False, cache_folder=None)
