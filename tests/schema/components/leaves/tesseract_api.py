"""Values that are not arrays."""

import datetime
import enum
import pathlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from tesseract_core.runtime import Array, Float64


class Mode(enum.StrEnum):
    fast = "fast"
    exact = "exact"


class Level(enum.IntEnum):
    low = 1
    high = 2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    size: int = 0


class Typed(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]


class Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")
    size: int


class InputSchema(BaseModel):
    text: str
    count: int
    factor: float
    flag: bool
    mode: Mode = Mode.fast
    level: Level = Level.low
    choice: Literal["a", 1, True] = "a"
    only: Literal["fixed"] = "fixed"
    maybe: int | None = None
    limited: int = Field(3, ge=0, le=5)
    anything: Any = None
    where: pathlib.Path = pathlib.Path("x")
    when: datetime.datetime | None = None
    raw: bytes = b""
    bare_dict: dict = {}
    bare_list: list = []
    table: dict[str, int] = {}
    numbered: dict[int, float] = {}
    axes: dict[Literal["u", "v"], float] = {}
    rows: list[list[int]] = []
    short: list[int] = Field([], max_length=2)
    opened: Open = Open()
    typed: Typed = Typed()
    lenient: Lenient | None = None


class OutputSchema(BaseModel):
    total: Array[(), Float64]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(total=inputs.factor)
