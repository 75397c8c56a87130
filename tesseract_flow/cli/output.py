"""Tables on standard output: as wide as a terminal, or as wide as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

_BOUNDLESS = 100_000


def show(*parts: RenderableType) -> None:
    """Print for a person. Into a pipe or a file a row is as long as it is, so that what reads it finds all of it."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal:
        boundless = console.options.update(max_width=_BOUNDLESS)
        widths = [Measurement.get(console, boundless, part).maximum for part in parts]
        console.width = max(console.width, *widths)
    for part in parts:
        console.print(part)
