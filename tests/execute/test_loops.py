"""Loops as dataflow: calls in them are calls like any other, and iterations overlap where data allow.

That overlap is asserted by components that wait for each other, never by a clock: what does not overlap never ends.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import RetryPolicy, count_requests
from tesseract_flow.errors import ComponentFailed, Overloaded
from tesseract_flow.execute import AbstractFuture, AbstractSubmitter, Node, ThreadSubmitter, concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close

X = np.array([0.5, -1.0, 2.0])
PATIENCE = 30.0  # seconds, of a component that waits for another one; only a failure takes them


def part(name: str = "part", **options: Any) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": jnp.sin(i["x"])}, {"x": X}, name=name, **options)


def y(tesseract: FunctionTesseract, x: Any) -> Any:
    return apply_tesseract(tesseract, {"x": x})["y"]


class Labels(AbstractSubmitter):
    """Notes the label of each call and those of its producers."""

    def __init__(self) -> None:
        self.producers: dict[str, set[str]] = {}
        self._names: dict[int, str] = {}
        self._inner = ThreadSubmitter(8)

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        self.producers[node.label] = {self._names[id(producer)] for producer in producers}
        future = self._inner.submit(node, operands, producers)
        self._names[id(future)] = node.label
        return future


# ------------------------------------------------------------------------------------------------------------ overlap


def test_calls_of_a_map_are_in_flight_at_once_forward_and_backward():
    together = {endpoint: threading.Barrier(4, timeout=PATIENCE) for endpoint in ("apply", "vector_jacobian_product")}
    worker = part(before=lambda endpoint, _: together[endpoint].wait() and None if endpoint in together else None)
    rows = jnp.stack([X, 2 * X, 3 * X, 4 * X])
    value, gradient = concurrent(jax.value_and_grad(lambda v: jnp.sum(jax.lax.map(lambda x: y(worker, x), v))))(rows)
    assert_close((value, gradient), (jnp.sum(jnp.sin(rows)), jnp.cos(rows)))


def test_a_chain_does_not_wait_for_another_chain_in_the_same_loop():
    """The slow component's first call ends when the fast one has made all of its calls."""
    n_fast, is_done = 0, threading.Event()

    def count(endpoint: str, inputs: Any) -> None:
        nonlocal n_fast
        n_fast += endpoint == "apply"
        if n_fast == 5:
            is_done.set()

    fast = part("fast", before=count)
    slow = part("slow", before=lambda endpoint, _: _expect(is_done) if endpoint == "apply" else None)

    def loop(a: Any) -> Any:
        return jax.lax.scan(lambda c, _: ((y(fast, c[0]), y(slow, c[1])), None), (a, 2 * a), None, length=5)[0]

    expected = jax.lax.scan(lambda c, _: ((jnp.sin(c[0]), jnp.sin(c[1])), None), (X, 2 * X), None, length=5)[0]
    assert_close(concurrent(loop)(X), expected)


def _expect(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def test_what_does_not_need_the_carry_does_not_wait_for_it():
    """While the first iteration's carry is on its way, the next ones prepare."""
    n_prepared, are_ready = 0, threading.Event()

    def count(endpoint: str, inputs: Any) -> None:
        nonlocal n_prepared
        n_prepared += endpoint == "apply"
        if n_prepared == 3:
            are_ready.set()

    prepare = part("prepare", before=count)
    step = part("step", before=lambda endpoint, _: _expect(are_ready) if endpoint == "apply" else None)

    def loop(body: Any, rows: Any) -> Any:
        return jax.lax.scan(body, X, rows)[0]

    rows = jnp.stack([X, 2 * X, 3 * X])
    got = concurrent(lambda rows: loop(lambda c, row: (y(step, c + y(prepare, row)), None), rows))(rows)
    assert_close(got, loop(lambda c, row: (jnp.sin(c + jnp.sin(row)), None), rows))


def test_a_while_loop_that_counts_runs_ahead():
    together = threading.Barrier(3, timeout=PATIENCE)
    worker = part(before=lambda endpoint, _: together.wait() and None if endpoint == "apply" else None)

    def body(state: Any) -> Any:
        k, total = state
        return k + 1, total + y(worker, X * k)

    got = concurrent(lambda x: jax.lax.while_loop(lambda state: state[0] < 3, body, (0, x))[1])(X)
    assert_close(got, X + sum(jnp.sin(X * k) for k in range(3)))


def test_few_iterations_are_under_way_at_once():
    """Memory is bounded by what the loop keeps and by the iterations that its lanes can work on."""
    lock, n_now, n_most = threading.Lock(), 0, 0

    def enter(endpoint: str, inputs: Any) -> None:
        nonlocal n_now, n_most
        with lock:
            n_now += 1
            n_most = max(n_most, n_now)
        threading.Event().wait(0.002)
        with lock:
            n_now -= 1

    worker = part(before=enter)
    worker.n_lanes = 3
    rows = jnp.asarray(np.linspace(0.0, 1.0, 60).reshape(20, 3))
    assert_close(concurrent(lambda rows: jax.lax.map(lambda x: y(worker, x), rows))(rows), jnp.sin(rows))
    assert 2 <= n_most <= 3


# ------------------------------------------------------------------------------------------------- calls like others


def test_labels_have_the_iteration_and_producers_are_the_real_ones():
    worker, other, last = part("worker"), part("other"), part("last")

    def fn(x: Any) -> Any:
        start = y(other, x)
        carry, stacked = jax.lax.scan(lambda c, _: (y(worker, c), jnp.cos(c)), start, None, length=2)
        return y(last, carry), stacked

    submitter = Labels()
    concurrent(fn, submitter=submitter)(X)
    assert submitter.producers == {
        "other.apply": set(),
        "worker.apply [0]": {"other.apply"},
        "worker.apply [1]": {"worker.apply [0]"},
        "last.apply": {"worker.apply [1]"},
    }


def test_nested_loops_have_an_index_each_and_reversed_ones_count_down():
    worker = part("worker")

    def fn(x: Any) -> Any:
        inner = lambda c, _: (y(worker, c), None)  # noqa: E731
        return jax.lax.scan(
            lambda c, _: (jax.lax.scan(inner, c, None, length=2)[0], None), x, None, length=2, reverse=True
        )[0]

    submitter = Labels()
    concurrent(fn, submitter=submitter)(X)
    assert list(submitter.producers) == [f"worker.apply {where}" for where in ("[1][0]", "[1][1]", "[0][0]", "[0][1]")]


def test_each_iteration_sends_one_apply_and_one_pullback():
    worker = part()

    def loss(x: Any) -> Any:
        return jnp.sum(jax.lax.scan(lambda c, _: (y(worker, c), None), x, None, length=4)[0])

    step = concurrent(jax.value_and_grad(loss))
    step.plan(X)
    with count_requests() as requests:
        value, gradient = step(X)
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 4
    plain = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(jnp.sin(jnp.sin(jnp.sin(x))))))
    assert_close((value, gradient), plain(X))


