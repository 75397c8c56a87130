"""Handles around handles: what is the same for all of them.

Each wrapper does one thing to the requests that pass (it keeps answers, bounds how many are under way, makes endpoints
that are missing) and is otherwise the handle that it wraps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tesseract_flow.client.base import AbstractTesseract, ByFields
from tesseract_flow.errors import OptionError
from tesseract_flow.schema import TesseractSchema


def unlabelled(handle: AbstractTesseract) -> AbstractTesseract:
    """What is the same for all handles to a component, whatever they call it."""
    try:
        return handle.labelled(None)
    except OptionError:  # of somebody else's kind, which takes none
        return handle


class AbstractWrapper(ByFields, AbstractTesseract):
    """A handle around another one, as a frozen dataclass with `tesseract` as its first field.

    What else the inner handle can do (`stop()`, `logs()`, `url`) is found here as well. Pickled are the fields alone:
    what a wrapper finds out, it finds out anew.
    """

    tesseract: AbstractTesseract

    def __getattr__(self, name: str) -> Any:
        # Only for what is not found here. Private names are asked for by pickle and copy, before there are fields.
        if name.startswith("_") or name in type(self).__dataclass_fields__:  # type: ignore[attr-defined]
            raise AttributeError(name)
        return getattr(self.tesseract, name)

    @property
    def name(self) -> str:
        return self.tesseract.name

    @property
    def schema(self) -> TesseractSchema:
        return self.tesseract.schema

    def read_schema(self) -> TesseractSchema:
        return self.tesseract.read_schema()

    def refresh(self) -> None:
        self.tesseract.refresh()

    @property
    def known_schema(self) -> TesseractSchema | None:
        return self.tesseract.known_schema

    @property
    def build(self) -> str | None:  # type: ignore[override]
        return self.tesseract.build

    def elsewhere(self) -> AbstractTesseract:
        return dataclasses.replace(self, tesseract=self.tesseract.elsewhere())  # type: ignore[type-var]

    def labelled(self, label: str | None) -> AbstractTesseract:
        return dataclasses.replace(self, tesseract=self.tesseract.labelled(label))  # type: ignore[type-var]

    @property
    def n_lanes(self) -> int:  # type: ignore[override]
        return self.tesseract.n_lanes

    @property
    def anchor(self) -> object:
        return self.tesseract.anchor
