"""Figures of an optimisation, and figures as SVG, PNG and data addresses.

Matplotlib's object interface only: no pyplot, no current figure, no global setting is touched, so worker threads can
draw. Colours are Okabe and Ito's, which colour-blind readers can tell apart, and lines differ in weight and dash as
well. The page (`html`) swaps exactly these colours for its light and dark themes.
"""

from __future__ import annotations

import base64
import io
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from tesseract_flow.report.design import split_leaves
from tesseract_flow.report.tables import borders, changing, column, number

INK, MUTED, GRID, PAPER = "#1b2530", "#5d6b7a", "#e3e7ec", "#fdfdfe"
VALUE, BEST, VIOLATION, GRADIENT = "#56b4e8", "#0072b1", "#d55e01", "#009e72"
MAX_POINTS = 1200
_MOST_BORDERS = 40  # beyond, their lines would be all that one sees
_LIMIT = 1e100

# Mathematical text and constrained layout share caches inside matplotlib that are not safe across threads.
_drawing = threading.Lock()


def convergence_figure(
    history: Sequence[Any], constraints: Mapping[str, Any] | None = None, *, title: str = ""
) -> Figure:
    """Objective with best so far, constraint violation, and gradient norm, against the step.

    The objective's axis is logarithmic where all values are positive and span more than a factor of 50. The violation
    has a panel if there are `constraints` or if any step violates one; its axis is logarithmic, with zero at the foot.
    Where numbers are scheduled they have a panel, and lines mark the steps from which on they are others.
    """
    step = column(history, "step")
    names = ("value", "best_value", "violation", "gradient_norm")
    value, best, violation, gradient = (_drawable(column(history, name)) for name in names)
    has_violation = bool(constraints) or bool(np.any(violation > 0))
    has_gradient = bool(np.isfinite(gradient).any())
    numbers = {name: values for name, values in changing(history).items() if name != "phase"}
    n_panels = 1 + has_violation + has_gradient + bool(numbers)
    heights = [1.7, *[1.0] * (n_panels - 1)]
    figure = Figure(figsize=(8.0, 1.0 + 1.55 * sum(heights)), layout="constrained", facecolor=PAPER)
    axes = figure.subplots(n_panels, 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")

    panels = iter(axes)
    _objective(next(panels), step, value, best)
    if has_violation:
        ax = next(panels)
        _line(ax, step, np.maximum(violation, 0.0), color=VIOLATION, linewidth=1.5)
        _log_axis_with_zero(ax, violation)
        listed = ", ".join(constraints or ())
        _label(ax, "constraint violation", listed if len(listed) <= 80 else f"{len(constraints or ())} constraints")
    if has_gradient:
        ax = next(panels)
        _line(ax, step, gradient, color=GRADIENT, linewidth=1.5)
        _log_axis_with_zero(ax, gradient)
        _label(ax, "gradient norm")
    if numbers:
        _numbers(next(panels), step, numbers)
    marks = borders(history)
    for place in marks if len(marks) <= _MOST_BORDERS else ():
        for ax in axes:
            ax.axvline(place, color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
    axes[-1].set_xlabel("step", color=INK)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    return figure


def _objective(ax: Axes, step: np.ndarray, value: np.ndarray, best: np.ndarray) -> None:
    seen = value[np.isfinite(value)]
    if seen.size and seen.min() > 0.0 and seen.max() > 50.0 * seen.min():
        ax.set_yscale("log")
        _name_decades(ax)
    _line(ax, step, value, color=VALUE, linewidth=1.0, label="value")
    _line(ax, step, best, color=BEST, linewidth=2.0, label="best so far", drawstyle="steps-post")
    _mark_gaps(ax, step, value)
    if seen.size and seen.min() == seen.max():  # the automatic range of a constant is mostly rounding noise
        pad = abs(seen[0]) * 0.05 or 1.0
        ax.set_ylim(seen[0] - pad, seen[0] + pad)
    if not seen.size:
        ax.set_yticks([])
    known = best[np.isfinite(best)]
    _label(ax, "objective", f"best {number(float(known[-1]), 9)}" if known.size else "no finite value")
    if step.size:
        _legend(ax)


def _numbers(ax: Axes, step: np.ndarray, numbers: Mapping[str, Sequence[Any]]) -> None:
    columns = {name: np.array(values, dtype=np.float64) for name, values in numbers.items()}
    seen = np.concatenate([values[np.isfinite(values)] for values in columns.values()])
    if seen.size and seen.min() > 0.0 and seen.max() > 50.0 * seen.min():
        ax.set_yscale("log")
        _name_decades(ax)
    for (name, values), style in zip(columns.items(), itertools.cycle(["-", "--", "-.", ":"])):
        _line(
            ax, step, _drawable(values), color=BEST, linewidth=1.5, linestyle=style, label=name, drawstyle="steps-post"
        )
    _label(ax, "scheduled", ", ".join(f"{name} {number(float(values[-1]), 4)}" for name, values in columns.items()))
    if step.size:
        _legend(ax)


def design_figure(design: Any, start: Any = None, *, limit: int = 4) -> Figure | None:
    """The design's vectors as curves (with the `start` they came from) and its matrices as images.

    At most `limit` leaves, largest first; None if there is nothing to draw.
    """
    arrays, _ = split_leaves(design)
    before = split_leaves(start)[0] if start is not None else {}
    drawable = [
        name
        for name, x in sorted(arrays.items(), key=lambda item: -item[1].size)
        if x.dtype.kind in "iuf" and x.ndim in (1, 2) and x.size > 1 and min(x.shape) > 0
    ][:limit]
    if not drawable:
        return None
    figure = Figure(figsize=(8.0, 0.3 + 2.5 * len(drawable)), layout="constrained", facecolor=PAPER)
    for ax, name in zip(figure.subplots(len(drawable), 1, squeeze=False)[:, 0], drawable, strict=True):
        x, old = _drawable(arrays[name].astype(np.float64)), before.get(name)
        if x.ndim == 1:
            index = np.arange(x.size, dtype=np.float64)
            if old is not None and old.shape == x.shape and not np.array_equal(old, arrays[name]):
                _line(
                    ax,
                    index,
                    _drawable(old.astype(np.float64)),
                    color=MUTED,
                    linewidth=1.2,
                    linestyle="--",
                    label="start",
                )
            _line(ax, index, x, color=BEST, linewidth=1.8, label="result")
            ax.set_xlabel("index", color=INK)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            _legend(ax)
            _label(ax, name)
        else:
            image = ax.imshow(x, cmap="cividis", aspect="equal" if max(x.shape) < 8 * min(x.shape) else "auto")
            figure.colorbar(image, ax=ax, shrink=0.9).ax.tick_params(colors=MUTED, labelsize=8.5)
            ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
            _label(ax, name)
            ax.grid(False)
    return figure


def thin_line(y: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """Indices of at most about `limit` points that draw the same line: each stretch keeps its ends and extremes."""
    if y.size <= limit:
        return np.arange(y.size)
    stretches = np.array_split(np.arange(y.size), max(limit // 4, 1))
    keep: set[int] = set()
    for stretch in stretches:
        keep |= {int(stretch[0]), int(stretch[-1])}
        finite = stretch[np.isfinite(y[stretch])]
        if finite.size:
            keep |= {int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}
    return np.array(sorted(keep))


def _drawable(y: np.ndarray) -> np.ndarray:
    """Finite numbers brought into the range in which matplotlib's own arithmetic does not overflow."""
    y = np.where(np.isfinite(y), np.clip(y, -_LIMIT, _LIMIT), y)
    return np.where(np.abs(y) < 1.0 / _LIMIT, 0.0, y)


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    keep = thin_line(y)
    x, y = x[keep], np.where(np.isfinite(y[keep]), y[keep], np.nan)
    # A point between two gaps, or a run of one step, has no line: only a marker shows it.
    ax.plot(x, y, marker="o" if y.size <= 40 or np.isfinite(y).sum() < 3 else None, markersize=3.5, **style)


def _mark_gaps(ax: Axes, step: np.ndarray, value: np.ndarray) -> None:
    bad = step[~np.isfinite(value)]
    if bad.size:
        bad = bad[np.linspace(0, bad.size - 1, min(bad.size, 200)).round().astype(int)]
        foot = np.full(bad.size, 0.03)
        style: dict[str, Any] = dict(linestyle="none", marker="x", markersize=5, color=VIOLATION, label="not finite")
        ax.plot(bad, foot, transform=ax.get_xaxis_transform(), **style)


def _log_axis_with_zero(ax: Axes, y: np.ndarray) -> None:
    """Logarithmic above the smallest positive value (twelve decades at most), with zero itself on the axis."""
    positive = y[np.isfinite(y) & (y > 0.0)]
    if not positive.size:
        ax.set_ylim(-0.05, 1.0)
        ax.set_yticks([0.0])
        return
    high = np.ceil(np.log10(positive.max()) + 0.1)
    low = max(np.floor(np.log10(positive.min()) - 0.1), high - 12)
    if not np.any(y <= 0.0) and high - low < 12:
        ax.set_yscale("log")
        ax.set_ylim(10.0**low, 10.0**high)
        _name_decades(ax)
        return
    ax.set_yscale("symlog", linthresh=10.0**low, linscale=max(0.4, (high - low) / 10))
    ax.set_ylim(0.0, 10.0**high)
    every = int(np.ceil((high - low + 1) / 5))
    ax.set_yticks([0.0, *(10.0**k for k in np.arange(low, high + 1, every))])
    ax.yaxis.set_minor_locator(LogLocator(subs=[]))
    ax.yaxis.set_major_formatter(FuncFormatter(_decade))


def _name_decades(ax: Axes) -> None:
    ax.yaxis.set_major_locator(LogLocator(numticks=6))
    ax.yaxis.set_major_formatter(FuncFormatter(_decade))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _decade(y: float, _position: int | None = None) -> str:
    if y == 0.0:
        return "0"
    return "10" + str(round(np.log10(abs(y)))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _label(ax: Axes, name: str, note: str = "") -> None:
    """Panel title at the left, a note at the right, and quiet axes."""
    ax.set_title(name, loc="left", fontsize=10, color=INK, fontweight="bold")
    ax.set_title(note, loc="right", fontsize=9, color=MUTED)
    ax.set_facecolor(PAPER)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=MUTED, labelsize=8.5, which="both", length=3)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def _legend(ax: Axes) -> None:
    """Between the two titles, where no curve can run through it."""
    place: dict[str, Any] = dict(loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.1, ncols=3)
    ax.legend(frameon=False, fontsize=8.5, labelcolor=INK, **place)


def figure_to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element: to be put into a page, or to be saved as a file of its own."""
    svg = _render(figure, "svg", metadata={"Date": None, "Creator": None}).decode()
    return svg[svg.index("<svg") :]


def figure_to_png(figure: Figure, *, dpi: float = 150, colours: int | None = None) -> bytes:
    """The figure as a PNG file; with at most so many colours it is a third in size, and plots look the same."""
    png = _render(figure, "png", dpi=dpi)
    if colours is None:
        return png
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        # Not Pillow's default for pictures without transparency, which takes the fewest pixels' colours away.
        image.convert("RGB").quantize(colours, Image.Quantize.MAXCOVERAGE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def data_uri(figure: Figure, kind: str = "svg") -> str:
    """The figure as an address that holds the whole picture: for `<img src>`, or `![plot](...)` in Markdown.

    As `"png"` it is small: for where each renewal is stored.
    """
    if kind == "png":
        data, media = figure_to_png(figure, dpi=110, colours=64), "image/png"
    else:
        data, media = figure_to_svg(figure).encode(), "image/svg+xml"
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _render(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with _drawing:
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