def test_what_is_the_same_in_all_iterations_is_asked_once():
    worker, other = part("worker"), part("other")

    def loss(x: Any) -> Any:
        body = lambda c, _: (c * y(worker, x) + y(other, c), y(worker, 2 * x))  # noqa: E731
        carry, stacked = jax.lax.scan(body, x, None, length=3)
        return jnp.sum(carry) + jnp.sum(stacked)

    with count_requests() as requests:
        got = concurrent(jax.value_and_grad(loss))(X)
    assert requests.n_of("apply") == 2 + 3
    assert_close(got, jax.jit(jax.value_and_grad(loss))(X))


def test_only_the_branch_that_is_taken_is_asked():
    one, two = part("one"), part("two")
    choose = concurrent(lambda k, x: jax.lax.switch(k, [lambda v: y(one, v), lambda v: y(two, v), lambda v: -v], x))
    choose.plan(jnp.asarray(0), X)
    for k, (name, expected) in enumerate([("one", np.sin(X)), ("two", np.sin(X)), (None, -X)]):
        submitter = Labels()
        choose.submitter = submitter
        assert_close(choose(jnp.asarray(k), X), jnp.asarray(expected))
        assert list(submitter.producers) == ([] if name is None else [f"{name}.apply"])
    assert_close(choose(jnp.asarray(99), X), -jnp.asarray(X))  # clamped, as JAX does


def test_a_loop_that_never_runs_asks_nothing():
    worker = part()
    loop = concurrent(lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) > 1e9, lambda c: y(worker, c), x))
    empty = concurrent(lambda x: jax.lax.scan(lambda c, _: (y(worker, c), c), x, None, length=0))
    loop.plan(X), empty.plan(X)
    with count_requests() as requests:
        assert_close(loop(X), jnp.asarray(X))
        assert_close(empty(X), (jnp.asarray(X), jnp.empty((0, 3))))
    assert requests.n_total == 0


def test_retries_are_those_of_any_call():
    n_left = 2

    def busy(endpoint: str, inputs: Any) -> None:
        nonlocal n_left
        if endpoint == "apply" and n_left:
            n_left -= 1
            raise Overloaded("busy", endpoint=endpoint)

    worker = part(before=busy)
    loop = concurrent(
        lambda x: jax.lax.scan(lambda c, _: (y(worker, c), None), x, None, length=2)[0],
        submitter=ThreadSubmitter(2, RetryPolicy(n_retries=3, first_delay=0.0)),
    )
    assert_close(loop(X), jnp.sin(jnp.sin(X)))


def test_a_failure_names_the_iteration():
    def tangle(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply" and float(inputs["x"][0]) > 2.0:
            raise ComponentFailed("the mesh is tangled", endpoint=endpoint)

    worker = part("worker", before=tangle)
    rows = jnp.asarray([[1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0]])
    with pytest.raises(ComponentFailed, match="tangled") as caught:
        concurrent(lambda rows: jax.lax.map(lambda x: y(worker, x), rows))(rows)
    assert caught.value.__notes__ == ["This was worker.apply [2] in the plan.", "Its inputs: x = [3, 0, 0]."]


# ------------------------------------------------------------------------------------------------------ kinds of loop


def test_forward_mode_goes_through_loops():
    worker = part()

    def loop(f: Any) -> Any:
        return lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=3)[0]

    got = concurrent(lambda x, t: jax.jvp(loop(lambda c: y(worker, c)), (x,), (t,)))(X, 2 * X)
    assert_close(got, jax.jvp(loop(jnp.sin), (X,), (2 * X,)))


