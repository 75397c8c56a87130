"""A graph of boxes and arrows, and the forms that it can be shown in."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from tesseract_flow.errors import OptionError

Kind = Literal["input", "tesseract", "function", "loop", "output"]


@dataclasses.dataclass(frozen=True)
class Box:
    """Something that gives or takes values.

    Attributes:
        name: each once.
        notes: what else is known, such as how long a call takes: a line each.
        group: of nodes that need each other, if it is in one.
    """

    name: str
    kind: Kind
    notes: tuple[str, ...] = ()
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Arrow:
    """Values on their way.

    Attributes:
        source, target: names of boxes.
        labels: one per value, such as `inertia float64[50] m^4`.
        is_differentiable: whether derivatives go this way; None: not known.
    """

    source: str
    target: str
    labels: tuple[str, ...] = ()
    is_differentiable: bool | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
    """What feeds what. `print` shows the N2 matrix, a notebook the drawing.

    Attributes:
        title: a line about it.
        boxes: in the order in which they run; an arrow to an earlier one, or to itself, is fed back.
    """

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    @property
    def fed_back(self) -> tuple[Arrow, ...]:
        """Arrows against the order."""
        order = {box.name: k for k, box in enumerate(self.boxes)}
        return tuple(arrow for arrow in self.arrows if order[arrow.target] <= order[arrow.source])

    def n2(self) -> str:
        """The N2 matrix as text: a box per row and column, a mark where the row feeds the column."""
        from tesseract_flow.pictures.text import n2

        return n2(self)

    def mermaid(self) -> str:
        """A flowchart in Mermaid, which GitHub and many editors draw."""
        from tesseract_flow.pictures.text import mermaid

        return mermaid(self)

    def svg(self) -> str:
        """A drawing: no script, no font and nothing else from elsewhere."""
        from tesseract_flow.pictures.svg import svg

        return svg(self)

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write it, in the form that the file's name says: `.svg`, `.mmd` (Mermaid) or `.txt` (N2).

        Raises:
            OptionError: another ending.
        """
        path = Path(file)
        forms = {".svg": self.svg, ".mmd": self.mermaid, ".txt": self.n2}
        if path.suffix not in forms:
            raise OptionError(f"A picture is written as {', '.join(forms)}; {path.name!r} is none of them.")
        path.write_text(forms[path.suffix]() + "\n", encoding="utf-8")
        return path

    def rows(self) -> list[dict[str, str]]:
        """One per arrow, for tables."""
        words = {True: "yes", False: "no", None: ""}
        return [
            {
                "from": arrow.source,
                "to": arrow.target,
                "what": ", ".join(arrow.labels),
                "differentiable": words[arrow.is_differentiable],
            }
            for arrow in self.arrows
        ]

    def __str__(self) -> str:
        return self.n2()

    def _repr_html_(self) -> str:
        return self.svg()
