"""The page: complete, self-contained, and safe whatever names and reasons say."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pytest
from matplotlib.figure import Figure

from tesseract_flow.report import plots
from tesseract_flow.report.html import render_html, write_html
from tests.report.helpers import Finished, history_of

EVIL = "<script>alert('x')</script>\"'&"


class Page(HTMLParser):
    """Text, elements and addresses of a page; complains about elements that are not closed."""

    VOID = frozenset({"meta", "path", "use", "rect", "image", "link", "br"})

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action") and value
        ]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def make(**changes):
    values = [3.0, math.nan, 1.5]
    fields = dict(
        design={"thickness": np.array([0.1, 0.3]), "material": "steel"},
        constraints={"volume": np.array(0.25)},
        requests={"fem.apply": 12, "fem.vector_jacobian_product": 11},
        history=history_of(values, violation=[1.0, 0.5, 0.0]),
    )
    return Finished(**{**fields, **changes})


def test_says_what_happened():
    page = Page(
        render_html(make(), "Beam", {"Convergence": plots.convergence_figure(make().history)}, {"driver": "adam"})
    )
    told = (
        "Beam, 1.5, gradient below tolerance, volume, 0.25, fem, 12, 11, 23, thickness, 0.1, 0.3, steel, driver, adam"
    )
    for word in told.split(", "):
        assert word in page.text, word
    assert page.tags.count("h1") == 1
    assert page.tags.count("figure") == 1


def test_summary_comes_before_pictures_and_pictures_before_tables():
    source = render_html(make(), figures={"Convergence": plots.convergence_figure(make().history)})
    places = [source.index(mark) for mark in ("gradient below tolerance", "<figure", "<h2>Constraints", "<h2>Requests")]
    assert places == sorted(places)


def test_everything_from_outside_is_escaped():
    evil = make(
        design={EVIL: EVIL, "x": np.ones(2)}, reason=EVIL, constraints={EVIL: 0.0}, requests={f"{EVIL}.{EVIL}": 1}
    )
    figure = plots.convergence_figure(evil.history, evil.constraints, title=EVIL)
    page = Page(render_html(evil, EVIL, {EVIL: figure}, {EVIL: EVIL}))
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 7


def test_asks_nothing_of_the_network():
    foreign = Figure()
    foreign.subplots().imshow(np.eye(3))
    source = render_html(make(), figures={"a": foreign, "b": plots.convergence_figure(make().history)})
    assert all(a.startswith(("#", "data:")) for a in Page(source).addresses)
    assert "@import" not in source and "url(http" not in source


def test_own_figures_follow_the_theme_and_foreign_ones_keep_their_colours():
    foreign = Figure(facecolor="#123456")
    foreign.subplots().plot([1, 2], color="#ff00ff")
    source = render_html(make(), figures={"own": plots.convergence_figure(make().history), "foreign": foreign})
    assert "var(--ink)" in source and plots.INK not in source.split("</style>")[1]
    assert "#123456" in source and "#ff00ff" in source
    assert 'class="ours"' in source and 'class="foreign"' in source


def test_groups_of_facts_and_notes():
    class Noted(Finished):
        notes = ("start moved into the bounds <1>",)
        multipliers: ClassVar = {"volume": 4.5}

    facts = {
        "requests_of_this_run": {"fem.apply": 31, "section.apply": 41},
        "versions": {"jax": "9.9"},
        "driver": "adam",
    }
    page = Page(render_html(Noted(design={}, constraints={"volume": 1.0}), facts=facts))
    for word in ("Requests of this run", "31", "41", "Versions", "9.9", "start moved into the bounds <1>", "4.5"):
        assert word in page.text, word
    assert page.text.index("Settings") < page.text.index("driver")


def test_many_figures_share_no_identifiers_that_are_referred_to():
    figure = plots.convergence_figure(make().history)
    source = render_html(make(), figures={str(i): figure for i in range(2)})
    assert 'id="axes_1"' not in source
    assert source.count("<svg ") == 2


def test_long_histories_are_thinned_with_a_note():
    source = render_html(make(history=history_of(np.linspace(2, 1, 5000))))
    assert "Showing 200 of 5000 steps" in source
    assert source.split("<h2>History")[1].count("<tr>") == 201


@pytest.mark.parametrize("state", [True, False])
def test_state_is_told_in_words(state):
    assert ("not converged" in render_html(make(converged=state))) != state


def test_a_run_without_a_single_step(tmp_path):
    path = write_html(tmp_path / "a" / "b" / "report.html", make(history=[], constraints={}, requests=0))
    text = path.read_text(encoding="utf-8")
    assert "No step was finished" in text
    assert "Constraints" not in text
    Page(text)
