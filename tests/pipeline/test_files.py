"""Pipelines and problems in YAML: what is read, what is refused and where, and that a file is a factory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import PipelineError, ProblemError
from tesseract_flow.optimize import load_problem
from tesseract_flow.pipeline.document import Document
from tests.helpers import assert_close

FUNCTIONS = """
import jax.numpy as jnp

def bend(thickness, load):
    return {"d": load / thickness**3, "volume": jnp.sum(thickness)}

def half(x, y):
    return x + 0.5 * y

def total(d, weight):
    return {"value": weight * jnp.sum(d), "is_small": jnp.all(d < 1e6)}
"""
PROBLEM = """\
name: beam
settings:
  load: 2.0
  weight: 1.0
pipeline:
  inputs: [thickness]
  nodes:
    bend:
      function: functions.py:bend
      inputs: {thickness: thickness, load: $load}
    total:
      function: functions.py:total
      inputs:
        d: bend.d
        weight: $weight
  outputs:
    f: total.value
    volume: {from: bend.volume, scale: 0.1}
    is_small: total.is_small
design:
  thickness: {fill: 2, shape: [3]}
bounds:
  thickness: [0.5, [4, 4, 5]]
objective: f
constraints:
  volume: {upper: 0.3}
valid: [is_small]
driver: {name: l-bfgs-b, settings: {memory: 5}}
stop: {max_steps: 7}
"""


def written(folder: Path, text: str, name: str = "problem.yaml") -> Path:
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_the_problem_that_one_would_write(tmp_path: Path):
    problem = tf.Problem.from_yaml(written(tmp_path, PROBLEM), load=3)
    assert problem.name == "beam"
    assert_close(problem.design, {"thickness": jnp.full(3, 2.0)})
    assert_close(problem.box.upper["thickness"], jnp.array([4.0, 4.0, 5.0]))
    found = problem.evaluate(problem.design)
    assert_close(found.objective, jnp.asarray(9 / 8), rtol=1e-14)
    assert_close(found.constraints, {"volume": jnp.asarray(0.6)}, rtol=1e-14)
    assert bool(found.aux["is_small"])
    assert problem.origin is not None
    assert problem.origin.settings == {"load": 3, "weight": 1.0}
    assert problem.defaults == {"driver": "l-bfgs-b", "driver_settings": {"memory": 5}, "stop": {"max_steps": 7}}


def test_what_the_file_says_is_what_optimize_takes(tmp_path: Path):
    text = PROBLEM.replace("driver: {name: l-bfgs-b, settings: {memory: 5}}", "driver: slsqp")
    problem = load_problem(str(written(tmp_path, text)))
    result = tf.optimize(problem)
    assert_close(result.design["thickness"], jnp.ones(3), rtol=1e-6)
    by_hand = tf.optimize(dataclasses.replace(problem, defaults=None), "slsqp", stop={"max_steps": 7})
    assert [record.value for record in result.history] == [record.value for record in by_hand.history]
    assert len(tf.optimize(problem, "adam", stop={"max_steps": 1}).history) == 2


def test_another_number_in_the_file_is_another_run(tmp_path: Path):
    file, journal = written(tmp_path, PROBLEM), tmp_path / "run"
    tf.optimize(load_problem(str(file)), "adam", stop={"max_steps": 1}, journal=journal)
    file.write_text(PROBLEM.replace("scale: 0.1", "scale: 0.2"))
    with pytest.raises(tf.errors.OtherRun, match=r"0\.1.*->.*0\.2"):
        tf.optimize(load_problem(str(file)), "adam", stop={"max_steps": 2}, journal=journal)
    file.write_text("# a remark\n" + PROBLEM)
    assert tf.optimize(load_problem(str(file)), "adam", stop={"max_steps": 2}, journal=journal).steps == 2


SCHEDULED = (
    "pipeline:\n"
    "  inputs: {x: {shape: [2]}, p: {shape: []}}\n"
    "  nodes: {n: {function: 'f.py:penalised', inputs: {x: x, p: p}}}\n"
    "  outputs: {y: n}\n"
    "design: {x: [0, 0]}\n"
    "schedule: {p: {values: [1, 4], every: 2}}\n"
    "objective: y\n"
    "driver: lbfgs\n"
)


def test_an_input_is_scheduled(tmp_path: Path):
    (tmp_path / "f.py").write_text("def penalised(x, p):\n    return (x.sum() - p) ** 2 + (x**2).sum()\n")
    problem = tf.Problem.from_yaml(written(tmp_path, SCHEDULED))
    assert problem.schedules == {"p": tf.Schedule([1.0, 4.0], every=2)}
    result = tf.optimize(problem)
    assert_close(result.design["x"], jnp.full(2, 4.0 / 3.0), rtol=1e-6)
    other = tf.optimize(problem.with_schedule({"p": 3.0}))
    assert_close(other.design["x"], jnp.ones(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{p: {values", "{q: {values", r"yaml:6:12: schedule\.q: the pipeline has no input 'q'"),
        ("every: 2", "evry: 2", r"yaml:6:12: schedule\.p: .*Did you mean 'every'"),
        ("[0, 0]}", "[0, 0], p: 1}", r"schedule\.p: it is in the design as well"),
        ("p: {shape: []}", "p: {shape: [2]}", r"start of 'p': declared is shape \[2\], and given is \[\]"),
    ],
)
def test_a_schedule_that_does_not_fit_is_told_with_its_line(old: str, new: str, message: str, tmp_path: Path):
    (tmp_path / "f.py").write_text("def penalised(x, p):\n    return (x.sum() - p) ** 2\n")
    with pytest.raises((PipelineError, ProblemError), match=message):
        tf.Problem.from_yaml(written(tmp_path, SCHEDULED.replace(old, new)))


def test_settings_make_a_sweep(tmp_path: Path):
    file = written(tmp_path, PROBLEM)
    outcome = tf.sweep(str(file), {"load": [1.0, 4.0]}, "slsqp", stop={"max_steps": 20})
    values = sorted(row["value"] for row in outcome.rows())
    assert np.allclose(values, [3.0, 12.0], rtol=1e-6)
    with pytest.raises(ProblemError, match=r"loud.*Did you mean 'load'"):
        load_problem(str(file), {"loud": 1.0})


FAULTS: dict[str, tuple[tuple[str, str], str]] = {
    "syntax": (("objective: f", "objective: [f"), r"problem.yaml:25:12: this is no YAML"),
    "tag": (
        ("load: 2.0", "load: !!python/object/apply:os.system [ls]"),
        r"yaml:3:3: settings.load: tags such as !!python",
    ),
    "key twice": (
        ("  weight: 1.0\n", "  weight: 1.0\n  weight: 2.0\n"),
        r"yaml:5:3: settings.weight: .* already, at 4:3",
    ),
    "unknown key": (
        ("objective: f", "objectiv: f"),
        r"yaml:24:1: objectiv: there is no 'objectiv' here. Did you mean 'object",
    ),
    "unknown key inside": (
        ("function: functions.py:t", "fuction: functions.py:t"),
        r"yaml:12:7: pipeline.nodes.total.fuction:",
    ),
    "no function": (("functions.py:bend", "functions.py:bent"), r"yaml:9:7: .*bend.function: .* Did you mean 'bend'"),
    "no node": (
        ("d: bend.d", "d: bnd.d"),
        r"yaml:14:9: pipeline.nodes.total.inputs.d: 'bnd.d': .* Did you mean 'bend'",
    ),
    "no setting": (
        ("$weight", "$wieght"),
        r"yaml:15:9: .*inputs.weight: there is no setting 'wieght'. Did you mean 'weig",
    ),
    "setting that stands nowhere": (
        ("weight: $weight", "weight: 1.0"),
        r"yaml:4:3: settings.weight: nothing refers to this setting: write \$weight where",
    ),
    "no default": (
        ("weight: 1.0", "weight: null"),
        r"yaml:15:9: .*'weight' has no default and was not given: --set weight",
    ),
    "no output": (("objective: f", "objective: g"), r"yaml:24:1: objective: the pipeline has no output 'g'"),
    "no start": (
        ("thickness: {fill: 2, shape: [3]}", "width: 1.0"),
        r"yaml:20:1: design: input 'thickness' of the pipel",
    ),
    "no number": (("{fill: 2, shape: [3]}", "[1, two]"), r"yaml:21:3: design.thickness: expected a number or"),
    "no demand": (
        ("{upper: 0.3}", "{upper: 0.3, equals: 1}"),
        r"yaml:26:3: constraints.volume: A constraint takes either",
    ),
    "bounds": (
        ("[0.5, [4, 4, 5]]", "[0.5]"),
        r"yaml:23:3: bounds.thickness: expected \[lower, upper\], received 1 val",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_its_line(name: str, tmp_path: Path):
    (old, new), message = FAULTS[name]
    assert old in PROBLEM
    with pytest.raises(PipelineError, match=message):
        load_problem(str(written(tmp_path, PROBLEM.replace(old, new, 1))))


COUPLED = """\
pipeline:
  inputs: [p]
  nodes:
    a: {function: functions.py:half, inputs: {x: p, y: b}}
    b: {function: functions.py:half, inputs: {x: p, y: a}}
  groups:
    loop:
      nodes: [a, b]
      start: {b: START}
  outputs: {f: {from: a, select: 0}}
  coupling: idf
