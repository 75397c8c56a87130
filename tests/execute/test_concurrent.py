"""`concurrent`: what it sends, when, and that nothing but the clock can tell it from plain JAX."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow import errors
from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import RetryPolicy, count_requests
from tesseract_flow.execute import InlineSubmitter, ThreadSubmitter, concurrent
from tesseract_flow.testing import FunctionTesseract

X = jnp.array([0.3, -1.2, 2.0])


def component(name: str = "c", factor: float = 1.0, **options) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": jnp.sin(factor * i["x"])}, {"x": np.ones(3)}, name=name, **options)


def call(tesseract, x):
    return apply_tesseract(tesseract, {"x": x})["y"]


def sum_of_squares(tesseracts):
    return lambda x: sum(jnp.sum(call(t, x * (k + 1.0)) ** 2) for k, t in enumerate(tesseracts))


def test_independent_calls_are_in_flight_together_forward_and_backward():
    """Each call waits inside the component for the three others: the test ends only if all four overlap."""
    barriers = {endpoint: threading.Barrier(4, timeout=60) for endpoint in ("apply", "vector_jacobian_product")}

    def meet(endpoint, inputs):
        if endpoint in barriers:
            barriers[endpoint].wait()

    tesseracts = [component(f"c{k}", before=meet) for k in range(4)]
    value, gradient = concurrent(jax.value_and_grad(sum_of_squares(tesseracts)))(X)
    expected = jax.value_and_grad(lambda x: sum(jnp.sum(jnp.sin(x * (k + 1.0)) ** 2) for k in range(4)))(X)
    np.testing.assert_allclose(value, expected[0], rtol=1e-14)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-13)


def test_equal_calls_are_one_request_and_unused_calls_none():
    used, unused = component("used"), component("unused")

    def loss(x):
        call(unused, x)
        return jnp.sum(call(used, jnp.cos(x)) + call(used, jnp.cos(x)))

    fn = concurrent(jax.value_and_grad(loss))
    fn.plan(X)
    with count_requests() as requests:
        fn(X)
    assert requests == {"used.apply": 1, "used.vector_jacobian_product": 1}


def test_traced_once_per_structure_and_static_leaf():
    traces = []

    @concurrent
    def fn(tree):
        traces.append(tree["mode"])
        return {"y": call(tesseract, tree["x"]), "mode": tree["mode"], "n": 3}

    tesseract = component()
    for mode in ("a", "a", "b", "a"):
        out = fn({"x": X, "mode": mode})
        assert (out["mode"], out["n"]) == (mode, 3)
    fn({"x": jnp.ones(5), "mode": "a"})
    assert traces == ["a", "b", "a"]


@pytest.mark.parametrize("order", [(0.0, 0.02, 0.04), (0.04, 0.02, 0.0)])
def test_order_of_arrival_leaves_no_trace_in_the_bits(order):
    def run(delays):
        tesseracts = [component(f"c{k}", k + 0.7, delay=delay) for k, delay in enumerate(delays)]
        return [np.asarray(leaf).tobytes() for leaf in concurrent(jax.value_and_grad(sum_of_squares(tesseracts)))(X)]

    assert run(order) == run((0.0, 0.0, 0.0))


def test_inline_and_threads_agree_bit_by_bit():
    loss = jax.value_and_grad(sum_of_squares([component("a"), component("b", 2.0)]))
    results = [concurrent(loss, submitter=submitter)(X) for submitter in (InlineSubmitter(), ThreadSubmitter(4))]
    assert [np.asarray(x).tobytes() for x in results[0]] == [np.asarray(x).tobytes() for x in results[1]]


def test_plan_names_calls_and_waves():
    first, second = component("first"), component("second")
    plan = concurrent(jax.value_and_grad(lambda x: jnp.sum(call(second, call(first, x))))).plan(X)
    waves = {node.label: node.wave for node in plan.nodes}
    # The sum's cotangent is a constant, so second's pullback needs first's outputs and nothing of second's own.
    assert waves == {"first.apply": 1, "second.apply": 2, "second.pullback": 2, "first.pullback": 3}
    assert plan.n_waves == 3
    assert "wave 1: first.apply" in str(plan)
    assert {node.endpoint for node in plan.nodes} == {"apply", "vector_jacobian_product"}


def test_first_failure_keeps_its_type_names_the_call_and_stops_the_rest():
    finished, asked = [], []

    def fail(endpoint, inputs):
        if endpoint == "apply":
            raise errors.ComponentFailed("no convergence")

    def linger(endpoint, inputs):
        if endpoint == "apply":
            release.wait(60)
            finished.append(endpoint)

    release = threading.Event()
    bad, slow = component("bad", before=fail), component("slow", before=linger)
    late = component("late", before=lambda endpoint, inputs: asked.append(endpoint))
    fn = concurrent(lambda x: call(late, call(slow, x)) + call(bad, x))
    fn.plan(X)
    asked.clear()
    threading.Timer(0.2, release.set).start()
    with pytest.raises(errors.ComponentFailed, match="no convergence") as caught:
        fn(X)
    assert any("bad.apply" in note for note in caught.value.__notes__)
    assert finished == ["apply"]  # what was under way was waited for
    assert asked == []  # what had not started did not start
    bad.before = None
    np.testing.assert_allclose(fn(X), jnp.sin(jnp.sin(X)) + jnp.sin(X))


def test_threads_repeat_transient_errors_and_no_others():
    attempts = []
    trouble = [errors.Overloaded("busy"), errors.ConnectionLost("gone")]

    def flaky(endpoint, inputs):
        if endpoint == "apply":
            attempts.append(endpoint)
            if trouble:
                raise trouble.pop()

    submitter = ThreadSubmitter(retry=RetryPolicy(n_retries=2, first_delay=0.0))
    np.testing.assert_allclose(
        concurrent(lambda x: call(component(before=flaky), x), submitter=submitter)(X), jnp.sin(X)
    )
    assert len(attempts) == 3
    attempts.clear()
    trouble.append(errors.InvalidInput("wrong"))
    with pytest.raises(errors.InvalidInput):
        concurrent(lambda x: call(component(before=flaky), x), submitter=submitter)(X)
    assert len(attempts) == 1


def test_missing_endpoint_is_found_before_any_solve():
    applied = []
    tesseract = component(
        endpoints=("apply", "abstract_eval"),
        before=lambda endpoint, inputs: applied.append(endpoint) if endpoint == "apply" else None,
    )
    with pytest.raises(NotImplementedError, match="vector_jacobian_product"):
        concurrent(jax.grad(lambda x: jnp.sum(call(tesseract, x))))(X)
    assert applied == []


def test_functions_without_tesseracts_and_with_one_inside_control_flow():
    np.testing.assert_allclose(concurrent(jax.grad(lambda x: jnp.sum(x**2)))(X), 2 * X)
    assert concurrent(lambda: 3)() == 3
    tesseract = component()

    def looped(x):
        return jnp.sum(jax.lax.scan(lambda c, _: (call(tesseract, c), None), x, None, length=3)[0])

    fn = concurrent(jax.grad(looped))
    assert fn.plan(X).nodes == []
    np.testing.assert_allclose(fn(X), jax.grad(lambda x: jnp.sum(jnp.sin(jnp.sin(jnp.sin(x)))))(X), rtol=1e-13)


def test_wrappers_around_calls_are_opened():
    tesseract = component()

    @jax.custom_jvp
    def doubled(x):
        return 2.0 * call(tesseract, x)

    doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2.0 * jnp.cos(primals[0]) * tangents[0]))

    def loss(x):
        return jnp.sum(jax.jit(jax.checkpoint(lambda z: call(tesseract, z)))(x) + doubled(x))

    fn = concurrent(jax.value_and_grad(loss))
    assert {node.label for node in fn.plan(X).nodes} == {"c.apply", "c.pullback"}
    np.testing.assert_allclose(fn(X)[1], 3.0 * jnp.cos(X), rtol=1e-13)


def test_inside_other_transformations_it_is_the_function_itself():
    fn = concurrent(lambda x: jnp.sum(call(component(), x)))
    np.testing.assert_allclose(jax.grad(fn)(X), jnp.cos(X), rtol=1e-14)
    np.testing.assert_allclose(jax.jit(fn)(X), jnp.sum(jnp.sin(X)), rtol=1e-14)
