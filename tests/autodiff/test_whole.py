"""Differences of a whole function against plain JAX: values, runs, and what they refuse."""

from __future__ import annotations

import logging
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.autodiff import apply_tesseract, differences, hvp
from tesseract_flow.client import count_requests
from tesseract_flow.errors import (
    BoundsError,
    ComponentFailed,
    OptionError,
    OverBudget,
    ProbeFailed,
    SecondDerivative,
    cause,
)
from tesseract_flow.execute import concurrent
from tesseract_flow.schema import ArrayField
from tesseract_flow.testing import FunctionTesseract
from tests.helpers import assert_close

OUTER = {"eager": lambda f: f, "jit": jax.jit, "concurrent": concurrent}
N, FIELD = 4, 50
X = np.array([0.3, -1.2, 0.7, 2.0])
RTOL = {"central": 1e-7, "forward": 1e-5}


def to_field(i: Any) -> Any:
    grid = jnp.arange(FIELD, dtype=i["x"].dtype) / FIELD
    return {"field": jnp.sin(grid * jnp.sum(i["x"] ** 2)) + grid * i["x"][0]}


def of_field(i: Any) -> Any:
    field = i["field"]
    return {"y": jnp.stack([jnp.sum(field**2), jnp.sum(jnp.cos(field)), field[3]])}


def plain(x: Any) -> Any:
    return of_field(to_field({"x": x}))["y"]


def components(**kwargs: Any) -> tuple[FunctionTesseract, FunctionTesseract]:
    """With `apply` and nothing else: not even shapes."""
    first = FunctionTesseract(to_field, {"x": X}, endpoints=["apply"], name="first", **kwargs)
    second = FunctionTesseract(of_field, {"field": np.ones(FIELD)}, endpoints=["apply"], name="second", **kwargs)
    return first, second


def through(first: Any, second: Any) -> Any:
    return lambda x: apply_tesseract(second, {"field": apply_tesseract(first, {"x": x})["field"]})["y"]


def known_shapes(first: Any, second: Any) -> None:
    """`jit` has no values: the shapes of components that do not tell them are learned by a call."""
    jax.block_until_ready(through(first, second)(X))


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
@pytest.mark.parametrize("method", ["central", "forward"])
def test_equals_plain_jax_at_the_price_of_its_own_inputs(method: Any, outer: Any):
    first, second = components()
    known_shapes(first, second)
    g = differences(through(first, second), method=method)
    price = N if method == "forward" else 2 * N
    c = jnp.array([1.0, -2.0, 0.5])
    with count_requests() as requests:
        y, gradient = outer(jax.value_and_grad(lambda x: g(x) @ c))(X)
    assert_close(y, plain(X) @ c, 1e-13)
    assert_close(gradient, jax.grad(lambda x: plain(x) @ c)(X), RTOL[method])
    assert requests.n_total == requests.n_of("apply") == 2 * (1 + price)
    assert g.n_runs(X) == 1 + price
    for transform in (jax.jacrev, jax.jacfwd):
        with count_requests() as requests:
            jacobian = outer(transform(g))(X)
        np.testing.assert_allclose(jacobian, jax.jacrev(plain)(X), rtol=RTOL[method], atol=RTOL[method])
        assert requests.n_of("apply") <= 2 * (1 + price)
    t = jnp.array([1.0, 0.0, -1.0, 0.3])
    with count_requests() as requests:
        y, y_dot = outer(lambda x, t: jax.jvp(g, (x,), (t,)))(X, t)
    assert_close(y_dot, jax.jvp(plain, (X,), (t,))[1], RTOL[method])
    assert requests.n_of("apply") == 2 * (1 + (1 if method == "forward" else 2))


def test_eleven_inputs_a_field_and_one_output_cost_twenty_three_runs():
    wide = FunctionTesseract(to_field, {"x": np.ones(11)}, endpoints=["apply", "abstract_eval"], name="wide")
    narrow = FunctionTesseract(of_field, {"field": np.ones(FIELD)}, endpoints=["apply", "abstract_eval"], name="narrow")
    x = jnp.linspace(0.1, 0.5, 11)
    for method, runs in (("central", 23), ("forward", 12)):
        g = differences(lambda x: through(wide, narrow)(x)[0], method=method)  # type: ignore[arg-type]
        with count_requests() as requests:
            concurrent(jax.value_and_grad(g))(x)
        assert requests.n_of("apply") == 2 * runs
        assert g.n_runs(x) == runs


