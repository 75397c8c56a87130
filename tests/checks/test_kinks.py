"""Slopes through noise and beside bends: right ones are not called wrong, wrong ones are, as far as values can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.checks import GradientReport
from tesseract_flow.checks.lines import Comparison, Line
from tesseract_flow.testing import FunctionTesseract

N_LINES = 200
NOISES = [0.0, 1e-10, 1e-8, 1e-6, 1e-4]
Curve = Callable[[float], float]
BENDS: dict[str, tuple[Curve, Curve]] = {
    "root": (lambda u: np.sqrt(np.abs(u)), lambda u: 0.5 * np.sign(u) / np.sqrt(np.abs(u))),
    "absolute": (np.abs, np.sign),
    "power": (lambda u: np.abs(u) ** 1.5, lambda u: 1.5 * np.sign(u) * np.abs(u) ** 0.5),
    "limiter": (lambda u: np.minimum(u, 0.0), lambda u: float(u < 0)),
}


def compared(fn: Curve, said: float, size: float, noise: float, seed: Sequence[int]) -> Comparison:
    """One line with a generator of its own, so that no line depends on what others asked for."""
    rng = np.random.default_rng([*seed, 1])

    def value(s: float) -> np.ndarray:
        return np.array([fn(s) + noise * rng.standard_normal()])

    return Line(lambda steps: [value(s) for s in steps], value(0.0)).compare(said, size)


def wave(rng: np.random.Generator) -> tuple[Curve, float, float]:
    """A smooth function, its slope at zero, and the size of the terms of it."""
    a, b, c = rng.normal(size=3)
    return (lambda s: np.sin(a + b * s) + c * s), b * np.cos(a) + c, abs(b * np.cos(a)) + abs(c)


def bent(rng: np.random.Generator, kind: str, least: float) -> tuple[Curve, float, float]:
    """The same with a bend at a random distance, `least` at the nearest."""
    fn, slope, size = wave(rng)
    bend, steepness = BENDS[kind]
    distance = rng.choice([-1.0, 1.0]) * 10 ** rng.uniform(np.log10(least), -1.5)
    height, speed = rng.normal() * 10 ** rng.uniform(-1.5, 0.5), rng.uniform(0.5, 2.0)
    more = height * speed * steepness(distance)
    return (lambda s: fn(s) + height * bend(distance + speed * s)), slope + more, size + abs(more)


class TestLines:
    @pytest.mark.parametrize("noise", NOISES)
    def test_a_right_slope_is_not_called_wrong_and_a_fault_is_seen(self, noise: float) -> None:
        n_missed = 0
        for k in range(N_LINES):
            fn, slope, size = wave(np.random.default_rng(k))
            assert not compared(fn, slope, size, noise, [k]).is_wrong, k
            n_missed += not compared(fn, slope + 0.3, abs(slope) + 0.3, noise, [k]).is_wrong
        assert n_missed <= 1

    @pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-6])
    @pytest.mark.parametrize("kind", BENDS)
    def test_a_right_slope_beside_a_bend_is_not_called_wrong(self, kind: str, noise: float) -> None:
        alarms = []
        for k in range(N_LINES):
            fn, slope, size = bent(np.random.default_rng(k), kind, 1e-9)
            if compared(fn, slope, size, noise, [k]).is_wrong:
                alarms.append(k)
        # A bend that is nearer than the step at which it would stand out of the noise cannot be seen.
        assert len(alarms) <= (0 if noise < 1e-6 else N_LINES // 50)

    @pytest.mark.parametrize("kind", BENDS)
    def test_a_wrong_slope_beside_a_bend_is_seen_where_steps_are_short_enough(self, kind: str) -> None:
        for k in range(N_LINES):
            fn, slope, size = bent(np.random.default_rng(k), kind, 1e-4)
            right = compared(fn, slope, size, 0.0, [k])
            assert not right.is_wrong, k
            assert compared(fn, slope + 0.3 * size, 1.3 * size, 0.0, [k]).is_wrong, k

    def test_values_with_six_decimals(self) -> None:
        n_missed = 0
        for k in range(N_LINES):
            fn, slope, size = wave(np.random.default_rng(k))
            rounded = lambda s, fn=fn: float(np.round(fn(s), 6))  # noqa: E731
            assert not compared(rounded, slope, size, 0.0, [k]).is_wrong, k
            n_missed += not compared(rounded, slope + 0.3, abs(slope) + 0.3, 0.0, [k]).is_wrong
        assert n_missed <= 1

    def test_a_limiter_close_by_does_not_hide_that_it_is_flat_here(self) -> None:
        said = compared(lambda s: min(4.0 * (s - 1e-3), 0.0), 4.0, 4.0, 0.0, [0])
        assert not said.is_wrong
        said = compared(lambda s: min(4.0 * (s + 1e-3), 0.0), 4.0, 4.0, 0.0, [0])
        assert said.is_wrong
        assert said.found == 0.0

    def test_values_that_are_kept_over_a_step_are_no_proof_of_a_slope_of_zero(self) -> None:
        assert not compared(lambda s: float(np.round(s + 0.3 * s**2, 3)), 1.0, 1.0, 0.0, [0]).is_wrong
        assert compared(lambda s: float(np.round(s + 0.3 * s**2, 3)), -1.0, 1.0, 0.0, [0]).is_wrong

    def test_values_are_asked_for_as_they_are_needed(self) -> None:
        asked: list[float] = []

        def values(steps: Sequence[float]) -> list[np.ndarray]:
            asked.extend(steps)
            return [np.array([np.sin(s)]) for s in steps]

        line = Line(values, np.array([0.0]))
        line.compare(1.0, 1.0)
        assert len(asked) == 2
        line.compare(1.0 + 5e-6, 1.0)  # not near enough for two, and no fault either
        assert len(asked) == 2 * 6
        line.compare(1.3, 1.0)
        assert len(asked) == len(set(asked)) == 2 * (6 + 4)


CURVES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "root": lambda x: jnp.sqrt(jnp.abs(x)),
    "power": lambda x: jnp.abs(x) ** 1.5,
    "absolute": jnp.abs,
    "rectified": lambda x: jnp.maximum(x, 0.0),
    "limiter": lambda x: jnp.minimum(4.0 * x, 1e-3),
    "steep": lambda x: jnp.tanh(1e4 * x),
}


def report_near(curve: Callable[[jax.Array], jax.Array], distance: float) -> GradientReport:
    """On a component of six numbers, one of which is at this distance from where the curve bends."""
    bend = FunctionTesseract(lambda inputs: {"y": curve(inputs["x"] - 1.0)}, {"x": np.ones(6)}, name="bend")

    def objective(design: dict[str, jax.Array]) -> jax.Array:
        return tf.apply_tesseract(bend, {"x": design["x"]})["y"].sum()

    return tf.check_gradients(tf.Problem({"x": jnp.linspace(1.0 + distance, 2, 6)}, objective), components=True)


def scaled(curve: Callable[[jax.Array], jax.Array], factor: float) -> Callable[[jax.Array], jax.Array]:
    """The same values, with derivatives that are too large by a factor."""
    return lambda x: factor * curve(x) + jax.lax.stop_gradient((1.0 - factor) * curve(x))


@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_bend_near_the_point_is_no_fault(curve: Callable[[jax.Array], jax.Array], distance: float) -> None:
    assert [str(verdict) for verdict in report_near(curve, distance).faults] == []


@pytest.mark.parametrize("distance", [1e-3, 1e-4])
@pytest.mark.parametrize("factor", [-1.0, 1.5])
def test_a_wrong_derivative_near_a_bend_is_still_named(factor: float, distance: float) -> None:
    faults = report_near(scaled(CURVES["root"], factor), distance).faults
    assert any(verdict.component == "bend" for verdict in faults)
