"""Rows of a study as text for a terminal, as CSV and as Parquet."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tesseract_flow.errors import OptionError
from tesseract_flow.report.atomic import write_aside
from tesseract_flow.report.tables import duration, number
from tesseract_flow.storage import local_folder, without_secrets

Rows = Sequence[Mapping[str, Any]]

_FEW = 4  # entries of a design that are worth a column each
_LONG = 240


def as_text(title: str, rows: Rows, notes: Sequence[str] = (), limit: int | None = None) -> str:
    """Title, a line per row, and notes; columns as wide as they need."""
    shown = rows if limit is None else rows[: max(limit, 0)]
    names = columns(rows)
    designs = [name for name in names if name.startswith("design")]
    wanted = ["rank", "run", *(name for name in names if name.startswith("setting")), "value"]
    if any(row.get("feasible") is False for row in rows):
        wanted += ["feasible", "violation"]
    wanted += ["status", *(["optimum"] if "optimum" in names else []), "steps", "requests", "seconds"]
    wanted += [*(designs if len(designs) <= _FEW else []), "why"]
    lines = [[_heading(name) for name in wanted]]
    lines += [[_cell(name, _told(row, name)) for name in wanted] for row in shown]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_left = [name in ("status", "why") or name.startswith("setting") for name in wanted]
    text = [title]
    text += [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_left, strict=True)
        ).rstrip()
        for line in lines
    ]
    if len(shown) < len(rows):
        text.append(f"... {len(rows) - len(shown)} more")
    return "\n".join([*text, *(f"note: {note}" for note in notes)])


def columns(rows: Rows) -> list[str]:
    """Every column that some row has, those that belong together side by side."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    order = {group: k for k, group in enumerate(("rank", "run", "setting"))}
    after = {group: k for k, group in enumerate(("start", "design", "constraint"), start=len(order) + 1)}

    def group(name: str) -> int:
        first = name.partition(".")[0].partition("[")[0]
        return {**order, **after}.get(first, len(order))

    return sorted(names, key=group)


def shown_rows(rows: Rows) -> list[dict[str, Any]]:
    """The rows with nothing in them but None, numbers, truths, and text without secrets."""
    return [{name: _plain(value, name) for name, value in row.items()} for row in rows]


def brief_rows(rows: Rows) -> list[dict[str, Any]]:
    """The same for a page: without what is as long as a design, and for the curious only."""
    left_out = ("start", "design", "constraint", "error", "journal", "key")
    return [{name: value for name, value in row.items() if not name.startswith(left_out)} for row in shown_rows(rows)]


def as_csv(path: str | os.PathLike[str], rows: Rows) -> None:
    names = columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_plain(row.get(name), name) for name in names] for row in rows])
    _write(path, text.getvalue().encode())


def as_parquet(path: str | os.PathLike[str], rows: Rows) -> None:
    """
    Raises:
        OptionError: pyarrow is not installed.
    """
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise OptionError(
            "to_parquet needs pyarrow, which is not installed: pip install 'tesseract-flow[parquet]'\n"
            "to_csv writes the same rows without it."
        ) from error
    found = {name: _uniform([_plain(row.get(name), name) for row in rows]) for name in columns(rows)}
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(found), buffer)
    _write(path, buffer.getvalue())


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    folder, name = os.path.split(os.fspath(path))
    with local_folder(folder or ".") as place:
        write_aside(place / name, data)


def _uniform(values: list[Any]) -> list[Any]:
    """One type for a column: numbers stay numbers, and of several kinds all are text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        return [None if value is None else str(value) for value in values]
    return [None if value is None else float(value) for value in values] if len(kinds) > 1 else values


def _plain(value: Any, name: str) -> Any:
    """A cell: None, a number, a truth, or text without secrets."""
    value = without_secrets(value, name)
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


def _told(row: Mapping[str, Any], name: str) -> Any:
    return "" if name == "why" and row["status"] == "converged" else row.get(name)


def _heading(name: str) -> str:
    for what in ("setting.", "design."):
        name = name.removeprefix(what)
    return "time" if name == "seconds" else name


def _cell(name: str, value: Any) -> str:
    value = _plain(value, name)
    if name == "seconds":
        return duration(value)
    if name == "violation":
        return number(value, 2)
    if name == "why":
        return value if len(value) <= _LONG else f"{value[: _LONG - 3]}..."
    return number(value, 8 if name == "value" else 6)
