"""Steps of the host that are no calls: run by the thread that runs the plan, one by one, wherever they are written."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.execute import HostPrimitive, InlineSubmitter, ThreadSubmitter, concurrent, make_plan, run_plan
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close

sine_p = HostPrimitive("sine")


@sine_p.def_abstract_eval
def _(x: Any, scale: float) -> list[Any]:
    return [x]


def sine(x: Any, scale: float = 1.0) -> Any:
    return sine_p.bind(x, scale=scale)[0]


X = jnp.array([0.5, -1.0, 2.0])
WORKER = FunctionTesseract(lambda i: {"y": jnp.cos(i["x"])}, {"x": np.zeros(3)}, name="worker")


def _cosine(x: Any) -> Any:
    return apply_tesseract(WORKER, {"x": x})["y"]


def _while(f: Callable[[Any], Any], x: Any) -> Any:
    return jax.lax.while_loop(
        lambda c: (jnp.sum(f(c[1])) < 5.0) & (c[0] < 4), lambda c: (c[0] + 1, f(c[1]) + 1), (0, x)
    )


def _nested(f: Callable[[Any], Any], x: Any) -> Any:
    def body(c: Any, k: Any) -> Any:
        c = jax.lax.cond(k > 1, lambda c: f(c) * k, lambda c: c - 1, c)
        return c, jax.lax.fori_loop(0, 2, lambda i, z: f(z) + 1, c)

    return jax.lax.scan(body, x, jnp.arange(4.0), reverse=True)


PROGRAMS: dict[str, Callable[[Callable[..., Any], Any], Any]] = {
    "in a row": lambda f, x: (f(f(x)) + f(2 * x), f(x, scale=3.0)),
    "of a constant": lambda f, x: f(jnp.asarray(2.0)) * x,
    "jit and checkpoint": lambda f, x: jax.jit(lambda x: jax.checkpoint(f)(x) + 1)(x),
    "custom vmap": lambda f, x: jax.custom_batching.sequential_vmap(lambda x: f(x))(x),
    "while": _while,
    "nested": _nested,
    "the same in each iteration": lambda f, x: jax.lax.scan(lambda c, _: (c + f(x), f(c)), x, None, length=3),
    "map": lambda f, x: jax.lax.map(f, jnp.stack([x, 2 * x, 3 * x])),
}


def _run(fn: Callable[..., Any], x: Any, host: Callable[..., Any], submitter: Any = None) -> list[Any]:
    plan = make_plan(jax.make_jaxpr(fn)(x))
    return run_plan(plan, [x], submitter or InlineSubmitter(), host_fns={sine_p: host})


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("has_calls", [False, True], ids=["alone", "beside calls"])
def test_they_are_dataflow_wherever_they_are_written(name: str, has_calls: bool):
    def program(f: Callable[..., Any], g: Callable[..., Any]) -> Callable[[Any], Any]:
        def of_a_call(x: Any, scale: float = 1.0) -> Any:
            answer = g(jnp.broadcast_to(x, (3,)))
            return f(answer if x.ndim else answer[0], scale=scale)

        return lambda x: (PROGRAMS[name](f, x), PROGRAMS[name](of_a_call, x) if has_calls else x)

    asked: list[Any] = []

    def host(x: Any, scale: float) -> list[Any]:
        assert threading.current_thread() is here
        assert not isinstance(x, jax.core.Tracer)
        asked.append(x)
        return [jnp.sin(scale * x)]

    here = threading.current_thread()
    plain = program(lambda x, scale=1.0: jnp.sin(scale * x), jnp.cos)(X)
    assert_close(_run(program(sine, _cosine), X, host, ThreadSubmitter(4)), jax.tree.leaves(plain))
    assert asked


def test_each_is_run_once_and_in_the_order_in_which_its_operands_are_known():
    """Trial after trial, as a line search has them: none is run ahead of the one that decides about it."""
    asked: list[float] = []

    def host(x: Any, scale: float) -> list[Any]:
        asked.append(float(x))
        return [x]

    def search(x: Any) -> Any:
        return jax.lax.while_loop(lambda c: sine(c) < 5.0, lambda c: sine(c + 1.0) + 1.0, x)

    (found,) = _run(search, jnp.asarray(0.0), host)
    assert float(found) == 6.0
    assert asked == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_equal_ones_are_run_as_often_as_they_are_written_unless_no_one_reads_them():
    asked: list[Any] = []

    def twice(x: Any) -> Any:
        sine(5 * x)
        return sine(x) + sine(x)

    _run(twice, X, lambda x, scale: asked.append(x) or [x])
    assert len(asked) == 2


def test_a_branch_that_is_not_taken_is_not_run():
    def fn(x: Any) -> Any:
        return jax.lax.cond(x.sum() > 100.0, sine, lambda x: x, x)

    (same,) = _run(fn, X, lambda x, scale: pytest.fail("nobody asked for it"))
    assert_close(same, X)


def test_an_error_comes_as_itself_with_its_own_way():
    error = ValueError("too far")

    def failing(x: Any, scale: float) -> list[Any]:
        raise error

    with pytest.raises(ValueError, match="too far") as caught:
        _run(lambda x: jax.lax.fori_loop(0, 3, lambda k, c: sine(c), x), X, failing)
    assert caught.value is error and error.__cause__ is None and not hasattr(error, "__notes__")
    assert traceback.extract_tb(error.__traceback__)[-1].name == "failing"


def test_another_plan_can_be_run_inside_one_on_the_same_threads():
    """One thread for all calls: who waited in it for another call would wait for ever."""
    submitter = ThreadSubmitter(1)
    inside = concurrent(lambda x: _cosine(x) + _cosine(2 * x), submitter=submitter)

    def fn(x: Any) -> Any:
        return jax.lax.fori_loop(0, 2, lambda k, c: sine(c) + _cosine(c), x) + _cosine(x)

    def by_hand(x: Any) -> Any:
        c = x
        for _ in range(2):
            c = jnp.cos(c) + jnp.cos(2 * c) + jnp.cos(c)
        return c + jnp.cos(x)

    (found,) = _run(fn, X, lambda x, scale: [inside(x)], submitter)
    assert_close(found, by_hand(X))


def test_they_are_no_calls():
    plan = make_plan(jax.make_jaxpr(lambda x: sine(x) + _cosine(sine(x)))(X))
    assert [node.label for node in plan.calls] == ["worker.apply"]
    assert str(plan).startswith("1 call in 1 wave")


def test_where_only_a_compiler_gets_they_are_refused():
    def fn(x: Any) -> Any:
        return jax.lax.reduce(x, jnp.asarray(0.0), lambda a, b: sine(a) + b, (0,))

    with pytest.raises(NotImplementedError, match="'sine' is run on the host, which is out of reach in 'reduce'"):
        make_plan(jax.make_jaxpr(fn)(X))
