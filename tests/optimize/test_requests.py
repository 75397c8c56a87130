"""A run counts the requests that it has caused itself, on whatever threads they are sent, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.autodiff import compiled_for_all
from tesseract_flow.client import count_requests, own_requests
from tesseract_flow.execute import AbstractFuture, AbstractSubmitter, InlineSubmitter, Node, concurrent
from tesseract_flow.optimize import MaxRequests, MaxSteps, Observer, Problem, optimize
from tesseract_flow.testing import FunctionTesseract

N_RUNS = 10
X = np.array([0.5, -1.0, 2.0])
ENDPOINTS = ("apply", "abstract_eval", "vector_jacobian_product")


class OwnThreads(AbstractSubmitter):
    """Somebody's own submitter, which knows nothing of contexts."""

    needs_producers = False

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(8)

    def submit(self, node: Node, operands: Any, producers: Any) -> AbstractFuture:
        return self.pool.submit(node.run, operands)


def component(name: str = "part", endpoints: Any = ENDPOINTS, **options: Any) -> FunctionTesseract:
    return FunctionTesseract(
        lambda i: {"y": jnp.sin(i["x"]) + i["x"] ** 2}, {"x": X}, name=name, endpoints=endpoints, **options
    )


def square(tesseract: Any, x: Any) -> Any:
    return jnp.sum(tf.apply_tesseract(tesseract, {"x": x})["y"] ** 2)


def plainly(tesseract: Any) -> Callable[[Any], Any]:
    return lambda design: square(tesseract, design["x"])


def mapped(tesseract: Any) -> Callable[[Any], Any]:
    """Several calls at once, on threads that a call makes."""
    return lambda design: jnp.sum(jax.vmap(lambda x: square(tesseract, x))(jnp.stack([design["x"], 2.0 * design["x"]])))


@jax.jit
def _long(x: jax.Array) -> jax.Array:
    """`x`, after so much work that XLA does it on threads of its own, and calls back from there."""
    wide = jnp.broadcast_to(jax.lax.stop_gradient(x)[0], (700, 700))
    return x + 0.0 * (wide @ wide)[0, 0]


def compiled(tesseract: Any) -> Callable[[Any], Any]:
    """A function that is compiled once and called by everybody."""
    shared = jax.jit(lambda x: square(tesseract, _long(x)))
    return lambda design: shared(design["x"])


def asynchronous(tesseract: Any) -> Callable[[Any], Any]:
    return lambda design: square(tesseract, _long(design["x"]))


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "eager": lambda: lambda fn: fn,
    "jit": lambda: jax.jit,
    "concurrent": lambda: concurrent,
    "one by one": lambda: lambda fn: concurrent(fn, submitter=InlineSubmitter()),
    "threads of somebody": lambda: lambda fn: concurrent(fn, submitter=SOMEBODYS),
}
SOMEBODYS = OwnThreads()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "evaluate", "each"),
    [
        ("eager", compiled, 1),
        ("jit", asynchronous, 1),
        ("jit", compiled, 1),
        ("jit", mapped, 2),
        ("concurrent", mapped, 2),
        ("concurrent", compiled, 1),
        ("one by one", plainly, 1),
        ("threads of somebody", mapped, 2),
    ],
)
def test_ten_runs_in_ten_threads_count_their_own(transform: str, evaluate: Any, each: int):
    begun = threading.Barrier(N_RUNS, timeout=60.0)
    # Shared by all runs, and busy with others while it answers each.
    objective = evaluate(component())

    def run(k: int) -> tf.Result:
        problem = Problem({"x": jnp.asarray(X)}, objective)
        begun.wait()
        return optimize(problem, "sgd", learning_rate=1e-3, stop=MaxSteps(1 + k % 4), transform=TRANSFORMS[transform]())

    with count_requests() as everything, ThreadPoolExecutor(N_RUNS) as pool:
        results = list(pool.map(run, range(N_RUNS)))
    assert [result.requests for result in results] == [2 * each * result.evaluations for result in results]
    assert [result.evaluations for result in results] == [2 + k % 4 for k in range(N_RUNS)]
    assert sum(result.requests for result in results) == everything.n_solves
    assert all(
        [record.requests for record in result.history] == [2 * each * (k + 1) for k in range(result.steps + 1)]
        for result in results
    )


