"""Random programs whose loops and branches have random programs in them: as dataflow they equal plain JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tesseract_flow.execute import concurrent
from tests.execute.test_random_graphs import DELAY, STEPS, WEIGHTS, X, check_order, plain, through
from tests.helpers import assert_close

Body = Callable[[Any, Any], Any]  # two vectors -> a vector


def _rows(a: Any, b: Any) -> Any:
    return jnp.stack([a, b, a - b])


def _scan(body: Body, a: Any, b: Any, **how: Any) -> Any:
    carry, stacked = jax.lax.scan(lambda c, row: ((new := body(c, row)), new * c), a, _rows(a, b), **how)
    return carry + jnp.sum(stacked * WEIGHTS[:, None], 0)


def _while(body: Body, a: Any, b: Any) -> Any:
    a, b = jax.lax.stop_gradient((a, b))  # JAX has no reverse mode for a loop whose length is not known
    return jax.lax.while_loop(
        lambda state: (state[0] < 3) & (jnp.sum(state[1]) < 1.5),
        lambda state: (state[0] + 1, body(state[1], b)),
        (0, a),
    )[1]


AROUND: dict[str, Callable[[Body, Any, Any], Any]] = {
    "scan": _scan,
    "scan reversed": lambda body, a, b: _scan(body, a, b, reverse=True),
    "scan unrolled": lambda body, a, b: _scan(body, a, b, unroll=2),
    "map": lambda body, a, b: jnp.sum(jax.lax.map(lambda row: body(row, b), _rows(a, b)), 0),
    "fori": lambda body, a, b: jax.lax.fori_loop(0, 2, lambda k, c: body(c, b + 0.1 * k), a),
    "while": _while,
    "cond": lambda body, a, b: jax.lax.cond(jnp.sum(a) > 0.2, body, lambda a, b: a - b, a, b),
    "switch": lambda body, a, b: jax.lax.switch(jnp.argmax(b), [lambda a, b: b, body, lambda a, b: body(b, a)], a, b),
    "vmap": lambda body, a, b: jnp.sum(jax.vmap(lambda row: body(row, b))(_rows(a, b)), 0),
    "checkpoint": lambda body, a, b: jax.checkpoint(body)(a, b),
    "jit": lambda body, a, b: jax.jit(body)(a, b),
}
LOOPS = ("scan", "scan reversed", "scan unrolled", "map", "fori", "while", "cond", "switch")


def run(program: Any, ask: Callable[..., Any], values: list[Any]) -> list[Any]:
    for step, i, j in program:
        a, b = values[i % len(values)], values[j % len(values)]
        if isinstance(step, str):
            values.append(STEPS[step](ask, a, b))
            continue
        kind, inner = step

        def body(u: Any, v: Any, inner: Any = inner) -> Any:
            return jnp.tanh(run(inner, ask, [u, v])[-1]) * jnp.ones(3)

        values.append(AROUND[kind](body, a * jnp.ones(3), b * jnp.ones(3)))
    return values


def _programs(steps: Any, most: int) -> Any:
    return st.lists(st.tuples(steps, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=most)


# Loops come in `AROUND`, one within another.
_SIMPLE = st.sampled_from(sorted(name for name in STEPS if not name.startswith(("scan", "nested", "while"))))
_STEP = st.recursive(_SIMPLE, lambda step: st.tuples(st.sampled_from(sorted(AROUND)), _programs(step, 2)), max_leaves=3)
_LOOP = st.tuples(st.sampled_from(LOOPS), _programs(_STEP, 2))


# In parts, each of which is done in less time than a test may take, with `--graphs 1000` on a busy machine as well.
@pytest.mark.parametrize("part", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 21))])
def test_loops_with_anything_in_them_equal_plain_jax(request: pytest.FixtureRequest, part: int):
    share = 0.05 if part else 0.02

    @seed(part + (request.config.getoption("--seed") or 0))
    @settings(
        max_examples=max(1, round(share * request.config.getoption("--graphs"))),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        _programs(_STEP, 2),
        st.tuples(_LOOP, st.integers(0, 9), st.integers(0, 9)),
        _programs(_SIMPLE, 2),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    )
    def check(before: Any, loop: Any, after: Any, delays: int, speculative: bool) -> None:
        DELAY.rng = np.random.default_rng(delays)

        def loss(ask: Callable[..., Any]) -> Callable[[Any], Any]:
            def of(x: Any) -> tuple[Any, Any]:
                values = run([*before, loop, *after], ask, [x, jnp.asarray(WEIGHTS)])
                at_loop = values[2 + len(before)]
                return jnp.sum(jnp.tanh(values[-1]) * WEIGHTS) + jnp.sum(jnp.sin(at_loop)), at_loop

            return of

        step = concurrent(jax.value_and_grad(loss(through), has_aux=True), speculative=speculative)
        check_order(step.plan(X))
        expected = jax.value_and_grad(loss(plain), has_aux=True)(X)
        with jax.disable_jit():  # compiling is most of the time and none of the property
            assert_close(step(X), expected)

    check()