def test_random_keys_and_integers_go_through_loops():
    worker = part()

    def loop(f: Any) -> Any:
        def body(carry: Any, k: Any) -> Any:
            key, x = carry
            key, own = jax.random.split(key)
            return (key, f(x + jax.random.normal(own, (3,)) * k.astype(float))), (own, k)

        return lambda key, x: jax.lax.scan(body, (key, x), jnp.arange(3))

    key = jax.random.key(0)
    ((last, x), (keys, numbers)), ((plain_last, plain_x), (plain_keys, plain_numbers)) = (
        loop_(key, X) for loop_ in (concurrent(loop(lambda v: y(worker, v))), loop(jnp.sin))
    )
    assert_close((x, numbers), (plain_x, plain_numbers))
    assert (jax.random.key_data(last) == jax.random.key_data(plain_last)).all()
    assert (jax.random.key_data(keys) == jax.random.key_data(plain_keys)).all()


def test_elements_of_a_mapped_while_loop_end_each_at_its_own_time():
    worker = part()

    def loop(f: Any) -> Any:
        def one(x: Any, limit: Any) -> Any:
            return jax.lax.while_loop(lambda s: s[1] < limit, lambda s: (f(s[0]) + limit, s[1] + 0.5), (x, 0.0))

        return lambda x, limits: jax.vmap(one, in_axes=(None, 0))(x, limits)

    limits = jnp.array([0.5, 0.0, 2.0])
    assert_close(concurrent(loop(lambda v: y(worker, v)))(X, limits), loop(jnp.sin)(X, limits))


def test_values_are_passed_through_long_loops():
    """Thousands of iterations that only pass a value on must not fill the stack."""
    worker = part()

    def loop(f: Any) -> Any:
        def body(carry: Any, k: Any) -> Any:
            kept, x = carry
            return (kept, jax.lax.cond(k == 2999, f, lambda v: v + 1.0, x)), None

        return lambda x: jax.lax.scan(body, (x, x), jnp.arange(3000))[0]

    assert_close(concurrent(loop(lambda v: y(worker, v)))(X), loop(jnp.sin)(X))


def test_a_linear_solve_asks_what_its_solver_asks():
    worker = part()

    def solve(ask: Any, b: Any) -> Any:
        return jax.lax.custom_linear_solve(
            lambda v: 2.0 * v, b, solve=lambda _, r: r / 2.0 + 0.0 * ask(r), transpose_solve=lambda _, r: r / 2.0
        )

    run = concurrent(lambda b: solve(lambda r: y(worker, r), b))
    assert [node.label for node in run.plan(X).nodes] == ["part.apply"]
    assert_close(run(X), jnp.asarray(X) / 2.0)


def test_a_loop_without_calls_is_a_pure_step():
    plan = concurrent(lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=5)[0]).plan(X)
    assert (plan.calls, len(plan.units)) == ([], 1)


@pytest.mark.slow
def test_results_of_iterations_are_let_go():
    """A long chain of large arrays needs room for the iterations under way."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    n_most = 0

    class Counted(AbstractSubmitter):
        needs_producers = False

        def __init__(self) -> None:
            self._inner = ThreadSubmitter(1)

        def submit(self, node: Node, operands: Any, producers: Any) -> AbstractFuture:
            nonlocal n_most
            gc.collect()
            n_most = max(n_most, len(alive))
            future = self._inner.submit(node, operands, producers)
            alive.add(future)
            return future

    worker = part()
    concurrent(lambda x: jax.lax.scan(lambda c, _: (y(worker, c), None), x, None, length=12)[0], submitter=Counted())(X)
    assert n_most <= 4


# ------------------------------------------------------------------------------------------------------------- outlook


def test_the_critical_path_knows_chains_and_lanes():
    worker, other = part("worker"), part("other")
    worker.n_lanes = 4
    chain = concurrent(lambda x: jax.lax.scan(lambda c, _: (y(other, c), None), x, None, length=10)[0])
    spread = concurrent(lambda rows: jax.lax.map(lambda x: y(worker, x), rows))
    rows = jnp.ones((9, 3))
    assert chain.plan(X).critical_path is None
    chain(X), spread(rows)
    one = chain.plan(X).all_nodes[0].seconds
    assert one is not None
    expected = chain.plan(X).critical_path
    assert expected is not None
    assert expected[0] == pytest.approx(10 * one)
    one = spread.plan(rows).all_nodes[0].seconds
    expected = spread.plan(rows).critical_path
    assert one is not None and expected is not None
    assert expected[0] == pytest.approx(one * (1 + 8 / 4))
