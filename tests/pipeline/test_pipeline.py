"""A pipeline is the function that one would write by hand: values, derivatives, calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import PipelineError
from tests.helpers import assert_close
from tests.pipeline.helpers import FRAME, SECTION, SELLAR, Y1, Y2

BEAM: dict[str, Any] = {
    "inputs": {"thickness": {"shape": [3], "units": "mm"}, "load": None},
    "nodes": {
        "section": {"tesseract": SECTION, "inputs": {"thickness": {"from": "thickness", "units": "cm"}}},
        "frame": {
            "tesseract": FRAME,
            "inputs": {"load": {"from": "load", "scale": 2.0, "offset": -0.5}, "inertia": "section.inertia"},
        },
        "norm": {
            "function": lambda u, weights, p: {"value": jnp.sum(weights * jnp.abs(u) ** p)},
            "inputs": {
                "u": {"from": "frame.parts.{left}.d", "select": ":, 0", "reshape": [3, 1]},
                "weights": {"value": [[1.0], [2.0], [3.0]]},
                "p": 2,
            },
        },
    },
    "outputs": {
        "norm": "norm.value",
        "total": {"expression": "norm.value / section.volume + load"},
        "d": "frame.parts.left",
    },
}
AT = {"thickness": jnp.array([10.0, 20.0, 5.0]), "load": jnp.array(3.0)}


def by_hand(inputs: dict[str, Any]) -> dict[str, Any]:
    section = tf.apply_tesseract(SECTION, {"thickness": inputs["thickness"] * 0.1})
    load = inputs["load"] * 2.0 - 0.5
    frame = tf.apply_tesseract(FRAME, {"load": load, "inertia": section["inertia"]})["parts"]["left"]
    norm = jnp.sum(jnp.array([1.0, 2.0, 3.0]) * frame["d"][:, 0] ** 2)
    return {"norm": norm, "total": norm / section["volume"] + inputs["load"], "d": frame}


@pytest.mark.parametrize("run", [lambda fn: fn, jax.jit, tf.concurrent], ids=["eager", "jit", "concurrent"])
def test_it_is_the_function_written_by_hand(run: Any):
    pipeline = tf.Pipeline(**BEAM)
    assert_close(run(pipeline)(AT), by_hand(AT), rtol=1e-14)
    totals = [run(jax.grad(lambda inputs, fn=fn: fn(inputs)["total"]))(AT) for fn in (pipeline, by_hand)]
    assert_close(*totals, rtol=1e-14)


def test_it_maps():
    pipeline = tf.Pipeline(**BEAM)
    several = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x]), AT)
    mapped = jax.vmap(pipeline)(several)
    assert_close(mapped, jax.tree.map(lambda *x: jnp.stack(x), by_hand(AT), by_hand(jax.tree.map(lambda x: 2 * x, AT))))


def test_calls_have_the_names_of_nodes_and_what_no_output_needs_is_not_called():
    outputs = {"volume": "section.volume"}
    pipeline = tf.Pipeline(
        **{**SELLAR, "nodes": {**BEAM["nodes"], "again": BEAM["nodes"]["section"]}}
        | {"inputs": BEAM["inputs"], "groups": {}, "outputs": {**outputs, "inertia": "again.inertia"}}
    )
    plan = tf.concurrent(lambda inputs: pipeline(inputs)).plan(AT)
    assert "section.apply" in str(plan)
    assert "frame" not in str(plan)
    with tf.count_requests() as requests:
        pipeline(AT)
    assert set(requests) <= {"section.apply", "section.abstract_eval"}


@pytest.mark.slow
def test_a_group_is_a_fixed_point_written_by_hand():
    components = {
        "y1": lambda T, z, x: tf.apply_tesseract(Y1, {"z": z, "x": x, "y2": T["y2"]})["y1"],
        "y2": lambda T, z, x: tf.apply_tesseract(Y2, {"z": z, "y1": T["y1"]})["y2"],
    }

    def hand(inputs: Any) -> Any:
        z, x = inputs["z"], inputs["x"]
        T = tf.fixed_point(components, {"y1": 1.0, "y2": 0.0}, z, x, solver="broyden")
        return x**2 + z[1] + T["y1"] + jnp.exp(-T["y2"])

    at = {"z": jnp.array([5.0, 2.0]), "x": jnp.array(1.0)}
    pipeline = tf.Pipeline(**SELLAR)
    counts, answers = [], []
    for fn in (hand, lambda inputs: pipeline(inputs)["f"]):
        run = tf.concurrent(jax.value_and_grad(fn))
        with tf.count_requests() as requests:
            answers.append(run(at))
        counts.append((requests.n_of("apply"), requests.n_of("vector_jacobian_product")))
    assert_close(*answers, rtol=1e-14)
    assert counts[0] == counts[1]


def test_cut_open_nothing_is_left_where_the_group_agrees():
    solved, opened = tf.Pipeline(**SELLAR), tf.Pipeline(**SELLAR, coupling="idf")
    at = {"z": jnp.array([5.0, 2.0]), "x": jnp.array(1.0)}
    assert opened.targets == {"y2.y2": "coupled.y2.y2"}
    answer = solved(at)
    gap = opened({**at, "y2.y2": answer["y2"]})
    assert abs(gap.pop("coupled.y2.y2")) < 1e-10
    assert_close(gap, answer, rtol=1e-10)
    plan = tf.concurrent(opened).plan({**at, "y2.y2": answer["y2"]})
    assert len(plan.nodes) == 2
    assert not plan.loops


def test_shapes_of_a_group_are_found_and_flags_come_out():
    def grow(u: Any, v: Any) -> dict[str, Any]:
        return {"u": 0.5 * jnp.cos(v) + u, "is_small": jnp.all(jnp.abs(v) < 9.0)}

    pipeline = tf.Pipeline(
        inputs=["u"],
        nodes={
            "a": {"function": grow, "inputs": {"u": "u", "v": "b"}},
            "b": {"function": lambda u: 0.5 * jnp.sin(u[:2]), "inputs": {"u": "a.u"}},
        },
        groups={"loop": {"nodes": ["a", "b"], "start": {"b": [0.0, 0.0]}}},
        outputs={"v": "b", "flag": "a.is_small"},
    )
    found = tf.concurrent(pipeline)({"u": jnp.array([1.0, 2.0])})
    u = 0.5 * jnp.cos(found["v"]) + jnp.array([1.0, 2.0])
    assert_close(found["v"], 0.5 * jnp.sin(u), rtol=1e-9)
    assert bool(found["flag"])


def test_inputs_by_name():
    pipeline = tf.Pipeline(**BEAM)
    with pytest.raises(PipelineError, match=r"no input 'thicknes'. Did you mean 'thickness'"):
        pipeline({**AT, "thicknes": 1.0})
    with pytest.raises(PipelineError, match="also needs 'load'"):
        pipeline({"thickness": AT["thickness"]})


def described(**changes: Any) -> dict[str, Any]:
    """The beam, with something else in it by its place: `nodes__frame__inputs__load`."""

    def changed(tree: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
        inner = changed(tree.get(keys[0], {}), keys[1:], value) if len(keys) > 1 else value
        return {**tree, keys[0]: inner}

    found = BEAM
    for place, value in changes.items():
        found = changed(found, place.split("__"), value)
    return found


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        described(nodes__frame__input={}),
        r"nodes.frame.input: there is no 'input' here. Did you mean 'inputs'",
    ),
    "no node": (described(outputs__norm="nrm.value"), r"outputs.norm: 'nrm.value': .* Did you mean 'norm'"),
    "two kinds": (described(nodes__frame__function=abs), r"nodes.frame: takes either tesseract or function"),
    "two origins": (
        described(outputs__norm={"from": "norm", "value": 1}),
        r"outputs.norm: takes exactly one of from, val",
    ),
    "a name twice": (described(inputs__frame=None), r"inputs.frame: there is a node 'frame' too"),
    "no unit": (described(inputs__load={"units": "newtn"}), r"inputs.load.units: 'newtn' is no unit"),
    "units": (
        described(nodes__section__inputs__thickness={"from": "thickness", "units": "kg"}),
        r"section.inputs.thickness.units: 'mm' \(\[length\]\) cannot become 'kg'",
    ),
    "units from nowhere": (
        described(nodes__frame__inputs__load={"from": "load", "units": "N"}),
        r"nobody says in which unit it comes",
    ),
    "selection": (
        described(outputs__d={"from": "frame", "select": "1;2"}),
        r"outputs.d: select: '1;2' is no selection",
    ),
    "twice": (described(nodes__norm__inputs={"u": "load", "u.v": "load"}), r"it and 'u' give the same input twice"),
    "gap": (described(nodes__norm__inputs={"u.[1]": "load"}), r"items of the list 'u' must be 0, 1, ...: there are 1"),
    "cycle": (
        described(nodes__section__inputs__thickness="frame.text", groups={}),
        r"these need each other: section -> frame -> section. .*groups: \{loop: \{nodes: \[section, frame\]\}\}",
    ),
    "self": (described(nodes__norm__inputs__u="norm.value"), r"nodes.norm: it needs its own output: norm -> norm"),
    "group of nothing": (
        described(groups__g={"nodes": ["fram"]}),
        r"groups.g.nodes.0: there is no node 'fram'. Did you mean",
    ),
    "start": (
        described(groups__g={"nodes": ["section", "frame"], "start": {"section.inertai": 1.0}}),
        r"start.section.inertai: no connection takes .* Did you mean 'section.inertia'",
    ),
    "block": (
        described(nodes__frame__tesseract="block:fem"),
        r"nodes.frame.tesseract: 'block:fem' is the name of a Prefect",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_said_where_it_is(name: str):
    description, message = FAULTS[name]
    with pytest.raises(PipelineError, match=message) as caught:
        tf.Pipeline(**description)
    assert caught.value.faults


def test_all_faults_are_told_at_once():
    with pytest.raises(PipelineError) as caught:
        tf.Pipeline(**described(outputs__norm="nrm", inputs__load={"units": "newtn"}, nodes__norm__inputs__p="norm"))
    assert [fault.path for fault in caught.value.faults] == ["inputs.load.units", "outputs.norm", "nodes.norm"]


VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "output": (described(outputs__d="frame.part"), r"node 'frame' has no 'part'.* Did you mean 'parts'"),
    "beyond": (
        described(outputs__d={"from": "section.inertia", "select": 3}),
        r"outputs.d: select: \[3\] is beyond the end",
    ),
    "slice beyond": (described(outputs__d={"from": "section.inertia", "select": "1:9"}), r"\[1:9\] is beyond the end"),
    "shape": (
        described(outputs__d={"from": "section.inertia", "reshape": [2, 2]}),
        r"shape \(3,\) cannot become \[2, 2\]",
    ),
    "text": (described(outputs__d={"from": "frame.text", "scale": 2.0}), r"outputs.d: scale and offset: what comes is"),
    "integer": (described(outputs__d={"value": 3, "scale": 2.0}), r"dtype int64, and this is for floating"),
    "broadcast": (described(outputs__d={"from": "load", "scale": [1.0, 2.0]}), r"which change that of the value"),
    "rename": (
        described(outputs__d={"from": "frame.parts", "rename": {"lef": "a"}}),
        r"there is no 'lef'.* Did you mean 'left'",
    ),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_what_does_not_fit_a_value_is_refused(name: str, jit: bool):
    description, message = VALUES[name]
    pipeline = tf.Pipeline(**description)
    with pytest.raises(PipelineError, match=message):
        (jax.jit(pipeline) if jit else pipeline)(AT)


def test_temperatures_have_an_offset():
    pipeline = tf.Pipeline(
        inputs={"T": {"units": "degC"}},
        nodes={"same": {"function": lambda T: T, "inputs": {"T": {"from": "T", "units": "K"}}, "units": {"": "K"}}},
        outputs={"T": "same", "F": {"from": "same", "units": "degF"}},
    )
    found = pipeline({"T": np.array(20.0)})
    assert found["T"] == 293.15
    assert_close(found["F"], np.asarray(68.0), rtol=1e-12)
