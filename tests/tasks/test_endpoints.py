"""The tasks for flows of one's own: the same numbers as JAX gives, and no server where none is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from tesseract_flow import errors
from tesseract_flow.client import count_requests
from tesseract_flow.tasks import apply_task, jacobian_task, pullback_task, pushforward_task
from tesseract_flow.testing import FunctionTesseract

INPUTS = {"x": np.array([1.0, 2.0, 3.0]), "a": np.float64(2.0), "n": 3}


def fn(i):
    return {"y": i["a"] * i["x"] ** 2, "s": {"sum": jnp.sum(i["x"])}}


wave = FunctionTesseract(fn, INPUTS, name="wave")


def test_each_is_one_request_and_says_what_jax_says():
    example = {key: jnp.asarray(INPUTS[key]) for key in ("x", "a")}
    outputs, pullback = jax.vjp(fn, example)
    ones = jax.tree.map(jnp.ones_like, outputs)
    with count_requests() as requests:
        y = apply_task.fn(wave, INPUTS)
        (back,) = pullback({**outputs, "y": ones["y"], "s": {"sum": jnp.zeros(())}})
        x_bar = pullback_task.fn(wave, INPUTS, {"y": np.ones(3)})
        only = pullback_task.fn(wave, INPUTS, {"y": np.ones(3), "s.sum": 0}, wrt=["x"])
        y_dot = pushforward_task.fn(wave, INPUTS, {"x": np.ones(3)})
        jacobian = jacobian_task.fn(wave, INPUTS, wrt=["x"], outputs=["y"])
    asked = dict(requests)
    asked.pop("wave.abstract_eval", None)  # by which cotangents are held against their outputs
    assert sum(asked.values()) == 5
    np.testing.assert_allclose(y["y"], outputs["y"])
    np.testing.assert_allclose(x_bar["x"], back["x"])
    np.testing.assert_allclose(x_bar["a"], back["a"])
    assert list(only) == ["x"]
    np.testing.assert_allclose(y_dot["s.sum"], 3.0)
    np.testing.assert_allclose(jacobian["y"]["x"], jax.jacobian(lambda x: fn({**example, "x": x})["y"])(example["x"]))
    # <J t, c> = <t, J^T c>
    assert np.vdot(y_dot["y"], np.ones(3)) == pytest.approx(np.vdot(np.ones(3), x_bar["x"]))


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: apply_task.fn(wave, {**INPUTS, "x": np.ones((2, 2))}), errors.InvalidInput, "x: expected shape"),
        (lambda: pullback_task.fn(wave, INPUTS, {"y": np.ones(2)}), errors.InvalidInput, r"\(3,\), got \(2,\)"),
        (lambda: pullback_task.fn(wave, INPUTS, {"y": 1.0}), errors.InvalidInput, r"expected shape \(3,\)"),
        (lambda: pullback_task.fn(wave, INPUTS, {"z": 1.0}), errors.NotDifferentiable, "Differentiable are: y, s.sum"),
        (lambda: pullback_task.fn(wave, INPUTS, {}), errors.NotDifferentiable, "No output of"),
        (lambda: pushforward_task.fn(wave, INPUTS, {"n": 1}), errors.NotDifferentiable, "no differentiable input"),
        (lambda: pushforward_task.fn(wave, INPUTS, {"x": 1.0}), errors.InvalidInput, "the tangent of x"),
        (lambda: jacobian_task.fn(wave, INPUTS, wrt="x"), errors.InvalidType, "as a list"),
        (lambda: jax.jit(lambda x: apply_task.fn(wave, {**INPUTS, "x": x}))(jnp.ones(3)), errors.InvalidType, "traced"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(ask, error, says):
    with count_requests() as requests, pytest.raises(error, match=says):
        ask()
    assert not set(requests) - {"wave.abstract_eval"}


def test_busy_server_is_given_its_time(monkeypatch):
    def busy(endpoint, inputs):
        raise errors.Overloaded("busy", retry_after=5.0)

    slept = []
    monkeypatch.setattr("tesseract_flow.tasks.endpoints.time.sleep", slept.append)
    tesseract = FunctionTesseract(fn, INPUTS, name="busy", before=busy)
    with pytest.raises(errors.Overloaded):
        apply_task.fn(tesseract, INPUTS)
    assert slept == [5.0]


def test_in_a_flow_calls_are_named_and_futures_are_edges(prefect_harness):
    @flow
    def twice():
        first = apply_task.submit(wave, INPUTS)
        second = apply_task.submit(wave, {**INPUTS, "x": first.result()["y"]}, wait_for=[first])
        return second.result(), first.task_run_id, second.task_run_id

    outputs, first, second = twice()
    np.testing.assert_allclose(outputs["y"], 2.0 * (2.0 * INPUTS["x"] ** 2) ** 2)
    with get_client(sync_client=True) as client:
        run = client.read_task_run(second)
    assert run.name == "wave.apply"
    assert [source.id for source in run.task_inputs["wait_for"]] == [first]
