"""A report for people: a table for the terminal, Markdown for an artifact, a section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from tesseract_flow.checks.findings import ComponentSummary, Report
from tesseract_flow.checks.verdicts import GradientReport
from tesseract_flow.report.tables import duration, markdown_table

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_STATUS_STYLES = {"wrong": "bold red", "unsure": "yellow", "right": "green"}


def as_tables(report: Report) -> list[RenderableType]:
    """For `rich`."""
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(report.headline, style="bold")]
    if report.findings:
        findings = Table(show_lines=True)
        for column in ("", "where", "what", "what to do"):
            findings.add_column(column, overflow="fold")
        for finding in report.findings:
            cells = (Text(text) for text in (finding.where, finding.message, finding.remedy))
            findings.add_row(Text(finding.severity, style=_STYLES[finding.severity]), *cells)
        parts.append(findings)
    rows = component_rows(report.components)
    if rows:
        table = Table(title="components", title_justify="left")
        for name in rows[0]:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(value) for value in row.values()))
        parts.append(table)
    if report.wiring is not None:
        parts.append(Text(str(report.wiring), no_wrap=True, overflow="ignore"))
    return [*parts, *(Text(line) for line in report.cost)]


def as_markdown(report: Report) -> str:
    """For an artifact."""
    parts = [f"**{escape(report.headline, quote=False)}**"]
    if report.findings:
        parts.append(markdown_table(finding_rows(report)))
    if report.components:
        parts.append(markdown_table(component_rows(report.components)))
    if report.wiring is not None:
        # Indented, as a name may have backticks in it.
        parts.append("\n".join(f"    {line}" for line in str(report.wiring).splitlines()))
    return "\n\n".join([*parts, *report.cost])


def finding_rows(report: Report) -> list[dict[str, str]]:
    """One per finding."""
    return [
        {"severity": f.severity, "where": f.where, "what": f.message, "what to do": f.remedy} for f in report.findings
    ]


def component_rows(components: Sequence[ComponentSummary]) -> list[dict[str, str]]:
    """One per component."""
    return [
        {
            "component": one.name,
            "version": one.version,
            "endpoints": ", ".join(f"{e}{_origin(one, e)}" for e in one.endpoints) or "not known",
            "calls per gradient": ", ".join(f"{n} {endpoint}" for endpoint, n in one.calls.items()),
            "requests": one.price,
            "seconds per call": ", ".join(f"{duration(s)} {endpoint}" for endpoint, s in one.seconds.items()),
        }
        for one in components
    ]


def _origin(one: ComponentSummary, endpoint: str) -> str:
    if endpoint in one.by_differences:
        return " (by differences)"
    return " (derived)" if endpoint in one.derived else ""


# --- gradients --------------------------------------------------------------------------------------------------------


def gradient_tables(report: GradientReport) -> list[RenderableType]:
    """For `rich`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for column in ("", "where", "what", "what to do"):
        table.add_column(column, overflow="fold")
    for verdict in report.verdicts:
        cells = (Text(text) for text in (verdict.where, verdict.message, verdict.remedy))
        table.add_row(Text(verdict.status, style=_STATUS_STYLES[verdict.status]), *cells)
    return [Text(report.headline, style="bold"), table]


def gradient_markdown(report: GradientReport) -> str:
    """For an artifact."""
    return f"**{escape(report.headline, quote=False)}**\n\n{markdown_table(verdict_rows(report))}"


def verdict_rows(report: GradientReport) -> list[dict[str, str]]:
    """One per verdict."""
    return [{"status": v.status, "where": v.where, "what": v.message, "what to do": v.remedy} for v in report.verdicts]
