"""`vmap` and many directions at one point: the right numbers, and how many requests they cost by each method."""

from __future__ import annotations

import threading
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.autodiff.call import VmapMethod
from tesseract_flow.client import count_requests
from tesseract_flow.errors import ComponentFailed, EndpointNotFound, InvalidAnswer, InvalidInput, OptionError
from tesseract_flow.execute import concurrent
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Watched, assert_close

ANY = ArrayField("float64", None, True)
X = np.arange(12.0).reshape(4, 3) / 7.0
B = np.array([1.0, 2.0, 3.0])

METHODS = (None, *get_args(VmapMethod))
ELEMENTWISE = (None, "concurrent", "sequential")  # a request per element whatever the schema says
OUTER = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}
outers = pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
methods = pytest.mark.parametrize("method", METHODS)


def plain(x: Any, b: Any) -> Any:
    return x * b + jnp.sin(x)


def component(shape: ArrayField | None = None, **options: Any) -> FunctionTesseract:
    fields = {} if shape is None else {"inputs": {"x": shape, "b": shape}, "outputs": {"y": shape}}
    return FunctionTesseract(lambda i: {"y": plain(i["x"], i["b"])}, {"x": B, "b": B}, **fields, **options)


def through(tesseract: Any, method: Any = None, **options: Any) -> Any:
    return lambda x, b: apply_tesseract(tesseract, {"x": x, "b": b}, vmap_method=method, **options)["y"]


def loss(f: Any) -> Any:
    return lambda x, b: jnp.sum(f(x, b) ** 2)


# ------------------------------------------------------------------------------------------ methods, and their requests


@outers
@methods
def test_any_rank_is_one_request_each_way(method: Any, outer: Any):
    tesseract = component(ANY, name="any")
    n = 4 if method in ELEMENTWISE else 1
    with count_requests() as requests:
        got = outer(jax.vmap(jax.value_and_grad(loss(through(tesseract, method)), (0, 1)), (0, None)))(X, B)
    assert_close(got, jax.vmap(jax.value_and_grad(loss(plain), (0, 1)), (0, None))(jnp.asarray(X), jnp.asarray(B)))
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == n
    assert requests.n_of("abstract_eval") <= 3  # of one element; of batches of x; of batches of x and b


@outers
@pytest.mark.parametrize("method", [None, "auto", "concurrent", "sequential", "auto_experimental"])
def test_fixed_rank_is_a_request_per_element(method: Any, outer: Any):
    tesseract = component(name="fixed")
    with count_requests() as requests:
        got = outer(jax.grad(lambda x, b: loss(jax.vmap(through(tesseract, method), (0, None)))(x, b), (0, 1)))(X, B)
    assert_close(got, jax.grad(loss(plain), (0, 1))(jnp.asarray(X), jnp.asarray(B)))
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 4
    assert requests.n_of("abstract_eval") == 1


@pytest.mark.parametrize("method", ["expand_dims", "broadcast_all"])
def test_promised_batches_without_room_are_refused_before_any_solve(method: Any):
    with (
        count_requests() as requests,
        pytest.raises(InvalidInput, match=f"vmap_method='{method}'(?s:.*)no room(?s:.*)'x'(?s:.*)'concurrent'"),
    ):
        jax.vmap(through(component(name="fixed"), method), (0, None))(X, B)
    assert requests.n_of("apply") == 0


@pytest.mark.parametrize(
    ("method", "shape"),
    [("expand_dims", (1, 3)), ("broadcast_all", (4, 3)), ("auto_experimental", (1, 3)), ("auto", (1, 3))],
)
def test_what_is_not_mapped_gets_a_dimension_too(method: Any, shape: tuple[int, ...]):
    tesseract = Watched(component(ANY, name="any"))
    jax.vmap(through(tesseract, method), (0, None))(X, B)
    (payload,) = tesseract.payloads("apply")
    assert payload["inputs"]["x"].shape == (4, 3)
    assert payload["inputs"]["b"].shape == shape


