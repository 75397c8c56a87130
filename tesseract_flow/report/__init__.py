"""What a person sees of an optimisation: plots, tables, files, one HTML page, a live line in the terminal.

Nothing here knows Prefect, HTTP or the optimiser's insides: it reads records and results by the names listed in
`tables` and turns them into strings, figures and files. Prefect's artifacts are made elsewhere, of the same parts.
`report(journal)` is the way in, for any run at any time; `tesseract_flow.report` is this package and, called, that
function.

Names are imported when first used, so that the terminal's progress line does not wait for matplotlib.
"""

from __future__ import annotations

import importlib
from typing import Any

from tesseract_flow.packages import make_callable

_HOME = {
    "Pictures": "pictures",
    "Reporting": "account",
    "TerminalProgress": "terminal",
    "convergence_figure": "plots",
    "data_uri": "plots",
    "design_figure": "plots",
    "design_rows": "design",
    "figure_to_png": "plots",
    "figure_to_svg": "plots",
    "history_markdown": "tables",
    "history_rows": "tables",
    "markdown_table": "tables",
    "named_leaves": "design",
    "parallel_figure": "parallel",
    "report": "account",
    "request_rows": "tables",
    "constraint_rows": "tables",
    "summary_rows": "tables",
    "write_html": "html",
    "write_result": "files",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


make_callable(__name__, f"{__name__}.account")
