"""The coating: derivatives by hand against differences, optics against another formula, optima against closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tesseract_flow as tf
from examples.coating import closed_form
from examples.coating.problem import coating
from tesseract_flow.testing import in_process
from tests.examples.helpers import EXAMPLES, component, run_example

api = component("coating/stack")
WAVELENGTHS = np.linspace(400.0, 700.0, 7)


@pytest.fixture(scope="module")
def stack():
    return in_process(EXAMPLES / "coating" / "stack")


def films(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return api.InputSchema(
        thickness=rng.uniform(20.0, 250.0, n), index=rng.uniform(1.3, 2.6, n), wavelength=WAVELENGTHS, substrate=1.6
    )


def jacobian(inputs) -> np.ndarray:
    return api.jacobian(inputs, {"thickness"}, {"amplitude"})["amplitude"]["thickness"]


@pytest.mark.parametrize("n", [1, 2, 9])
def test_matrices_and_recursion_agree(n):
    inputs = films(n)
    reflected = (api.apply(inputs).amplitude ** 2).sum(axis=1)
    other = closed_form.reflectance(inputs.thickness, inputs.index, WAVELENGTHS, substrate=1.6)
    np.testing.assert_allclose(reflected, other, rtol=1e-12, atol=1e-15)


def test_jacobian_against_central_differences():
    inputs, eps = films(4), 1e-3
    for i, h in enumerate(eps * np.eye(4)):
        high, low = (api.apply(inputs.model_copy(update={"thickness": inputs.thickness + s * h})) for s in (1, -1))
        slope = (high.amplitude - low.amplitude) / (2.0 * eps)
        np.testing.assert_allclose(jacobian(inputs)[..., i], slope, atol=1e-9)


def test_pullback_is_the_transpose_of_the_jacobian():
    inputs, c = films(4), np.random.default_rng(1).normal(size=(7, 2))
    pulled = api.vector_jacobian_product(inputs, {"thickness"}, {"amplitude"}, {"amplitude": c})["thickness"]
    np.testing.assert_allclose(pulled, np.tensordot(c, jacobian(inputs), 2), rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"index": np.ones(2)}, "3 thicknesses and 2"), ({"wavelength": np.zeros(1)}, "positive")]
)
def test_nonsense_is_refused(stack, wrong, says):
    inputs = {"thickness": np.ones(3), "index": np.ones(3), "wavelength": WAVELENGTHS, **wrong}
    with pytest.raises(tf.errors.CallError, match=says):
        stack.apply(inputs)


@pytest.mark.parametrize(("outer", "inner"), [(1.38, 2.1), (1.46, 2.3)])
def test_v_coats_reflect_nothing(outer, inner):
    best = closed_form.v_coat(outer, inner, 550.0)
    assert closed_form.reflectance(best, (outer, inner), np.array([550.0]))[0] < 1e-30


def test_two_films_that_cannot_are_refused():
    with pytest.raises(ValueError, match="always reflect something"):
        closed_form.v_coat(1.38, 1.7, 550.0)


def test_gauss_newton_finds_the_v_coat_and_requests_are_counted(stack):
    with tf.count_requests() as requests:
        run = tf.optimize(coating(stack=stack))
    assert run.converged and 2.0 * run.value < 1e-15
    np.testing.assert_allclose(run.design["thickness"], closed_form.v_coat(1.38, 2.1, 550.0), atol=1e-6)
    # A call for each evaluation, and a Jacobian at the start and after each step.
    assert requests.n_of("apply") == run.evaluations
    assert requests.n_of("jacobian") == run.steps + 1
    # What has fallen to almost nothing is looked at before it is called optimal: six designs at most.
    assert requests.n_of("vector_jacobian_product") <= 6


def test_one_film_is_a_quarter_wave(stack):
    run = tf.optimize(coating(index=(1.38,), stack=stack), "l-bfgs-b")
    assert run.design["thickness"][0] == pytest.approx(550.0 / 4.0 / 1.38, rel=1e-9)
    assert 2.0 * run.value == pytest.approx(closed_form.quarter_wave(1.38), rel=1e-12)


@pytest.mark.slow
def test_mma_over_a_band_ends_where_nothing_near_is_better(stack):
    from scipy.optimize import minimize

    index, band, n = (1.38, 2.1, 1.65), (420.0, 680.0), 27
    run = tf.optimize(coating(index=index, band=band, n_wavelengths=n, worst=True, stack=stack))
    assert run.converged and run.feasible
    wavelengths = np.linspace(*band, n)

    def worst(thickness: np.ndarray) -> float:
        return 100.0 * closed_form.reflectance(thickness, index, wavelengths).max()

    found = np.asarray(run.design["design"]["thickness"])
    assert run.value == pytest.approx(worst(found), rel=1e-6)
    near = minimize(worst, found, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 2000})
    assert near.fun == pytest.approx(run.value, rel=1e-5)


@pytest.mark.slow
@pytest.mark.server
def test_the_example_finds_its_closed_form(tmp_path):
    run_example("coating", tmp_path)
    result = json.loads((tmp_path / "runs" / "coating" / "result.json").read_text())
    assert result["converged"] and result["steps"] <= 6
