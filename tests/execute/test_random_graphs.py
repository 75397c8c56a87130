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
from tesseract_flow.execute import Segment, concurrent
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


def _two_carries(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    """Two chains that do not wait for each other, and outputs of both."""

    def body(carry: Any, t: Any) -> Any:
        u, v = carry
        u, v = jnp.tanh(bend(ask, u) + t), jnp.sin(mix(ask, v, v + t)[0])
        return (u, v), u * v

    (u, v), stacked = jax.lax.scan(body, (a, b), jnp.linspace(0.0, 1.0, 3))
    return u + v + jnp.sum(stacked, 0)


def _reversed(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    rows = jnp.stack([a, a + b, b - a])
    carry, stacked = jax.lax.scan(lambda c, row: (jnp.tanh(c * row), bend(ask, row)), b, rows, reverse=True, unroll=2)
    return carry + jnp.sum(stacked * WEIGHTS, 0)


def _nested(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    def inner(c: Any, t: Any) -> Any:
        return jax.lax.cond(c[0] > t, lambda u: jnp.tanh(bend(ask, u)), lambda u: u + t, c), None

    def outer(c: Any, t: Any) -> Any:
        return jax.lax.scan(inner, c + t, jnp.array([-0.5, 0.5]))[0], mix(ask, c, b)[1]

    carry, stacked = jax.lax.scan(outer, a, jnp.array([0.1, 0.2]))
    return carry + stacked[1]


def _while(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    def body(state: Any) -> Any:
        k, c = state
        return k + 1, jnp.tanh(bend(ask, c) + b)

    # JAX has no reverse mode for a loop whose length is not known.
    a, b = jax.lax.stop_gradient((a, b))
    return jax.lax.while_loop(lambda state: (state[0] < 3) & (state[1][0] < 0.8), body, (0, a))[1]


def _while_asking(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    a, b = jax.lax.stop_gradient((a, b))
    return jax.lax.while_loop(
        lambda state: (jnp.sum(mix(ask, state[1], b)[0]) > -2.0) & (state[0] < 2),
        lambda state: (state[0] + 1, state[1] - 0.3),
        (0, a),
    )[1]


def _in_vmap(ask: Callable[..., Any], a: Any, b: Any) -> Any:
    def one(u: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jnp.tanh(bend(ask, c)), None), u, None, length=2)[0]

    return jnp.sum(jax.vmap(one)(jnp.stack([a + 0.0 * b, b + 0.0 * a])), 0)


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
    "scan of two": _two_carries,
    "scan reversed": _reversed,
    "scan of nothing": lambda ask, a, b: jax.lax.scan(lambda c, _: (bend(ask, c), c), a, None, length=0)[0] * b,
    "scan of the same": lambda ask, a, b: jax.lax.scan(lambda c, _: (jnp.tanh(c + bend(ask, b)), None), a, None, 2)[0],
    "scan in checkpoint": lambda ask, a, b: jax.checkpoint(
        lambda u: jax.lax.scan(
            jax.checkpoint(lambda c, _: (jnp.tanh(bend(ask, jnp.sin(c))) * b, None)), u, None, length=2
        )[0]
    )(a),
    "map": lambda ask, a, b: jnp.sum(jax.lax.map(lambda u: jnp.tanh(bend(ask, u)), jnp.stack([a * b, a, b + a])), 0),
    "fori": lambda ask, a, b: jax.lax.fori_loop(0, 2, lambda k, c: jnp.tanh(bend(ask, c) + k * b), a),
    "nested": _nested,
    "while": _while,
    "while asking": _while_asking,
    "switch": lambda ask, a, b: jax.lax.switch(
        jnp.argmax(a), [lambda u: u, lambda u: bend(ask, u), lambda u: mix(ask, u, b)[0]], a
    ),
    "scan in vmap": _in_vmap,
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


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
def test_dataflow_equals_plain_jax_forward_and_backward(request: pytest.FixtureRequest, share: float):
    @settings(
        max_examples=max(1, round(share * request.config.getoption("--graphs"))),
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
    for body in (body for loop in plan.loops for body in loop.bodies):
        check_order(body)
    known = {*plan.arguments, *plan.constants}
    waits_for: dict[int, set[int]] = {}  # slot -> nodes before it; a segment's results wait for all of its inputs
    for unit in plan.units:
        assert known.issuperset(unit.reads)
        before = set().union(*(waits_for.get(slot, set()) for slot in unit.reads))
        if not isinstance(unit, Segment):
            assert before >= set(unit.producers)
            assert unit.wave == 1 + max((plan.calls[k].wave for k in unit.producers), default=0)
            before = before | {unit.index}
        known.update(unit.outputs)
        waits_for.update(dict.fromkeys(unit.outputs, before))
    assert [unit.index for unit in plan.calls] == list(range(len(plan.calls)))
