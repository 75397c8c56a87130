"""J·0 and Jᵀ·0 are zero, and nobody is asked for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.autodiff.zeros import is_zero
from tesseract_flow.client import RequestCounts, count_requests, open_tesseract
from tesseract_flow.execute import AbstractFuture, AbstractSubmitter, InlineSubmitter, Node, concurrent
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close

OUTER: dict[str, Callable[..., Any]] = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}
outers = pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
PRODUCTS = ("apply", "abstract_eval", "jacobian_vector_product", "vector_jacobian_product")
X = np.array([0.4, -0.3, 0.9])
NAMES = ("a", "b", "c")


def bent(k: int) -> Callable[[Any], Any]:
    return lambda x: jnp.sin((k + 1.0) * x) + jnp.sum(x**2)


def component(k: int, endpoints: Sequence[str] = PRODUCTS, **options: Any) -> FunctionTesseract:
    fn = bent(k)
    return FunctionTesseract(lambda i: {"y": fn(i["x"])}, {"x": X}, name=NAMES[k], endpoints=endpoints, **options)


def ask(tesseract: Any, x: Any, **options: Any) -> Any:
    return apply_tesseract(tesseract, {"x": x}, **options)["y"]


def n_products(requests: RequestCounts) -> int:
    return requests.n_of("jacobian_vector_product") + requests.n_of("vector_jacobian_product")


# -------------------------------------------------------------------------------------------------- what is zero


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.complex64, np.complex128]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements=st.sampled_from([0.0, 0.0, 0.0, -0.0, 1e-7, np.nan, np.inf]),
    ),
    st.booleans(),
)
def test_zero_is_what_compares_equal_to_it(array: np.ndarray, is_transposed: bool):
    array = array.T[::2] if is_transposed and array.ndim else array
    assert is_zero(array) == bool((array == 0).all())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex128, ml_dtypes.bfloat16])
@pytest.mark.parametrize("n", [1, 3000])
def test_one_entry_of_any_kind_is_enough(dtype: Any, n: int):
    dtype = np.dtype(dtype)
    part = np.dtype(np.float64) if dtype.kind == "c" else dtype
    smallest = np.array(1, f"u{part.itemsize}").view(part).astype(dtype)
    for where in (0, n // 2, n - 1):
        array = np.full(n, -0.0, dtype)
        assert is_zero(array) and is_zero(np.broadcast_to(array[:1], (n, 2)))
        for value in (np.nan, np.inf, -1.0, smallest):
            array[where] = value
            assert not is_zero(array)


@outers
def test_the_smallest_number_is_something_on_every_way(outer: Any):
    """On XLA's threads it compares equal to zero."""
    part = component(0)
    with count_requests() as requests:
        outer(lambda c: jax.vjp(lambda x: ask(part, x), X)[1](c))(np.array([0.0, 5e-324, 0.0]))
    assert n_products(requests) == 1


# ------------------------------------------------------------------------------------- three independent components


def side_by_side(parts: Sequence[Any], **options: Any) -> Callable[[Any], Any]:
    return lambda x: jnp.concatenate([ask(part, x[k], **options) for k, part in enumerate(parts)])


