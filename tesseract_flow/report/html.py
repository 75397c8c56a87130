"""One self-contained page about one optimisation: no script, no font, no picture comes from elsewhere.

Everything that was not written here is escaped. The figures are inline SVG, and their own colours become variables of
the page, so they follow its light or dark theme; figures drawn by others keep their colours on a light card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tesseract_flow.report import plots, tables
from tesseract_flow.report.atomic import write_aside
from tesseract_flow.report.design import design_rows

_THEMED = {
    plots.INK: "--ink",
    plots.MUTED: "--muted",
    plots.GRID: "--grid",
    plots.PAPER: "--card",
    plots.VALUE: "--value",
    plots.BEST: "--best",
    plots.VIOLATION: "--violation",
    plots.GRADIENT: "--gradient",
}
_MAX_ROWS = 200


def write_html(
    path: str | Path,
    result: Any,
    title: str = "Optimisation",
    figures: Mapping[str, Figure] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page to `path`, whole or not at all. Facts that are mappings, or lists of them, get a table each."""
    return write_aside(path, render_html(result, title, figures, facts))


def render_html(
    result: Any,
    title: str = "Optimisation",
    figures: Mapping[str, Figure] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """The page as text."""
    style = resources.files("tesseract_flow.report").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _header(result, title),
        *(_figure(name, figure) for name, figure in (figures or {}).items()),
        _section("Notes", "".join(f"<p>{escape(str(note))}</p>" for note in getattr(result, "notes", ()))),
        _section("Events", _table(tables.event_rows(result.history, _MAX_ROWS), scrolls=True)),
        _section("Constraints", _table(_constraint_rows(result))),
        _section("Bounds", _table(_bound_rows(result))),
        _section("Requests", _table(tables.request_rows(result.requests))),
        _section("Design in numbers", _table(design_rows(result.design))),
        *(_rows(name, fact) for name, fact in (facts or {}).items() if isinstance(fact, list)),
        *(_group(name, fact) for name, fact in (facts or {}).items() if isinstance(fact, Mapping)),
        _group(
            "Settings", {name: fact for name, fact in (facts or {}).items() if not isinstance(fact, list | Mapping)}
        ),
        _history(result.history),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(result: Any, title: str) -> str:
    summary = dict(tables.summary_rows(result))
    reason = summary.pop("reason")
    mood = "good" if result.converged else "open"
    summary.pop("converged")
    tiles = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in summary.items())
    state = "converged" if result.converged else "not converged"
    return (
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="state {mood}"><b>{state}</b> {escape(reason)}</p>\n'
        f"<dl>{tiles}</dl>\n</header>"
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>" if content else ""


def _constraint_rows(result: Any) -> list[dict[str, Any]]:
    multipliers, active = getattr(result, "multipliers", None) or None, getattr(result, "active", None)
    return tables.constraint_rows(result.constraints or {}, multipliers, active.constraints if active else None)


def _bound_rows(result: Any) -> list[dict[str, Any]]:
    active = getattr(result, "active", None)
    return tables.bound_rows(active.bounds) if active else []


def _rows(name: str, facts: Sequence[Mapping[str, Any]]) -> str:
    """Facts of one kind, such as the findings of a check: a row each."""
    return _section(name.replace("_", " ").capitalize(), _table(facts))


def _group(name: str, facts: Mapping[str, Any]) -> str:
    """Facts that belong together; counts by "tesseract.endpoint" as their own kind of table."""
    are_counts = all("." in key and isinstance(fact, int) for key, fact in facts.items())
    rows = tables.request_rows(facts) if are_counts else [{"setting": k, "value": v} for k, v in facts.items()]
    return _section(name.replace("_", " ").capitalize(), _table(rows))


def _figure(name: str, figure: Figure) -> str:
    svg = plots.figure_to_svg(figure)
    is_ours = plots.PAPER in svg
    for colour, variable in _THEMED.items() if is_ours else ():
        svg = svg.replace(colour, f"var({variable})")
    # Counters such as id="axes_1" repeat from figure to figure, and nothing refers to them.
    svg = re.sub(r' id="[a-z0-9]+_\d+"', "", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    return _section(name, f'<figure class="{"ours" if is_ours else "foreign"}">{svg}</figure>')


def _history(history: Sequence[Any]) -> str:
    rows = tables.history_rows(history, _MAX_ROWS)
    if not rows:
        return _section("History", "<p>No step was finished.</p>")
    note = f"<p>{tables.thinning_note(len(rows), len(history))}</p>" if len(rows) < len(history) else ""
    return _section("History", note + _table(rows, scrolls=True))


def _table(rows: Sequence[Mapping[str, Any]], scrolls: bool = False) -> str:
    """Columns that are empty in every row are left out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)]
    if not names:
        return ""
    is_number = {name: all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in names}

    def cell(tag: str, name: str, text: str) -> str:
        return f"<{tag}{' class=n' if is_number[name] else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", name, name.replace("_", " ")) for name in names)
    body = "\n".join(
        f"<tr>{''.join(cell('td', k, '' if row[k] is None else tables.number(row[k])) for k in names)}</tr>"
        for row in rows
    )
    return (
        f'<div class="{"table scrolls" if scrolls else "table"}" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )
