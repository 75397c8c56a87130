"""Running plans: calls overlap, arrival order leaves no trace, and failures stop what has not begun."""

from __future__ import annotations

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
from tesseract_flow.errors import ComponentFailed, ConnectionLost, InvalidInput, OptionError, Overloaded, Unreachable
from tesseract_flow.execute import (
    AbstractFuture,
    AbstractSubmitter,
    InlineSubmitter,
    Node,
    ThreadSubmitter,
    concurrent,
    default_submitter,
)
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Faults, RandomDelay, assert_close

X = np.array([0.5, -1.0, 2.0])
N_CALLS = 5


def component(before: Any = None, name: str = "part", k: float = 1.0) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": jnp.sin(k * i["x"])}, {"x": X}, name=name, before=before)


def y(tesseract: FunctionTesseract, x: Any) -> Any:
    return apply_tesseract(tesseract, {"x": x})["y"]


class Meeting:
    """Calls that end only after `n` of them have begun: proof of overlap without clocks.

    One barrier per endpoint. Calls that run one after the other never meet, and break it.
    """

    def __init__(self, n: int, patience: float = 20.0):
        self.barriers = {
            endpoint: threading.Barrier(n, timeout=patience)
            for endpoint in ("apply", "jacobian_vector_product", "vector_jacobian_product")
        }

    def __call__(self, endpoint: str, inputs: Any) -> None:
        if endpoint in self.barriers:
            self.barriers[endpoint].wait()


def fan(parts: Sequence[FunctionTesseract]) -> Any:
    """Independent calls, forward; and backward too, because each pullback waits for the results of all."""

    def loss(x: Any) -> Any:
        values = [jnp.sum(y(part, x * (k + 1.0)) ** 2) for k, part in enumerate(parts)]
        return sum(values) ** 2

    return loss


def fan_of(n: int, before: Any) -> list[FunctionTesseract]:
    return [component(before, f"part{k}") for k in range(n)]


def plain_fan(n: int) -> Any:
    return lambda x: sum(jnp.sum(jnp.sin(x * (k + 1.0)) ** 2) for k in range(n)) ** 2


# -------------------------------------------------------------------------------------------------------- overlap


def test_independent_calls_overlap_forward_and_backward():
    step = concurrent(jax.value_and_grad(fan(fan_of(N_CALLS, Meeting(N_CALLS)))))
    assert step.plan(X).n_waves == 2
    assert_close(step(X), jax.value_and_grad(plain_fan(N_CALLS))(X))


def test_independent_pushforwards_overlap_with_each_other():
    run = concurrent(lambda x: jax.jvp(fan(fan_of(N_CALLS, Meeting(N_CALLS))), (x,), (x,)))
    assert_close(run(X), jax.jvp(plain_fan(N_CALLS), (X,), (X,)))


def test_the_proof_can_fail():
    """The same calls one after the other break the barrier."""
    step = concurrent(fan(fan_of(2, Meeting(2, patience=0.05))), submitter=InlineSubmitter())
    with pytest.raises(threading.BrokenBarrierError):
        step(X)


def test_calls_of_different_depth_overlap():
    """The second call of one chain meets the only call of another: no wave waits for a whole wave."""
    barrier = threading.Barrier(2, timeout=20.0)
    first = component(name="first")
    second, alone = (component(lambda endpoint, inputs: endpoint == "apply" and barrier.wait()) for _ in range(2))
    run = concurrent(lambda x: y(second, 2.0 * y(first, x)) + y(alone, x))
    assert_close(run(X), jnp.sin(2.0 * jnp.sin(X)) + jnp.sin(X))


