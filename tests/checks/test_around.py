"""Where `tf.differences` would cost least, told before anything is solved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.client import count_requests
from tesseract_flow.testing import FunctionTesseract

N = 300
BASIS = np.sin(np.outer(np.arange(N), np.arange(1, 12)) / N)


def _only_apply(fn: Any, inputs: Any, name: str) -> Any:
    return FunctionTesseract(fn, inputs, name=name, endpoints=("apply", "abstract_eval"))


FLOW = _only_apply(lambda i: {"field": jnp.asarray(BASIS) @ i["shape"]}, {"shape": np.ones(11)}, "flow")
HEAT = _only_apply(lambda i: {"T": jnp.sum(i["field"] ** 2)}, {"field": np.ones(N)}, "heat")


def evaluate_with(flow: Any, heat: Any) -> Any:
    def evaluate(shape: Any) -> Any:
        field = tf.apply_tesseract(flow, {"shape": shape})["field"]
        return tf.apply_tesseract(heat, {"field": jnp.tanh(field)})["T"]

    return evaluate


def test_a_large_field_between_two_components():
    flow, heat = (tf.open_tesseract(one, derive="central") for one in (FLOW, HEAT))
    evaluate = evaluate_with(flow, heat)
    design = jnp.linspace(0.1, 1.0, 11)
    (note,) = tf.check(tf.Problem(design, evaluate)).findings
    assert (note.kind, note.where, note.severity) == ("differences", "flow, heat", "note")
    # What it says is what is sent.
    counts = []
    for fn in (evaluate, tf.differences(evaluate_with(FLOW, HEAT))):
        with count_requests() as requests:
            tf.concurrent(jax.value_and_grad(fn))(design)
        counts.append(requests.n_solves)
    assert f"takes {counts[0]} requests" in note.message and f"it is {counts[1]}: 23 runs" in note.message
    assert "11 numbers in, 1 out" in note.message


def test_what_makes_many_of_few_belongs_to_it():
    heat = tf.open_tesseract(HEAT, derive="central")
    problem = tf.Problem(
        jnp.ones(2), lambda x: tf.apply_tesseract(heat, {"field": jnp.outer(jnp.ones(N // 2), x).ravel()})["T"]
    )
    (note,) = tf.check(problem).findings
    assert note.where == "heat" and "2 numbers in, 1 out" in note.message and "it is 5: 5 runs" in note.message


@pytest.mark.parametrize("kind", ["few between them", "derivatives of their own"])
def test_nothing_is_said_where_nothing_is_won(kind: str):
    if kind == "few between them":
        small = _only_apply(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, "small")
        small = tf.open_tesseract(small, derive="central")
    else:
        small = FunctionTesseract(lambda i: {"y": i["x"] ** 2}, {"x": np.ones(3)}, name="small")

    def evaluate(x: Any) -> Any:
        for _ in range(2):
            x = tf.apply_tesseract(small, {"x": x})["y"]
        return jnp.sum(x)

    assert not tf.check(tf.Problem(jnp.ones(3), evaluate)).findings
