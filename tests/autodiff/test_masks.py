"""A masked array has a number behind its mask that nobody meant: no way to a component, or into a problem, uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched

MASKED = np.ma.masked_array([1.0, 1e20, 3.0], mask=[0, 1, 0])


def total():
    return Watched(FunctionTesseract(lambda i: {"e": jnp.sum(i["x"])}, {"x": np.ones(3)}))


def call(t, x):
    return tf.apply_tesseract(t, {"x": x})["e"]


WAYS = {
    "eager": lambda t: call(t, MASKED),
    "concurrent": lambda t: tf.concurrent(lambda: call(t, MASKED))(),
    "argument of concurrent": lambda t: tf.concurrent(lambda x: call(t, x))(MASKED),
    "jit": lambda t: jax.jit(lambda: call(t, MASKED))(),
    "grad": lambda t: jax.grad(lambda a: a * call(t, MASKED))(1.0),
    "raw": lambda t: t.apply({"x": MASKED}),
    "raw, in a list": lambda t: t.apply({"x": [np.float64(1.0), np.ma.masked]}),
    "raw cotangent": lambda t: t.vector_jacobian_product({"x": np.ones(3)}, ["x"], ["e"], {"e": np.ma.masked}),
    "raw tangent": lambda t: t.jacobian_vector_product({"x": np.ones(3)}, ["x"], ["e"], {"x": MASKED}),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_a_component_uses_what_is_behind_a_mask(way):
    t = total()
    with pytest.raises(tf.errors.InvalidInput, match="mask"):
        WAYS[way](t)
    assert not t.requests


def varying(**kwargs):
    return tf.Problem({"x": np.ones(3)}, lambda d: tf.Evaluation(jnp.sum(d["x"] ** 2), {"c": d["x"]}), **kwargs)


PROBLEMS = {
    "start": lambda: tf.Problem({"x": MASKED}, lambda d: jnp.sum(d["x"] ** 2)),
    "fixed": lambda: tf.Problem(
        {"x": np.ones(3), "c": MASKED}, lambda d: jnp.sum(d["x"] ** 2), vary={"x": True, "c": False}
    ),
    "bounds": lambda: varying(bounds=({"x": MASKED}, None)),
    "scale": lambda: varying(scale={"x": MASKED}),
    "limit": lambda: varying(constraints={"c": tf.Constraint(lower=MASKED)}),
}


@pytest.mark.parametrize("place", PROBLEMS)
def test_a_problem_refuses_what_is_masked(place):
    with pytest.raises(tf.errors.OptimizationError, match="mask"):
        tf.optimize(PROBLEMS[place](), stop={"max_steps": 1})
