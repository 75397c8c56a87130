"""Finite differences have the error that theory gives them, at the price that their docstrings name."""

from __future__ import annotations

import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from tesseract_flow.derivatives import Differences, estimate_noise, jacobian_from_apply, jvp_from_apply, vjp_from_apply
from tests.cases import CASES, Case
from tests.helpers import assert_close
from tests.recipes.helpers import Counted, answers_of, jacobian_of, recipe_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
    from tesseract_core.runtime import Array, Differentiable, Float64

over_cases = pytest.mark.parametrize("case", [c for c in CASES if c.name != "float32"], ids=lambda case: case.name)
METHODS = pytest.mark.parametrize("method, rtol", [("central", 1e-8), ("forward", 1e-6)])


@over_cases
@METHODS
def test_differences_approximate_the_derivative(case: Case, method, rtol: float) -> None:
    a, how = answers_of(case), Differences(method)
    n = a.n_inputs * (2 if case.name == "complex" else 1)
    apply = Counted(recipe_of(case).apply)
    y_dot = jvp_from_apply(apply, a.inputs, set(a.x), set(a.c), a.t, how)
    assert apply.n_calls == 2
    assert_close(y_dot, a.y_dot, rtol)
    apply.n_calls = 0
    x_bar = vjp_from_apply(apply, a.inputs, set(a.x), set(a.c), a.c, how)
    assert apply.n_calls == (n + 1 if method == "forward" else 2 * n)
    assert_close(x_bar, a.x_bar, rtol)
    jacobian = jacobian_from_apply(apply, a.inputs, set(a.x), set(a.c), how)
    # Entries of one output are compared with each other: a structural zero is a rounding error here.
    expected = jacobian_of(case)
    for output in expected:
        for path in expected[output]:
            scale = max(1.0, float(np.max(np.abs(expected[output][path]), initial=0.0)))
            np.testing.assert_allclose(jacobian[output][path], expected[output][path], rtol=0.0, atol=10 * rtol * scale)


@METHODS
@given(magnitude=st.floats(-8.0, 8.0), sign=st.sampled_from([-1.0, 1.0]))
def test_step_follows_the_magnitude(method, rtol: float, magnitude: float, sign: float) -> None:
    x = np.array([sign * 10.0**magnitude])
    blocks = jacobian_from_apply(lambda i: {"y": i["x"] ** 3}, {"x": x}, {"x"}, {"y"}, Differences(method))
    np.testing.assert_allclose(blocks["y"]["x"], [3 * x**2], rtol=10 * rtol)


def test_entries_of_one_array_have_steps_of_their_own() -> None:
    x = np.array([1e6, 3.0, 1e-3, 0.0])
    seen = []

    def apply(i):
        seen.append(i["x"])
        return {"y": i["x"]}

    jacobian_from_apply(apply, {"x": x}, {"x"}, {"y"})
    steps = np.max(np.abs(np.array(seen) - x), axis=0)
    np.testing.assert_allclose(steps, np.finfo(float).eps ** (1 / 3) * np.maximum(x, 1.0), rtol=1e-4)


def test_zeros_take_the_step_of_what_is_typical() -> None:
    for typical, expected in ((None, 0.1), ({"x": 5.0}, 5.0), ({"x": np.array([2.0, 5.0])}, 2.0)):
        seen = []

        def apply(i, seen=seen):
            seen.append(i["x"][0])
            return {"y": i["x"]}

        how = Differences(typical=typical or {})
        jvp_from_apply(apply, {"x": np.array([0.0, 0.1])}, {"x"}, {"y"}, {"x": np.array([1.0, 0.0])}, how)
        np.testing.assert_allclose(max(seen), np.finfo(float).eps ** (1 / 3) * expected)


def test_direction_moves_no_entry_further_than_its_own_step() -> None:
    seen = []

    def apply(i):
        seen.append(i["x"])
        return {"y": i["x"]}

    x = np.array([1.0, 1000.0])
    y_dot = jvp_from_apply(apply, {"x": x}, {"x"}, {"y"}, {"x": np.array([1.0, 2000.0])})
    np.testing.assert_allclose(y_dot["y"], [1.0, 2000.0], rtol=1e-7)
    steps = np.max(np.abs(np.array(seen) - x), axis=0)
    assert np.all(steps <= np.finfo(float).eps ** (1 / 3) * x * (1 + 1e-6))


def test_no_direction_no_step() -> None:
    apply = Counted(lambda i: {"y": np.sum(i["x"]) * np.ones((2, 1))})
    y_dot = jvp_from_apply(apply, {"x": np.ones(3)}, {"x"}, {"y"}, {"x": np.zeros(3)})
    assert_close(y_dot, {"y": np.zeros((2, 1))})
    assert apply.n_calls == 1