def test_components_without_shapes_need_no_call_of_their_own():
    for outer in (lambda f: f, concurrent):
        g = differences(through(*components()))
        with count_requests() as requests:
            outer(jax.jacrev(g))(X)
        assert requests.n_total == 2 * (1 + 2 * N)


@pytest.mark.slow
def test_vmap_and_its_derivatives():
    first, second = components()
    g = differences(through(first, second))
    batch = jnp.stack([jnp.asarray(X), 2 * X])
    assert_close(jax.vmap(g)(batch), jax.vmap(plain)(batch), 1e-13)
    got = concurrent(jax.vmap(jax.jacrev(g)))(batch)
    np.testing.assert_allclose(got, jax.vmap(jax.jacrev(plain))(batch), rtol=1e-6, atol=1e-6)
    total = jax.grad(lambda x: jnp.sum(jax.vmap(g)(x)))(batch)
    np.testing.assert_allclose(total, jax.grad(lambda x: jnp.sum(jax.vmap(plain)(x)))(batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("outer", [lambda f: f, concurrent], ids=["eager", "concurrent"])
def test_probes_are_in_flight_at_once(outer: Any):
    first, second = components()
    known_shapes(first, second)
    meeting = threading.Barrier(2)

    def meet(endpoint: str, inputs: Any) -> None:
        if not np.array_equal(inputs["x"], X):
            meeting.wait(60)  # for another probe: one after the other none would pass

    first.before = meet
    outer(jax.jacrev(differences(through(first, second))))(X)


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
def test_nobody_is_asked_along_zeros(outer: Any):
    first, second = components()
    known_shapes(first, second)
    g = differences(through(first, second))
    with count_requests() as requests:
        y, pull = jax.vjp(g, jnp.asarray(X))
    assert requests.n_total == 2
    with count_requests() as requests:
        (x_bar,) = outer(pull)(jnp.zeros(3))
        _, y_dot = jax.jvp(lambda x, s: g(x) * s, (jnp.asarray(X), 2.0), (jnp.zeros(N), 1.0))
    assert requests.n_total == 2  # the value of the second
    assert_close((x_bar, y_dot), (jnp.zeros(N), y), 1e-13)


def test_mixed_trees_pass_and_only_what_varies_is_probed():
    asked: list[Any] = []

    def fn(tree: Any, n: Any) -> Any:
        asked.append(tree["name"])
        return {"y": jnp.sum(tree["a"]) ** n["power"] * tree["b"], "text": tree["name"], "n": tree["k"] + 1}

    tree = {"a": jnp.arange(3.0) + 1, "b": jnp.asarray(2.0), "k": jnp.arange(4), "name": "wing", "none": None}
    g = differences(fn)
    out = g(tree, {"power": 3})
    assert out["text"] == "wing"
    assert out["n"].tolist() == [1, 2, 3, 4]
    assert g.n_runs(tree, {"power": 3}) == 1 + 2 * 4
    gradient = jax.grad(lambda a, b: g({**tree, "a": a, "b": b}, {"power": 3})["y"], (0, 1))(tree["a"], tree["b"])
    assert_close(gradient, (jnp.full(3, 216.0), jnp.asarray(216.0)), 1e-8)
    assert set(asked) == {"wing"}


def test_only_what_is_differentiated_is_probed():
    first, second = components()
    g = differences(lambda x, scale: through(first, second)(x) * scale)
    with count_requests() as requests:
        got = jax.grad(lambda scale: jnp.sum(g(X, scale)))(2.0)
    assert_close(got, jnp.sum(plain(X)), 1e-8)
    assert requests.n_of("apply") == 2 * 2  # the value, and once for both probes, to whose calls it makes no difference


def test_what_it_closes_over_is_an_input_too():
    def loss(a: Any, b: Any) -> Any:
        return differences(lambda x: jnp.sum(x**2) * b**3)(a)

    a, b = jnp.array([1.0, 2.0]), jnp.asarray(3.0)
    for outer in OUTER.values():
        assert_close(outer(jax.grad(loss, (0, 1)))(a, b), (2 * a * 27, jnp.asarray(5.0 * 27)), 1e-8)


def test_steps_are_those_of_the_precision_that_moves():
    def fn(x: Any) -> Any:
        return jnp.sum(jnp.sin(x["single"])) + jnp.sum(jnp.exp(x["double"])).astype(jnp.float32)

    x = {"single": jnp.linspace(0.5, 1.0, 3, dtype=jnp.float32), "double": jnp.linspace(0.1, 0.2, 2)}
    got = jax.grad(differences(fn))(x)
    assert got["single"].dtype == jnp.float32
    assert got["double"].dtype == jnp.float64
    np.testing.assert_allclose(got["single"], jnp.cos(x["single"]), rtol=2e-3)
    np.testing.assert_allclose(got["double"], jnp.exp(x["double"]), rtol=2e-3)


def test_a_single_precision_component_in_between_is_seen():
    half = FunctionTesseract(
        lambda i: {"y": jnp.sin(i["x"])}, {"x": np.ones(3, np.float32)}, endpoints=["apply", "abstract_eval"]
    )
    x = jnp.linspace(0.5, 1.0, 3)  # of double precision, as is the result
    got = jax.grad(differences(lambda x: jnp.sum(apply_tesseract(half, {"x": x})["y"].astype(jnp.float64))))(x)
    np.testing.assert_allclose(got, jnp.cos(x), rtol=2e-3)


def test_noise_and_typical_magnitudes_make_the_step():
    wobble = lambda x: jnp.sum(x**2) * (1.0 + 1e-6 * jnp.sin(1e9 * jnp.sum(x)))  # noqa: E731
    x = jnp.array([1.0, 2.0])
    assert not np.allclose(jax.grad(differences(wobble))(x), 2 * x, rtol=1e-3)
    np.testing.assert_allclose(jax.grad(differences(wobble, noise=1e-6))(x), 2 * x, rtol=1e-3)
    mixed = jnp.array([1e-6, 1.0])
    fn = lambda x: jnp.sin(x[0] * 1e6) + x[1]  # noqa: E731
    assert not np.allclose(jax.grad(differences(fn))(mixed)[0], 1e6 * np.cos(1.0), rtol=1e-3)
    got = jax.grad(differences(fn, typical=np.array([1e-6, 1.0])))(mixed)
    np.testing.assert_allclose(got, [1e6 * np.cos(1.0), 1.0], rtol=1e-7)


def test_noise_is_measured_by_a_few_runs_and_not_again():
    wobbly = FunctionTesseract(
        lambda i: {"y": jnp.sum(i["x"] ** 2) * (1.0 + 1e-7 * jnp.sin(1e16 * jnp.sum(i["x"])))}, {"x": np.ones(2)}
    )
    g = differences(lambda x, n: apply_tesseract(wobbly, {"x": x})["y"] * n)
    x = jnp.array([1.0, 2.0])
    with count_requests() as requests:
        noise = g.measure_noise(x, 3)
    assert 1e-8 < noise < 1e-6
    assert requests.n_of("apply") <= 49
    gradient = jax.grad(differences(lambda x: apply_tesseract(wobbly, {"x": x})["y"], noise=noise))(x)
    np.testing.assert_allclose(gradient, 2 * x, rtol=1e-3)
    assert differences(lambda x: jnp.sum(jnp.exp(x))).measure_noise(x) < 1e-14
    with pytest.raises(OptionError, match="none among its arguments"):
        differences(lambda n: n).measure_noise(3)
    with pytest.raises(OptionError, match="none among its outputs"):
        differences(lambda x: 3).measure_noise(x)


def test_complex_arrays_follow_jax():
    fn = lambda z, x: jnp.exp(z) * x.astype(z.dtype)  # noqa: E731
    z, x = jnp.array([0.3 + 0.2j, -0.1 + 1j]), jnp.array([2.0, 3.0])
    g = differences(fn)
    assert_close(g(z, x), fn(z, x), 1e-14)
    loss = lambda f: lambda z, x: jnp.sum(jnp.abs(f(z, x)) ** 2 + jnp.real(f(z, x) * 1j))  # noqa: E731
    assert_close(jax.grad(loss(g), (0, 1))(z, x), jax.grad(loss(fn), (0, 1))(z, x), 1e-8)
    t = (z * 1j, x)
    assert_close(jax.jvp(g, (z, x), t)[1], jax.jvp(fn, (z, x), t)[1], 1e-8)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
@pytest.mark.parametrize("method", ["central", "forward"])
def test_no_probe_leaves_the_bounds(method: Any, outer: Any):
    seen: list[np.ndarray] = []

    def root(i: Any) -> Any:
        return {"y": jnp.sqrt(i["x"]) + jnp.sqrt(2.0 - i["x"]) + i["x"] ** 2}

    part = FunctionTesseract(
        root, {"x": X}, endpoints=["apply", "abstract_eval"], before=lambda _, inputs: seen.append(inputs["x"])
    )
    lower, upper = np.full(4, 0.5), 1.9

    def fn(x: Any) -> Any:
        return jnp.sum(apply_tesseract(part, {"x": x})["y"] * jnp.arange(1.0, 5.0))

    def exact(x: Any) -> Any:
        return jnp.sum(root({"x": x})["y"] * jnp.arange(1.0, 5.0))

    g = differences(fn, method=method, bounds=(lower, upper))
    x = jnp.array([0.5, 1.9, 1.0, 1.5])
    np.testing.assert_allclose(outer(jax.grad(g))(x), jax.grad(exact)(x), rtol=10 * RTOL[method])
    # Along a direction that pushes one entry against its lower, and another against its upper bound.
    corner, t = jnp.array([0.5, 1.9, 1.0, 1.0]), jnp.array([-1.0, 1.0, 1.0, 0.0])
    y_dot = outer(lambda x, t: jax.jvp(g, (x,), (t,))[1])(corner, t)
    np.testing.assert_allclose(y_dot, jax.grad(exact)(corner) @ t, rtol=1e-5)
    points = np.stack([point for point in seen if hasattr(point, "shape")])
    assert (points >= lower).all()
    assert (points <= upper).all()


def test_at_a_bound_central_differences_keep_their_order():
    x = jnp.array([0.0, 1.0])
    got = jax.grad(differences(lambda x: jnp.sum(jnp.exp(3 * x)), bounds=(0.0, 1.0)))(x)
    np.testing.assert_allclose(got, 3 * jnp.exp(3 * x), rtol=1e-8)


def test_a_point_outside_of_the_bounds_is_refused():
    g = differences(lambda wing: jnp.sum(wing["span"] ** 2), bounds=({"span": 0.0}, None))
    with pytest.raises(BoundsError, match=r"span\[1\] = -0.5 lies outside of the bounds \[0, inf\]"):
        jax.grad(g)({"span": jnp.array([1.0, -0.5])})


# --- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
def test_a_probe_without_a_number_is_named_with_its_inputs(outer: Any):
    g = differences(lambda x: {"power": jnp.sum(jnp.sqrt(x))}, name="power")
    x = jnp.array([1.0, 0.0])
    with pytest.raises(Exception) as caught:  # noqa: PT011
        jax.block_until_ready(outer(jax.grad(lambda x: g(x)["power"]))(x))
    error = cause(caught.value)
    assert isinstance(error, ProbeFailed)
    assert "'power': 1 of 4 probes gave NaN or inf" in str(error)
    assert "(x[1], a step down)" in f"({error.probe})"
    assert "output 'power'" in str(error)
    np.testing.assert_allclose(error.inputs["x"], [1.0, -6.06e-6], rtol=1e-2)


def test_a_value_that_no_cotangent_asks_for_counts_nothing():
    g = differences(lambda x: (jnp.sum(x**2), jnp.sum(jnp.sqrt(x)), jnp.inf * jnp.sum(jnp.ones_like(x))))
    x = jnp.array([1.0, 0.0])
    assert_close(jax.grad(lambda x: g(x)[0])(x), 2 * x, 1e-8)


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
def test_an_error_of_a_component_says_which_probe_it_was(outer: Any):
    def wall(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply" and inputs["x"][2] < 0.7:
            raise ComponentFailed("mesh has negative volumes")

    first = FunctionTesseract(to_field, {"x": X}, endpoints=["apply", "abstract_eval"], before=wall, name="first")
    g = differences(lambda x: jnp.sum(apply_tesseract(first, {"x": x})["field"]))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        jax.block_until_ready(outer(jax.grad(g))(X))
    error = cause(caught.value)
    assert isinstance(error, ComponentFailed)
    assert "probe 6 of 8 (x[2], a step down)" in "\n".join(error.__notes__)


def test_second_derivatives_are_refused_or_differences_of_first_ones():
    g = differences(lambda x: jnp.sum(x**4))
    x = jnp.array([1.0, 2.0])
    with pytest.raises(SecondDerivative, match="by differences"):
        jax.hessian(g)(x)
    np.testing.assert_allclose(hvp(g, x, jnp.ones(2), noise=1e-10), 12 * x**2, rtol=1e-5)
    second = jax.jacfwd(differences(jax.grad(lambda x: jnp.sum(x**4))))
    np.testing.assert_allclose(second(x), jnp.diag(12 * x**2), atol=1e-7)
    # Of differences within differences the outer ones count.
    assert_close(jax.grad(differences(differences(lambda x: jnp.sum(x**4))))(x), 4 * x**3, 1e-7)


def test_a_branch_that_is_not_taken_is_not_asked():
    def refuse(endpoint: str, inputs: Any) -> None:
        if endpoint == "apply":
            raise ComponentFailed("only where x is negative")

    never = FunctionTesseract(
        lambda i: {"y": i["x"]}, {"x": np.ones(2)}, endpoints=["apply", "abstract_eval"], before=refuse
    )

    def fn(x: Any) -> Any:
        return jnp.sum(jax.lax.cond(x[0] < 0, lambda: apply_tesseract(never, {"x": x})["y"], lambda: x**2))

    x = jnp.array([1.0, 2.0])
    for outer in OUTER.values():
        assert_close(outer(jax.grad(differences(fn)))(x), 2 * x, 1e-8)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_price_is_said_once_and_kept(caplog: pytest.LogCaptureFixture):
    first, second = components()
    with caplog.at_level(logging.INFO, logger="tesseract_flow"):
        g = differences(through(first, second), name="power")
        for _ in range(2):
            jax.jacrev(g)(X)
    assert [record.getMessage() for record in caplog.records if "differences" in record.getMessage()] == [
        "Derivatives of 'power' are made by central differences of the whole, an approximation, at 8 runs per gradient "
        "(4 entries). This is said once."
    ]
    known_shapes(first, second)
    with count_requests() as requests, pytest.raises(OverBudget, match=r"would take 8 runs .* the budget is 7.*\n.*8"):
        jax.jit(jax.jacrev(differences(through(first, second), max_runs=7)))(X)
    assert requests.n_total == 0
    jax.jacrev(differences(through(first, second), max_runs=8))(X)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "broyden"}, "keeps a Jacobian from one design to the next"),
        ({"method": "centrall"}, "Did you mean 'central'"),
        ({"noise": 2.0}, "between 0 and 1"),
        ({"noise": True}, "between 0 and 1"),
        ({"max_runs": 0}, "at least 1"),
        ({"typical": -1.0}, "positive and finite"),
        ({"typical": np.ones(7)}, "does not fit"),
    ],
)
def test_settings_that_cannot_be_used(settings: Any, message: str):
    with pytest.raises(OptionError, match=message):
        jax.grad(differences(lambda x: jnp.sum(x), **settings))(jnp.ones(3))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (3.0, "pair"),
        ((1.0, 1.0), "nothing can move"),
        ((np.zeros(2), None), "does not fit"),
        (({"spam": 0.0}, None), "spam"),
    ],
)
def test_bounds_that_do_not_fit(bounds: Any, message: str):
    fn = (lambda x: jnp.sum(x["span"])) if isinstance(bounds, tuple) and isinstance(bounds[0], dict) else jnp.sum
    x = {"span": jnp.ones(3)} if fn is not jnp.sum else jnp.ones(3)
    with pytest.raises(BoundsError, match=message):
        jax.grad(differences(fn, bounds=bounds))(x)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="expected a function, got int"):
        differences(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("outer", OUTER.values(), ids=OUTER)
def test_probes_of_a_component_that_looks_at_a_whole_array_are_asked_one_by_one(outer: Any):
    """Sent as a batch they were scaled by the largest of all; the last entry of the gradient had the wrong sign."""
    free = ArrayField("float64", None, True)
    tesseract = FunctionTesseract(
        lambda i: {"y": i["x"] / jnp.max(jnp.abs(i["x"]))}, {"x": X}, inputs={"x": free}, outputs={"y": free}
    )
    weights = jnp.arange(1.0, 1.0 + N)
    whole = differences(lambda x: jnp.sum(apply_tesseract(tesseract, {"x": x})["y"] * weights))
    expected = jax.grad(lambda x: jnp.sum(x / jnp.max(jnp.abs(x)) * weights))(jnp.asarray(X))
    assert_close(outer(jax.grad(whole))(jnp.asarray(X)), expected, 1e-6)
