"""Histories and results as rows of plain data and as Markdown; no plots, no files, no terminal.

The one idea: every view (page, terminal, artifact, CSV) shows the same rows, made here, so they cannot disagree.

What the optimiser hands over is read by name, not by type (`optimize.result` has the types). A record of a step has the
fields `COLUMNS`, with `seconds` and `requests` counted from the start; one that is missing shows as empty. A result has
`design`, `value`, `reason`, `converged`, `steps`, `constraints` (name -> array), `requests` (a number, or
"tesseract.endpoint" -> number) and `history` (records), and what else it has is shown where it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

COLUMNS = ("step", "value", "best_value", "gradient_norm", "violation", "seconds", "requests")
EMPTY = "-"  # ASCII, as are all numbers here: a log file on a machine without UTF-8 must not stop a run


def number(x: Any, digits: int = 8) -> str:
    """A number as a person wants to read it; what is missing as a dash, and other things as they print."""
    if x is None:
        return EMPTY
    if isinstance(x, (bool, np.bool_)):
        return "yes" if x else "no"
    if isinstance(x, (int, np.integer)):
        return str(int(x))
    if isinstance(x, (float, np.floating)):
        return f"{float(x):.{digits}g}"
    return str(x)


def duration(seconds: float | None) -> str:
    """`0.42 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return EMPTY
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def column(history: Sequence[Any], name: str) -> np.ndarray:
    """One field of every record as float64 of shape (n,), NaN where it is missing."""
    found = (getattr(record, name, None) for record in history)
    return np.array([math.nan if x is None else float(x) for x in found], dtype=np.float64)


def history_rows(history: Sequence[Any], limit: int | None = None) -> list[dict[str, Any]]:
    """One dict per step with the keys `COLUMNS`, `changing` and `coupling` ones; at most `limit`, spread evenly.

    The first, the last and the step that found the best value are always among them (as far as `limit` allows).
    """
    chosen = range(len(history)) if limit is None or len(history) <= limit else _spread(history, limit)
    more = changing(history) | coupling(history)
    return [
        {name: _plain(getattr(history[i], name, None)) for name in COLUMNS}
        | {name: values[i] for name, values in more.items()}
        for i in chosen
    ]


def changing(history: Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of what changes while a run goes, one value per record: the phase, counted from 1, and scheduled numbers.

    Empty for a run in which nothing does.
    """
    held = [dict(getattr(record, "scheduled", None) or {}) for record in history]
    phases = [int(getattr(record, "phase", 0) or 0) for record in history]
    names = list(dict.fromkeys(name for numbers in held for name in numbers))
    if not names and not any(phases):
        return {}
    columns: dict[str, list[Any]] = {"phase": [phase + 1 for phase in phases]}
    for name in names:
        shown = f"scheduled {name}" if name in ("phase", *COLUMNS) else name
        columns[shown] = [numbers.get(name) for numbers in held]
    return columns


def coupling(history: Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of how fixed points were reached at each step's design, three for each; empty where there are none."""
    held = [dict(getattr(record, "coupled", None) or {}) for record in history]
    return {
        f"{name} {what}": [found.get(name, {}).get(what) for found in held]
        for name in dict.fromkeys(name for found in held for name in found)
        for what in ("steps", "rounds", "residual")
    }


def borders(history: Sequence[Any]) -> list[int]:
    """Steps with which a stage begins, but the first one: from there on values are of another function."""
    stages = [getattr(record, "stage", 0) for record in history]
    return [history[i].step for i in range(1, len(history)) if stages[i] != stages[i - 1]]


def event_rows(history: Sequence[Any], limit: int | None = None) -> list[dict[str, Any]]:
    """What happened on the way to each step, one row per event; the last `limit` of them."""
    rows = [
        {"step": record.step, "event": event} for record in history for event in (getattr(record, "events", ()) or ())
    ]
    return rows if limit is None else rows[-limit:]


def _spread(history: Sequence[Any], limit: int) -> list[int]:
    last = len(history) - 1
    best_step = getattr(history[last], "best_step", None)
    found = column(history, "best_value") == getattr(history[last], "best_value", None)
    best = int(np.argmax(found if best_step is None else column(history, "step") == best_step))
    wanted = [last, 0, best][: max(limit, 0)]
    n_even = limit - len(set(wanted))
    # Interior points of an even grid; where they meet a step that is in already, the answer is a row shorter.
    return sorted({*wanted, *np.linspace(0, last, n_even + 2).round().astype(int)[1:-1].tolist()}) if limit > 0 else []


def _plain(x: Any) -> Any:
    """NumPy and JAX scalars as Python's own."""
    return x.item() if hasattr(x, "item") else x


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None, digits: int = 8) -> str:
    """Rows as a GitHub-flavoured Markdown table; text in cells can neither break out of it nor bring HTML."""
    names = list(columns) if columns is not None else list(rows[0]) if rows else []
    if not names:
        return ""

    def line(cells: Iterable[str]) -> str:
        return (
            "| " + " | ".join(escape(cell, quote=False).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )

    body = (line(number(row.get(name), digits) for name in names) for row in rows)
    return "\n".join([line(name.replace("_", " ") for name in names), line("---" for _ in names), *body])


def history_markdown(history: Sequence[Any], limit: int = 40) -> str:
    """The history as a Markdown table of at most `limit` rows, with a note if steps were left out."""
    rows = history_rows(history, limit)
    if not rows:
        return "No step was finished."
    note = f"\n\n{thinning_note(len(rows), len(history))}" if len(rows) < len(history) else ""
    return markdown_table(rows, digits=6) + note


def thinning_note(n_shown: int, n_total: int) -> str:
    return f"Showing {n_shown} of {n_total} steps; history.csv has them all."


def total_requests(requests: int | Mapping[str, int] | None) -> int | None:
    return sum(requests.values()) if isinstance(requests, Mapping) else requests


def total_seconds(result: Any) -> float | None:
    """Time spent, over all runs of a journal."""
    return _own_or_last(result, "seconds")


def largest_violation(result: Any) -> float | None:
    """Largest violation of a constraint: 0 for a design that satisfies all of them."""
    return _own_or_last(result, "violation")


def _own_or_last(result: Any, name: str) -> Any:
    source = result if hasattr(result, name) or not result.history else result.history[-1]
    return _plain(getattr(source, name, None))


def summary_rows(result: Any) -> list[tuple[str, str]]:
    """What one wants to know first, as (label, text)."""
    rows = [
        ("objective", number(result.value, 11)),
        ("reason", str(result.reason)),
        ("converged", number(result.converged)),
        ("steps", number(result.steps)),
    ]
    if result.constraints:
        rows.append(("violation", number(largest_violation(result), 3)))
    if (optimality := getattr(result, "optimality", None)) is not None:
        limit = "" if optimality.tolerance is None else f" of {number(optimality.tolerance, 3)}"
        rows.append(("stationarity", number(optimality.stationarity, 3) + limit))
        if result.constraints:
            rows.append(("complementarity", number(optimality.complementarity, 3) + limit))
    rows += [(f"fixed point {name}", text) for name, text in coupled_words(result.history)]
    rows.append(("requests", number(total_requests(result.requests))))
    rows.append(("time", duration(total_seconds(result))))
    return rows


def coupled_words(history: Sequence[Any]) -> list[tuple[str, str]]:
    """Per fixed point, how it was reached over the steps of a run, in words."""
    words = []
    columns = coupling(history)
    for name in dict.fromkeys(name for record in history for name in getattr(record, "coupled", None) or {}):
        steps, rounds, left = (
            [x for x in columns[f"{name} {what}"] if x is not None] for what in ("steps", "rounds", "residual")
        )
        mean = sum(rounds) / len(rounds)
        words.append((name, f"{mean:.3g} rounds per design, {max(steps)} steps at most, residual {max(left):.2g}"))
    return words


def constraint_rows(
    constraints: Mapping[str, Any],
    multipliers: Mapping[str, Any] | None = None,
    active: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Per constraint: its size and range, the multiplier (of an array, the one of largest magnitude), and which limits
    are active."""
    rows = []
    for name, values in constraints.items():
        x = np.asarray(values, dtype=np.float64)
        low, high = (x.min().item(), x.max().item()) if x.size else (None, None)
        rows.append({"constraint": name, "entries": x.size, "smallest": low, "largest": high})
        if multipliers is not None:
            prices = np.asarray(multipliers.get(name, ()), dtype=np.float64).ravel()
            rows[-1]["multiplier"] = prices[np.argmax(np.abs(prices))].item() if prices.size else None
        if active is not None:
            rows[-1]["active"] = str(active[name]) if name in active else ""
    return rows


def bound_rows(active: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per leaf with bounds: how many of its entries lie at one, and which."""
    return [
        {"leaf": name, "entries": at.lower.size, "at a bound": int((at.lower | at.upper).sum()), "active": str(at)}
        for name, at in active.items()
    ]


def request_rows(requests: int | Mapping[str, int] | None) -> list[dict[str, Any]]:
    """`{"fem.apply": 12, ...}` as one row per Tesseract and one column per endpoint."""
    if not isinstance(requests, Mapping):
        return []
    split = {key: key.rpartition(".")[::2] for key in requests}
    endpoints = sorted({endpoint for _, endpoint in split.values()})
    rows: dict[str, dict[str, Any]] = {}
    for key, (tesseract, endpoint) in sorted(split.items()):
        rows.setdefault(tesseract, {"tesseract": tesseract, **dict.fromkeys(endpoints, 0)})[endpoint] = requests[key]
    return [{**row, "total": sum(row[endpoint] for endpoint in endpoints)} for row in rows.values()]