design: {p: {fill: 1.0, shape: [2]}}
objective: f
"""


@pytest.mark.parametrize("start", ["3.0", "[3.0, 3.0]", "{fill: 3.0, shape: [2]}", "{fill: 3.0, shape: []}"])
def test_a_search_begins_at_what_a_design_begins_at(start: str, tmp_path: Path):
    text = COUPLED.replace("START", start)
    problem = load_problem(str(written(tmp_path, text)))
    np.testing.assert_array_equal(problem.design["b"], [3.0, 3.0])


def test_a_filled_start_leads_to_the_fixed_point(tmp_path: Path):
    text = COUPLED.replace("START", "{fill: 3.0, shape: [2]}").replace("coupling: idf", "coupling: mdf")
    problem = load_problem(str(written(tmp_path, text.replace("nodes: [a, b]", "nodes: [a, b]\n      solver: picard"))))
    assert float(problem.answer(problem.design).objective) == pytest.approx(2.0)


@pytest.mark.parametrize("start", ["{fil: 1.0}", "{fill: 1.0, shape: [-1]}", "[1, two]", "null", "[[1], [1, 2]]"])
def test_what_a_search_cannot_begin_at_is_told_with_its_line(start: str, tmp_path: Path):
    with pytest.raises(PipelineError, match=r"yaml:9:15: pipeline.groups.loop.start.b: expected a number, .*{fill: 1"):
        load_problem(str(written(tmp_path, COUPLED.replace("START", start))))


def test_numbers_and_texts_are_those_of_yaml_1_2(tmp_path: Path):
    file = written(
        tmp_path, "{a: 1e-6, b: no, c: 0x10, d: 1_000, e: .inf, f: null, g: '1', h: true, i: 012}", "plain.yaml"
    )
    expected = {"a": 1e-6, "b": "no", "c": 16, "d": "1_000", "e": np.inf, "f": None, "g": "1", "h": True, "i": 12}
    assert Document(file).data == expected
    assert [type(value) for value in Document(file).data.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
        "a: &a [*a]",
        "[" * 2000,
    ],
    ids=["billion laughs", "itself", "deep"],
)
def test_a_bomb_is_refused(text: str, tmp_path: Path):
    with pytest.raises(PipelineError):
        Document(written(tmp_path, text, "bomb.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').system('ls')", "is no function here|cannot be used"),
        ("(lambda: 1)()", "cannot be used"),
        ("[x for x in thickness]", "cannot be used"),
        ("exp(thickness, 2)", "exp takes 1 argument"),
        ("exq(thickness)", "Did you mean 'exp'"),
        ("thickness[load]", "an index is a number"),
        ("1 +", "cannot be read"),
        ("1e400 * thickness", "beyond the range of floating point"),
        ("thickness if 1 else 2", "cannot be used"),
        ("-" * 3000 + "1", "cannot be read|nested"),
    ],
)
def test_an_expression_is_arithmetic_and_nothing_else(text: str, message: str):
    with pytest.raises(PipelineError, match=message):
        tf.Pipeline(inputs=["thickness"], nodes={"n": {"function": abs}}, outputs={"y": {"expression": text}})


def test_a_power_of_numbers_takes_no_time():
    def of(text: str) -> Any:
        return tf.Pipeline(inputs=["x"], nodes={"n": {"function": abs}}, outputs={"y": {"expression": text}})(
            {"x": 3.0}
        )

    assert of("x**2 + 2**-1 + 2**3")["y"] == 17.5
    with pytest.raises(PipelineError, match="is no number"):
        of("x + 9**9**9")


def test_a_dot_is_a_key_and_no_attribute():
    pipeline = tf.Pipeline(inputs=["x"], nodes={"n": {"function": abs}}, outputs={"y": {"expression": "x.__class__"}})
    with pytest.raises(PipelineError, match="input 'x' has no entries, and '__class__' is wanted"):
        pipeline({"x": 1.0})


def test_a_pipeline_alone_has_a_file_too(tmp_path: Path):
    file = written(tmp_path, PROBLEM)
    pipeline: Any = tf.Pipeline.from_yaml(file, load=1.0)
    assert pipeline.check({"thickness": np.ones(3)})["f"].shape == ()
    with pytest.raises(PipelineError, match=r"yaml:6:3: pipeline.inputs.thickness: its shape is not known"):
        pipeline.check()