def with_value(mode: Any, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return mode(lambda x: (f(x),) * 2, has_aux=True)


def plain(x: Any) -> Any:
    return jnp.concatenate([bent(k)(x[k]) for k in range(3)])


ALL = np.stack([X, 2.0 * X, -X])


@outers
@pytest.mark.parametrize("method", [None, "concurrent", "sequential", "auto_experimental"])
@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
def test_jacobians_of_independent_components_ask_for_their_own_rows(mode: Any, method: Any, outer: Any):
    with count_requests() as requests:
        got = outer(with_value(mode, side_by_side([component(k) for k in range(3)], vmap_method=method)))(ALL)
    assert_close(got, with_value(mode, plain)(jnp.asarray(ALL)))
    assert n_products(requests) == 9
    assert all(requests[f"{name}.apply"] == 1 for name in NAMES)


@pytest.mark.slow
@outers
@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize(
    ("have", "derive", "n"),
    [
        ("jacobian", True, {jax.jacrev: 9, jax.jacfwd: 9}),
        ("vector_jacobian_product", True, {jax.jacrev: 9, jax.jacfwd: 9 * 3}),  # a column is made of three rows
        ("jacobian_vector_product", True, {jax.jacrev: 9 * 3, jax.jacfwd: 9}),
        (None, "central", {jax.jacrev: 9 * 6, jax.jacfwd: 9 * 2}),  # a row is made of differences along each input
    ],
)
def test_derived_products_of_zero_have_no_probes(have: Any, derive: Any, n: Any, mode: Any, outer: Any):
    endpoints = ["apply", "abstract_eval", *([have] if have else [])]
    parts = [open_tesseract(component(k, endpoints), derive=derive) for k in range(3)]
    with count_requests() as requests:
        got = outer(with_value(mode, side_by_side(parts, materialize_jacobian=False)))(ALL)
    assert_close(got, with_value(mode, plain)(jnp.asarray(ALL)), 1e-12 if have else 1e-8)
    assert (requests.n_of(have) if have else requests.n_of("apply") - 3) == n[mode]


@outers
def test_a_batch_in_one_request_is_none_if_it_is_all_zero(outer: Any):
    room = ArrayField("float64", None, True)
    part = component(0, inputs={"x": room}, outputs={"y": room})

    def weighted(w: Any) -> Any:
        f = jax.vmap(lambda x: jnp.sin(2.0 * x))  # elementwise, as what takes a leading dimension is
        return lambda x: jnp.sum(w * f(jax.vmap(lambda u: ask(part, u, vmap_method="broadcast_all"))(x)))

    for w, n in ((0.0, 0), (1.0, 1)):
        with count_requests() as requests:
            got = outer(lambda x, w: jax.grad(weighted(w))(x))(ALL, np.array(w))
        assert n_products(requests) == n
        assert requests.n_of("apply") == 1
        assert np.any(np.asarray(got)) == bool(w)


# ------------------------------------------------------------------------------------------------------- one by one


@outers
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_products_of_zero_are_zeros_like_the_others(zero: float, outer: Any):
    part = Watched(
        FunctionTesseract(
            lambda i: {"y": i["z"] * i["x"][:, None].astype(complex), "s": jnp.sum(i["x"])},
            {"x": np.ones(3, np.float32), "z": np.ones(2, np.complex128)},
        )
    )
    x, z = np.ones(3, np.float32), np.ones(2, np.complex128)
    f = lambda x, z: apply_tesseract(part, {"x": x, "z": z})  # noqa: E731

    def both(scale: Any) -> Any:
        y, pull = jax.vjp(f, x, z)
        y_bar = jax.tree.map(lambda leaf: jnp.full_like(leaf, scale), y)
        x_dot = jax.tree.map(lambda leaf: jnp.full_like(leaf, scale), (jnp.asarray(x), jnp.asarray(z)))
        return pull(y_bar), jax.jvp(f, (x, z), x_dot)[1]

    run = outer(both)
    like = run(jnp.array(1.0))
    part.requests.clear()
    got = run(jnp.array(zero))
    assert {endpoint for endpoint, _ in part.requests} <= {"apply"}
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), like
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got))


