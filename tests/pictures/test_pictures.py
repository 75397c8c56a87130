"""Pictures show what feeds what: of a pipeline and of functions, in each form; and nobody is asked to solve."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import OptionError
from tesseract_flow.testing import FunctionTesseract
from tests.pipeline.helpers import FRAME, SECTION, SELLAR, Y1, Y2

AT = {"z": jnp.array([5.0, 2.0]), "x": jnp.array(1.0)}
EDGES = {("z", "y1"), ("z", "y2"), ("x", "y1"), ("x", "f"), ("z", "f"), ("y1", "y2"), ("y2", "y1")}
EDGES |= {("y1", "f"), ("y2", "f"), ("y1", "y1 (output)"), ("y2", "y2 (output)")}


def test_of_a_pipeline_what_is_described():
    with tf.count_requests() as requests:
        found = tf.picture(tf.Pipeline(**SELLAR), AT)
    assert requests.n_solves == 0
    assert {(arrow.source, arrow.target) for arrow in found.arrows} == EDGES
    assert [(arrow.source, arrow.target) for arrow in found.fed_back] == [("y2", "y1")]
    assert {box.name for box in found.boxes if box.group == "coupled"} == {"y1", "y2"}
    assert all(arrow.is_differentiable for arrow in found.arrows)
    assert "y2 -> y1 (fed back): y2 float64[]" in str(found)


def test_units_and_what_cuts_derivatives():
    pipeline = tf.Pipeline(
        inputs={"thickness": {"units": "mm", "shape": [3]}, "load": {"shape": []}},
        nodes={
            "section": {"tesseract": SECTION, "inputs": {"thickness": "thickness"}, "units": {"inertia": "mm^4"}},
            "frame": {"tesseract": FRAME, "inputs": {"load": "load", "inertia": "section.inertia"}},
        },
        outputs={"d": "frame.parts.left.d", "text": "frame.text"},
    )
    found = {(arrow.source, arrow.target): arrow for arrow in tf.picture(pipeline).arrows}
    assert found["section", "frame"].labels == ("inertia float64[3] mm^4",)
    assert found["frame", "d"].is_differentiable
    assert found["frame", "text"].is_differentiable is False


def function(inputs: Any) -> Any:
    first = tf.apply_tesseract(Y1, {"z": inputs["z"], "x": inputs["x"], "y2": 1.0})["y1"]
    second = tf.apply_tesseract(Y2, {"z": 2.0 * inputs["z"], "y1": first + 1.0})["y2"]
    return second + inputs["x"]


def test_of_a_function_its_calls_and_what_reaches_them_through_the_jax_between():
    with tf.count_requests() as requests:
        found = tf.picture(function, AT)
        backward = tf.picture(jax.grad(function), AT)
    assert requests.n_solves == 0
    edges = {(arrow.source, arrow.target): arrow.labels for arrow in found.arrows}
    assert edges == {
        ("z", "first.apply"): (),
        ("x", "first.apply"): (),
        ("z", "second.apply"): (),
        ("first.apply", "second.apply"): ("y1 float64[]",),
        ("second.apply", "outputs"): ("y2 float64[]",),
        ("x", "outputs"): (),
    }
    assert ("second.pullback", "first.pullback") in {(arrow.source, arrow.target) for arrow in backward.arrows}


def test_a_loop_is_one_box():
    def summed(x: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda k, x: tf.apply_tesseract(Y1, {**AT, "y2": x})["y1"], x)

    names = {box.name: box for box in tf.picture(summed, jnp.array(1.0)).boxes}
    assert names["loop"].notes[0].startswith("scan of 3: first.apply")


def test_measured_times_and_kept_answers_are_shown():
    slow = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": np.ones(2)}, name="slow", delay=0.02)
    kept = tf.open_tesseract(slow, cache=tf.MemoryCache())
    pipeline = tf.Pipeline(inputs=["x"], nodes={"n": {"tesseract": kept, "inputs": {"x": "x"}}}, outputs={"y": "n.y"})
    run = tf.concurrent(pipeline)
    run({"x": np.ones(2)})
    run({"x": np.ones(2)})
    (box,) = [box for box in tf.picture(pipeline, {"x": np.ones(2)}).boxes if box.name == "n"]
    assert box.notes[-1].startswith("cache: 1 hits, ")
    assert box.notes[0].endswith(" ms")


@pytest.mark.parametrize("what", [lambda: tf.picture(tf.Pipeline(**SELLAR)), lambda: tf.picture(function, AT)])
def test_each_form_has_all_of_it(what: Any, tmp_path: Path):
    found = what()
    drawing = ET.fromstring(found.svg())
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {box.name for box in found.boxes} <= set(texts)
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}path"))) == len(found.arrows) + 1  # and the arrow's tip
    chart = found.mermaid().splitlines()
    assert chart[0] == "flowchart LR"
    assert sum("-->" in line or "-.->" in line for line in chart) == len(found.arrows)
    rows = found.n2().splitlines()[2 : 2 + len(found.boxes)]
    marks = [[cell for cell in row if cell in "●○•■·"][: len(found.boxes)] for row in rows]
    order = {box.name: k for k, box in enumerate(found.boxes)}
    cells = {(i, j) for i, row in enumerate(marks) for j, mark in enumerate(row) if mark in "●○•"}
    assert cells == {(order[arrow.source], order[arrow.target]) for arrow in found.arrows}
    for ending in ("svg", "mmd", "txt"):
        assert found.save(tmp_path / f"wiring.{ending}").read_text()
    with pytest.raises(OptionError, match=r"wiring.png"):
        found.save(tmp_path / "wiring.png")


def test_names_cannot_break_out_of_a_picture():
    odd = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": np.ones(2)}, name='</text><script>"]')
    found = tf.picture(lambda x: tf.apply_tesseract(odd, {"x": x})["y"], jnp.ones(2))
    assert "<script" not in found.svg()
    ET.fromstring(found.svg())
    assert "<script" not in found.mermaid()
