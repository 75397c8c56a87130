"""What `check` says of a problem that is made of a pipeline: where in the wiring it is wrong, and what feeds what."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest

import tesseract_flow as tf
from tesseract_flow.checks.views import as_markdown
from tests.pipeline.helpers import SELLAR, Y2

AT = {"z": jnp.array([5.0, 2.0]), "x": jnp.array(1.0)}


@pytest.mark.parametrize("coupling", ["mdf", "idf"])
def test_nothing_is_wrong_and_the_wiring_is_shown(coupling: str):
    pipeline = tf.Pipeline(**SELLAR, coupling=coupling)
    with tf.count_requests() as requests:
        report = tf.check(tf.Problem.from_pipeline(pipeline, AT, objective="f", bounds={"z": (-10.0, 10.0)}))
    assert report.findings == ()
    assert requests.n_solves == 0
    assert "    a row feeds the columns with a mark" in as_markdown(report)
    assert report.to_json()["wiring"]["arrows"]


def test_faults_are_those_of_the_wiring_and_nothing_twice():
    nodes = {**SELLAR["nodes"], "y2": {"tesseract": Y2, "inputs": {"z": "x", "yy": "y1.y3"}}}
    pipeline = tf.Pipeline(**{**SELLAR, "nodes": nodes, "groups": {"coupled": {"nodes": ["y1", "y2"]}}})
    with tf.count_requests() as requests:
        report = tf.check(tf.Problem.from_pipeline(pipeline, AT, objective="f"))
    assert requests.n_solves == 0
    assert {finding.kind for finding in report.findings} == {"pipeline"}
    assert [finding.where for finding in report.findings] == [
        "nodes.y2.inputs.yy",
        "nodes.y2.inputs",
        "nodes.y2.inputs.yy",
    ]


def test_shapes_that_do_not_fit_are_told_at_the_wire():
    nodes = {**SELLAR["nodes"], "y2": {"tesseract": Y2, "inputs": {"z": "x", "y1": "y1.y1"}}}
    with pytest.raises(
        tf.errors.PipelineError, match=r"nodes.y2.inputs.z: what arrives does not fit 'z': expected shape"
    ):
        tf.Pipeline(**{**SELLAR, "nodes": nodes}).check(AT)


def test_of_a_file_findings_have_lines(tmp_path: Path):
    (tmp_path / "functions.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "problem.yaml").write_text(
        "pipeline:\n  inputs: [x]\n  nodes:\n    n: {function: functions.py:twice, inputs: {y: x}}\n"
        "  outputs: {f: n}\ndesign: {x: 1}\nobjective: f\n"
    )
    (finding, *_) = tf.check(tf.Problem.from_yaml(tmp_path / "problem.yaml")).findings
    assert finding.where == "problem.yaml:4:5: pipeline.nodes.n"
    assert "does not take these inputs: missing a required argument: 'x'" in finding.message
