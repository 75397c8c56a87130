"""What `check` says a gradient costs: in loops, by differences, and where shapes are not known."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tesseract_flow as tf
from tesseract_flow.checks import Report
from tesseract_flow.checks.views import component_rows
from tesseract_flow.testing import FunctionTesseract

PULLBACK = "vector_jacobian_product"
REVERSE = ("apply", "abstract_eval", PULLBACK)


def loads(endpoints: Any = REVERSE) -> FunctionTesseract:
    return FunctionTesseract(
        lambda i: {"u": 0.5 * jnp.cos(i["v"]) + i["k"]},
        {"v": np.ones(2), "k": np.ones(2)},
        name="loads",
        endpoints=endpoints,
    )


def bends(endpoints: Any = REVERSE) -> FunctionTesseract:
    return FunctionTesseract(
        lambda i: {"v": 0.5 * jnp.sin(i["u"])}, {"u": np.ones(2)}, name="bends", endpoints=endpoints
    )


def coupled(first: Any, second: Any) -> tf.Problem:
    def step(v: Any, k: Any) -> Any:
        return tf.apply_tesseract(second, {"u": tf.apply_tesseract(first, {"v": v, "k": k})["u"]})["v"]

    return tf.Problem(jnp.array([0.1, 0.2]), lambda k: jnp.sum(tf.fixed_point(step, jnp.ones(2), k)), name="coupled")


def said(report: Report) -> dict[str, tuple[Any, str]]:
    return {one.name: (one.requests, one.counts) for one in report.components}


def test_calls_in_a_fixed_point_count_once_and_are_said_to() -> None:
    report = tf.check(coupled(loads(), bends()))
    assert report.findings == ()
    assert {counts for _, counts in said(report).values()} == {"once per loop"}
    assert all(row["requests"].endswith("once round its loops") for row in component_rows(report.components))


def test_a_fixed_point_that_cannot_be_followed_has_no_price() -> None:
    """One of its components tells no shapes: another one had no calls at all, and no word of it was said."""
    report = tf.check(coupled(loads(), bends(endpoints=("apply", PULLBACK))))
    assert [(f.kind, f.severity) for f in report.findings] == [("no-shapes", "note"), ("unchecked", "note")]
    assert report.findings[1].where == "loads, bends"
    assert {one.price for one in report.components} == {"not known"}


def test_a_scan_counts_as_often_as_it_goes_round() -> None:
    part = bends()

    def evaluate(u: Any) -> Any:
        return jnp.sum(jax.lax.scan(lambda u, _: (tf.apply_tesseract(part, {"u": u})["v"], None), u, length=3)[0])

    problem = tf.Problem(jnp.array([0.1, 0.2]), evaluate)
    assert said(tf.check(problem)) == {"bends": (6, "exact")}
    with tf.count_requests() as requests:
        tf.concurrent(jax.value_and_grad(evaluate))(problem.design)
    assert requests.n_solves == 6


def test_derivatives_by_differences_are_called_so() -> None:
    part = tf.open_tesseract(bends(endpoints=("apply", "abstract_eval")), derive="central")
    report = tf.check(tf.Problem(jnp.ones(2), lambda u: jnp.sum(tf.apply_tesseract(part, {"u": u})["v"])))
    (component,) = json.loads(json.dumps(report.to_json()))["components"]
    assert PULLBACK in component["by_differences"]
    assert not any(key.startswith("is_exact") for key in component)
    exact = tf.open_tesseract(bends(endpoints=("apply", "abstract_eval", "jacobian")), derive=True)
    report = tf.check(tf.Problem(jnp.ones(2), lambda u: jnp.sum(tf.apply_tesseract(exact, {"u": u})["v"])))
    assert PULLBACK in report.components[0].derived and not report.components[0].by_differences


def test_a_text_is_called_text() -> None:
    part = FunctionTesseract(
        lambda i: {"z": jnp.sum(i["u"] ** 2), "label": "steel"}, {"u": np.ones(2)}, endpoints=REVERSE, name="part"
    )

    def evaluate(u: Any) -> tf.Evaluation:
        answer = tf.apply_tesseract(part, {"u": u})
        return tf.Evaluation(answer["z"], aux={"label": answer["label"]})

    assert "z float64[], label text" in str(tf.picture(evaluate, jnp.ones(2)))
    mapped = tf.picture(jax.vmap(lambda u: tf.apply_tesseract(part, {"u": u})), jnp.ones((3, 2)))
    assert "label text" in str(mapped) and "uint32" not in str(mapped)
    assert "fry" not in str(tf.check(tf.Problem(jnp.ones(2), evaluate)).wiring)
