"""What pydantic says of a description, as faults with their places and the nearest known name."""

from __future__ import annotations

import types
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tesseract_flow.errors import did_you_mean

Place = tuple[str | int, ...]


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[tuple[Place, str]]:
    """Each fault, with its place in what was validated."""
    faults = []
    for fault in error.errors(include_url=False):
        place = tuple(key for key in fault["loc"] if key != "[key]")
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = _fields_at(model, place[:-1])
            message = f"there is no {place[-1]!r} here.{did_you_mean(str(place[-1]), known)}"
            message += f" There may be {', '.join(known)}" if known else ""
        elif fault["type"] == "missing":
            message = "is missing"
        elif fault["type"] == "string_pattern_mismatch":
            message = f"{fault['input']!r} is no name: a letter, then letters, digits, _ and -"
        elif "[key]" not in fault["loc"] and fault["type"] not in ("value_error", "too_short"):
            message = f"{message}; received {_shown(fault['input'])}"
        faults.append((place, message[:1].lower() + message[1:]))
    return faults


def _fields_at(model: type[BaseModel], place: Place) -> list[str]:
    """Names of the fields that belong at a place."""
    kind: Any = model
    for key in place:
        kind = _inside(kind, key)
    found = _model_in(kind)
    return [] if found is None else [field.alias or name for name, field in found.model_fields.items()]


def _inside(kind: Any, key: str | int) -> Any:
    found = _model_in(kind)
    if found is not None:
        fields = {field.alias or name: field for name, field in found.model_fields.items()}
        return fields[key].annotation if key in fields else None
    arguments = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is types.UnionType:
        return next((inner for part in arguments if (inner := _inside(part, key)) is not None), None)
    return arguments[-1] if get_origin(kind) in (dict, list) else None


def _model_in(kind: Any) -> type[BaseModel] | None:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    if hasattr(kind, "__metadata__"):  # Annotated
        return _model_in(get_args(kind)[0])
    if get_origin(kind) is types.UnionType:
        return next((found for part in get_args(kind) if (found := _model_in(part)) is not None), None)
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
