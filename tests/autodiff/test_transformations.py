"""Every transformation of JAX around a Tesseract gives what it gives around the same function in plain JAX.

Through a component behind HTTP, through tesseract-core's own handle and in process; eagerly, compiled, and as a
dataflow graph.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tesseract_core import Tesseract

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import ServedTesseract, open_tesseract
from tesseract_flow.errors import SecondDerivative
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close

CUBIC = Path(__file__).parent / "components" / "cubic" / "tesseract_api.py"
X = np.array([0.3, -0.2, 0.5])
T = np.array([1.0, -2.0, 0.5])
ROWS = np.stack([X, 2.0 * X, -X, T])

Fn = Callable[[Any], Any]  # of a vector


def plain(x: Any, scale: float = 1.0) -> Any:
    return scale * x**3 + jnp.sum(x)


@pytest.fixture(scope="module")
def handles() -> Iterator[dict[str, Any]]:
    served = open_tesseract(CUBIC)
    assert isinstance(served, ServedTesseract)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tesseract-core's remarks about itself
        core = Tesseract.from_tesseract_api(CUBIC)
    function = FunctionTesseract(lambda i: {"y": plain(i["x"], i["scale"])}, {"x": X, "scale": 1.0}, name="cubic")
    yield {"served": served, "core": core, "function": function}
    served.stop()


def loss_of(f: Fn) -> Fn:
    return lambda x: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree_util.tree_leaves(f(x)))


def grad(f: Fn) -> Fn:
    return jax.grad(loss_of(f))


# ------------------------------------------------------------------------------------------------- the transformations
# f, a function of vectors -> a function of a vector, whose results are compared.


def _custom_jvp(f: Fn) -> Fn:
    @jax.custom_jvp
    def g(x: Any) -> Any:
        return f(x)

    @g.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return g(*primals), 3.0 * tangents[0]

    return g


def _custom_vjp(f: Fn) -> Fn:
    @jax.custom_vjp
    def g(x: Any) -> Any:
        return f(x)

    g.defvjp(lambda x: (f(x), f(2.0 * x)), lambda residuals, y_bar: (residuals * y_bar,))
    return g


class Module(eqx.Module):
    weight: jax.Array
    name: str
    f: Fn

    def __call__(self, x: Any) -> Any:
        return self.f(x * self.weight)


def _filtered(f: Fn) -> Fn:
    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def value_and_grad(module: Module, x: Any) -> Any:
        y = module(x)
        return jnp.sum(y**2), {"y": y, "name": module.name}

    def run(x: Any) -> Any:
        (value, aux), gradient = value_and_grad(Module(jnp.asarray(T), "beam", f), x)
        return value, aux["y"], gradient.weight

    return run


WRAPPERS: dict[str, Callable[[Fn], Fn]] = {
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, w: (f(c) * w, f(c)), x, jnp.array([1.0, 2.0])),
    "scan_of_vmap": lambda f: (
        lambda x: jax.lax.scan(lambda c, _: (jax.vmap(f)(c), None), jnp.stack([x, T]), None, 2)[0]
    ),
    "fori_loop": lambda f: lambda x: jax.lax.fori_loop(0, 3, lambda k, c: f(c), x),
    "cond": lambda f: lambda x: jax.lax.cond(x[0] > 0.0, lambda v: f(v), lambda v: 2.0 * v, x),
    "switch": lambda f: lambda x: jax.lax.switch(1, [lambda v: v, lambda v: f(2.0 * v)], x),
    "map": lambda f: lambda x: jax.lax.map(f, jnp.stack([x, 2.0 * x])),
    "checkpoint": lambda f: jax.checkpoint(lambda x: jnp.sin(f(x))),
    "nested_jit": lambda f: lambda x: jax.jit(lambda v: 2.0 * jax.jit(f)(v))(x) + x,
    "custom_jvp": _custom_jvp,
    "custom_vjp": _custom_vjp,
    "vmap": lambda f: lambda x: jax.vmap(f)(x * ROWS),
}
TRANSFORMS: dict[str, Callable[[Fn], Fn]] = {
    **{f"grad_of_{name}": lambda f, wrap=wrap: jax.value_and_grad(loss_of(wrap(f))) for name, wrap in WRAPPERS.items()},
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.asarray(T),)),
    "vjp": lambda f: lambda x: jax.vjp(f, x)[1](jnp.asarray(T)),
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "linearize": lambda f: lambda x: [jax.linearize(f, x)[0], jax.linearize(f, x)[1](jnp.asarray(T))],
    "linear_transpose_of_jvp": lambda f: lambda x: jax.linear_transpose(lambda t: jax.jvp(f, (x,), (t,))[1], x)(x),
    "linear_transpose_of_vjp": lambda f: lambda x: jax.linear_transpose(lambda c: jax.vjp(f, x)[1](c)[0], x)(x),
    "vmap_of_grad": lambda f: lambda x: jax.vmap(grad(f))(x * ROWS),
    "vmap_of_jacrev": lambda f: lambda x: jax.vmap(jax.jacrev(f))(x * ROWS),
    "jacfwd_of_vmap": lambda f: jax.jacfwd(lambda x: jax.vmap(f)(x * ROWS)),
    "vmap_of_vmap": lambda f: lambda x: jax.vmap(jax.vmap(f))(jnp.stack([x * ROWS, ROWS])),
    "vmap_of_jvp_along": lambda f: lambda x: jax.vmap(lambda t: jax.jvp(f, (x,), (t,))[1])(jnp.asarray(ROWS)),
    "while_loop": lambda f: lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 50.0, f, jnp.abs(x)),
    "jvp_of_while_loop": lambda f: (
        lambda x: jax.jvp(
            lambda v: jax.lax.while_loop(lambda c: jnp.sum(c) < 50.0, f, v), (jnp.abs(x),), (jnp.asarray(T),)
        )
    ),
    "by_tangent": lambda f: lambda x: jax.grad(lambda t: jnp.sum(jax.jvp(f, (x,), (t,))[1] ** 2))(x),
    "by_cotangent": lambda f: lambda x: jax.grad(lambda c: jnp.sum(jax.vjp(f, x)[1](c)[0] ** 2))(x),
    "along_cotangents": lambda f: lambda x: jax.jacfwd(lambda c: jax.vjp(f, x)[1](c)[0])(x),
    "auxiliary": lambda f: lambda x: jax.grad(lambda v: (jnp.sum(f(v)), f(v)), has_aux=True)(x),
    "eqx_filter_jit_grad": _filtered,
}


@functools.cache
def expected(name: str) -> Any:
    return jax.jit(TRANSFORMS[name](lambda x: plain(x, 2.0)))(jnp.asarray(X))


def _run(run: Fn, outer: str) -> Any:
    return {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}[outer](run)(jnp.asarray(X))


@pytest.mark.parametrize(
    ("through", "outer"),
    [
        *(("function", outer) for outer in ("eager", "jit", "concurrent")),
        *(pytest.param("served", outer, marks=pytest.mark.server) for outer in ("eager", "jit")),
        ("core", "jit"),
    ],
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_equals_plain_jax(name: str, through: str, outer: str, handles: dict[str, Any]):
    def f(x: Any) -> Any:
        return apply_tesseract(handles[through], {"x": x, "scale": 2.0})["y"]

    assert_close(_run(TRANSFORMS[name](f), outer), expected(name), 1e-11)


@pytest.mark.server
@pytest.mark.parametrize("outer", ["eager", "jit", "concurrent"])
def test_hessian_is_refused_and_the_next_call_works(outer: str, handles: dict[str, Any]):
    def f(x: Any) -> Any:
        return jnp.sum(apply_tesseract(handles["served"], {"x": x})["y"])

    with pytest.raises(SecondDerivative, match="Second derivative requested of Tesseract"):
        _run(jax.hessian(f), outer)
    assert_close(_run(jax.grad(f), outer), jax.grad(lambda x: jnp.sum(plain(x)))(jnp.asarray(X)))
