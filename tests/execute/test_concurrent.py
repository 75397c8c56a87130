"""`concurrent` as a transformation: it is `jit` to the caller, mixed trees and all."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.cases import CASES, Case
from tests.helpers import assert_close

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
X = np.array([0.5, -1.0, 2.0])
SIN = FunctionTesseract(lambda i: {"y": jnp.sin(i["x"])}, {"x": X}, name="sin")


def sin(x: Any) -> Any:
    return apply_tesseract(SIN, {"x": x})["y"]


def loss_of(fn: Any) -> Any:
    return lambda x: sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree_util.tree_leaves(fn(x)))


@over_cases
def test_equals_jit_forward_and_backward(case: Case):
    step = jax.value_and_grad(loss_of(case.call))
    assert_close(concurrent(step)(case.x), jax.jit(step)(case.x), case.rtol)
    assert_close(concurrent(case.call)(case.x), case.plain(case.x), case.rtol)


def test_equals_jit_forward_mode_and_jacobians():
    batched = jax.vmap(jax.grad(lambda x: sin(x[None])[0] ** 2))
    for fn in (jax.jacfwd(sin), jax.jacrev(sin), lambda x: jax.jvp(sin, (x,), (x,)), batched):
        assert_close(concurrent(fn)(X), jax.jit(fn)(X))


# ------------------------------------------------------------------------------------------------------- mixed trees


class Design(eqx.Module):
    x: jax.Array
    material: str
    n: int
    activation: Any


def test_static_leaves_in_arguments_and_results():
    @concurrent
    def run(design: Design, *, scale: float, table: Any) -> Any:
        y = design.activation(sin(design.x)) * scale * design.n
        return {"design": design, "y": y, "note": f"{design.material} {design.n}", "table": table, "nothing": None}

    table = np.array(["a", "b"])
    design = Design(jnp.asarray(X), "steel", 3, jnp.tanh)
    out = run(design, scale=2.0, table=table)
    assert (out["note"], out["nothing"], out["design"].material, out["design"].n) == ("steel 3", None, "steel", 3)
    assert out["table"] is table
    assert out["design"].activation is jnp.tanh
    assert_close(out["y"], jnp.tanh(jnp.sin(X)) * 6.0)
    assert isinstance(out["design"].x, jax.Array)


def test_one_trace_per_structure():
    n_traces = 0

    def fn(x: Any, n: Any = 1, flag: Any = None) -> Any:
        nonlocal n_traces
        n_traces += 1
        return sin(x) * (2 if flag else 1)

    run = concurrent(fn)

    def traces_for(*args: Any, **kwargs: Any) -> int:
        before = n_traces
        run(*args, **kwargs)
        return n_traces - before

    assert traces_for(X) == 1
    assert traces_for(2.0 * X) == 0
    assert traces_for(jnp.asarray(X)) == 0
    assert traces_for(X[:2]) == 1
    assert traces_for(X.astype(np.float32)) == 1
    assert traces_for(X, 1) == 1  # another structure
    assert traces_for(X, n=1) == 1
    assert [traces_for(X, n) for n in (1, 1.0, True, -1, -2, 0.0, -0.0, np.nan, np.nan)] == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert [traces_for(X, 1, flag) for flag in ("a", "b", "a", None)] == [1, 1, 0, 1]
    assert [traces_for({"x": X}["x"], n=np.float64(k)) for k in range(3)] == [1, 0, 0]


def test_plan_and_call_share_a_trace():
    traces: list[int] = []
    run = concurrent(lambda x: (traces.append(1), sin(x))[1])
    run.plan(X)
    run(X)
    assert len(traces) == 1


def test_random_keys_and_other_arrays_pass():
    @concurrent
    def run(key: Any, mask: Any, z: Any) -> Any:
        noise = jax.random.normal(key, (3,))
        return key, sin(jnp.where(mask, noise, 0.0)), z * 2

    key, mask, z = jax.random.key(3), np.array([True, False, True]), np.array([1 + 2j])
    out_key, y, doubled = run(key, mask, z)
    assert jnp.all(jax.random.key_data(out_key) == jax.random.key_data(key))
    assert_close(y, jnp.sin(jnp.where(mask, jax.random.normal(key, (3,)), 0.0)))
    assert_close(doubled, jnp.asarray([2 + 4j]))


def test_results_are_jax_arrays_of_their_own():
    x = X.copy()
    same, y = concurrent(lambda x: (x, sin(x)))(x)
    x[:] = 7.0
    assert isinstance(same, jax.Array)
    assert isinstance(y, jax.Array)
    assert_close((same, y), (jnp.asarray(X), jnp.sin(X)))


def test_an_optimiser_step_with_state():
    optimiser = optax.sgd(0.1, momentum=0.9)

    @concurrent
    def step(x: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda x: jnp.sum(sin(x) ** 2))(x)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(x, updates), state, value

    x, state, values = jnp.asarray(X), optimiser.init(jnp.asarray(X)), []
    for _ in range(5):
        x, state, value = step(x, state)
        values.append(float(value))
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.7 * values[0]


# ---------------------------------------------------------------------------------------- inside other transformations


@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        jax.grad,
        jax.vmap,
        jax.checkpoint,
        lambda f: lambda x: jax.jvp(f, (x,), (x,)),
        lambda f: jax.jit(jax.grad(f)),
        lambda f: concurrent(jax.grad(f)),
        lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c) * c, None), x, None, length=2)[0],
        lambda f: lambda x: jax.eval_shape(f, x).shape,
    ],
)
def test_under_another_transformation_it_is_the_function_itself(transform: Any):
    x = jnp.asarray(X) if transform is jax.vmap else jnp.asarray(0.3)

    def fn(x: Any) -> Any:
        return sin(x[None])[0] ** 2

    assert_close(transform(concurrent(fn))(x), transform(lambda x: jnp.sin(x) ** 2)(x))


@pytest.mark.parametrize("outer", [jax.jit, concurrent], ids=["jit", "concurrent"])
def test_on_constants_under_another_transformation_nothing_runs_while_tracing(outer: Any):
    inner = concurrent(sin)
    constant = jnp.asarray(X)

    def fn(x: Any) -> Any:
        with count_requests() as requests:
            y = inner(constant)
        assert requests.n_of("apply") == 0
        return x + y

    assert_close(outer(fn)(X), X + jnp.sin(X))


def test_a_function_may_call_itself_through_concurrent():
    """The lock that lets one thread trace must not wait for that thread."""

    @concurrent
    def power(n: int) -> Any:
        return jnp.asarray(X) if n == 0 else sin(power(n - 1))

    assert_close(power(3), jnp.sin(jnp.sin(jnp.sin(X))))


def test_under_jit_of_grad_requests_are_those_of_the_function():
    step = jax.jit(jax.value_and_grad(concurrent(lambda x: jnp.sum(sin(x) ** 2))))
    step(X)
    with count_requests() as requests:
        step(X)
    assert dict(requests) == {"sin.apply": 1, "sin.vector_jacobian_product": 1}


# ------------------------------------------------------------------------------------------------------------- errors


def test_errors_while_tracing_leave_it_usable():
    fail = [True]

    @concurrent
    def run(x: Any) -> Any:
        if fail:
            fail.pop()
            raise LookupError("not yet")
        return sin(x)

    with pytest.raises(LookupError, match="not yet"):
        run(X)
    assert_close(run(X), jnp.sin(X))


def test_misfits_are_found_while_tracing():
    run = concurrent(lambda x: sin(x) + apply_tesseract(SIN, {"z": x})["y"])
    with count_requests() as requests, pytest.raises(ValueError, match="unknown field"):
        run(X)
    assert requests.n_of("apply") == 0


def test_precision_is_part_of_the_structure():
    run = concurrent(lambda x: jnp.zeros(2) + x.astype(float))
    single = X[:2].astype(np.float32)  # the same argument in both modes
    assert run(single).dtype == np.float64
    with jax.enable_x64(False):
        assert run(single).dtype == np.float32
    assert run(single).dtype == np.float64
