"""The front door: what `apply_tesseract` takes, what it gives back, and how it says no before anything is sent."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract, revealed
from tesseract_flow.client import count_requests
from tesseract_flow.errors import InvalidAnswer, InvalidInput, PrecisionError
from tesseract_flow.schema import ArrayField, LeafField
from tesseract_flow.testing import FunctionTesseract
from tests.cases import CASES, Case
from tests.helpers import Watched, assert_close, maybe_jit

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
eager_and_jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])

X = np.array([1.0, 2.0, 3.0])


@pytest.fixture
def scaled() -> FunctionTesseract:
    """y = factor * x, with a plain number between and a fixed length."""
    return FunctionTesseract(
        lambda i: {"y": i["factor"] * i["x"], "label": i["label"]},
        {"x": X, "factor": jnp.asarray(1.0), "label": "a"},
        name="scaled",
        inputs={"x": ArrayField("float64", (3,), True)},
    )


def scale(scaled: FunctionTesseract, x: Any, factor: Any = 2.0, label: Any = "a") -> Any:
    return apply_tesseract(scaled, {"x": x, "factor": factor, "label": label})["y"]


# ----------------------------------------------------------------------------------------------- what comes back


@over_cases
def test_eager_outputs_are_the_functions_outputs(case: Case):
    out, expected = apply_tesseract(case.tesseract, case.inputs), case.fn(case.inputs)
    assert jax.tree_util.tree_structure(out) == jax.tree_util.tree_structure(expected)
    for got, want in zip(jax.tree_util.tree_leaves(out), jax.tree_util.tree_leaves(expected), strict=True):
        if hasattr(want, "dtype"):
            assert isinstance(got, jax.Array)
            assert_close(got, want, case.rtol)
        else:
            assert type(got) is type(want)
            assert got == want


@over_cases
def test_under_jit_the_same_tree_comes_back(case: Case):
    seen: list[Any] = []

    def run(x: Any) -> Any:
        seen.append(apply_tesseract(case.tesseract, case.full(x)))
        return seen[-1]

    eager = apply_tesseract(case.tesseract, case.inputs)
    compiled = revealed(jax.jit(run)(case.x))  # what is neither array nor number comes through JAX as it is, too
    assert jax.tree_util.tree_structure(compiled) == jax.tree_util.tree_structure(eager)
    for got, want in zip(jax.tree_util.tree_leaves(compiled), jax.tree_util.tree_leaves(eager), strict=True):
        if isinstance(want, str):
            assert got == want
        else:
            assert_close(got, jnp.asarray(want), case.rtol)


# ------------------------------------------------------------------------------------------------- what goes in


@pytest.mark.parametrize(
    "x",
    [X, jnp.asarray(X), X.astype(np.float32), np.array([1, 2, 3]), np.array([1, 2, 3], np.int8), np.ones(3, bool)],
    ids=lambda x: f"{type(x).__module__.partition('.')[0]}-{x.dtype}",
)
@eager_and_jit
def test_arrays_of_other_kinds_and_precisions(scaled: FunctionTesseract, x: Any, jit: bool):
    y = maybe_jit(lambda x: scale(scaled, x), jit)(x)
    assert_close(y, jnp.asarray(2.0 * np.asarray(x, np.float64)))


@pytest.mark.parametrize(
    "factor", [3, 3.0, True, np.float64(3.0), np.float32(3.0), np.int64(3), np.array(3.0), jnp.array(3)]
)
@eager_and_jit
def test_scalars_of_every_kind(scaled: FunctionTesseract, factor: Any, jit: bool):
    assert_close(maybe_jit(lambda x: scale(scaled, x, factor), jit)(X), jnp.asarray(X * float(factor)))


@eager_and_jit
def test_traced_python_scalars_are_differentiated(scaled: FunctionTesseract, jit: bool):
    value, slope = maybe_jit(jax.value_and_grad(lambda factor: jnp.sum(scale(scaled, X, factor))), jit)(2.0)
    assert_close((value, slope), (jnp.asarray(12.0), jnp.asarray(6.0)))


@eager_and_jit
def test_weak_types_survive_loops(scaled: FunctionTesseract, jit: bool):
    def total(factor: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda k, f: jnp.sum(scale(scaled, X, f)), factor)

    assert_close(maybe_jit(jax.grad(total), jit)(2.0), jnp.asarray(216.0))


def test_objects_that_know_how_to_be_arrays(scaled: FunctionTesseract):
    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return X.astype(dtype or np.float64)

    assert_close(scale(scaled, Foreign()), jnp.asarray(2.0 * X))


@eager_and_jit
def test_what_broadcasts_gets_a_gradient_of_its_own_shape(scaled: FunctionTesseract, jit: bool):
    watched = Watched(scaled)
    loss = lambda x: jnp.sum(scale(watched, x) * X)  # noqa: E731
    value, slope = maybe_jit(jax.value_and_grad(loss), jit)(jnp.array([5.0]))
    assert_close((value, slope), (jnp.asarray(60.0), jnp.array([12.0])))
    (payload,) = watched.payloads("vector_jacobian_product")
    assert np.shape(payload["inputs"]["x"]) == (3,)  # full size on the wire: what it answers has to fit


@eager_and_jit
def test_integers_have_no_gradient_where_the_schema_wants_floats(scaled: FunctionTesseract, jit: bool):
    def loss(x: Any, factor: Any) -> Any:
        return jnp.sum(scale(scaled, x, factor))

    counts = np.array([1, 2, 3])
    assert_close(maybe_jit(jax.grad(loss, argnums=1), jit)(counts, 2.0), jnp.asarray(6.0))
    _, tangent = maybe_jit(lambda f: jax.jvp(lambda f: loss(counts, f), (f,), (f,)), jit)(2.0)
    assert_close(tangent, jnp.asarray(12.0))


@pytest.mark.parametrize("make", [dict, OrderedDict], ids=["dict", "OrderedDict"])
def test_key_order_does_not_matter(scaled: FunctionTesseract, make: Any):
    forward = make([("x", X), ("factor", 2.0), ("label", "b")])
    backward = make([("label", "b"), ("factor", 2.0), ("x", X)])
    assert_close(apply_tesseract(scaled, forward)["y"], apply_tesseract(scaled, backward)["y"])


def test_static_leaves_are_told_apart_by_type_and_value(key: Any):
    """1, 1.0 and True, -1 and -2, and both zeros are six inputs: nothing remembered for one may serve another."""
    echo = FunctionTesseract(
        lambda i: {"y": i["x"] * 1.0, "echo": repr(i["p"])}, {"x": X, "p": 0}, inputs={"p": LeafField("any")}
    )
    for p in (1, 1.0, True, -1, -2, 0.0, -0.0, float("nan"), "1", None):
        for _ in range(2):
            echoed = jax.jit(lambda x, p=p: apply_tesseract(echo, {"x": x, "p": p})["echo"])(X)
            assert echoed == repr(p)


# ------------------------------------------------------------------------------------------------------- staging


def test_closed_over_constants_are_staged_and_not_called_at_trace_time(scaled: FunctionTesseract):
    constant = jnp.asarray(X)

    @jax.jit
    def run(x: Any) -> Any:
        return x + scale(scaled, constant)

    with count_requests() as requests:
        lowered = run.lower(X)
        compiled = lowered.compile()
    assert requests.n_of("apply") == 0
    with count_requests() as requests:
        assert_close(compiled(X), jnp.asarray(3.0 * X))
        assert_close(compiled(2.0 * X), jnp.asarray(4.0 * X))
    assert requests.n_of("apply") == 2


def test_numpy_inputs_are_staged_as_well(scaled: FunctionTesseract):
    with count_requests() as requests:
        jaxpr = jax.make_jaxpr(lambda: scale(scaled, X))()
    assert requests.n_of("apply") == 0
    assert "tesseract_apply" in str(jaxpr)


def test_constants_in_loop_bodies(scaled: FunctionTesseract):
    got = jax.lax.scan(lambda c, _: (c + scale(scaled, X), None), jnp.zeros(3), None, length=3)[0]
    assert_close(got, jnp.asarray(6.0 * X))


def test_eager_code_inside_a_gradient_runs_at_once(scaled: FunctionTesseract):
    """Without tangents there is nothing to transform: one request, and no shapes asked for."""
    with count_requests() as requests:
        slope = jax.grad(lambda a: a * jnp.sum(scale(scaled, X)))(3.0)
    assert_close(slope, jnp.asarray(12.0))
    assert dict(requests) == {"scaled.apply": 1}


# ------------------------------------------------------------------------------------------------ handles in trees


class Model(eqx.Module):
    weights: jax.Array
    solver: Any


@eager_and_jit
def test_handles_are_nodes_without_leaves(scaled: FunctionTesseract, jit: bool):
    assert jax.tree_util.tree_leaves({"solver": scaled, "x": 1.0}) == [1.0]

    def loss(model: Any) -> Any:
        return jnp.sum(scale(model.solver, model.weights))

    slope = maybe_jit(jax.grad(loss), jit)(Model(jnp.asarray(X), scaled))
    assert slope.solver is scaled
    assert_close(slope.weights, jnp.full(3, 2.0))


def test_a_jitted_function_is_traced_again_for_another_handle():
    n_traces = 0

    @jax.jit
    def run(handle: Any, x: Any) -> Any:
        nonlocal n_traces
        n_traces += 1
        return apply_tesseract(handle, {"x": x})["y"]

    double, triple = (FunctionTesseract(lambda i, k=k: {"y": k * i["x"]}, {"x": X}) for k in (2.0, 3.0))
    for handle, k in ((double, 2.0), (triple, 3.0), (double, 2.0)):
        assert_close(run(handle, X), jnp.asarray(k * X))
    assert n_traces == 2


# -------------------------------------------------------------------------------------------------------- refusals


REFUSALS = {
    "list": (lambda x: {"x": [1.0, 2.0, 3.0]}, TypeError, r"x: .*got a list.*jnp\.asarray"),
    "tuple": (lambda x: {"x": (1.0, 2.0, 3.0)}, TypeError, r"x: .*got a tuple.*jnp\.asarray"),
    "unknown field": (
        lambda x: {"x": x, "factr": 2.0, "label": "a"},
        InvalidInput,
        r"factr: unknown field\. Did you mean 'factor'\?",
    ),
    "missing field": (lambda x: {"factor": 2.0, "label": "a"}, InvalidInput, r"x: required field is missing"),
    "wrong rank": (lambda x: {"x": jnp.stack([x, x])}, InvalidInput, r"x: expected shape \(3,\), got shape \(2, 3\)"),
    "wrong length": (lambda x: {"x": x[:2]}, InvalidInput, r"x: expected shape \(3,\).*got shape \(2,\)"),
    "complex": (lambda x: {"x": x.astype(complex)}, InvalidInput, r"x: complex128 cannot be converted to float64"),
    "not a dict": (lambda x: ("y", "z"), InvalidInput, "expected"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@eager_and_jit
def test_misfits_are_refused_before_any_request(scaled: FunctionTesseract, refusal: str, jit: bool):
    make, error, message = REFUSALS[refusal]

    def run(x: Any) -> Any:
        inputs = make(x)
        complete = {"factor": 2.0, "label": "a"} | inputs if set(inputs) == {"x"} else inputs
        return apply_tesseract(scaled, complete)["y"]

    with count_requests() as requests, pytest.raises(error, match=message) as caught:
        maybe_jit(run, jit)(jnp.asarray(X))
    assert requests.n_total == 0
    assert "Nothing was sent" in str(caught.value)
    assert "'scaled'" in str(caught.value)
    assert_close(scale(scaled, X), jnp.asarray(2.0 * X))


def test_every_fault_is_listed(scaled: FunctionTesseract):
    with pytest.raises(InvalidInput) as caught:
        apply_tesseract(scaled, {"x": [1.0], "factor": np.ones(2), "label": "a", "lable": "b"})
    assert sorted(fault.path for fault in caught.value.faults) == ["factor", "lable", "x"]


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap], ids=lambda t: t.__name__)
def test_traced_values_in_plain_fields_are_refused(transform: Any):
    steps = FunctionTesseract(
        lambda i: {"y": i["x"] * i["n"]}, {"x": X, "n": 2}, name="steps", inputs={"n": LeafField("int")}
    )
    any_field = FunctionTesseract(steps.fn, {"x": X, "n": 2}, name="steps", inputs={"n": LeafField("any")})
    n = np.arange(3.0) if transform is jax.vmap else 2.0
    for handle in (steps, any_field):
        with count_requests() as requests, pytest.raises((TypeError, InvalidInput), match=r"\bn\b") as caught:
            transform(lambda n, h=handle: jnp.sum(apply_tesseract(h, {"x": X, "n": n})["y"]))(n)
        assert requests.n_total == 0
    assert isinstance(caught.value, TypeError)
    assert "static" in str(caught.value)
    assert_close(apply_tesseract(steps, {"x": X, "n": np.int64(2)})["y"], jnp.asarray(2.0 * X))


def test_long_arrays_in_untyped_fields_are_not_confused():
    table = FunctionTesseract(
        lambda i: {"y": i["x"] + float(np.sum(i["table"]))},
        {"x": 0.0 * X, "table": 0},
        inputs={"table": LeafField("any")},
    )
    run = jax.jit(lambda x, t: apply_tesseract(table, {"x": x, "table": t.value})["y"], static_argnums=1)

    class Holder:
        def __init__(self, value: Any):
            self.value = value

    zeros, spike = jnp.zeros(5000), jnp.zeros(5000).at[2500].set(1.0)
    assert_close(run(0.0 * X, Holder(zeros)), jnp.zeros(3))
    assert_close(run(0.0 * X, Holder(spike)), jnp.ones(3))


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.grad, jax.vmap], ids=["eager", "jit", "grad", "vmap"])
@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_64_bit_outputs_without_x64_are_refused_before_any_request(transform: Any, nested: bool):
    double = FunctionTesseract(
        lambda i: {"m": {"y": i["x"] * 2.0}} if nested else {"m": i["x"] * 2.0}, {"x": X}, name="double"
    )

    def run(x: Any) -> Any:
        return jnp.sum(jax.tree_util.tree_leaves(apply_tesseract(double, {"x": x}))[0])

    with jax.enable_x64(False):
        x = jnp.ones((2, 3)) if transform is jax.vmap else jnp.ones(3)
        with (
            count_requests() as requests,
            pytest.raises(PrecisionError, match=r"'m(\.y)?'.*float64.*(?s:.*)jax_enable_x64"),
        ):
            transform(run)(x)
        assert requests.n_total == 0
    assert_close(run(X), jnp.asarray(12.0))


def test_single_precision_works_with_and_without_x64():
    single = FunctionTesseract(lambda i: {"y": jnp.sin(i["x"])}, {"x": X.astype(np.float32)})

    def loss(x: Any) -> Any:
        return jnp.sum(apply_tesseract(single, {"x": x})["y"])

    for x64 in (True, False):
        with jax.enable_x64(x64):
            for transform in (lambda f: f, jax.jit):
                value, slope = transform(jax.value_and_grad(loss))(jnp.asarray(X, np.float32))
                assert value.dtype == slope.dtype == np.float32
                np.testing.assert_allclose(slope, np.cos(X), rtol=1e-6)


def test_what_is_remembered_with_x64_is_not_used_without(scaled: FunctionTesseract):
    """NumPy arrays look the same in both modes, so only the mode itself tells them apart."""
    untyped = FunctionTesseract(
        lambda i: {"y": i["x"] * 2.0}, {"x": X}, outputs={"y": ArrayField(None, None, True)}, name="untyped"
    )
    run = jax.jit(lambda: apply_tesseract(untyped, {"x": X})["y"])
    assert_close(run(), jnp.asarray(2.0 * X))
    with jax.enable_x64(False):
        for ask in (
            jax.jit(lambda: apply_tesseract(untyped, {"x": X})["y"]),
            lambda: apply_tesseract(untyped, {"x": X}),
        ):
            with pytest.raises(PrecisionError, match="untyped"):
                ask()


# ---------------------------------------------------------------------------------------------------- lying servers


LIES = {
    "a missing output": lambda answer: {key: value for key, value in answer.items() if key != "y"},
    "another rank": lambda answer: answer | {"y": np.zeros((2, 3))},
    "another dtype": lambda answer: answer | {"y": np.zeros(3, np.complex128)},
    "a list": lambda answer: answer | {"y": [1.0, 2.0]},
    "text": lambda answer: answer | {"y": "abc"},
    "no object": lambda answer: [1, 2],
}


@pytest.mark.parametrize("lie", LIES)
def test_eager_answers_that_break_the_schema_are_refused(scaled: FunctionTesseract, lie: str):
    lying = Watched(scaled, lambda endpoint, answer: LIES[lie](answer))
    with pytest.raises(InvalidAnswer, match="'scaled' answered 'apply' with outputs that do not fit its own schema"):
        scale(lying, X)
    assert_close(scale(scaled, X), jnp.asarray(2.0 * X))


ABSTRACT_LIES = LIES | {
    "another rank": lambda answer: answer | {"y": {"shape": [2, 3], "dtype": "float64"}},
    "another dtype": lambda answer: answer | {"y": {"shape": [3], "dtype": "complex128"}},
    "unknown dtype": lambda answer: answer | {"y": {"shape": [3], "dtype": "float7"}},
    "open shape": lambda answer: answer | {"y": {"shape": [None], "dtype": "float64"}},
}


@pytest.mark.parametrize("lie", ABSTRACT_LIES)
def test_abstract_answers_that_break_the_schema_are_refused(scaled: FunctionTesseract, lie: str):
    lying = Watched(scaled, lambda endpoint, answer: ABSTRACT_LIES[lie](answer))
    with count_requests() as requests, pytest.raises(InvalidAnswer, match="abstract_eval"):
        jax.jit(lambda x: scale(lying, x))(X)
    assert requests.n_of("apply") == 0
    assert_close(jax.jit(lambda x: scale(scaled, x))(X), jnp.asarray(2.0 * X))
