"""The folder that an optimisation leaves: `result.json`, `design.npz`, `design.json`, `history.csv`, `report.html`.

Numbers first, pictures last: if drawing fails, the result is on disk already. No pickle anywhere.
"""

from __future__ import annotations

import csv
import dataclasses
import enum
import importlib.metadata
import io
import json
import math
import platform
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tesseract_flow.report import tables
from tesseract_flow.report.atomic import write_aside
from tesseract_flow.report.design import split_leaves
from tesseract_flow.report.html import write_html
from tesseract_flow.report.plots import convergence_figure, design_figure

_PACKAGES = ("tesseract-flow", "tesseract-core", "jax", "equinox", "optax", "numpy", "scipy", "prefect")


def write_result(
    out_dir: str | Path,
    result: Any,
    problem: Any = None,
    extra: Mapping[str, Any] | None = None,
    *,
    figures: Mapping[str, Figure] | None = None,
    title: str | None = None,
) -> dict[str, Path]:
    """Write everything about `result` into `out_dir`; returns the files by name.

    `problem` gives the title (`name`) and the start (`design`); `extra` goes into `result.json` under that name and on
    the page; `figures` are added to the page.
    """
    out = Path(out_dir)
    arrays, static = split_leaves(result.design)
    about = {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in arrays.items()}
    versions = _versions()
    written = [
        write_aside(out / "design.npz", npz(arrays)),
        write_aside(out / "design.json", to_json({"arrays": about, "static": static})),
        write_aside(out / "history.csv", history_csv(result.history)),
        write_aside(out / "result.json", to_json({**_summary(result), "extra": extra or {}, "versions": versions})),
    ]
    pictures = {
        "Convergence": convergence_figure(result.history, result.constraints) if result.history else None,
        **(figures or {}),
        "Design variables": design_figure(result.design, getattr(problem, "design", None)),
    }
    page = write_html(
        out / "report.html",
        result,
        title or getattr(problem, "name", None) or "Optimisation",
        {name: figure for name, figure in pictures.items() if figure is not None},
        {**(extra or {}), "versions": versions},
    )
    return {path.name: path for path in (*written, page)}


def _summary(result: Any) -> dict[str, Any]:
    further = ("violation", "feasible", "multipliers", "evaluations", "optimality", "notes")
    events = tables.event_rows(result.history)
    return {
        "value": result.value,
        "reason": result.reason,
        "converged": result.converged,
        "steps": result.steps,
        "constraints": result.constraints or {},
        "requests": result.requests,
        "seconds": tables.total_seconds(result),
        **{name: getattr(result, name) for name in further if hasattr(result, name)},
        **({"active": active.to_json()} if (active := getattr(result, "active", None)) is not None else {}),
        **({"events": events} if events else {}),
    }


def history_csv(history: Sequence[Any]) -> str:
    """One line per step, with all that the records hold; floats read back as the same number."""
    first = history[0] if history else None
    fields = [field.name for field in dataclasses.fields(first)] if dataclasses.is_dataclass(first) else []
    more = tables.changing(history) | tables.coupling(history)
    own = ("stage", "phase", "scheduled", "coupled")  # have columns of their own
    names = [name for name in dict.fromkeys([*tables.COLUMNS, *fields]) if name not in own]
    text = io.StringIO()
    rows = (
        [_cell(getattr(record, name, None)) for name in names] + [values[i] for values in more.values()]
        for i, record in enumerate(history)
    )
    csv.writer(text, lineterminator="\n").writerows([[*names, *more], *rows])
    return text.getvalue()


def _cell(x: Any) -> Any:
    return "; ".join(map(str, x)) if isinstance(x, tuple | list) else x


def to_json(value: Any) -> str:
    """JSON in which every finite float reads back as the same number, and NaN and the infinities are null.

    `json` alone would write `NaN`, which is not JSON and stops other readers at the first diverged run.
    """
    return json.dumps(_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _jsonable(x: Any) -> Any:
    if isinstance(x, enum.Enum):
        return _jsonable(x.value)
    if x is None or isinstance(x, (bool, int, str)):
        return x
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {str(key): _jsonable(item) for key, item in x.items()}
    if isinstance(x, (list, tuple, set, frozenset)):
        return [_jsonable(item) for item in x]
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return _jsonable(dataclasses.asdict(x))
    if hasattr(x, "tolist") and getattr(x, "dtype", None) is not None:  # NumPy and JAX
        return _jsonable(np.asarray(x).tolist())
    return str(x) if isinstance(x, Path) else repr(x)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A `.npz` file of these arrays."""
    buffer = io.BytesIO()
    # Not numpy.savez: it takes the names as keyword arguments, and a leaf may be called "file".
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
