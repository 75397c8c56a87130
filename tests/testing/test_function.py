"""`FunctionTesseract` keeps the protocol: its endpoints agree with each other and with the function, over all cases."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import count_requests
from tesseract_flow.errors import ComponentFailed, EndpointNotFound, OptionError, Unreachable
from tesseract_flow.schema import ArrayField, LeafField, ListField, array_leaves, check_inputs, format_path
from tesseract_flow.testing import FunctionTesseract
from tests.cases import CASES, Case
from tests.helpers import Faults, assert_close, maybe_jit

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
X = np.array([1.0, 2.0, 3.0])


def paths_of(case: Case, side: str) -> dict[str, Any]:
    """Path -> example value, of the differentiable arrays of one side."""
    root = getattr(case.tesseract.schema, side)
    tree = case.inputs if side == "inputs" else case.tesseract.apply(case.inputs)

    def at(keys: Any) -> Any:
        value = tree
        for key in keys:
            value = value[key]
        return np.asarray(value)

    return {format_path(root, keys): at(keys) for keys, field in array_leaves(root, tree) if field.differentiable}


def random_by_path(arrays: dict[str, Any], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=x.shape).astype(x.dtype) for path, x in arrays.items()}


@over_cases
def test_examples_and_answers_fit_the_schema(case: Case):
    schema = case.tesseract.schema
    assert check_inputs(schema.inputs, case.inputs) == []
    assert check_inputs(schema.outputs, case.tesseract.apply(case.inputs)) == []


@over_cases
def test_answers_are_what_would_come_over_http(case: Case):
    """NumPy arrays and plain values in dicts and lists."""

    def is_plain(tree: Any) -> bool:
        if type(tree) in (dict, list):
            return all(map(is_plain, tree.values() if type(tree) is dict else tree))
        return type(tree) in (np.ndarray, str, int, float, bool, type(None))

    assert is_plain(case.tesseract.apply(case.inputs))


@over_cases
def test_abstract_eval_agrees_with_apply(case: Case):
    abstract = jax.tree_util.tree_map(
        lambda leaf: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} if hasattr(leaf, "dtype") else leaf,
        case.inputs,
    )
    promised = case.tesseract.abstract_eval(abstract)
    got = jax.tree_util.tree_map(
        lambda leaf: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} if hasattr(leaf, "dtype") else leaf,
        case.tesseract.apply(case.inputs),
    )
    assert promised == got


@over_cases
def test_derivative_endpoints_agree_with_each_other(case: Case):
    t = case.tesseract
    x, y = paths_of(case, "inputs"), paths_of(case, "outputs")
    x_dot, y_bar = random_by_path(x, 1), random_by_path(y, 2)
    y_dot = t.jacobian_vector_product(case.inputs, list(x), list(y), x_dot)
    x_bar = t.vector_jacobian_product(case.inputs, list(x), list(y), y_bar)
    assert {p: v.shape for p, v in y_dot.items()} == {p: v.shape for p, v in y.items()}
    assert {p: v.shape for p, v in x_bar.items()} == {p: v.shape for p, v in x.items()}
    left, right = (sum(np.sum(u[p] * v[p], dtype=complex) for p in v) for u, v in ((y_dot, y_bar), (x_bar, x_dot)))
    assert left == pytest.approx(right, rel=100 * case.rtol, abs=100 * case.rtol)
    assert abs(left) > 1e-6


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("nested", "list_of_arrays", "integers")])
def test_jacobian_agrees_with_the_products(case: Case):
    t = case.tesseract
    x, y = paths_of(case, "inputs"), paths_of(case, "outputs")
    x_dot = random_by_path(x, 3)
    jacobian = t.jacobian(case.inputs, list(x), list(y))
    y_dot = t.jacobian_vector_product(case.inputs, list(x), list(y), x_dot)
    for out, row in jacobian.items():
        contracted = sum(np.tensordot(row[p], x_dot[p], axes=x_dot[p].ndim) for p in x)
        assert_close(contracted, y_dot[out], 1e-11)
        assert all(row[p].shape == y[out].shape + x[p].shape for p in x)


def test_only_the_asked_paths_are_differentiated():
    t = FunctionTesseract(lambda i: {"p": i["a"] * i["b"], "s": i["a"] + i["b"]}, {"a": X, "b": X})
    answer = t.vector_jacobian_product({"a": X, "b": 2.0 * X}, ["b"], ["p"], {"p": np.ones(3)})
    assert set(answer) == {"b"}
    np.testing.assert_array_equal(answer["b"], X)
    assert set(t.jacobian_vector_product({"a": X, "b": X}, ["a"], ["s"], {"a": X})) == {"s"}


# ------------------------------------------------------------------------------------------------------------ schema


def test_the_schema_is_read_off_the_example():
    t = FunctionTesseract(
        lambda i: {"y": i["x"], "n": i["n"]}, {"x": X, "n": np.arange(2), "tag": "a", "mixed": [X, "b"], "none": None}
    )
    fields = t.schema.inputs.fields
    assert fields["x"] == ArrayField("float64", (None,), True)
    assert fields["n"] == ArrayField("int64", (None,), False)
    assert fields["tag"] == fields["none"] == LeafField("any")
    assert isinstance(fields["mixed"], ListField)
    assert fields["mixed"].get(0) == fields["x"]
    assert fields["mixed"].get(1) == LeafField("any")
    assert t.schema.inputs.required == set(fields)
    assert set(t.schema.differentiable_inputs) == {"x", "mixed.[]"}


def test_given_fields_replace_those_of_the_example():
    fixed = ArrayField("float64", (3,), False)
    t = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": X}, inputs={"x": fixed}, outputs={"y": fixed})
    assert t.schema.inputs.fields["x"] == t.schema.outputs.fields["y"] == fixed
    assert not t.schema.differentiable_inputs


def test_endpoints_that_were_not_given_are_missing():
    t = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": X}, endpoints=["apply"])
    assert t.schema.endpoints == {"apply"}
    with pytest.raises(EndpointNotFound, match="vector_jacobian_product"):
        t.vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": X})


def test_every_tesseract_is_its_own_component():
    one, other = (FunctionTesseract(lambda i: {"y": i["x"]}, {"x": X}, name="same") for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


# ------------------------------------------------------------------------------------------------ as a served component


def test_precision_is_its_own():
    t = FunctionTesseract(lambda i: {"y": jnp.sin(i["x"])}, {"x": X})
    for x64 in (True, False):
        with jax.enable_x64(x64):
            y = t.apply({"x": X.astype(np.float32)})["y"]
            assert y.dtype == np.float64
            np.testing.assert_allclose(y, np.sin(X.astype(np.float32).astype(np.float64)), rtol=1e-14)
            assert t.abstract_eval({"x": {"shape": [3], "dtype": "float32"}}) == {
                "y": {"shape": [3], "dtype": "float64"}
            }


def test_it_is_no_part_of_what_the_caller_traces():
    """abstract_eval is asked while JAX traces, and a function with Python control flow has to see values there."""
    t = FunctionTesseract(lambda i: {"y": i["x"] * (2.0 if float(jnp.sum(i["x"])) >= 0.0 else 1.0)}, {"x": X})

    def run(x: Any) -> Any:
        assert t.abstract_eval({"x": {"shape": [3], "dtype": "float64"}}) == {"y": {"shape": [3], "dtype": "float64"}}
        np.testing.assert_array_equal(t.apply({"x": X})["y"], 2.0 * X)
        return x

    assert len(jax.make_jaxpr(run)(X).eqns) == 0


def test_errors_become_the_components():
    def fn(i: Any) -> Any:
        if i["n"] < 0:
            raise ValueError("n must be positive")
        return {"y": i["x"]}

    t = FunctionTesseract(fn, {"x": X, "n": 1}, name="picky")
    with pytest.raises(ComponentFailed, match=r"'apply' of Tesseract 'picky'(?s:.*)n must be positive") as caught:
        t.apply({"x": X, "n": -1})
    assert caught.value.endpoint == "apply"
    assert isinstance(caught.value.__cause__, ValueError)


def test_injected_faults_arrive_as_they_are():
    t = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": X}, before=Faults(Unreachable("no route")))
    with count_requests() as requests:
        with pytest.raises(Unreachable, match="no route"):
            t.apply({"x": X})
        np.testing.assert_array_equal(t.apply({"x": X})["y"], X)
    assert dict(requests) == {"function.apply": 2}


def test_delay_is_for_solves_only():
    t = FunctionTesseract(lambda i: {"y": i["x"]}, {"x": X}, delay=0.05)
    start = time.perf_counter()
    t.apply({"x": X})
    assert time.perf_counter() - start >= 0.05
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        t.abstract_eval({"x": {"shape": [3], "dtype": "float64"}})
        t.vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": X})
    assert slept == [0.05]


# Derivatives by hand


def by_hand(**options: Any) -> FunctionTesseract:
    """y = 1/x, with NumPy that JAX could not trace, and a name that is no array."""

    def apply(inputs: Any) -> Any:
        assert type(inputs["x"]) is np.ndarray
        return {"y": np.array([1.0 / float(x) for x in inputs["x"]]), "solver": "direct", "n": len(inputs["x"])}

    def vector_jacobian_product(inputs: Any, vjp_inputs: Any, vjp_outputs: Any, cotangent_vector: Any) -> Any:
        assert (list(vjp_inputs), list(vjp_outputs)) == (["x"], ["y"])
        return {"x": -cotangent_vector["y"] / inputs["x"] ** 2}

    derivatives = {"vector_jacobian_product": vector_jacobian_product}
    return FunctionTesseract(apply, {"x": np.ones(2)}, derivatives=derivatives, **options)


@pytest.mark.parametrize("jit", [False, True])
def test_numpy_with_a_pullback_by_hand(jit: bool) -> None:
    from tesseract_flow.testing import assert_gradients

    handle = by_hand()
    assert handle.schema.endpoints == {"apply", "abstract_eval", "vector_jacobian_product"}
    loss = maybe_jit(lambda x: jnp.sum(apply_tesseract(handle, {"x": x})["y"] ** 2), jit)
    x = jnp.array([1.0, 2.0, 4.0])
    assert_close(jax.grad(loss)(x), -2.0 * np.asarray(x) ** -3.0)
    assert_gradients(loss, at=x)
    out = apply_tesseract(handle, {"x": x})
    assert (out["solver"], out["n"]) == ("direct", 3)
    assert handle.apply({"x": np.ones(2, np.float32)})["y"].dtype == np.float64


def test_numpy_without_derivatives() -> None:
    handle = FunctionTesseract(lambda i: {"y": np.sort(i["x"])}, {"x": np.ones(2)}, derivatives={})
    assert handle.schema.endpoints == {"apply", "abstract_eval"}
    with pytest.raises(EndpointNotFound):
        jax.grad(lambda x: apply_tesseract(handle, {"x": x})["y"][0])(jnp.ones(2))
    with pytest.raises(OptionError, match="no derivative endpoints"):
        FunctionTesseract(lambda i: i, {"x": np.ones(2)}, derivatives={"pullback": lambda: None})
