"""Many runs in one picture: parallel coordinates, a line per run over what they differ in and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tesseract_flow.report.plots import BEST, GRID, INK, MUTED, PAPER, VALUE, VIOLATION
from tesseract_flow.report.tables import number

_MOST_LINES = 500
_STYLES: dict[str, dict[str, Any]] = {
    "best": dict(color=BEST, linewidth=2.6, zorder=4),
    "converged": dict(color=VALUE, linewidth=1.2, zorder=3),
    "stopped": dict(color=MUTED, linewidth=1.0, linestyle="--", zorder=2),
    "failed": dict(color=VIOLATION, linewidth=1.0, linestyle=":", zorder=1),
    "waiting": dict(color=GRID, linewidth=1.0, linestyle=":", zorder=0),
}


def parallel_figure(
    rows: Sequence[Mapping[str, Any]], axes: Mapping[str, str], *, title: str = "", limit: int = 12
) -> Figure | None:
    """A line per row, the first one (the best) above all others; `None` where there is nothing to draw.

    Args:
        rows: with a `status`: `converged`, `stopped`, `failed` or `waiting`. Values that are no numbers have places of
            their own.
        axes: columns of the rows, in order, and what to call them. One on which all rows are the same says nothing and
            is left out; of more than `limit` those are drawn first that take the most different values.
    """
    shown = list(rows[:_MOST_LINES])
    found = {name: _Scale([row.get(name) for row in shown]) for name in axes}
    telling = [name for name in axes if found[name].n_different > 1]
    if len(telling) > limit:
        # The last one is what it is all about.
        kept = sorted(telling[:-1], key=lambda name: -found[name].n_different)[: limit - 1]
        telling = [name for name in telling if name in kept or name == telling[-1]]
    if len(telling) < 2:
        return None
    figure = Figure(figsize=(max(8.0, 1.15 * len(telling)), 4.4), layout="constrained", facecolor=PAPER)
    ax = figure.subplots()
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    x = np.arange(len(telling), dtype=np.float64)
    used = []
    for k, row in reversed(list(enumerate(shown))):
        kind = "best" if k == 0 and row["status"] not in ("failed", "waiting") else str(row["status"])
        y = np.array([found[name].place(row.get(name)) for name in telling])
        ax.plot(x, y, **_STYLES[kind], marker="o", markersize=3.0)
        if np.isfinite(y).any():
            used.append(kind)
    _scales(ax, [(axes[name], found[name]) for name in telling])
    kinds = [kind for kind in _STYLES if kind in used]
    lines = [Line2D([], [], **_STYLES[kind]) for kind in kinds]
    place: dict[str, Any] = dict(loc="lower center", bbox_to_anchor=(0.5, 1.12), borderaxespad=0.1, ncols=4)
    ax.legend(lines, kinds, frameon=False, fontsize=8.5, labelcolor=INK, **place)
    return figure


class _Scale:
    """Values on an axis from 0 to 1: numbers in proportion, anything else in a row."""

    def __init__(self, values: Sequence[Any]):
        known = [value for value in values if value is not None]
        self.is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
        if self.is_number:
            finite = [float(value) for value in known if math.isfinite(value)]
            self.n_different = len(set(finite))
            self.low, self.high = (min(finite), max(finite)) if finite else (0.0, 1.0)
            self.ticks = [(0.0, number(self.low, 4)), (1.0, number(self.high, 4))]
        else:
            texts = list(dict.fromkeys(str(value) for value in known))
            self.n_different = len(texts)
            self.places = {text: k / max(len(texts) - 1, 1) for k, text in enumerate(texts)}
            self.ticks = [
                (place, text if len(text) <= 14 else text[:11] + "...") for text, place in self.places.items()
            ]

    def place(self, value: Any) -> float:
        if value is None:
            return math.nan
        if not self.is_number:
            return self.places[str(value)]
        # Halved, as the largest numbers are farther apart than a number can say.
        return (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2) if math.isfinite(value) else math.nan


def _scales(ax: Axes, scales: Sequence[tuple[str, _Scale]]) -> None:
    ax.set_xlim(-0.25, len(scales) - 0.55)
    ax.set_ylim(-0.1, 1.1)
    ax.set_facecolor(PAPER)
    ax.set_yticks([])
    ax.set_xticks(range(len(scales)), ["" for _ in scales])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for k, (name, scale) in enumerate(scales):
        ax.axvline(k, color=GRID, linewidth=1.4, zorder=0)
        shown = name if len(name) <= 18 else f"...{name[-15:]}"
        ax.text(k, 1.12, shown, ha="center", va="bottom", color=INK, fontsize=9, fontweight="bold")
        for place, text in scale.ticks[:12]:
            style: dict[str, Any] = dict(ha="center", color=MUTED, fontsize=8, zorder=5)
            if scale.is_number:  # its ends, beyond all lines
                ax.text(k, place + (0.04 if place else -0.04), text, va="bottom" if place else "top", **style)
            else:
                paper = dict(facecolor=PAPER, edgecolor="none", pad=1.0)
                ax.text(k, place, text, va="center", bbox=paper, **style)
