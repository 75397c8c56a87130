"""Ten small programs, and what becomes of each: its plan, as `print(tf.concurrent(program).plan(x))` shows it.

For whoever wants to know what `concurrent` does. Three components (`wing`, `tail`, `cost`) take an `x` and give `y` and
`total`; `ask(wing, x)` is the `y` of a call. A *wave* is what may run at once; `wing.pullback` is its
`vector_jacobian_product`, `wing.pushforward` its `jacobian_vector_product`.
"""

from __future__ import annotations

import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract

X = np.ones(3)


def component(name: str) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": jnp.sin(i["x"]), "total": jnp.sum(i["x"] ** 2)}, {"x": X}, name=name)


wing, tail, cost = component("wing"), component("tail"), component("cost")


def ask(tesseract: Any, x: Any, output: str = "y") -> Any:
    return tf.apply_tesseract(tesseract, {"x": x})[output]


def chain(x):
    """One after the other, as the second needs the first."""
    return ask(tail, ask(wing, x))


def side_by_side(x):
    """At once, as neither needs the other; then a sum, which is pure JAX and compiled."""
    return ask(wing, x) + ask(tail, x)


def diamond(x):
    """Two at once, and one for both of them."""
    return ask(cost, ask(wing, x) * ask(tail, x), "total")


def backwards(x):
    """The gradient of the diamond: the same graph, and then back through it. (`cost` itself is not asked: nobody
    wants its value.)"""
    return jax.grad(diamond)(x)


def said_twice(x):
    """Equal calls are one."""
    return ask(wing, x) + 2.0 * ask(wing, x)


def not_needed(x):
    """What nobody uses is not called."""
    _ = ask(tail, x)
    return ask(wing, x)


def forwards(x):
    """A directional derivative needs no value, so both are asked at once."""
    return jax.jvp(lambda x: ask(wing, x), (x,), (x,))


def all_directions(x):
    """A Jacobian is one request, where the component has that endpoint."""
    return jax.jacrev(lambda x: ask(wing, x))(x)


def mapped(x):
    """Four elements, each a call of its own, as many at once as the handle has lanes."""
    return jax.vmap(lambda scale: ask(wing, scale * x))(jnp.arange(4.0))


def in_a_loop(x):
    """Five turns, each of which needs the one before; in a turn, two calls at once (so says the `|`)."""
    return jax.lax.fori_loop(0, 5, lambda _, x: ask(wing, x) + ask(tail, x), x)


PLANS = {
    chain: """
        2 calls in 2 waves, 0 segments of pure JAX
          wave 1: wing.apply
          wave 2: tail.apply
        """,
    side_by_side: """
        2 calls in 1 wave, 1 segment of pure JAX
          wave 1: wing.apply, tail.apply
        """,
    diamond: """
        3 calls in 2 waves, 1 segment of pure JAX
          wave 1: wing.apply, tail.apply
          wave 2: cost.apply
        """,
    backwards: """
        5 calls in 3 waves, 3 segments of pure JAX
          wave 1: wing.apply, tail.apply
          wave 2: cost.pullback
          wave 3: tail.pullback, wing.pullback
        """,
    said_twice: """
        1 call in 1 wave, 1 segment of pure JAX
          wave 1: wing.apply
        """,
    not_needed: """
        1 call in 1 wave, 0 segments of pure JAX
          wave 1: wing.apply
        """,
    forwards: """
        2 calls in 1 wave, 0 segments of pure JAX
          wave 1: wing.pushforward, wing.apply
        """,
    all_directions: """
        1 call in 1 wave, 2 segments of pure JAX
          wave 1: wing.jacobian
        """,
    mapped: """
        1 call in 1 wave, 1 segment of pure JAX
          wave 1: wing.apply x 4
        """,
    in_a_loop: """
        1 loop in 1 wave, 0 segments of pure JAX
          wave 1: scan of 5: wing.apply | tail.apply
        """,
}


@pytest.mark.parametrize("program", PLANS, ids=lambda program: program.__name__)
def test_the_plan_of(program: Any):
    assert str(tf.concurrent(program).plan(X)) == textwrap.dedent(PLANS[program]).strip()
