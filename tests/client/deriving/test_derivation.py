"""A derived endpoint is the one that it stands for, at the price that was counted beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.client import Derive, count_requests, open_tesseract
from tesseract_flow.derivatives import Differences
from tesseract_flow.errors import InvalidAnswer, InvalidInput, OverBudget
from tesseract_flow.execute import concurrent
from tesseract_flow.testing import FunctionTesseract
from tests.cases import CASES, Case, is_inexact
from tests.client.derivations import JACOBIAN, JVP, VJP, C, Showing, X, only, square, told, vjp
from tests.helpers import Watched
from tests.recipes.helpers import answers_of, jacobian_of

# The mathematics is tested over all cases where it is; here one case per kind of path and dtype.
KINDS = ("dict_of_arrays", "list_of_arrays", "float32", "complex", "zero_size", "plain_outputs")
SOME = [case for case in CASES if case.name in KINDS]
# (case, the one derivative endpoint that there is).
EXACT = [(case, have) for case in SOME for have in (JVP, VJP)]
EXACT += [(case, JACOBIAN) for case in SOME if case.name in ("list_of_arrays", "zero_size")]
over_exact = pytest.mark.parametrize("case, have", EXACT, ids=[f"{case.name}-{have}" for case, have in EXACT])
over_some = pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)


def through(handle: Any, case: Case) -> Callable[[Any], Any]:
    """x -> differentiable outputs, through a handle."""
    return lambda x: eqx.filter(apply_tesseract(handle, case.full(x)), is_inexact)


def assert_near(got: Any, expected: Any, rtol: float) -> None:
    """Equal trees, to `rtol` of the largest entry of all: a structural zero is a rounding error to a difference."""
    got_leaves, got_tree = jax.tree_util.tree_flatten(got)
    expected_leaves, expected_tree = jax.tree_util.tree_flatten(expected)
    assert got_tree == expected_tree
    scale = max((float(np.max(np.abs(leaf), initial=0.0)) for leaf in expected_leaves), default=0.0)
    for a, b in zip(got_leaves, expected_leaves, strict=True):
        assert (np.shape(a), np.asarray(a).dtype) == (np.shape(b), np.asarray(b).dtype)
        np.testing.assert_allclose(a, b, rtol=0.0, atol=rtol * scale)


def sizes(case: Case) -> tuple[int, int, int]:
    """Elements of inputs and outputs; how often a complex one counts where a product is made from products."""
    return answers_of(case).n_inputs, answers_of(case).n_outputs, 2 if case.name == "complex" else 1


# What is derived, and its price


@over_exact
def test_exact_products_are_those_of_jax(case: Case, have: str) -> None:
    f = through(open_tesseract(only(case, have), derive=True), case)
    n_in, n_out, factor = sizes(case)
    x, t, c = case.x, case.tangent(1), case.cotangent(2)
    with count_requests() as counts:
        y_dot = jax.jvp(f, (x,), (t,))[1]
    assert_near(y_dot, jax.jvp(case.plain, (x,), (t,))[1], 10 * case.rtol)
    price = {JACOBIAN: 1, JVP: 1, VJP: factor * n_out}[have]
    # Shapes are asked once, for JAX; where rows need them as well, they are remembered.
    assert counts == {f"{case.name}.apply": 1, f"{case.name}.abstract_eval": 1, f"{case.name}.{have}": price}
    with count_requests() as counts:
        (x_bar,) = jax.vjp(f, x)[1](c)
    assert_near(x_bar, jax.vjp(case.plain, x)[1](c)[0], 10 * case.rtol)
    price = {JACOBIAN: 1, JVP: factor * n_in, VJP: 1}[have]
    assert counts == {f"{case.name}.apply": 1, f"{case.name}.{have}": price}


@over_exact
def test_exact_jacobian(case: Case, have: str) -> None:
    handle = open_tesseract(only(case, have), derive="exact")
    a = answers_of(case)
    with count_requests() as counts:
        jacobian = handle.jacobian(a.inputs, list(a.x), list(a.c))
    assert_near(jacobian, jacobian_of(case), 10 * case.rtol)
    n_empty = sum(x.size == 0 for x in a.x.values())
    expected = {JACOBIAN: {JACOBIAN: 1}, JVP: {JVP: a.n_inputs + n_empty}, VJP: {VJP: a.n_outputs, "abstract_eval": 1}}
    assert counts == {f"{case.name}.{endpoint}": n for endpoint, n in expected[have].items()}


@over_some
@pytest.mark.parametrize("method, rtol", [("central", 1e-8), ("forward", 1e-6)])
def test_differences_approximate_jax(case: Case, method: str, rtol: float) -> None:
    rtol = rtol if case.rtol < 1e-6 else 0.03 if method == "forward" else 3e-3
    handle = open_tesseract(only(case), derive=method)
    f = through(handle, case)
    n_in, _, factor = sizes(case)
    x, t, c = case.x, case.tangent(1), case.cotangent(2)
    with count_requests() as counts:
        y_dot = jax.jvp(f, (x,), (t,))[1]
    assert_near(y_dot, jax.jvp(case.plain, (x,), (t,))[1], rtol)
    assert counts == {f"{case.name}.apply": 1 + 2, f"{case.name}.abstract_eval": 1}
    with count_requests() as counts:
        (x_bar,) = jax.vjp(f, x)[1](c)
    assert_near(x_bar, jax.vjp(case.plain, x)[1](c)[0], rtol)
    price = factor * n_in + 1 if method == "forward" else 2 * factor * n_in
    assert counts == {f"{case.name}.apply": 1 + price}
    a = answers_of(case)
    with count_requests() as counts:
        jacobian = handle.jacobian(a.inputs, list(a.x), list(a.c))
    assert_near(jacobian, jacobian_of(case), rtol)
    has_empty = any(leaf.size == 0 for leaf in a.x.values())
    assert counts.n_total == (n_in + 1 if method == "forward" else 2 * n_in + has_empty)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_gradient(jit: bool) -> None:
    handle = open_tesseract(square(JVP), derive=True)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(apply_tesseract(handle, {"x": x})["y"])))
    x = jnp.asarray(X["x"])
    got = (jax.jit(gradient) if jit else gradient)(x)
    np.testing.assert_allclose(got, jnp.cos(x**2) * 2 * x, rtol=1e-12)


def test_in_a_concurrent_run() -> None:
    """The executor looks at the endpoints beforehand and finds all of them."""
    handle = open_tesseract(square(JVP), derive=True)
    step = concurrent(jax.value_and_grad(lambda x: jnp.sum(apply_tesseract(handle, {"x": x})["y"])))
    x = jnp.asarray(X["x"])
    step(x)
    with count_requests() as counts:
        value, gradient = step(x)
    np.testing.assert_allclose(value, 14.0)
    np.testing.assert_allclose(gradient, 2 * x)
    assert counts == {"square.apply": 1, f"square.{JVP}": 3}


def test_spsa_estimates_at_two_requests_per_sample() -> None:
    n = 40
    component = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2}, {"x": np.ones(n)}, name="wide", endpoints={"apply", "abstract_eval"}
    )
    inputs, c = {"x": np.linspace(-1.0, 1.0, n)}, {"y": np.ones(n)}
    with count_requests() as counts:
        estimate = vjp(open_tesseract(component, derive="spsa"), inputs, c)["x"]
    assert counts == {"wide.apply": 20}
    exact = 2 * inputs["x"]
    # k samples of n entries: a descent direction, wrong by about sqrt(n / k) of the gradient's norm.
    assert estimate @ exact > 0.0
    assert 0.5 < np.linalg.norm(estimate - exact) / np.linalg.norm(exact) < 5.0
    n_samples = Derive(Differences("spsa", n_samples=n))
    np.testing.assert_allclose(vjp(open_tesseract(component, derive=n_samples), inputs, c)["x"], exact, atol=1e-9)


def test_fewest_requests_win() -> None:
    tall = FunctionTesseract(
        lambda i: {"y": jnp.outer(i["x"], i["x"])},
        {"x": np.ones(2)},
        name="tall",
        endpoints={"apply", "abstract_eval", JVP, VJP},
    )
    wide = FunctionTesseract(
        lambda i: {"y": jnp.sum(i["x"] ** 2)},
        {"x": np.ones(4)},
        name="wide",
        endpoints={"apply", "abstract_eval", JVP, VJP},
    )
    with count_requests() as counts:
        open_tesseract(tall, derive=True).jacobian({"x": np.ones(2)}, ["x"], ["y"])
        open_tesseract(wide, derive="central").jacobian({"x": np.ones(4)}, ["x"], ["y"])
    assert counts == {"tall.abstract_eval": 1, f"tall.{JVP}": 2, "wide.abstract_eval": 1, f"wide.{VJP}": 1}
    # From the Jacobian at one request, whatever else there is; and nothing is asked to find that out.
    with count_requests() as counts:
        vjp(open_tesseract(square(JVP, JACOBIAN), derive=True))
        open_tesseract(square(VJP, JACOBIAN), derive=True).jacobian_vector_product(X, ["x"], ["y"], {"x": C["y"]})
    assert counts == {"square.jacobian": 2}


def test_what_the_component_has_is_its_own() -> None:
    watched = Watched(square(VJP))
    handle = open_tesseract(watched, derive="central")
    vjp(handle)
    handle.apply(X, run_id="mine")
    assert [endpoint for endpoint, _ in watched.requests] == [VJP, "apply"]
    assert set(watched.payloads(VJP)[0]) == {"inputs", "vjp_inputs", "vjp_outputs", "cotangent_vector"}


# Shapes for rows


def test_shapes_are_asked_once_per_structure() -> None:
    component = FunctionTesseract(
        lambda i: {"y": i["x"] ** i["power"]},
        {"x": np.ones(3), "power": 2},
        name="power",
        endpoints={"apply", "abstract_eval", VJP},
    )
    handle = open_tesseract(component, derive=True)

    def ask_at(x: Any, power: Any) -> None:
        handle.jacobian({"x": np.asarray(x), "power": power}, ["x"], ["y"])

    with count_requests() as counts:
        ask_at([1.0, 2.0], 2)
        ask_at([3.0, 4.0], 2)
    assert counts["power.abstract_eval"] == 1
    with count_requests() as counts:
        ask_at([1.0, 2.0, 3.0], 2)
        ask_at([1.0, 2.0], 3)
        ask_at([1.0, 2.0], 2.0)
        open_tesseract(component, derive=True).jacobian({"x": np.ones(2), "power": 2}, ["x"], ["y"])
    assert counts["power.abstract_eval"] == 3


def test_shapes_are_learned_from_apply_where_nothing_else_tells() -> None:
    handle = open_tesseract(square(VJP, has_shapes=False), derive=True)
    assert "abstract_eval" not in handle.schema.endpoints
    t = {"x": C["y"]}
    with count_requests() as counts:
        got = [handle.jacobian_vector_product(X, ["x"], ["y"], t)["y"] for _ in range(2)]
    np.testing.assert_allclose(got, [2 * X["x"] * C["y"]] * 2)
    assert counts == {"square.apply": 1, f"square.{VJP}": 6}
    # An apply that is asked for anyway tells them too.
    handle = open_tesseract(square(VJP, has_shapes=False), derive=True)
    with count_requests() as counts:
        handle.apply(X)
        handle.jacobian_vector_product(X, ["x"], ["y"], t)
    assert counts == {"square.apply": 1, f"square.{VJP}": 3}


# Dtypes


def test_products_have_the_dtypes_of_the_protocol() -> None:
    def fn(i: Any) -> Any:
        return {"y": (i["a"] * i["b"].astype(np.float64)).astype(np.float32), "z": i["a"] * 3.0}

    example = {"a": np.arange(1.0, 3.0), "b": np.arange(1.0, 3.0, dtype=np.float32)}
    t = {"a": np.ones(2), "b": np.ones(2, np.float32)}
    c = {"y": np.ones(2, np.float32), "z": np.ones(2)}
    full = FunctionTesseract(fn, example, name="mixed")
    expected = full.jacobian_vector_product(example, ["a", "b"], ["y", "z"], t), vjp(full, example, c)
    by_rows = open_tesseract(Showing(full, {"apply", "abstract_eval", VJP}), derive=True)
    for have, derive, rtol in (
        (JACOBIAN, True, 1e-6),
        (JVP, True, 1e-6),
        (VJP, True, 1e-6),
        ("apply", "central", 1e-3),
    ):
        component = Showing(by_rows if have == JACOBIAN else full, {"apply", "abstract_eval", have})
        handle = open_tesseract(component, derive=derive)
        # A wider array than the schema wants is taken at the schema's precision, as a server would take it.
        for inputs in (example, {**example, "b": example["b"].astype(np.float64)}):
            y_dot = handle.jacobian_vector_product(inputs, ["a", "b"], ["y", "z"], t)
            assert_near(y_dot, expected[0], rtol)
            assert_near(vjp(handle, inputs, c), expected[1], rtol)


def test_scalars_that_are_no_arrays_yet() -> None:
    component = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2}, {"x": np.float64(1.0)}, name="scalar", endpoints={"apply", "abstract_eval", VJP}
    )
    handle = open_tesseract(component, derive=True)
    y_dot = handle.jacobian_vector_product({"x": 3}, ["x"], ["y"], {"x": 1.0})["y"]
    assert (float(y_dot), y_dot.dtype) == (6.0, np.float64)


# Questions and answers that do not fit


def test_questions_that_do_not_fit_are_refused_before_anything_is_sent() -> None:
    component = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2, "n": i["n"]},
        {"x": np.ones(3), "n": np.arange(2)},
        name="picky",
        endpoints={"apply", "abstract_eval", JVP},
    )
    handle = open_tesseract(component, derive=True)
    inputs = {**X, "n": np.arange(2)}
    ask = handle.vector_jacobian_product
    with count_requests() as counts:
        with pytest.raises(InvalidInput, match=r"xx: not a differentiable input; these are: 'x'\. Did you mean 'x'"):
            ask(inputs, ["xx"], ["y"], C)
        with pytest.raises(InvalidInput, match=r"n: not a differentiable input") as caught:
            ask(inputs, ["n"], ["n"], {"n": np.ones(2)})
        assert [fault.path for fault in caught.value.faults] == ["n", "n"]
        with pytest.raises(InvalidInput, match=r"a\[0: not a differentiable input"):
            ask(inputs, ["a[0"], ["y"], C)
        with pytest.raises(InvalidInput, match=r"y: cotangent missing"):
            ask(inputs, ["x"], ["y"], {})
        with pytest.raises(InvalidInput, match=r"z: cotangent not asked for; outputs are 'y'"):
            ask(inputs, ["x"], ["y"], {**C, "z": 1.0})
        differences = open_tesseract(square(), derive="central")
        with pytest.raises(InvalidInput, match=r"expected a tangent of shape \(3,\), got \(2,\)"):
            differences.jacobian_vector_product(X, ["x"], ["y"], {"x": np.ones(2)})
    assert counts.n_total == 0


@pytest.mark.parametrize("have", [JACOBIAN, JVP, "apply"])
def test_answers_of_another_shape_are_refused(have: str) -> None:
    """They would broadcast, and the sum be wrong in silence."""

    def distort(endpoint: str, answer: Any) -> Any:
        if endpoint == JACOBIAN:
            return {"y": {"x": answer["y"]["x"][:1]}}
        return {"y": answer["y"][:1]} if endpoint == have else answer

    handle = open_tesseract(Watched(square(*([have] if have != "apply" else [])), distort), derive="central")
    with pytest.raises(InvalidAnswer, match=rf"answered '{have}' with 'y'.* of shape \(1,.*expected \(3,"):
        vjp(handle)


def test_answer_without_the_output_is_refused() -> None:
    handle = open_tesseract(Watched(square(), lambda endpoint, answer: {"z": answer["y"]}), derive="central")
    with pytest.raises(InvalidAnswer, match="answered 'apply' without output 'y'"):
        vjp(handle)


# Steps


def noisy(level: float) -> FunctionTesseract:
    """exp, wrong in the digits below `level` in a way that changes with every bit of the input."""
    return FunctionTesseract(
        lambda i: {"y": jnp.exp(i["x"]) * (1.0 + level * jnp.sin(1e14 * i["x"]))},
        {"x": np.ones(3)},
        name="noisy",
        endpoints={"apply", "abstract_eval"},
    )


def test_noise_is_measured_once_and_the_step_follows(caplog: pytest.LogCaptureFixture) -> None:
    component = noisy(1e-7)
    inputs, c = {"x": np.array([0.5, 1.0, 1.5])}, {"y": np.ones(3)}

    def error(derive: Derive, at: Any = inputs) -> float:
        return float(np.max(np.abs(vjp(open_tesseract(component, derive=derive), at, c)["x"] / np.exp(at["x"]) - 1.0)))

    measured = Derive(Differences(), measure_noise=True)
    assert error(Derive(Differences())) > 1e-3
    with count_requests() as counts:
        assert error(measured) < 1e-4
    n_first = counts.n_total
    assert n_first in (6 + 8, 6 + 16)
    with count_requests() as counts:
        assert error(measured, {"x": inputs["x"] + 0.25}) < 1e-4
    assert counts.n_total == 6
    (message,) = [message for _, message in told(caplog) if "relative noise" in message]
    assert f"which {n_first - 6} requests to 'apply' have measured" in message
    assert 1e-8 < float(message.split("relative noise of ")[1].split(" ")[0]) < 1e-6


def test_measuring_is_within_the_budget() -> None:
    handle = open_tesseract(noisy(1e-7), derive=Derive(Differences(), measure_noise=True, max_requests=13))
    with count_requests() as counts, pytest.raises(OverBudget, match="would take 14 requests"):
        vjp(handle)
    assert counts.n_total == 0


def test_settings_for_other_inputs_are_no_hindrance() -> None:
    component = FunctionTesseract(
        lambda i: {"y": i["a"] * i["b"]}, {"a": np.zeros(2), "b": np.zeros(2)}, endpoints={"apply", "abstract_eval"}
    )
    how = Derive(Differences(typical={"a": np.array([1e3, 1.0]), "b": 1.0}))
    x_bar = open_tesseract(component, derive=how).vector_jacobian_product(
        {"a": np.zeros(2), "b": np.ones(2)}, ["a"], ["y"], {"y": np.ones(2)}
    )
    np.testing.assert_allclose(x_bar["a"], 1.0, rtol=1e-9)