@pytest.mark.parametrize(
    ("fn", "x_shape", "b_shape"),
    [
        (lambda x, b: jnp.sum(x, axis=0) + 0.0 * b, (2, 2), (2,)),  # over what would be the batch
        (lambda x, b: jnp.sum(x) + jnp.sum(b), (3,), (3,)),  # no batch comes back
        (lambda x, b: x * b, (2, 2), (2,)),  # (2, 2, 2) * (2, 2) is something else than two times (2, 2) * (2)
    ],
)
@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0)])
def test_auto_finds_out_what_would_go_wrong_in_one_request(fn: Any, x_shape: Any, b_shape: Any, in_axes: Any):
    """With a batch as long as everything else, where a wrong answer would have the right shape."""
    rng = np.random.default_rng(0)
    tesseract = FunctionTesseract(
        lambda i: {"y": fn(i["x"], i["b"])}, {"x": X, "b": B}, inputs={"x": ANY, "b": ANY}, outputs={"y": ANY}
    )
    n = x_shape[0]
    x, b = (rng.normal(size=(n, *s) if axis == 0 else s) for s, axis in zip((x_shape, b_shape), in_axes, strict=True))
    for method in ("auto", "auto_experimental"):
        got = jax.vmap(through(tesseract, method), in_axes)(x, b)
        assert_close(got, jax.vmap(fn, in_axes)(jnp.asarray(x), jnp.asarray(b)))


MIXING = {
    "largest": lambda x: x / jnp.max(jnp.abs(x)),
    "mean": lambda x: x - x.mean(),
    "mean along the first axis": lambda x: x - x.mean(0),
    "cumsum": lambda x: jnp.cumsum(x, axis=0),
    "reversed": lambda x: x[::-1],
    "sorted": lambda x: jnp.sort(x, axis=0),
    "softmax": lambda x: jax.nn.softmax(x, axis=0),
}


@outers
@pytest.mark.parametrize("fn", MIXING.values(), ids=MIXING)
def test_components_that_look_along_the_first_axis_are_asked_one_by_one(fn: Any, outer: Any):
    """Shapes of one request for all are right, and its numbers are of the whole batch: x / max was 0.025 for 0.25."""
    tesseract = FunctionTesseract(lambda i: {"y": fn(i["x"])}, {"x": B}, inputs={"x": ANY}, outputs={"y": ANY})
    x = np.asarray([[3.0, -1.0, 2.0], [0.5, 10.0, 4.0], [1.0, 2.0, -7.0]])

    def square(f: Any) -> Any:
        return jax.vmap(jax.value_and_grad(lambda x: jnp.sum(f(x) ** 2 * B)))

    def called(x: Any) -> Any:
        return apply_tesseract(tesseract, {"x": x})["y"]

    assert_close(outer(square(called))(x), square(fn)(jnp.asarray(x)))
    assert_close(outer(lambda x: jax.lax.map(called, x, batch_size=2))(x), jax.vmap(fn)(jnp.asarray(x)))


def test_a_component_that_fails_on_batches_is_asked_one_by_one():
    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "abstract_eval" and len(inputs["x"]["shape"]) > 1:
            raise ComponentFailed("expected a vector")

    tesseract = component(ANY, before=before)
    assert_close(jax.vmap(through(tesseract, "auto"), (0, None))(X, B), plain(jnp.asarray(X), B))


def test_a_broken_promise_is_named():
    tesseract = FunctionTesseract(
        lambda i: {"y": jnp.sum(i["x"])}, {"x": B}, name="total", inputs={"x": ANY}, outputs={"y": ANY}
    )
    with pytest.raises(InvalidAnswer, match=r"'total' answered 'apply'(?s:.*)\(4,\)(?s:.*)vmap_method='concurrent'"):
        jax.vmap(lambda x: apply_tesseract(tesseract, {"x": x}, vmap_method="expand_dims")["y"])(X)


def test_elements_overlap_unless_told_otherwise():
    lock, counts = threading.Lock(), {"now": 0, "most": 0}
    all_there = threading.Event()

    def before(endpoint: str, inputs: Any) -> None:
        if endpoint != "apply":
            return
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
            if counts["now"] == 4:
                all_there.set()
        # Concurrent elements meet here; one that is alone goes on after a while.
        all_there.wait(10.0 if method == "concurrent" else 0.01)
        with lock:
            counts["now"] -= 1

    for method, most in (("sequential", 1), ("concurrent", 4)):
        counts["most"] = 0
        assert_close(jax.vmap(through(component(before=before), method), (0, None))(X, B), plain(jnp.asarray(X), B))
        assert counts["most"] == most


def test_lanes_bound_what_is_in_flight():
    lock, counts = threading.Lock(), {"now": 0, "most": 0}

    def before(endpoint: str, inputs: Any) -> None:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])

    def leave(endpoint: str, answer: Any) -> Any:
        with lock:
            counts["now"] -= 1
        return answer

    tesseract = Watched(component(before=before, delay=0.01), leave)
    object.__setattr__(tesseract, "n_lanes", 2)
    jax.vmap(through(tesseract, "concurrent"), (0, None))(X, B)
    assert counts["most"] == 2


