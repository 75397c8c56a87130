"""A study in pictures and files; the best run's are those of `report`, with all runs beside them."""

from __future__ import annotations

import os
from typing import Any

from matplotlib.figure import Figure

from tesseract_flow.report import parallel_figure, write_result
from tesseract_flow.report.atomic import write_aside
from tesseract_flow.storage import local_folder, place_in
from tesseract_flow.study.outcome import AbstractStudy
from tesseract_flow.study.table import brief_rows, columns, shown_rows


def study_figure(study: AbstractStudy) -> Figure | None:
    """See `AbstractStudy.picture`."""
    rows = shown_rows(study.rows())
    names = [name for name in columns(rows) if name.startswith(study.axes)]
    axes = {name: name.removeprefix(study.axes).removeprefix(".") or study.axes for name in names}
    return parallel_figure(rows, {**axes, "value": "objective"}, title=f"{study.kind} of {study.name}")


def write_study(study: AbstractStudy, out: str | os.PathLike[str]) -> dict[str, str]:
    """See `AbstractStudy.report`."""
    names = ["runs.txt", "runs.csv"]
    with local_folder(out) as folder:
        write_aside(folder / "runs.txt", study.table() + "\n")
        study.to_csv(folder / "runs.csv")
        best = study.ranked[0]
        if best.result is not None:
            figures = {"All runs": study.picture()}
            if best.problem is not None and best.problem.picture is not None:
                figures["Design"] = best.problem.picture(best.result.design, best.result.evaluation)
            names += write_result(
                folder,
                best.result,
                best.problem,
                {"study": _about(study, best.key), "runs": brief_rows(study.rows())},
                figures={name: figure for name, figure in figures.items() if figure is not None},
            )
    return {name: place_in(out, name) for name in names}


def _about(study: AbstractStudy, best: str) -> dict[str, Any]:
    about = {"kind": study.kind, "runs": study.summary, "requests": study.requests, "best": best}
    return {**about, **({"notes": "; ".join(study.notes)} if study.notes else {})}
