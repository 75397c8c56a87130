"""Random programs of pure steps and Tesseract calls: as dataflow, under random delays, they equal plain JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.execute import Node, concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import RandomDelay, assert_close

X = np.array([0.4, -0.3, 0.9])
WEIGHTS = np.array([0.5, -1.5, 1.0])

# ------------------------------------------------------------------------------------------ the calls of a program

DELAY = RandomDelay(0)


def _bend(i: Any) -> Any:
    return {"y": jnp.sin(i["x"]) * (1 + i["n"]) - i["x"] ** 2}


def _mix(i: Any) -> Any:
    return {"p": jnp.tanh(i["a"] * i["b"]), "m": {"s": jnp.sum(i["a"]) - jnp.cos(i["b"])}, "note": "ok", "k": 3}


BEND = FunctionTesseract(_bend, {"x": X, "n": 1}, name="bend", before=DELAY)
MIX = FunctionTesseract(_mix, {"a": X, "b": X}, name="mix", before=DELAY)


def bend(ask: Callable[..., Any], x: Any, n: int = 1) -> Any:
    return ask(BEND, {"x": x, "n": n})["y"]


def mix(ask: Callable[..., Any], a: Any, b: Any) -> tuple[Any, Any]:
    out = ask(MIX, {"a": a, "b": b})
    return out["p"], out["m"]["s"]


def through(tesseract: FunctionTesseract, inputs: Any) -> Any:
    return apply_tesseract(tesseract, inputs)


def plain(tesseract: FunctionTesseract, inputs: Any) -> Any:
    return tesseract.fn(inputs)


# ------------------------------------------------------------------------------------------- the steps of a program


def _custom_jvp(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    @jax.custom_jvp
    def f(u: Any, v: Any) -> Any:
        return bend(ask, u) * jnp.cos(v)

    @f.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        u, v = primals
        return f(u, v), mix(ask, u, v)[0] * tangents[0] + 2.0 * tangents[1]

    return f(a, b)


def _custom_vjp(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    @jax.custom_vjp
    def f(u: Any, v: Any) -> Any:
        return jnp.cos(bend(ask, u)) + v

    f.defvjp(lambda u, v: (f(u, v), u), lambda u, c: (bend(ask, u, 2) * c, jnp.sin(c)))
    return f(a, b)


def _stacked(a: Any, b: Any) -> Any:
    return jnp.stack(jnp.broadcast_arrays(a, b))


STEPS: dict[str, Callable[..., Any]] = {
    "sin": lambda ask, a, b: jnp.sin(a),
    "scale": lambda ask, a, b: 0.5 * a,
    "add": lambda ask, a, b: a + b,
    "multiply": lambda ask, a, b: jnp.tanh(a * b),
    "constant": lambda ask, a, b: a * WEIGHTS,
    "reduce": lambda ask, a, b: jnp.sum(a) * b / 3.0,
    "bend": lambda ask, a, b: jnp.tanh(bend(ask, a)),
    "bend other": lambda ask, a, b: jnp.tanh(bend(ask, a, 2)),
    "bend constant": lambda ask, a, b: a * bend(ask, WEIGHTS),
    "mix": lambda ask, a, b: mix(ask, a, b)[0],
    "mix same": lambda ask, a, b: mix(ask, a, a)[1],
    "mix literal": lambda ask, a, b: mix(ask, a, jnp.full(3, 0.25))[0],
    "mix both": lambda ask, a, b: jnp.tanh(sum(mix(ask, a, b))),
    "jit": lambda ask, a, b: jax.jit(lambda u, v: jnp.tanh(bend(ask, u) + v))(a, b),
    "jit in jit": lambda ask, a, b: jax.jit(lambda u: jax.jit(lambda v: mix(ask, v, b)[0])(jnp.sin(u)))(a),
    "remat": lambda ask, a, b: jax.checkpoint(lambda u, v: jnp.sin(bend(ask, jnp.cos(u)) * v))(a, b),
    "scan": lambda ask, a, b: jax.lax.scan(lambda c, _: (jnp.tanh(bend(ask, c)), None), a, None, length=2)[0],
    "cond": lambda ask, a, b: jax.lax.cond(a[0] > 0.0, lambda u: jnp.sin(u), lambda u: mix(ask, u, b)[0], a),
    "custom_jvp": _custom_jvp,
    "custom_vjp": _custom_vjp,
    "vmap": lambda ask, a, b: jnp.sum(
        jax.vmap(lambda u: jnp.tanh(bend(ask, u)))(jnp.stack([a + 0.0 * b, b + 0.0 * a])), 0
    ),
    "vmap one": lambda ask, a, b: jax.vmap(lambda w: mix(ask, a, w * jnp.ones(3))[0])(jnp.arange(2.0))[1] + b,
    "scalar": lambda ask, a, b: jnp.tanh(mix(ask, a, jnp.sin(a))[1]) * b,
    "stop": lambda ask, a, b: jax.lax.stop_gradient(bend(ask, a)) * b,
}

PROGRAMS = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7
)


def loss_of(program: Any, used: Any, ask: Callable[..., Any]) -> Callable[[Any], Any]:
    """Each step takes two earlier values; the loss is a weighted sum of some of them, the others are unused."""

    def loss(x: Any) -> tuple[Any, Any]:
        values = [x, jnp.asarray(WEIGHTS)]
        for step, i, j in program:
            values.append(STEPS[step](ask, values[i % len(values)], values[j % len(values)]))
        picked = [values[k % len(values)] for k in used]
        return sum((jnp.sum(jnp.tanh(v) * WEIGHTS) for v in picked), jnp.zeros(())), (values[-1], "aux")

    return loss


def test_dataflow_equals_plain_jax_forward_and_backward(request: pytest.FixtureRequest):
    @settings(
        max_examples=request.config.getoption("--graphs"),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(PROGRAMS, st.lists(st.integers(0, 9), min_size=0, max_size=3), st.integers(0, 2**32 - 1), st.booleans())
    def check(program: Any, used: Any, seed: int, speculative: bool) -> None:
        DELAY.rng = np.random.default_rng(seed)
        gradient = jax.value_and_grad(loss_of(program, used, through), has_aux=True)
        step = concurrent(gradient, speculative=speculative)
        plan = step.plan(X)
        expected = _as_arrays(jax.value_and_grad(loss_of(program, used, plain), has_aux=True)(X))
        check_order(plan)
        # Compiling is most of the time and none of the property: other tests compile segments.
        with jax.disable_jit():
            assert_close(_as_arrays(step(X)), expected)

    check()


def _as_arrays(result: Any) -> Any:
    (value, (last, note)), gradient = result
    assert note == "aux"
    return value, last, gradient


def check_order(plan: Any) -> None:
    """Units stand in an order in which they could run one by one, and nodes know whom they wait for."""
    known = {*plan.arguments, *plan.constants}
    waits_for: dict[int, set[int]] = {}  # slot -> nodes before it; a segment's results wait for all of its inputs
    for unit in plan.units:
        inputs = [ref for ref in (unit.operands if isinstance(unit, Node) else unit.inputs) if isinstance(ref, int)]
        assert known.issuperset(inputs)
        before = set().union(*(waits_for.get(slot, set()) for slot in inputs))
        if isinstance(unit, Node):
            assert before >= set(unit.producers)
            assert unit.wave == 1 + max((plan.nodes[k].wave for k in unit.producers), default=0)
            before = before | {unit.index}
        known.update(unit.outputs)
        waits_for.update(dict.fromkeys(unit.outputs, before))
    assert [node.index for node in plan.nodes] == list(range(len(plan.nodes)))