@pytest.mark.parametrize("method", ["concurrent", "sequential"])
def test_the_first_failure_stops_the_batch_and_says_which_element(method: Any):
    asked = []

    def before(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            asked.append(inputs["x"][0])
            if inputs["x"][0] == X[1, 0]:
                raise ComponentFailed("no convergence")

    tesseract = Watched(component(before=before))
    object.__setattr__(tesseract, "n_lanes", 2)
    many = np.concatenate([X, np.full((60, 3), 5.0)])
    with pytest.raises(ComponentFailed, match="no convergence") as caught:
        jax.vmap(through(tesseract, method), (0, None))(many, B)
    assert "element 1 of a batch of 64" in "".join(caught.value.__notes__)
    assert len(asked) < 64
    asked.clear()
    good = np.delete(X, 1, axis=0)
    assert_close(jax.vmap(through(tesseract, method), (0, None))(good, B), plain(jnp.asarray(good), B))


@methods
def test_batches_of_nothing_cost_nothing(method: Any):
    with count_requests() as requests:
        got = jax.vmap(jax.grad(loss(through(component(ANY), method))), (0, None))(X[:0], B)
    assert got.shape == (0, 3)
    assert requests.n_of("apply") == requests.n_of("vector_jacobian_product") == 0


@pytest.mark.slow
@outers
@methods
@pytest.mark.parametrize("axes", [((0, None), (0, 0)), ((0, 0), (0, None)), ((None, 0), (1, 0)), ((1, 0), (2, 0))])
def test_maps_of_maps(method: Any, outer: Any, axes: Any):
    rng = np.random.default_rng(0)
    sizes = iter((4, 2))  # inner, outer
    x_shape, b_shape = (3,), (3,)
    for inner in axes:
        n = next(sizes)
        x_shape, b_shape = (
            s if axis is None else (*s[:axis], n, *s[axis:]) for s, axis in zip((x_shape, b_shape), inner, strict=True)
        )
    x, b = rng.normal(size=x_shape), rng.normal(size=b_shape)

    def mapped(f: Any) -> Any:
        return jax.vmap(jax.vmap(f, axes[0]), axes[1])

    f = through(component(ANY if method not in (None, "concurrent") else None), method)
    got = outer(jax.value_and_grad(lambda x, b: jnp.sum(mapped(f)(x, b) ** 2), (0, 1)))(x, b)
    expected = jax.value_and_grad(lambda x, b: jnp.sum(mapped(plain)(x, b) ** 2), (0, 1))
    assert_close(got, expected(jnp.asarray(x), jnp.asarray(b)), 1e-11)


# ----------------------------------------------------------------------------------------- many directions at one point


@outers
@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("materialize", [None, True])
def test_a_jacobian_is_one_request_for_what_is_wanted(mode: Any, materialize: Any, outer: Any):
    tesseract = Watched(component())
    got = outer(mode(through(tesseract, materialize_jacobian=materialize)))(X[0], B)
    assert_close(got, mode(plain)(jnp.asarray(X[0]), jnp.asarray(B)))
    (payload,) = tesseract.payloads("jacobian")
    assert payload["jac_inputs"] == ["x"]
    assert payload["jac_outputs"] == ["y"]
    assert not tesseract.payloads("jacobian_vector_product")
    assert not tesseract.payloads("vector_jacobian_product")


@outers
@pytest.mark.parametrize(
    ("mode", "endpoint"), [(jax.jacfwd, "jacobian_vector_product"), (jax.jacrev, "vector_jacobian_product")]
)
@pytest.mark.parametrize("has_endpoint", [True, False])
@methods
def test_without_it_there_is_a_request_per_direction(
    mode: Any, endpoint: str, has_endpoint: bool, method: Any, outer: Any
):
    endpoints = {"apply", "abstract_eval", "jacobian_vector_product", "vector_jacobian_product"}
    tesseract = component(ANY, endpoints=endpoints | ({"jacobian"} if has_endpoint else set()))
    with count_requests() as requests:
        got = outer(mode(through(tesseract, method, materialize_jacobian=False if has_endpoint else None)))(X[0], B)
    assert_close(got, mode(plain)(jnp.asarray(X[0]), jnp.asarray(B)))
    # tesseract-jax's methods send all tangents in one request, with a copy of the primals for each.
    is_together = mode is jax.jacfwd and method in ("expand_dims", "broadcast_all", "auto_experimental")
    assert requests.n_of(endpoint) == (1 if is_together else 3)
    assert requests.n_of("jacobian") == 0


def test_a_jacobian_that_is_demanded_must_be_there():
    tesseract = component(name="poor", endpoints={"apply", "abstract_eval", "vector_jacobian_product"})
    with pytest.raises(EndpointNotFound, match="'poor' has no endpoint 'jacobian'") as caught:
        jax.jacrev(through(tesseract, materialize_jacobian=True))(X[0], B)
    assert isinstance(caught.value, RuntimeError)  # what tesseract-jax raises
    assert "materialize_jacobian=True" in "".join(caught.value.__notes__)


@outers
def test_forward_and_backward_share_the_jacobian(outer: Any):
    tesseract = component()
    f = through(tesseract)
    with count_requests() as requests:
        forward, backward = outer(lambda x: (jax.jacfwd(f)(x, B), jax.jacrev(f)(x, B)))(X[0])
    assert_close(forward, backward)
    assert requests.n_of("jacobian") == (2 if outer is OUTER["eager"] else 1)


@outers
def test_a_vmap_of_jacobians_is_one_jacobian_per_element(outer: Any):
    tesseract = component(ANY)
    with count_requests() as requests:
        got = outer(jax.vmap(jax.jacrev(through(tesseract)), (0, None)))(X, B)
    assert_close(got, jax.vmap(jax.jacrev(plain), (0, None))(jnp.asarray(X), jnp.asarray(B)))
    assert requests.n_of("jacobian") == 4


@outers
def test_jacobians_of_a_vmap_are_one_jacobian_per_element(outer: Any):
    tesseract = component()
    with count_requests() as requests:
        got = outer(jax.jacfwd(jax.vmap(through(tesseract), (0, None)), 1))(X, B)
    assert_close(got, jax.jacfwd(jax.vmap(plain, (0, None)), 1)(jnp.asarray(X), jnp.asarray(B)))
    assert requests.n_of("jacobian") == 4


@outers
def test_constant_outputs_are_nan_among_the_columns(outer: Any):
    tesseract = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2, "frozen": i["x"]},
        {"x": B},
        outputs={"frozen": ArrayField("float64", (None,), False)},
    )
    with count_requests() as requests:
        got = outer(jax.jacfwd(lambda x: apply_tesseract(tesseract, {"x": x})))(B)
    assert_close(got["y"], jnp.diag(2.0 * B))
    assert np.isnan(got["frozen"]).all() and got["frozen"].shape == (3, 3)
    assert requests.n_of("jacobian") == 1


