"""Plans as graphs: what becomes a call, what is merged or dropped, and what is found out before anything runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import EndpointNotFound
from tesseract_flow.execute import Plan, Segment, concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close

X = np.array([0.5, -1.0, 2.0])


def part(name: str, **options: Any) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": jnp.sin(i["x"])}, {"x": X}, name=name, **options)


A, B, C = part("a"), part("b"), part("c")


def y(tesseract: FunctionTesseract, x: Any) -> Any:
    return apply_tesseract(tesseract, {"x": x})["y"]


def plan_of(fn: Any, *args: Any) -> Plan:
    return concurrent(fn).plan(*(args or (X,)))


def labels(plan: Plan) -> list[list[str]]:
    """Labels of the calls, wave by wave."""
    return [sorted(node.label for node in plan.nodes if node.wave == wave) for wave in range(1, plan.n_waves + 1)]


def test_a_chain_takes_one_wave_per_call():
    plan = plan_of(jax.value_and_grad(lambda x: jnp.sum(y(C, y(B, y(A, x))) ** 2)))
    expected = [["a.apply"], ["b.apply"], ["c.apply"], ["c.pullback"], ["b.pullback"], ["a.pullback"]]
    assert labels(plan) == expected


def test_independent_calls_share_a_wave():
    plan = plan_of(jax.value_and_grad(lambda x: jnp.sum(y(A, x) * y(B, x) + y(C, x))))
    # c's cotangent is one whatever comes out, so its pullback waits for nothing.
    assert labels(plan) == [["a.apply", "b.apply", "c.apply", "c.pullback"], ["a.pullback", "b.pullback"]]


def test_planning_runs_no_solver():
    with count_requests() as requests:
        plan_of(jax.value_and_grad(lambda x: jnp.sum(y(A, x))))
        str(concurrent(lambda x: y(A, x)).plan(X))
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 0


def test_a_plan_prints_itself():
    text = str(plan_of(jax.value_and_grad(lambda x: jnp.sum(y(B, jnp.cos(y(A, x))) ** 2))))
    assert text.splitlines() == [
        "4 calls in 4 waves, 4 segments of pure JAX",
        "  wave 1: a.apply",
        "  wave 2: b.apply",
        "  wave 3: b.pullback",
        "  wave 4: a.pullback",
    ]
    assert "  wave 1: a.apply, b.apply" in str(plan_of(lambda x: y(A, x) * y(B, x))).splitlines()
    many = plan_of(lambda x: sum(y(A, k * x) for k in range(1, 65)) * y(B, x))
    assert str(many).splitlines()[:2] == [
        "65 calls in 1 wave, 66 segments of pure JAX",
        "  wave 1: 64 \u00d7 a.apply, b.apply",
    ]


def compiled_functions(plan: Plan) -> set[Any]:
    """Those that XLA compiles for this plan. A single primitive is none: JAX has it from elsewhere."""
    return {unit.fn for unit in plan.units if isinstance(unit, Segment) and hasattr(unit.fn, "lower")}


def test_what_is_done_with_many_answers_alike_is_compiled_once():
    def fan(n: int) -> Any:
        return jax.value_and_grad(lambda x: sum(jnp.sum(jnp.sin(y(A, k * x)) ** 2) for k in range(1, n + 1)))

    plan, larger = plan_of(fan(4)), plan_of(fan(16))
    assert len(larger.units) > 3 * len(plan.units)
    assert 0 < len(compiled_functions(larger)) == len(compiled_functions(plan)) < 8


@pytest.mark.parametrize(
    "differs",
    [
        lambda k, y: y * (1.0 + k) + jnp.sin(y),  # in a scalar
        lambda k, y: jnp.sin(y) * jnp.cos(y) if k else jnp.cos(y) * jnp.cos(y),  # in an operation
        lambda k, y: (y[: 1 + k] ** 2 + 1.0).sum(),  # in a parameter
        lambda k, y: jnp.sin(y) - jnp.cos(y) if k else jnp.cos(y) - jnp.sin(y),  # in the order
        lambda k, y: (y.astype(jnp.float32 if k else jnp.float64) + 1).sum().astype(float),  # in a dtype
    ],
)
def test_segments_that_differ_are_not_taken_for_each_other(differs: Any):
    def fn(x: Any) -> Any:
        return [differs(k, y(A, x + k)) for k in range(2)]

    for ours, theirs in zip(concurrent(fn)(X), fn(X), strict=True):
        assert_close(ours, theirs, rtol=1e-15)


def test_segments_never_hold_up_a_call():
    """Pure steps are cut by what they wait for: what needs b alone is not in the segment that needs a and b."""
    plan = plan_of(lambda x: (y(C, jnp.cos(y(B, x))), jnp.cos(y(A, x)) + y(B, x)))
    assert labels(plan) == [["a.apply", "b.apply"], ["c.apply"]]
    (last,) = (node for node in plan.nodes if node.label == "c.apply")
    (feeding,) = (unit for unit in plan.units if isinstance(unit, Segment) and set(last.operands) & set(unit.outputs))
    (b_apply,) = (node for node in plan.nodes if node.label == "b.apply")
    assert set(feeding.inputs) == set(b_apply.outputs)
    assert last.producers == (b_apply.index,)


# ------------------------------------------------------------------------------------------------ merged and dropped


def _again(f: Any) -> Any:
    return lambda x: f(x) + 2.0 * f(x)


def _again_in_jit(f: Any) -> Any:
    return lambda x: f(x) + jax.jit(lambda v: f(v))(x)


def _again_in_two_jits(f: Any) -> Any:
    return lambda x: jax.jit(lambda v: f(jnp.cos(v)))(x) + jax.jit(lambda v: 2.0 * f(jnp.cos(v)))(x)


def _again_after_equal_steps(f: Any) -> Any:
    return lambda x: f(jnp.cos(x) * 2.0) + f(2.0 * jnp.cos(x))


def _again_on_a_constant(f: Any) -> Any:
    constant = jnp.asarray(X)
    return lambda x: x + jax.jit(lambda: f(constant))() + jax.jit(lambda v: v + f(constant))(x)


def _again_under_remat(f: Any) -> Any:
    return lambda x: jax.checkpoint(lambda v: jnp.sin(f(v)))(x) + f(x)


@pytest.mark.parametrize(
    "program",
    [_again, _again_in_jit, _again_in_two_jits, _again_after_equal_steps, _again_on_a_constant, _again_under_remat],
    ids=lambda program: program.__name__.strip("_"),
)
def test_equal_calls_are_one_node(program: Any):
    run = concurrent(program(lambda x: y(A, x)))
    assert labels(run.plan(X)) == [["a.apply"]]
    assert_close(run(X), program(jnp.sin)(X))


@pytest.mark.parametrize(
    "program",
    [
        lambda f: lambda x: f(x) + f(-x),
        lambda f: lambda x: f(x * 0.0) + f(x * -0.0),
        lambda f: lambda x: f(x * 1.0) + f(x - 1.0),
        lambda f: lambda x: f(x - 1.0) + f(1.0 - x),
        lambda f: lambda x: f(jnp.cumsum(x)) + f(jax.lax.cumsum(x, reverse=True)),
    ],
)
def test_different_calls_stay_apart(program: Any):
    assert len(plan_of(program(lambda x: y(A, x))).nodes) == 2


def test_unused_calls_are_dropped():
    def run(x: Any) -> Any:
        y(C, y(A, x))
        return y(B, x)

    assert labels(plan_of(run)) == [["b.apply"]]
    assert labels(plan_of(jax.grad(lambda x: jnp.sum(y(A, x))))) == [["a.pullback"]]


# ------------------------------------------------------------------------------------------------------ control flow

LOOPS = {
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0],
    "fori_loop": lambda f: lambda x: jax.lax.fori_loop(0, 2, lambda k, c: f(c), x),
    "while_loop": lambda f: lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) > 9.0, f, x),
    "cond": lambda f: lambda x: jax.lax.cond(x[0] > 0.0, f, lambda v: v, x),
    "map": lambda f: lambda x: jax.lax.map(f, jnp.stack([x, x])),
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x])),
}


READ = {
    "scan": "scan of 2: a.apply",
    "fori_loop": "scan of 2: a.apply",
    "while_loop": "while: a.apply",
    "cond": "one of: nothing or a.apply",
    "map": "scan of 2: a.apply",
    "vmap": "a.apply x 2",
}


@pytest.mark.parametrize("loop", LOOPS)
def test_calls_inside_control_flow_are_part_of_the_plan(loop: str):
    a, b = part("a"), part("b")  # not called before, so nobody knows how long they take
    run = concurrent(lambda x: LOOPS[loop](lambda v: y(a, v))(y(b, x)))
    lines = str(run.plan(X)).splitlines()
    assert lines[1:3] == ["  wave 1: b.apply", f"  wave 2: {READ[loop]}"]
    assert_close(run(X), LOOPS[loop](jnp.sin)(jnp.sin(X)))


@pytest.mark.parametrize("loop", [None, *LOOPS])
def test_missing_endpoints_are_found_while_planning(loop: str | None):
    poor = part("poor", endpoints=["apply", "abstract_eval", "jacobian_vector_product"])
    inside = LOOPS[loop] if loop not in (None, "while_loop") else lambda f: f  # JAX has no gradient of while_loop
    step = concurrent(jax.grad(lambda x: jnp.sum(inside(lambda v: y(poor, v))(y(A, x)) ** 2)))
    with (
        count_requests() as requests,
        pytest.raises(EndpointNotFound, match="'poor' has no endpoint 'vector_jacobian_product'"),
    ):
        step(X)
    assert requests.n_of("apply") == 0


def test_unused_calls_need_no_endpoint():
    poor = part("poor", endpoints=["apply", "abstract_eval"])
    assert_close(concurrent(jax.grad(lambda x: jnp.sum(jax.lax.stop_gradient(y(poor, x)) * x)))(X), jnp.sin(X))


# ------------------------------------------------------------------------------------------------------- small graphs


def test_a_loss_without_tesseracts():
    step = concurrent(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(x))))
    plan = step.plan(X)
    assert (plan.nodes, plan.n_waves, len(plan.units)) == ([], 0, 1)
    assert str(plan) == "0 calls in 0 waves, 1 segment of pure JAX"
    assert_close(step(X), (jnp.sum(jnp.sin(X)), jnp.cos(X)))


def test_empty_functions():
    assert concurrent(lambda: None)() is None
    assert concurrent(lambda x: ())(X) == ()
    assert concurrent(lambda x: {"note": "nothing"})(X) == {"note": "nothing"}
    assert_close(concurrent(lambda x: x)(X), jnp.asarray(X))
    assert_close(concurrent(lambda: jnp.ones(2))(), jnp.ones(2))
    assert_close(concurrent(lambda x: (x, x, 2.0, jnp.asarray(3.0)))(X)[3], jnp.asarray(3.0))


def test_a_call_and_nothing_else():
    run = concurrent(lambda x: y(A, x))
    assert len(run.plan(X).units) == 1
    assert_close(run(X), jnp.sin(X))


def test_effects_are_kept_and_not_merged():
    seen: list[float] = []

    def run(x: Any) -> Any:
        for _ in range(2):
            jax.debug.callback(lambda v: seen.append(float(v)), jnp.sum(y(A, x)))
        return y(B, x)

    assert_close(concurrent(run)(X), jnp.sin(X))
    jax.effects_barrier()
    assert seen == [pytest.approx(float(np.sum(np.sin(X))))] * 2
