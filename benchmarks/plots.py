"""Charts as small SVG files, the same bytes for the same numbers."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.curves import Chart, Panel


def draw(chart: Chart, folder: Path) -> Path:
    """Leave `chart` in `folder`; the path of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{chart.name}.svg"
    figure = Figure(figsize=(5.2 * len(chart.panels), 3.6), layout="constrained")
    figure.suptitle(chart.title, fontsize=11)
    for axes, panel in zip(figure.subplots(1, len(chart.panels), squeeze=False)[0], chart.panels, strict=True):
        _draw_panel(axes, panel)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name, "font.family": "sans-serif"}):
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
    return path


def _draw_panel(axes: Axes, panel: Panel) -> None:
    n_measured = 0
    for line in panel.lines:
        if line.is_ideal:
            axes.plot(line.x, line.y, "--", color="0.6", linewidth=1.0, label=line.name)
        else:
            marker = "o" if len(line.x) < 20 else ""
            axes.plot(line.x, line.y, color=f"C{n_measured}", marker=marker, markersize=4, label=line.name)
            n_measured += 1
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set_xscale("log" if "x" in panel.log else "linear")
    axes.set_yscale("log" if "y" in panel.log else "linear")
    if panel.lines[0].x[-1] <= 64:
        axes.set_xticks(panel.lines[0].x, [f"{x:g}" for x in panel.lines[0].x])
        axes.tick_params(axis="x", which="minor", bottom=False)
    if "y" not in panel.log:
        axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