def noisy(level: float):
    """A smooth function whose value jumps with every bit of the input, by a relative `level`."""

    def apply(i):
        rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(i["x"]).tobytes()))
        y = np.exp(i["x"])
        return {"y": y * (1.0 + level * rng.uniform(-1.0, 1.0, y.shape)), "exact": np.sum(i["x"])}

    return apply


@pytest.mark.parametrize("method", ["central", "forward"])
def test_step_follows_the_noise(method) -> None:
    x = np.linspace(0.5, 1.5, 4)

    def error(how):
        return np.max(
            np.abs(np.diag(jacobian_from_apply(noisy(1e-7), {"x": x}, {"x"}, {"y"}, how)["y"]["x"]) / np.exp(x) - 1.0)
        )

    expected = 1e-7 ** (2 / 3 if method == "central" else 1 / 2)
    assert error(Differences(method, noise=1e-7)) < 10 * expected
    assert error(Differences(method)) > 10 * expected


@pytest.mark.parametrize("level", [1e-12, 1e-9, 1e-6])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_noise_is_measured(level: float, scale: float) -> None:
    x = np.linspace(0.5, 1.5, 20) * scale
    apply = Counted(lambda i: noisy(level)({"x": i["x"] / scale}))
    found = estimate_noise(apply, {"x": x}, {"x"}, {"y"})["y"]
    uniform = level / np.sqrt(3.0)  # standard deviation on [-level, level]
    assert uniform / 1.35 < found < uniform * 1.35
    assert apply.n_calls % 8 == 0
    assert apply.n_calls <= 48


def test_noise_of_exact_functions_is_their_rounding() -> None:
    x = np.linspace(0.5, 1.5, 20)
    found = estimate_noise(lambda i: {"y": np.exp(i["x"]), "one": np.ones(2)}, {"x": x}, {"x"}, {"y"})
    assert np.finfo(float).eps <= found["y"] < 1e-14
    assert estimate_noise(lambda i: {"y": 0.0 * i["x"]}, {"x": x}, {"x"}, {"y"}) == {"y": np.finfo(float).eps}


def test_noise_that_cannot_be_told() -> None:
    """Beyond a tenth of the value noise cannot be told from the function."""
    with pytest.raises(ValueError, match=r"noise of \['y'\] could not be told after 2 attempts with 8 points"):
        estimate_noise(noisy(0.5), {"x": np.ones(20)}, {"x"}, {"y"}, n_attempts=2)


# SPSA


def quadratic(i):
    return {"f": np.sum(i["a"] ** 2) + 3.0 * np.sum(i["b"]), "g": i["a"] * 2.0}


POINT = {"a": np.linspace(-1.0, 2.0, 15), "b": np.full((2, 4), 0.5)}
SPSA = Differences("spsa", n_samples=4)


def test_spsa_costs_two_calls_per_sample() -> None:
    apply = Counted(quadratic)
    x_bar = vjp_from_apply(apply, POINT, {"a", "b"}, {"f"}, {"f": 1.0}, SPSA)
    assert apply.n_calls == 8
    assert {path: value.shape for path, value in x_bar.items()} == {"a": (15,), "b": (2, 4)}
    blocks = jacobian_from_apply(apply, POINT, {"a"}, {"f", "g"}, SPSA)
    assert apply.n_calls == 16
    assert (blocks["f"]["a"].shape, blocks["g"]["a"].shape) == ((15,), (15, 15))


def test_spsa_is_unbiased() -> None:
    estimates = [
        vjp_from_apply(quadratic, POINT, {"a", "b"}, {"f"}, {"f": 2.0}, Differences("spsa", n_samples=4, seed=seed))
        for seed in range(300)
    ]
    exact = {"a": 4.0 * POINT["a"], "b": np.full((2, 4), 6.0)}
    for path, value in exact.items():
        samples = np.array([estimate[path] for estimate in estimates])
        standard_error = samples.std(axis=0) / np.sqrt(len(samples))
        assert np.all(np.abs(samples.mean(axis=0) - value) < 5 * standard_error)


def test_spsa_jacobian_and_pullback_are_one_estimate() -> None:
    """For the same directions J^T c is the pullback, as both are linear in what the calls return."""
    x_bar = vjp_from_apply(quadratic, POINT, {"a"}, {"g"}, {"g": np.arange(15.0)}, SPSA)["a"]
    blocks = jacobian_from_apply(quadratic, POINT, {"a"}, {"g"}, SPSA)
    np.testing.assert_allclose(np.arange(15.0) @ blocks["g"]["a"], x_bar, rtol=1e-9)