def test_precisions_may_differ_on_both_sides():
    """The columns have the output's dtype and the rows the input's, as in plain JAX."""

    def fn(i: Any) -> Any:
        return {"y": i["x"].astype(np.float64) * 2.0}

    tesseract = FunctionTesseract(
        fn, {"x": np.ones(3, np.float32)}, outputs={"y": ArrayField("float64", (None,), True)}
    )
    x = jnp.ones(3, np.float32)
    for mode in (jax.jacfwd, jax.jacrev):
        got = mode(lambda x: apply_tesseract(tesseract, {"x": x})["y"])(x)
        assert_close(got, mode(lambda x: fn({"x": x})["y"])(x))


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vmap_method": "concurent"}, "Did you mean 'concurrent'"),
        ({"vmap_method": 3}, "vmap_method=3 is none of"),
        ({"nan_policy": "rise"}, "Did you mean 'raise'"),
        ({"materialize_jacobian": "yes"}, "expected None, True or False"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str):
    with count_requests() as requests, pytest.raises(OptionError, match=message):
        apply_tesseract(component(), {"x": B, "b": B}, **options)
    assert requests.n_total == 0


# ------------------------------------------------------------------------------------------------ only what is needed


@pytest.mark.parametrize("outer", [jax.jit, concurrent])
def test_parts_of_a_derivative_that_nobody_uses_are_not_asked_for(outer: Any):
    tesseract = Watched(
        FunctionTesseract(lambda i: {"y": i["x"] * i["b"], "z": i["x"] + i["b"]}, {"x": B, "b": B}, name="two")
    )

    def z_dot(x: Any, b: Any) -> Any:
        return jax.jvp(lambda x: apply_tesseract(tesseract, {"x": x, "b": b}), (x,), (x,))[1]["z"]

    def x_bar(x: Any, b: Any) -> Any:
        return jax.grad(lambda both: jnp.sum(apply_tesseract(tesseract, both)["y"]))({"x": x, "b": b})["x"]

    outer(z_dot)(B, B)
    outer(x_bar)(B, B)
    (push,) = tesseract.payloads("jacobian_vector_product")
    (pull,) = tesseract.payloads("vector_jacobian_product")
    assert (push["jvp_inputs"], push["jvp_outputs"]) == (["x"], ["z"])
    assert (pull["vjp_inputs"], pull["vjp_outputs"]) == (["x"], ["y"])
    assert not tesseract.payloads("apply")