@outers
@pytest.mark.parametrize("something", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_zero(something: float, outer: Any):
    part = component(0)
    vector = np.array([0.0, something, 0.0])
    with count_requests() as requests:
        outer(lambda c: jax.vjp(lambda x: ask(part, x), X)[1](c))(vector)
        outer(lambda t: jax.jvp(lambda x: ask(part, x), (X,), (t,))[1])(vector)
    assert n_products(requests) == 2


@outers
def test_a_component_that_cannot_be_differentiated_here_is_not_asked_to(outer: Any):
    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "vector_jacobian_product" and inputs["x"][0] < 0:
            raise ArithmeticError("no adjoint beyond the wall")

    part = component(0, before=before)
    relu = outer(jax.grad(lambda x: jnp.sum(jnp.where(x > 0, 1.0, 0.0) * ask(part, x))))
    assert relu(-np.ones(3)).tolist() == [0.0, 0.0, 0.0]
    assert relu(np.ones(3)).any()
    with pytest.raises(Exception, match="no adjoint beyond the wall"):
        jax.block_until_ready(relu(np.array([-1.0, 1.0, 1.0])))


@outers
def test_products_of_zero_can_be_differentiated_by_what_is_zero(outer: Any):
    """Jᵀ·c is linear in c, at c = 0 as well."""
    part = component(0)

    def pulled(c: Any) -> Any:
        return jax.vjp(lambda x: ask(part, x), X)[1](c)[0]

    got = outer(jax.jacfwd(pulled))(np.zeros(3))
    assert_close(got, jax.jacobian(bent(0))(X).T)


def test_outputs_without_a_derivative_do_not_move_where_nothing_does():
    frozen = {"k": ArrayField("float64", (None,), False)}
    for endpoints, materialized in ((PRODUCTS, None), ((*PRODUCTS, "jacobian"), True)):
        part = FunctionTesseract(lambda i: {"y": i["x"], "k": i["x"]}, {"x": X}, endpoints=endpoints, outputs=frozen)

        def f(x: Any, z: Any, part: Any = part, materialized: Any = materialized) -> Any:
            return apply_tesseract(part, {"x": x}, materialize_jacobian=materialized)["k"][0] + z

        columns = jax.jacfwd(lambda xz: f(xz[:3], xz[3]))(np.append(X, 1.0))
        assert np.isnan(columns[:3]).all()
        assert columns[3] == 1.0


# -------------------------------------------------------------------------------------------------------- in a plan


class Counting(AbstractSubmitter):
    """Counts what takes a thread, or in a flow a task."""

    needs_producers = False

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.inline = InlineSubmitter()

    def submit(self, node: Node, operands: Any, producers: Sequence[AbstractFuture]) -> AbstractFuture:
        self.labels.append(node.label)
        return self.inline.submit(node, operands, producers)


def test_zeros_take_no_thread_and_no_task_and_no_time():
    submitter = Counting()
    parts = [component(k) for k in range(3)]
    run = concurrent(with_value(jax.jacrev, side_by_side(parts)), submitter=submitter)
    run(ALL)
    assert sorted(submitter.labels) == sorted(
        [f"{name}.apply" for name in NAMES]
        + [f"{name}.pullback [{3 * k + j}]" for k, name in enumerate(NAMES) for j in range(3)]
    )
    pulled = [node for node in run.plan(ALL).nodes if "pullback" in node.label]
    seconds = [node.seconds for node in pulled]
    concurrent(jax.grad(lambda x: 0.0 * jnp.sum(side_by_side(parts)(x))))(ALL)
    assert [node.seconds for node in pulled] == seconds  # what took no time says nothing about the component


@outers
@pytest.mark.parametrize("unroll", [1, 2])
def test_in_loops(unroll: int, outer: Any):
    part = component(0)

    def rows(ask: Callable[[Any], Any], x: Any) -> Any:
        """Of five calls in a loop, the loss takes two."""
        _, stacked = jax.lax.scan(lambda c, t: (c, ask(c + t)), x, jnp.arange(5.0), unroll=unroll)
        return jnp.sum(stacked[1] * stacked[3])

    with count_requests() as requests:
        got = outer(jax.grad(lambda x: rows(lambda u: ask(part, u), x)))(jnp.asarray(X))
    assert_close(got, jax.grad(lambda x: rows(bent(0), x))(jnp.asarray(X)))
    assert n_products(requests) == 2


def test_threads_share_nothing_of_it():
    """Elements of a batch at once, some of them zero: each answer in its own row."""
    met = threading.Barrier(2, timeout=20.0)

    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "vector_jacobian_product":
            met.wait()

    part = component(0, before=before)
    weights = np.array([0.0, 1.0, 0.0, 2.0, 0.0])
    xs = np.outer(np.arange(1.0, 6.0), X)
    got = jax.grad(lambda xs: jnp.sum(weights[:, None] * jax.vmap(lambda x: ask(part, x))(xs)))(xs)
    expected = jax.grad(lambda xs: jnp.sum(weights[:, None] * jax.vmap(bent(0))(xs)))(jnp.asarray(xs))
    assert_close(got, expected)


# ----------------------------------------------------------------------------------------------- programs at random

MIX = FunctionTesseract(
    lambda i: {"p": jnp.tanh(i["a"] * i["b"]), "s": jnp.sum(i["a"]) - jnp.cos(i["b"])},
    {"a": X, "b": X},
    name="mix",
    endpoints=PRODUCTS,
)


class Nonzero:
    """Counts products that are asked along zeros: none may be."""

    def __init__(self, tesseract: Any):
        self.watched = Watched(tesseract)

    def check(self) -> None:
        for endpoint, payload in self.watched.requests:
            vectors = payload.get("tangent_vector", payload.get("cotangent_vector"))
            assert vectors is None or any(np.any(v) for v in vectors.values()), endpoint
        self.watched.requests.clear()


STEPS: dict[str, Callable[..., Any]] = {
    "mix": lambda mix, a, b: mix(a, b)[0],
    "other": lambda mix, a, b: jnp.tanh(mix(b, a)[1]),
    "masked": lambda mix, a, b: jnp.where(jnp.arange(3) < 1, 0.0, 1.0) * mix(a, a)[0] + b,
    "switched off": lambda mix, a, b: a + 0.0 * mix(a, b)[1],
    "behind a wall": lambda mix, a, b: jnp.maximum(mix(a, b)[0], 2.0) + b,  # tanh stays below
    "first of a map": lambda mix, a, b: jax.lax.map(lambda u: mix(u, b)[0], jnp.stack([a, b, a * b]))[1],
    "one of a vmap": lambda mix, a, b: jax.vmap(lambda u: mix(u, b)[0])(jnp.stack([a, b, a * b]))[2],
    "all of a vmap": lambda mix, a, b: jnp.sum(jax.vmap(lambda u: mix(u, b)[1])(jnp.stack([a, b])), 0),
    "add": lambda mix, a, b: a - b,
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
@outers
def test_random_programs_equal_plain_jax_and_ask_along_no_zeros(outer: Any, mode: Any):
    guarded = Nonzero(MIX)

    def through(a: Any, b: Any) -> Any:
        out = apply_tesseract(guarded.watched, {"a": a, "b": b})
        return out["p"], out["s"]

    def directly(a: Any, b: Any) -> Any:
        out = MIX.fn({"a": a, "b": b})
        return out["p"], out["s"]

    def program(steps: Any, mix: Any) -> Any:
        def run(x: Any) -> Any:
            values = [x, jnp.asarray([0.5, -1.5, 1.0])]
            for step, i, j in steps:
                values.append(STEPS[step](mix, values[i % len(values)], values[j % len(values)]))
            return jnp.concatenate([values[-1], values[len(values) // 2]])

        return run

    @settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(
        st.lists(
            st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4
        )
    )
    def check(steps: Any) -> None:
        got = outer(mode(program(steps, through)))(X)
        guarded.check()
        assert_close(got, mode(program(steps, directly))(jnp.asarray(X)))

    check()
