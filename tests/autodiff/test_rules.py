"""What has a derivative and what has not, missing endpoints, and errors of components: who is told what, and when."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import ComponentFailed, EndpointNotFound, NotDifferentiable, ShapesUnknown
from tesseract_flow.execute import concurrent
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import Faults, Watched, assert_close, maybe_jit

eager_and_jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])

X, N = np.array([1.0, 2.0, 3.0]), np.array([0.5, -1.0, 2.0])
CONSTANT = ArrayField("float64", (None,), False)


@pytest.fixture
def mixed() -> Watched:
    """`mesh.n` and `frozen` are arrays of floats that the schema does not mark differentiable."""

    def fn(i: Any) -> Any:
        return {"y": i["x"] * i["n"], "frozen": i["x"] + i["n"], "index": jnp.argsort(i["x"])}

    return Watched(
        FunctionTesseract(fn, {"x": X, "n": N}, name="mixed", inputs={"n": CONSTANT}, outputs={"frozen": CONSTANT})
    )


def call(mixed: Watched, x: Any, n: Any = N) -> Any:
    return apply_tesseract(mixed, {"x": x, "n": n})


# ---------------------------------------------------------------------------------------- non-differentiable inputs

REMEDIES = (
    "argnums",
    "Close over",
    "equinox.partition",
    "stop_gradient",
    "changes the mathematics",
    "Differentiable[...]",
)


@pytest.mark.parametrize(
    "derivative",
    [
        jax.grad,
        lambda f: lambda n: jax.jvp(f, (n,), (n,)),
        lambda f: lambda n: jax.linearize(f, n),
        lambda f: jax.grad(lambda n: f(2.0 * n)),
    ],
    ids=["grad", "jvp", "linearize", "behind an operation"],
)
@eager_and_jit
def test_differentiating_a_constant_input_names_it_and_the_remedies(mixed: Watched, derivative: Any, jit: bool):
    run = derivative(lambda n: jnp.sum(call(mixed, X, n)["y"]))
    if jit:
        run = jax.jit(lambda n, f=run: jax.tree_util.tree_leaves(f(n))[0])
    with pytest.raises(NotDifferentiable, match="input 'n' of Tesseract 'mixed'") as caught:
        run(N)
    assert isinstance(caught.value, ValueError)
    assert "Differentiable inputs here: 'x'" in str(caught.value)
    assert [remedy for remedy in REMEDIES if remedy not in str(caught.value)] == []
    assert not mixed.payloads("apply")
    assert_close(call(mixed, X)["y"], jnp.asarray(X * N))


@eager_and_jit
def test_constant_inputs_may_be_traced(mixed: Watched, jit: bool):
    """Nothing differentiates through n here, though it is an argument of everything."""

    def loss(x: Any, n: Any) -> Any:
        return jnp.sum(call(mixed, x, n)["y"] ** 2) + jnp.sum(n)

    got = maybe_jit(jax.value_and_grad(loss), jit)(X, N)
    assert_close(got, (jnp.sum((X * N) ** 2) + jnp.sum(N), jnp.asarray(2.0 * X * N**2)))
    batched = jax.vmap(jax.grad(loss), (None, 0))(X, np.stack([N, 2.0 * N]))
    assert_close(batched, jnp.asarray(np.stack([2.0 * X * N**2, 8.0 * X * N**2])))


@eager_and_jit
def test_stop_gradient_makes_an_input_constant(mixed: Watched, jit: bool):
    def loss(n: Any) -> Any:
        return jnp.sum(call(mixed, X, jax.lax.stop_gradient(n))["y"] * n)

    assert_close(maybe_jit(jax.grad(loss), jit)(N), jnp.asarray(X * N))
    assert not mixed.payloads("vector_jacobian_product")


# --------------------------------------------------------------------------------------- non-differentiable outputs


@eager_and_jit
def test_forward_mode_gives_nan_for_constant_outputs(mixed: Watched, jit: bool):
    _, y_dot = maybe_jit(lambda x: jax.jvp(lambda x: call(mixed, x), (x,), (x,)), jit)(X)
    assert_close(y_dot["y"], jnp.asarray(X * N))
    assert y_dot["frozen"].shape == (3,)
    assert y_dot["frozen"].dtype == np.float64
    assert np.isnan(y_dot["frozen"]).all()
    assert y_dot["index"].dtype == jax.dtypes.float0
    (payload,) = mixed.payloads("jacobian_vector_product")
    assert payload["jvp_outputs"] == ["y"]


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit, concurrent], ids=["eager", "jit", "concurrent"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda out: jnp.sum(out["frozen"]),
        lambda out: jnp.sum(out["y"] * out["frozen"]),
        lambda out: jnp.sum(out["y"]) + 0.0 * jnp.sum(out["frozen"]),
    ],
    ids=["alone", "among others", "times zero"],
)
def test_reverse_mode_through_constant_outputs_is_refused(mixed: Watched, outer: Any, loss: Any):
    with pytest.raises(NotDifferentiable, match="output 'frozen' of Tesseract 'mixed'") as caught:
        outer(jax.grad(lambda x: loss(call(mixed, x))))(X)
    assert isinstance(caught.value, ValueError)
    assert "Differentiable outputs here: 'y'" in str(caught.value)
    for remedy in ("has_aux", "stop_gradient", "changes the mathematics", "Differentiable[...]"):
        assert remedy in str(caught.value)
    assert not mixed.payloads("vector_jacobian_product")
    assert_close(jax.grad(lambda x: jnp.sum(call(mixed, x)["y"]))(X), jnp.asarray(N))


def _unused(mixed: Watched) -> Any:
    return jax.grad(lambda x: jnp.sum(call(mixed, x)["y"]))


def _popped(mixed: Watched) -> Any:
    def loss(x: Any) -> Any:
        out = call(mixed, x)
        out.pop("frozen")
        out.pop("index")
        return sum(jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves(out))

    return jax.grad(loss)


def _auxiliary(mixed: Watched) -> Any:
    def loss(x: Any) -> Any:
        out = call(mixed, x)
        return jnp.sum(out["y"]), out

    return lambda x: jax.grad(loss, has_aux=True)(x)[0]


def _auxiliary_of_jit(mixed: Watched) -> Any:
    @jax.jit
    def loss(x: Any) -> Any:
        out = call(mixed, x)
        return jnp.sum(out["y"]), out

    return lambda x: jax.value_and_grad(loss, has_aux=True)(x)[1]


def _stopped(mixed: Watched) -> Any:
    def loss(x: Any) -> Any:
        out = jax.lax.stop_gradient(call(mixed, x)) | {"y": call(mixed, x)["y"]}
        return jnp.sum(out["y"]) + jnp.sum(out["frozen"]) * jnp.sum(out["index"].astype(float))

    return jax.grad(loss)


def _vjp_with_aux(mixed: Watched) -> Any:
    def outputs(x: Any) -> Any:
        out = call(mixed, x)
        return out.pop("y"), out

    return lambda x: jax.vjp(outputs, x, has_aux=True)[1](jnp.ones(3))[0]


def _stacked_by_scan(mixed: Watched) -> Any:
    def loss(x: Any) -> Any:
        def turn(c: Any, _: Any) -> Any:
            out = call(mixed, c)
            return out["y"] / N, out["frozen"]

        last, frozen = jax.lax.scan(turn, x, None, length=2)
        return jnp.sum(last * N), frozen

    return lambda x: jax.grad(loss, has_aux=True)(x)[0]


@pytest.mark.parametrize(
    "gradient",
    [_unused, _popped, _auxiliary, _auxiliary_of_jit, _stopped, _vjp_with_aux, _stacked_by_scan],
    ids=lambda gradient: gradient.__name__.strip("_"),
)
@pytest.mark.parametrize("outer", [lambda f: f, jax.jit, concurrent], ids=["eager", "jit", "concurrent"])
def test_constant_outputs_may_be_there_as_long_as_nothing_flows_back(mixed: Watched, gradient: Any, outer: Any):
    assert_close(outer(gradient(mixed))(X), jnp.asarray(N))
    assert all(payload["vjp_outputs"] == ["y"] for payload in mixed.payloads("vector_jacobian_product"))


def test_cotangents_of_another_structure_are_jaxs_own_error(mixed: Watched):
    _, pull = jax.vjp(lambda x: call(mixed, x)["y"], X)
    with pytest.raises(ValueError, match="tree"):
        pull({"y": X})


def test_only_integers_come_out():
    rounded = FunctionTesseract(
        lambda i: {"k": jnp.round(i["x"]).astype(int)}, {"x": X}, endpoints=["apply", "abstract_eval"]
    )

    def loss(x: Any) -> Any:
        return jnp.sum(x * apply_tesseract(rounded, {"x": x})["k"].astype(float))

    assert_close(jax.grad(loss)(X), jnp.asarray(X))
    assert_close(jax.jvp(loss, (X,), (X,))[1], jnp.asarray(14.0))


# ------------------------------------------------------------------------------------------------ missing endpoints


def without(*missing: str) -> FunctionTesseract:
    every = ("apply", "abstract_eval", "jacobian_vector_product", "vector_jacobian_product")
    return FunctionTesseract(
        lambda i: {"y": 2.0 * i["x"]}, {"x": X}, name="poor", endpoints=[e for e in every if e not in missing]
    )


def total(tesseract: Any) -> Any:
    return lambda x: jnp.sum(apply_tesseract(tesseract, {"x": x})["y"])


TRANSFORMS = {
    "jit": jax.jit,
    "grad": jax.grad,
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
    "jit of grad": lambda f: jax.jit(jax.grad(f)),
    "jit of jvp": lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,))),
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None]),
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (c + f(x), None), 0.0, None, length=2),
    "concurrent": concurrent,
}


@pytest.mark.parametrize("transform", [name for name in TRANSFORMS if "jit" in name or name == "scan"])
def test_without_abstract_eval_compiled_transformations_say_so(transform: str):
    poor = without("abstract_eval")
    with (
        count_requests() as requests,
        pytest.raises(ShapesUnknown, match="'poor' has no endpoint 'abstract_eval'") as caught,
    ):
        TRANSFORMS[transform](total(poor))(X)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, NotImplementedError)
    assert requests.n_total == 0
    assert_close(total(poor)(X), jnp.asarray(12.0))


@pytest.mark.parametrize(
    ("transform", "expected", "n_apply", "n_others"),
    [
        ("grad", jnp.full(3, 2.0), 1, 1),
        ("jvp", (jnp.asarray(12.0), jnp.asarray(12.0)), 1, 1),
        ("vmap", jnp.asarray([12.0]), 1, 0),
        ("concurrent", jnp.asarray(12.0), 1, 0),
    ],
)
def test_without_abstract_eval_the_others_learn_shapes(transform: str, expected: Any, n_apply: int, n_others: int):
    """The apply that tells the shapes is the one whose values are used."""
    poor = without("abstract_eval")
    with count_requests() as requests:
        assert_close(TRANSFORMS[transform](total(poor))(X), expected)
    assert (requests.n_of("apply"), requests.n_total) == (n_apply, n_apply + n_others)


@pytest.mark.parametrize(
    ("endpoint", "transform"),
    [
        ("jacobian_vector_product", "jvp"),
        ("jacobian_vector_product", "jit of jvp"),
        ("vector_jacobian_product", "grad"),
        ("vector_jacobian_product", "jit of grad"),
    ],
)
def test_missing_derivatives_are_named(endpoint: str, transform: str):
    poor = without(endpoint)
    with (
        count_requests() as requests,
        pytest.raises(EndpointNotFound, match=f"'poor' has no endpoint '{endpoint}'") as caught,
    ):
        TRANSFORMS[transform](total(poor))(X)
    assert isinstance(caught.value, NotImplementedError)
    assert caught.value.endpoint == endpoint
    assert "it has: abstract_eval, apply" in str(caught.value)
    # Eager reverse mode alone finds out only when it goes backward.
    assert requests.n_of("apply") == (1 if transform == "grad" else 0)
    assert_close(total(poor)(X), jnp.asarray(12.0))


def test_missing_derivatives_are_found_while_lowering_and_not_while_running():
    poor, fine = without("vector_jacobian_product"), without()

    def loss(x: Any) -> Any:
        return total(poor)(apply_tesseract(fine, {"x": x})["y"])

    with count_requests() as requests, pytest.raises(EndpointNotFound):
        jax.jit(jax.value_and_grad(loss))(X)
    assert requests.n_of("apply") == 0


def test_one_direction_is_enough_for_that_direction():
    assert_close(jax.grad(total(without("jacobian_vector_product")))(X), jnp.full(3, 2.0))
    assert_close(jax.jvp(total(without("vector_jacobian_product")), (X,), (X,))[1], jnp.asarray(12.0))


# ---------------------------------------------------------------------------------------- the component's own errors

TANGLED = "element 17 is inside out:\n  its volume is -0.25\n(remesh and try again)"


def failing(endpoint: str) -> FunctionTesseract:
    fault = Faults(ValueError(TANGLED), endpoint=endpoint)

    def fn(i: Any) -> Any:
        return {"y": 2.0 * i["x"]}

    inner = FunctionTesseract(fn, {"x": X}, name="mesher")

    def before(asked: str, inputs: Any) -> None:
        try:
            fault(asked, inputs)
        except ValueError as error:
            raise ComponentFailed(f"{asked!r} of Tesseract 'mesher' failed.\n{error}", endpoint=asked) from error

    inner.before = before
    return inner


ENDPOINTS = {"apply": "jit", "vector_jacobian_product": "jit of grad", "jacobian_vector_product": "jit of jvp"}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_under_jit_the_whole_message_arrives_and_the_next_call_works(endpoint: str):
    run = TRANSFORMS[ENDPOINTS[endpoint]](total(failing(endpoint)))
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(run(X))
    assert TANGLED in str(caught.value)
    assert f"{endpoint!r} of Tesseract 'mesher'" in str(caught.value)
    jax.block_until_ready(run(X))


@pytest.mark.parametrize(
    ("endpoint", "transform"),
    [("apply", "grad"), ("vector_jacobian_product", "grad"), ("jacobian_vector_product", "jvp")],
)
def test_eagerly_the_error_keeps_its_type_and_the_next_call_works(endpoint: str, transform: str):
    run = TRANSFORMS[transform](total(failing(endpoint)))
    with pytest.raises(ComponentFailed, match="element 17") as caught:
        run(X)
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.endpoint == endpoint
    run(X)
