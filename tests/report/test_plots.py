"""Figures: they draw whatever a run may leave behind, tell the truth, and touch no global state."""

from __future__ import annotations

import base64
import importlib.util
import io
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from tesseract_flow.report import plots
from tests.report.helpers import Step, history_of

STEPS = np.arange(5000)
HISTORIES = {
    "empty": [],
    "one step": history_of([42.0], gradient_norm=[3.0]),
    "constant": history_of(np.full(30, 5.0), gradient_norm=np.zeros(30)),
    "constant zero": history_of(np.zeros(3)),
    "never finite": history_of([math.nan, math.inf, -math.inf], gradient_norm=[math.nan] * 3, violation=[math.nan] * 3),
    "gaps": history_of([3.0, math.nan, 2.0, math.inf, 1.0], gradient_norm=[1.0, math.nan, 0.0, math.inf, 1e-300]),
    "through zero": history_of(10.0 - 3.0 * np.arange(20)),
    "huge and tiny": history_of(
        [1e300, 1e-300, 1e-310], gradient_norm=[1e308, 1e-300, 5e-324], violation=[1e308, 0, 5e-324]
    ),
    "violated": history_of(np.ones(50), violation=10.0 ** -np.arange(50) * (np.arange(50) < 30)),
    "long": history_of(1e3 * np.exp(-STEPS / 500) * (2 + np.sin(STEPS)), gradient_norm=np.exp(-STEPS / 300)),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_every_history_makes_a_picture(name):
    figure = plots.convergence_figure(HISTORIES[name], {"volume": 0.0}, title="A title")
    svg = plots.figure_to_svg(figure)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert svg.startswith("<svg")
    assert len(svg) < 300_000
    for ax in figure.axes:
        assert np.all(np.isfinite(ax.get_ylim()))


def panels(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def test_panels_appear_when_there_is_something_to_see():
    plain = [Step(1, 1.0, 1.0, gradient_norm=math.nan)]
    assert panels(plots.convergence_figure(plain)) == ["objective"]
    assert panels(plots.convergence_figure(plain, {"volume": 0.0})) == ["objective", "constraint violation"]
    assert panels(plots.convergence_figure(HISTORIES["violated"])) == [
        "objective",
        "constraint violation",
        "gradient norm",
    ]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 49.0], "linear"),
        ([1.0, 51.0], "log"),
        ([-1.0, 1e6], "linear"),
        ([0.0, 1e6], "linear"),
        ([math.nan], "linear"),
    ],
)
def test_scale_of_the_objective(values, scale):
    assert plots.convergence_figure(history_of(values)).axes[0].get_yscale() == scale


def test_violation_of_zero_is_on_the_axis():
    figure = plots.convergence_figure(history_of([3.0, 2.0, 1.0], violation=[1e-2, 1e-7, 0.0]))
    ax = figure.axes[1]
    assert ax.get_ylim()[0] == 0.0 and ax.get_ylim()[1] >= 1e-2
    assert ax.get_yscale() == "symlog"
    assert np.asarray(ax.lines[0].get_ydata())[-1] == 0.0
    figure.draw_without_rendering()
    assert "0" in [label.get_text() for label in ax.get_yticklabels()]


def test_best_value_is_written_out():
    figure = plots.convergence_figure(history_of([40000.0, 23762.153678, 23800.0]))
    assert figure.axes[0].get_title(loc="right") == "best 23762.1537"


def test_steps_that_are_not_finite_are_marked():
    (_, _, gaps) = plots.convergence_figure(HISTORIES["gaps"]).axes[0].lines
    assert np.array_equal(gaps.get_xdata(), [1.0, 3.0])


@pytest.mark.parametrize("n", [1, 1199, 1200, 1201, 5000, 100_000])
def test_thinned_line_keeps_ends_and_spikes(n):
    y = np.random.default_rng(n).normal(size=n)
    y[n // 2] = 1e6
    y[n // 3] = -1e6
    keep = plots.thin_line(y)
    assert keep.size <= plots.MAX_POINTS
    assert np.all(np.diff(keep) > 0)
    assert {0, n - 1, int(np.argmax(y)), int(np.argmin(y))} <= set(keep.tolist())


def test_design_figure_draws_vectors_with_their_start_and_matrices():
    design = {
        "h": jnp.linspace(1.0, 2.0, 50),
        "map": np.eye(20),
        "scalar": np.ones(()),
        "cube": np.ones((2, 2, 2)),
        "s": "x",
    }
    figure = plots.design_figure(design, {**design, "h": np.ones(50)})
    assert figure is not None
    assert [t for t in panels(figure) if t] == ["map", "h"]
    curves = next(ax for ax in figure.axes if ax.get_title(loc="left") == "h").lines
    assert [line.get_label() for line in curves] == ["start", "result"]
    ElementTree.fromstring(plots.figure_to_svg(figure))


def test_design_without_anything_to_draw():
    assert plots.design_figure({"a": 1.0, "b": np.ones(1), "c": np.zeros((0, 3))}) is None


def test_large_designs_are_thinned_and_limited():
    figure = plots.design_figure({f"x{i}": np.random.default_rng(i).normal(size=200_000) for i in range(9)})
    assert figure is not None
    assert len(figure.axes) == 4
    assert len(plots.figure_to_svg(figure)) < 600_000


def test_png_and_addresses():
    figure = plots.convergence_figure(HISTORIES["one step"])
    png = plots.figure_to_png(figure, dpi=50)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(png[16:20], "big") == 400
    for kind, media, start in (("svg", "image/svg+xml", b"<svg"), ("png", "image/png", b"\x89PNG")):
        head, _, body = plots.data_uri(figure, kind).partition(",")
        assert head == f"data:{media};base64"
        assert base64.b64decode(body, validate=True).startswith(start)


def test_few_colours_make_a_small_picture_that_looks_the_same():
    figure = plots.convergence_figure(HISTORIES["violated"])
    whole, small = plots.figure_to_png(figure, dpi=60), plots.figure_to_png(figure, dpi=60, colours=64)
    assert len(small) < 0.6 * len(whole)
    a, b = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16) for png in (whole, small))
    assert np.abs(a - b).mean() < 1.0  # of 255


@pytest.mark.slow
def test_threads_draw_what_one_thread_draws():
    before = dict(mpl.rcParams)
    histories = [HISTORIES[name] for name in ("gaps", "violated", "long")]

    def draw(history):
        png = plots.figure_to_png(plots.convergence_figure(history), dpi=30)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16)

    alone = [draw(history) for history in histories]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, histories))
    # Now and then a few pixels differ by one shade, also when one thread draws the same figure twice.
    assert all(np.abs(a - b).max() <= 2 for a, b in zip(alone, together, strict=True))
    assert dict(mpl.rcParams) == before


def test_pyplot_is_never_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it now raises
    spec = importlib.util.find_spec("tesseract_flow.report.plots")
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.figure_to_png(fresh.convergence_figure(HISTORIES["one step"]), dpi=40)
    assert fresh.figure_to_svg(fresh.design_figure({"x": np.eye(3)}))
