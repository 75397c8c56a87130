"""Units of measurement, by pint (extra `units`): what one becomes in another, as a factor and an offset.

Only needed where a pipeline names units. Inside of JAX there are numbers alone: units are compared and converted where
values pass from one node to the next.

Not all as pint has it: there an angle is a pure number, 1 Hz is 1 rad/s and 60 rpm are 6.28 Hz. Here what is counted is
part of what is measured: an angle, counts (1 Bq is no 1 Hz), bits. So is a dose equivalent, which is no dose.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import resources
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
            f"{given!r} ({units[0].dimensionality}) cannot become {wanted!r} ({units[1].dimensionality}): "
            f"{_difference(given, *units)}"
        )
    try:
        at = [registry.Quantity(x, units[0]).to(units[1]).magnitude for x in (0.0, 1.0, 2.0)]
    except _pint().errors.PintError as error:  # a temperature, and a difference of two
        raise PipelineError(
            f"{given!r} cannot become {wanted!r}: one has a zero of its own, and the other is a difference, of which "
            "nobody says from where. Subtract where both are in one unit, such as K"
        ) from error
    if abs(at[2] - (2.0 * at[1] - at[0])) > 1e-12 * max(map(abs, at)):
        raise PipelineError(f"{given!r} becomes {wanted!r} by no straight line; convert it in a function")
    # A kelvin is as large as a degree: exactly, which 274.15 - 273.15 is not.
    steps = [registry.Quantity(1.0, unit) - registry.Quantity(0.0, unit) for unit in units]
    return float(steps[0].to(steps[1].units).magnitude), float(at[0])


def _difference(given: str, unit: Any, wanted: Any) -> str:
    """Why one unit cannot become the other, though pint may think so, and what to say instead."""
    registry = _registry()
    beyond = dict(unit.dimensionality / wanted.dimensionality)
    power = beyond.pop("[angle]", 0)
    if beyond or not power:
        return "they measure different things"
    if abs(power) != 1:
        return "one of them counts a solid angle; leave units at the first, and say by scale what its 1 is"
    radian, turn = (
        registry.Quantity(1.0, unit).to(wanted * registry.Unit(one) ** power).magnitude for one in ("radian", "turn")
    )
    return (
        f"one of them counts an angle, and nobody says what its 1 is. Leave units at {given}, and say so by a factor: "
        f"scale: {float(turn)!r} if a turn is 1 (cycles, revolutions), scale: {float(radian)!r} if a radian is"
    )


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


def _pint() -> Any:
    try:
        import pint
    except ImportError:
        raise PipelineError(
            'units are converted by pint, which is not installed: pip install "tesseract-flow[units]"'
        ) from None
    return pint


_OURS = ("radian = [angle] = rad", "count = [count]", "bit = [information]", "sievert = [dose_equivalent] = Sv")


@functools.lru_cache(maxsize=1)
def _registry() -> Any:
    # As text, with ours at its end: what a registry has derived from a unit stays as it was if that is defined anew.
    return _pint().UnitRegistry(
        [*_lines("default_en.txt"), *_OURS],  # type: ignore[arg-type]
        autoconvert_offset_to_baseunit=False,
        cache_folder=None,
        on_redefinition="ignore",
    )


def _lines(file: str) -> Iterator[str]:
    """Of pint's own definitions, with those that they import."""
    for line in (resources.files("pint") / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("@import"):
            yield from _lines(line.split()[1])
        else:
            yield line