def test_spsa_repeats_itself_and_looks_elsewhere_at_the_next_point() -> None:
    """On a linear function a direction shows in the estimate, so other directions are other estimates."""

    def at(x, seed=0):
        return vjp_from_apply(
            lambda i: {"f": np.sum(i["x"])},
            {"x": x},
            {"x"},
            {"f"},
            {"f": 1.0},
            Differences("spsa", n_samples=2, seed=seed),
        )["x"].round(6)

    x = np.ones(20)
    assert np.array_equal(at(x), at(x.copy()))
    assert not np.array_equal(at(x), at(x + 1e-9))
    assert not np.array_equal(at(x), at(x, seed=1))


def test_spsa_with_enough_samples_is_central() -> None:
    how = Differences("spsa", n_samples=23)
    x_bar = vjp_from_apply(quadratic, POINT, {"a", "b"}, {"f"}, {"f": 1.0}, how)
    assert_close(x_bar, vjp_from_apply(quadratic, POINT, {"a", "b"}, {"f"}, {"f": 1.0}))


# Components and refusals


class Inputs(BaseModel):
    x: Differentiable[Array[(None,), Float64]]  # pyright: ignore[reportInvalidTypeForm]
    name: str = "cube"

    @field_validator("x")
    @classmethod
    def positive(cls, x: np.ndarray) -> np.ndarray:
        assert np.all(x > 0.0)
        return x


class Outputs(BaseModel):
    y: Differentiable[Array[(None,), Float64]]  # pyright: ignore[reportInvalidTypeForm]


def apply_model(inputs: Inputs) -> Outputs:
    assert type(inputs) is Inputs
    return Outputs(y=inputs.x**3)


@pytest.mark.parametrize("method", ["central", "forward"])
def test_models_are_models_at_every_point(method) -> None:
    inputs = Inputs(x=np.array([1.0, 2.0]))
    x_bar = vjp_from_apply(apply_model, inputs, {"x"}, {"y"}, {"y": np.ones(2)}, Differences(method))
    np.testing.assert_allclose(x_bar["x"], [3.0, 12.0], rtol=1e-6)
    assert inputs.x.tolist() == [1.0, 2.0]


def test_single_precision() -> None:
    x = np.array([1.0, 2.0], np.float32)
    for how, rtol in ((Differences(), 1e-3), (Differences("forward"), 1e-2)):
        x_bar = vjp_from_apply(lambda i: {"y": i["x"] ** 3}, {"x": x}, {"x"}, {"y"}, {"y": np.ones(2)}, how)
        assert x_bar["x"].dtype == np.float32
        np.testing.assert_allclose(x_bar["x"], [3.0, 12.0], rtol=rtol)


def test_outputs_coarser_than_the_inputs_need_a_word() -> None:
    """With steps for float64 a float32 output would give two right digits, and no sign of it."""

    def apply(i):
        return {"y": (i["x"] ** 3).astype(np.float32)}

    x = {"x": np.array([1.0, 2.0])}
    with pytest.raises(ValueError, match=r"'y' is of float32, coarser than the inputs.*Differences\(noise=1e-07\)"):
        vjp_from_apply(apply, x, {"x"}, {"y"}, {"y": np.ones(2)})
    x_bar = vjp_from_apply(apply, x, {"x"}, {"y"}, {"y": np.ones(2)}, Differences(noise=1e-7))
    np.testing.assert_allclose(x_bar["x"], [3.0, 12.0], rtol=1e-3)


@pytest.mark.parametrize(
    "inputs, how, message",
    [
        ({"x": np.arange(3)}, Differences(), "'x' has dtype int64"),
        ({"x": np.ones(9, complex)}, Differences("spsa", n_samples=1), "'x' has dtype complex128.*real"),
        ({"x": np.ones(3)}, Differences(typical={"z": 1.0}), r"typical names \['z'\]"),
        ({"x": np.zeros(3)}, Differences(typical={"x": 0.0}), "finite and positive"),
        ({"x": np.full(3, np.nan)}, Differences(), "need finite inputs"),
    ],
)
def test_what_cannot_be_differenced(inputs, how: Differences, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vjp_from_apply(lambda i: {"y": i["x"]}, inputs, {"x"}, {"y"}, {"y": np.ones(3)}, how)


def test_integer_outputs_cannot_be_differenced() -> None:
    with pytest.raises(ValueError, match="Output 'y' has dtype int64"):
        jacobian_from_apply(lambda i: {"y": np.arange(3)}, {"x": np.ones(1)}, {"x"}, {"y"})


@pytest.mark.parametrize("options", [{"method": "complex"}, {"noise": 0.0}, {"noise": 2.0}, {"n_samples": 0}])
def test_settings_without_sense_are_refused(options) -> None:
    with pytest.raises(ValueError, match="expected"):
        Differences(**options)