def test_a_slow_call_holds_up_only_those_that_need_it():
    """`slow` ends after both links of the chain have been asked, so these cannot have waited for it."""
    chain_done = threading.Event()

    def slow_before(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            assert chain_done.wait(timeout=20.0)

    def last_before(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            chain_done.set()

    slow, link, last = component(slow_before), component(), component(last_before)
    run = concurrent(lambda x: y(slow, x) * y(last, y(link, x)))
    assert_close(run(X), jnp.sin(X) * jnp.sin(jnp.sin(X)))


def test_no_more_threads_than_allowed_are_busy():
    n_busy, most, lock = 0, 0, threading.Lock()

    def before(endpoint: str, inputs: Any) -> None:
        nonlocal n_busy, most
        with lock:
            n_busy += 1
            most = max(most, n_busy)
        delay(endpoint, inputs)
        with lock:
            n_busy -= 1

    delay = RandomDelay(3)
    step = concurrent(jax.grad(fan(fan_of(6, before))), submitter=ThreadSubmitter(n_threads=2))
    step(X)
    assert most == 2


# ------------------------------------------------------------------------------------------------- order of arrival


def test_arrival_order_does_not_change_a_bit():
    delay = RandomDelay(0, longest=4e-3)
    step = concurrent(jax.value_and_grad(fan(fan_of(N_CALLS, delay))))
    results = set()
    for seed in range(8):
        delay.rng = np.random.default_rng(seed)
        value, gradient = step(X)
        results.add((np.asarray(value).tobytes(), np.asarray(gradient).tobytes()))
    value, gradient = concurrent(step.fn, submitter=InlineSubmitter())(X)
    results.add((np.asarray(value).tobytes(), np.asarray(gradient).tobytes()))
    assert len(results) == 1


def test_threads_may_share_one_concurrent_function():
    step = concurrent(jax.value_and_grad(fan(fan_of(2, RandomDelay(1)))))
    inputs = [X * k for k in range(1, 7)]
    got: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda k=k, x=x: got.__setitem__(k, step(x))) for k, x in enumerate(inputs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    for k, x in enumerate(inputs):
        assert_close(got[k], jax.value_and_grad(plain_fan(2))(x))


# ---------------------------------------------------------------------------------------------------------- failures


class Recorded(AbstractSubmitter):
    """Keeps the labels of what it is given."""

    def __init__(self, inner: AbstractSubmitter):
        self.inner = inner
        self.labels: list[str] = []
        self.producers: dict[str, list[Any]] = {}

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        self.labels.append(node.label)
        self.producers[node.label] = [producer.result() for producer in producers]  # finished: this does not block
        return self.inner.submit(node, operands, producers)


PATIENT = RetryPolicy(n_retries=3, first_delay=0.0)


def test_the_first_failure_stops_submission_and_waits_for_what_runs():
    has_begun, has_failed, has_finished = threading.Event(), threading.Event(), threading.Event()

    def fail(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply" and not has_failed.is_set():
            assert has_begun.wait(timeout=20.0)
            has_failed.set()
            raise ComponentFailed("the mesh is tangled", endpoint=endpoint)

    def outlast(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            has_begun.set()
            assert has_failed.wait(timeout=20.0)
            delay(endpoint, inputs)
            has_finished.set()

    delay = RandomDelay(5, longest=0.2)
    bad, slow, later = component(fail, "bad"), component(outlast, "slow"), component(None, "later")
    submitter = Recorded(ThreadSubmitter())
    run = concurrent(lambda x: (y(bad, x), y(later, y(slow, x))), submitter=submitter)
    with pytest.raises(ComponentFailed, match="the mesh is tangled") as caught:
        run(X)
    assert has_finished.is_set()
    assert sorted(submitter.labels) == ["bad.apply", "slow.apply"]
    assert caught.value.__notes__[0] == "This was bad.apply, call 1 of 3 in the plan."
    assert caught.value.__notes__[1].startswith("Its inputs: ")
    assert_close(run(X), (jnp.sin(X), jnp.sin(jnp.sin(X))))


def test_inline_the_first_failure_is_the_last_call():
    parts = [component(Faults(ComponentFailed(f"fault {k}")), f"part{k}") for k in range(3)]
    with count_requests() as requests, pytest.raises(ComponentFailed, match="fault 0"):
        concurrent(fan(parts), submitter=InlineSubmitter())(X)
    assert requests.n_of("apply") == 1


def test_of_several_failures_one_is_raised_and_none_is_lost_on_the_way():
    barrier = threading.Barrier(3, timeout=20.0)
    faulty = {"on": True}

    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply" and faulty["on"]:
            barrier.wait()
            raise ComponentFailed("all at once")

    run = concurrent(fan(fan_of(3, before)))
    with pytest.raises(ComponentFailed, match="all at once"):
        run(X)
    faulty["on"] = False
    assert_close(run(X), plain_fan(3)(X))


def test_a_failing_pullback_is_named():
    part = component(Faults(ComponentFailed("no adjoint today"), endpoint="vector_jacobian_product"), "fem")
    step = concurrent(jax.value_and_grad(fan([component(), part])))
    with pytest.raises(ComponentFailed, match="no adjoint today") as caught:
        step(X)
    assert any("This was fem.pullback" in note for note in caught.value.__notes__)
    assert_close(step(X), jax.value_and_grad(plain_fan(2))(X))


def test_errors_of_any_type_arrive_as_they_are():
    step = concurrent(fan([component(Faults(KeyError("boundary")))]))
    with pytest.raises(KeyError, match="boundary"):
        step(X)


def test_a_submitter_that_fails_to_submit():
    class Refusing(AbstractSubmitter):
        def submit(self, node: Any, operands: Any, producers: Any) -> Any:
            if node.label == "part1.apply":
                raise RuntimeError("the pool is closed")
            return pool.submit(node, operands, producers)

    pool = ThreadSubmitter()
    with pytest.raises(RuntimeError, match="the pool is closed"):
        concurrent(fan(fan_of(3, RandomDelay(2))), submitter=Refusing())(X)


# ----------------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize(
    "error", [Unreachable("gone"), ConnectionLost("cut"), Overloaded("busy", retry_after=0.0)], ids=repr
)
@pytest.mark.parametrize("endpoint", ["apply", "vector_jacobian_product"])
def test_transient_errors_are_repeated(error: Exception, endpoint: str):
    part = component(Faults(error, error, endpoint=endpoint))
    step = concurrent(jax.value_and_grad(fan([part])), submitter=ThreadSubmitter(retry=PATIENT))
    with count_requests() as requests:
        assert_close(step(X), jax.value_and_grad(plain_fan(1))(X))
    assert requests.n_of(endpoint) == 3
    assert requests.n_of("apply") + requests.n_of("vector_jacobian_product") == 4


def test_transient_errors_are_not_repeated_for_ever():
    part = component(Faults(*[Unreachable(f"attempt {k}") for k in range(9)]))
    with count_requests() as requests, pytest.raises(Unreachable, match="attempt 3"):
        concurrent(fan([part]), submitter=ThreadSubmitter(retry=PATIENT))(X)
    assert requests.n_of("apply") == 4


@pytest.mark.parametrize("error", [ComponentFailed("diverged"), InvalidInput("bad"), ValueError("odd")], ids=repr)
def test_other_errors_are_not_repeated(error: Exception):
    part = component(Faults(error))
    with count_requests() as requests, pytest.raises(type(error)):
        concurrent(fan([part]), submitter=ThreadSubmitter(retry=PATIENT))(X)
    assert requests.n_of("apply") == 1


# --------------------------------------------------------------------------------------------------------- submitters


def test_submitters_are_given_finished_producers():
    first, second, third = (component(None, name) for name in ("first", "second", "third"))
    submitter = Recorded(ThreadSubmitter())
    step = concurrent(jax.grad(lambda x: jnp.sum(y(third, y(first, x) + 2.0 * y(second, x)))), submitter=submitter)
    step(X)
    a, b = np.sin(X), np.sin(X)
    np.testing.assert_allclose(submitter.producers["third.pullback"], [[a], [b]], rtol=1e-15)
    assert submitter.producers["first.apply"] == []
    # What comes back depends on the last pullback alone; the primals are arguments.
    np.testing.assert_allclose(submitter.producers["first.pullback"], [[np.cos(a + 2.0 * b)]], rtol=1e-12)


def test_operands_are_numpy_arrays():
    seen: list[Any] = []

    class Looking(InlineSubmitter):
        def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Any) -> Any:
            seen.extend(operands)
            return super().submit(node, operands, producers)

    concurrent(jax.grad(fan(fan_of(2, None))), submitter=Looking())(X)
    assert len(seen) == 6
    assert all(type(x) is np.ndarray and x.dtype == np.float64 for x in seen)


def test_literals_travel_in_their_own_dtype():
    """A Python number in a jaxpr has no dtype of its own, but the value it stands for has."""
    received: list[Any] = []

    def product(inputs: Any) -> Any:
        received.extend(inputs.values())
        return {"y": inputs["x"] * inputs["k"]}

    single = FunctionTesseract(product, {"x": np.float32(1.0), "k": np.float32(1.0)})
    seen: list[Any] = []

    class Looking(InlineSubmitter):
        def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Any) -> Any:
            seen.extend(operands)
            return super().submit(node, operands, producers)

    def run(x: Any) -> Any:
        return jax.jit(lambda k: apply_tesseract(single, {"x": x, "k": k})["y"])(2.0)

    for x64, number in (True, np.float64), (False, np.float32):
        seen.clear()
        received.clear()
        with jax.enable_x64(x64):
            assert float(concurrent(run, submitter=Looking())(jnp.asarray(3.0, np.float32))) == 6.0
        # The number keeps its dtype until the call, which casts to that of the schema if nothing is lost.
        assert sorted(str(x.dtype) for x in seen) == sorted(["float32", np.dtype(number).name])
        assert {x.dtype for x in received} == {np.dtype(np.float32)}


def test_the_default_submitter_is_one_per_process():
    assert default_submitter() is default_submitter()


# -------------------------------------------------------------------------------------------------------- batches

ROWS = np.stack([X, 2.0 * X, -X, 0.5 * X])


def mapped(part: FunctionTesseract, method: str = "concurrent") -> Any:
    return lambda x: jax.vmap(lambda row: apply_tesseract(part, {"x": row}, vmap_method=method)["y"])(x)


def test_elements_of_a_batch_are_calls_of_their_own():
    submitter = Recorded(ThreadSubmitter())
    part = component(Meeting(len(ROWS)), "part")
    run = concurrent(jax.grad(lambda x: jnp.sum(mapped(part)(x) ** 2)), submitter=submitter)
    assert_close(run(ROWS), jax.grad(lambda x: jnp.sum(jnp.sin(x) ** 2))(jnp.asarray(ROWS)))
    assert sorted(submitter.labels) == sorted(
        f"part.{verb} [{k}]" for verb in ("apply", "pullback") for k in range(len(ROWS))
    )


def test_sequential_elements_wait_for_each_other():
    asked: list[float] = []

    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            assert busy.acquire(blocking=False)
            asked.append(float(inputs["x"][0]))
            busy.release()

    busy = threading.Lock()
    assert_close(concurrent(mapped(component(before), "sequential"))(ROWS), jnp.sin(ROWS))
    assert asked == [float(row[0]) for row in ROWS]


def test_a_lost_element_is_asked_again_and_the_others_are_not():
    part = component(Faults(ConnectionLost("gone"), ConnectionLost("gone again")), "part")
    run = concurrent(mapped(part, "sequential"), submitter=ThreadSubmitter(retry=PATIENT))
    with count_requests() as requests:
        assert_close(run(ROWS), jnp.sin(ROWS))
    assert requests.n_of("apply") == len(ROWS) + 2


def test_a_failing_element_is_named_and_stops_the_rest():
    n_asked = 0

    def before(endpoint: str, inputs: Any) -> None:
        nonlocal n_asked
        n_asked += endpoint == "apply"
        if endpoint == "apply" and inputs["x"][0] == ROWS[1, 0]:
            raise ComponentFailed("diverged")

    with pytest.raises(ComponentFailed, match="diverged") as caught:
        concurrent(mapped(component(before), "sequential"))(ROWS)
    assert "This was element 1 of part.apply x 4, call 1 of 1 in the plan." in caught.value.__notes__
    assert n_asked == 2


def test_an_empty_batch_runs_nothing():
    with count_requests() as requests:
        assert_close(concurrent(mapped(component()))(ROWS[:0]), jnp.zeros((0, 3)))
    assert requests.n_of("apply") == 0


# ------------------------------------------------------------------------------------------ settings of the executor


def test_abandoned_calls_are_not_waited_for():
    go_on, has_begun = threading.Event(), threading.Event()

    def fail(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            assert has_begun.wait(timeout=20.0)
            raise ComponentFailed("tangled")

    def outlast(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            has_begun.set()
            assert go_on.wait(timeout=20.0)

    run = concurrent(lambda x: y(component(fail), x) + y(component(outlast), x), on_failure="abandon")
    try:
        with pytest.raises(ComponentFailed, match="tangled"):
            run(X)  # would wait for ever otherwise
    finally:
        go_on.set()


def test_calls_that_wait_for_a_thread_are_taken_back():
    part = component(Faults(ComponentFailed("tangled")))
    others = fan_of(3, None)
    with count_requests() as requests, pytest.raises(ComponentFailed, match="tangled"):
        concurrent(fan([part, *others]), submitter=ThreadSubmitter(n_threads=1))(X)
    assert requests.n_of("apply") < 4


def test_unknown_settings_are_refused():
    with pytest.raises(OptionError, match="expected 'wait' or 'abandon'"):
        concurrent(lambda x: x, on_failure="ignore")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"submitter='threads'; expected an object such as ThreadSubmitter\(\)"):
        concurrent(lambda x: x, submitter="threads")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function"):
        concurrent(3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, -3.0, 0.0])
def test_speculative_pullbacks_run_beside_their_apply(scale: float):
    total = FunctionTesseract(lambda i: {"y": jnp.sum(jnp.sin(i["x"]) * i["w"])}, {"x": X, "w": X}, name="total")

    def loss(x: Any, w: Any) -> Any:
        return scale * apply_tesseract(total, {"x": y(component(name="part"), x), "w": w})["y"] ** 2

    def plain(x: Any, w: Any) -> Any:
        return scale * jnp.sum(jnp.sin(jnp.sin(x)) * w) ** 2

    gradient = jax.value_and_grad(loss, (0, 1))
    careful, speculative = concurrent(gradient), concurrent(gradient, speculative=True)
    assert careful.plan(X, X).n_waves == 4
    assert [[node.label for node in speculative.plan(X, X).nodes if node.wave == k] for k in (1, 2, 3)] == [
        ["part.apply"],
        ["total.apply", "total.pullback"],
        ["part.pullback"],
    ]
    with count_requests() as requests:
        assert_close(speculative(X, X), jax.value_and_grad(plain, (0, 1))(X, X))
    assert requests.n_total == (4 if scale else 3)  # 1 is pulled back whatever comes of it, and then 0 not


def test_what_was_pulled_back_for_nothing_is_zero_whatever_it_is():
    steep = FunctionTesseract(lambda i: {"y": jnp.sum(jnp.sqrt(i["x"]))}, {"x": X}, name="steep")
    run = concurrent(jax.grad(lambda x, scale: scale * y(steep, x)), speculative=True)
    assert run(np.zeros(3), np.array(0.0)).tolist() == [0.0, 0.0, 0.0]
    assert np.isinf(run(np.zeros(3), np.array(2.0))).all()


def test_speculation_leaves_vectors_and_single_precision_alone():
    part = FunctionTesseract(lambda i: {"y": jnp.sum(i["x"] ** 2)}, {"x": np.ones(3, np.float32)}, name="single")
    run = concurrent(jax.grad(lambda x: jnp.sin(y(part, x))), speculative=True)
    x = jnp.array([0.1, 0.2, 0.3], np.float32)
    assert_close(run(x), jax.grad(lambda x: jnp.sin(jnp.sum(x**2)))(x), 1e-6)
    vector = concurrent(jax.grad(lambda x: jnp.sum(y(component(), x) ** 2)), speculative=True)
    assert vector.plan(X).n_waves == 2


def test_values_are_dropped_with_their_last_reader():
    """A chain of large arrays needs room for a few of them, however long it is."""
    alive: list[Any] = []

    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            most.append(sum(ref() is not None for ref in alive))

    class Tracking(ThreadSubmitter):
        def submit(self, node: Node, operands: Any, producers: Any) -> AbstractFuture:
            future = super().submit(node, operands, producers)
            future.add_done_callback(lambda f: alive.append(weakref.ref(f.result()[0])))
            return future

    most: list[int] = []
    part = component(before)

    def chain(x: Any) -> Any:
        for _ in range(10):
            x = y(part, x)
        return x

    concurrent(chain, submitter=Tracking())(np.linspace(0.0, 1.0, 1000))
    assert len(most) == 10
    assert max(most) <= 2


def test_the_plan_knows_how_long_calls_took():
    parts = [FunctionTesseract(lambda i: {"y": jnp.sin(i["x"])}, {"x": X}, name=f"p{k}", delay=0.02) for k in range(2)]
    run = concurrent(fan(parts))
    assert run.plan(X).critical_path is None
    assert "critical path" not in str(run.plan(X))
    run(X)
    plan = run.plan(X)
    assert plan.critical_path is not None
    seconds, path = plan.critical_path
    assert seconds >= 0.02
    assert len(path) == 1
    assert "critical path: " in str(plan)
    assert str(plan).count(" ms)") + str(plan).count(" s)") >= 2