def test_a_limit_is_that_of_the_run():
    tesseract = component()
    problem = Problem({"x": jnp.asarray(X)}, plainly(tesseract))
    busy, enough = threading.Event(), threading.Event()

    def others() -> None:
        while not enough.is_set():
            tesseract.apply({"x": X})
            busy.set()

    thread = threading.Thread(target=others)
    thread.start()
    try:
        assert busy.wait(20.0)
        result = optimize(problem, "sgd", learning_rate=1e-3, stop=MaxRequests(9))
    finally:
        enough.set()
        thread.join()
    assert result.reason == "maximum number of requests reached (10 of 9)"
    assert (result.requests, result.evaluations) == (10, 5)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_call_that_was_made_while_preparing_counts(transform: str):
    silent = component(endpoints=("apply", "vector_jacobian_product"))
    with count_requests() as everything:
        result = optimize(
            Problem({"x": jnp.asarray(X)}, plainly(silent)),
            "sgd",
            learning_rate=1e-3,
            stop=MaxSteps(4),
            transform=TRANSFORMS[transform](),
        )
    assert result.requests == everything.n_total


def test_probes_of_derived_endpoints_count():
    poor = tf.open_tesseract(component(endpoints=("apply", "abstract_eval")), derive="forward")
    with count_requests() as everything:
        result = optimize(Problem({"x": jnp.asarray(X)}, plainly(poor)), "sgd", learning_rate=1e-3, stop=MaxSteps(2))
    assert result.requests == everything.n_solves == everything.n_of("apply") > 3 * 3


def test_callbacks_of_somebody_else_count():
    """They run on threads that nobody knows; of several runs, each would count them."""
    tesseract = component(endpoints=("apply",))

    def evaluate(design: Any) -> Any:
        x = jax.lax.stop_gradient(design["x"])
        y = jax.pure_callback(lambda x: tesseract.apply({"x": x})["y"], x, _long(x))
        return jnp.sum((design["x"] - y) ** 2)

    result = optimize(Problem({"x": jnp.asarray(X)}, evaluate), "sgd", learning_rate=1e-3, stop=MaxSteps(3))
    assert result.requests == result.evaluations == 4


def test_what_is_compiled_for_a_run_that_has_ended_is_charged_to_nobody():
    tesseract = component()
    total = jax.jit(lambda x: square(tesseract, _long(x)))
    problem = Problem({"x": jnp.asarray(X)}, lambda design: total(design["x"]))
    for _ in range(2):  # the second one uses what was compiled for the first
        result = optimize(problem, "sgd", learning_rate=1e-3, stop=MaxSteps(2), transform=lambda fn: fn)
        assert result.requests == 6
    with own_requests() as requests, compiled_for_all():
        jax.block_until_ready(total(X))
    assert requests["part.apply"] == 1


def test_a_run_within_a_run_counts_for_both():
    within: list[int] = []

    def another(record: Any, design: Any, evaluation: Any) -> None:
        problem = Problem({"x": jnp.asarray(X)}, plainly(component()))
        within.append(optimize(problem, "sgd", stop=MaxSteps(0)).requests)

    problem = Problem({"x": jnp.asarray(X)}, plainly(component()))
    alone = optimize(problem, "sgd", learning_rate=1e-3, stop=MaxSteps(2))
    result = optimize(problem, "sgd", learning_rate=1e-3, stop=MaxSteps(2), observers=[Observer(on_step=another)])
    (each,) = set(within)
    assert [record.requests for record in result.history] == [
        record.requests + k * each for k, record in enumerate(alone.history)
    ]
