"""Calls that leave their process: the component goes along as an address, the requests come back with the answer."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import (
    HttpTesseract,
    MemoryCache,
    RetryPolicy,
    ServedTesseract,
    count_requests,
    open_tesseract,
    own_requests,
)
from tesseract_flow.errors import ComponentFailed, NotServed, Unreachable
from tesseract_flow.execute import AbstractFuture, AbstractSubmitter, Answer, InlineSubmitter, Node, concurrent
from tesseract_flow.execute.submit import on_the_spot
from tests.client.helpers import PROBE

X = np.array([0.5, -1.0, 2.0])


@pytest.fixture(scope="module")
def served() -> Iterator[ServedTesseract]:
    handle = ServedTesseract(PROBE, n_workers=2)
    yield handle
    handle.stop()


class Posted(AbstractSubmitter):
    """Each call is pickled, and runs as what comes out of it: what another process would do, in this one."""

    def __init__(self, n_failures: int = 0):
        self.n_failures = n_failures

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        copy = pickle.loads(pickle.dumps(node))
        assert copy.label == node.label and copy.account is None

        def attempts() -> Answer:
            for _ in range(self.n_failures):
                copy.run(operands)  # an attempt whose answer was lost
            return copy.run(operands)

        return on_the_spot(attempts)


def loss(handle: Any) -> Any:
    def of(x: Any) -> Any:
        first = apply_tesseract(handle, {"x": x})["y"]
        return jnp.sum(apply_tesseract(handle, {"x": jax.vmap(jnp.sin)(first)})["y"] * x)

    return jax.value_and_grad(of)


def run(handle: Any, submitter: AbstractSubmitter) -> tuple[Any, dict[str, int]]:
    with own_requests() as counts:
        found = concurrent(loss(handle), submitter=submitter)(X)
    return found, {name: n for name, n in counts.items() if not name.endswith("abstract_eval")}  # asked once for all


def test_numbers_and_counts_are_those_of_calls_that_stay(served):
    here, elsewhere = run(served, InlineSubmitter()), run(served, Posted())
    np.testing.assert_array_equal(here[0][1], elsewhere[0][1])
    assert here[0][0] == elsewhere[0][0]
    assert here[1] == elsewhere[1] == {"probe.apply": 2, "probe.vector_jacobian_product": 2}


def test_attempts_count_and_so_do_blocks_around(served):
    with own_requests() as outer:
        _, counts = run(served, Posted(n_failures=1))
    assert counts == {"probe.apply": 4, "probe.vector_jacobian_product": 4}
    assert outer.n_solves == 8


def test_what_wraps_a_component_goes_along(served):
    handle = open_tesseract(served, cache=MemoryCache())
    assert run(handle, Posted())[0][0] == run(served, InlineSubmitter())[0][0]


def test_a_limit_that_all_processes_count_goes_along(served, tmp_path):
    here, limited = run(served, InlineSubmitter()), open_tesseract(served, max_in_flight=1, limit_folder=tmp_path)
    away = run(limited, Posted())
    assert away[0][0] == here[0][0] and away[1] == here[1]
    assert (tmp_path / "place-1").exists()


def test_an_error_brings_its_bill(served):
    handle = open_tesseract(served.url, label="gone", retry=RetryPolicy(n_retries=0))
    plan = concurrent(lambda x: apply_tesseract(handle, {"x": x})["y"]).plan(X)
    (node,) = plan.nodes
    away = pickle.loads(pickle.dumps(node))
    gone = HttpTesseract("http://127.0.0.1:1", label="probe", retry=RetryPolicy(n_retries=0))
    gone.learn_schema(served.schema)
    object.__setattr__(away.call, "tesseract", gone)
    with pytest.raises(Unreachable) as caught:
        away.run([X])
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.requests == {"probe.apply": 1}  # type: ignore[attr-defined]

    class Failing(AbstractSubmitter):
        def submit(self, node: Node, operands: Any, producers: Any) -> AbstractFuture:
            def fail() -> Any:
                error = ComponentFailed("no")
                error.requests = {"probe.apply": 3}  # type: ignore[attr-defined]
                raise error

            return on_the_spot(fail)

    with own_requests() as counts, pytest.raises(ComponentFailed):
        concurrent(lambda x: apply_tesseract(handle, {"x": x})["y"], submitter=Failing())(X)
    assert dict(counts) == {"probe.apply": 3}


def test_what_cannot_leave_says_so(served):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core import Tesseract

        local = Tesseract.from_tesseract_api(PROBE)
    with pytest.raises(NotServed, match="lives in this process"):
        run(local, Posted())
    with pytest.raises(NotServed, match="max_in_flight"):
        run(open_tesseract(served, max_in_flight=1), Posted())


class Processes(AbstractSubmitter):
    def __init__(self, pool: ProcessPoolExecutor):
        self.pool = pool

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        return self.pool.submit(Node.run, node, operands)


@pytest.mark.slow
def test_other_processes(served):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        here, elsewhere = run(served, InlineSubmitter()), run(served, Processes(pool))
        with count_requests() as all_of_them:
            run(served, Processes(pool))
    np.testing.assert_array_equal(here[0][1], elsewhere[0][1])
    assert here[1] == elsewhere[1] == dict(all_of_them)
