"""The MBB beam: components against other ways of computing them, and the design against optimality criteria."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tesseract_flow as tf
from examples.mbb.problem import mbb
from examples.mbb.reference import component, greyness, optimality_criteria
from tesseract_flow.client import count_requests
from tesseract_flow.testing import in_process
from tests.examples.helpers import EXAMPLES, run_example

fem, filters = component("fem"), component("filter")


@pytest.fixture(scope="module")
def components():
    return {name: in_process(EXAMPLES / "mbb" / name) for name in ("filter", "fem")}


def compliance(density: np.ndarray) -> float:
    return float(fem.apply(fem.InputSchema(density=density)).compliance)


def stiffness_by_many_points(n: int = 6) -> np.ndarray:
    """The bilinear element on [0, 1]^2, with shape functions as products and more points than are needed."""
    points, weights = np.polynomial.legendre.leggauss(n)
    points, weights = (points + 1.0) / 2.0, weights / 2.0
    nu = 0.3
    k = np.zeros((8, 8))
    for x, wx in zip(points, weights, strict=True):
        for y, wy in zip(points, weights, strict=True):
            by_x = np.array([-(1 - y), 1 - y, y, -y])
            by_y = np.array([-(1 - x), -x, x, 1 - x])
            xx, yy, xy = np.zeros(8), np.zeros(8), np.zeros(8)
            xx[0::2], yy[1::2], xy[0::2], xy[1::2] = by_x, by_y, by_y, by_x
            normal = np.outer(xx, xx) + np.outer(yy, yy) + nu * (np.outer(xx, yy) + np.outer(yy, xx))
            k += wx * wy * (normal / (1.0 - nu**2) + np.outer(xy, xy) / (2.0 * (1.0 + nu)))
    return k


def test_the_element_agrees_with_another_one_and_moves_freely():
    k = fem.element_stiffness()
    np.testing.assert_allclose(k, stiffness_by_many_points(), atol=1e-14)
    assert k[0, 0] == pytest.approx((1 / 2 - 0.3 / 6) / (1 - 0.3**2), rel=1e-14)
    assert np.linalg.matrix_rank(k, tol=1e-12) == 5  # two translations and a rotation cost nothing


def test_uniform_density_has_the_known_compliance():
    uniform = np.full((20, 60), 0.5)
    assert compliance(uniform) == pytest.approx(1007.02, abs=0.005)
    assert compliance(np.ones((20, 60))) == pytest.approx(compliance(uniform) / 8.0, rel=1e-7)


def test_pullback_of_the_finite_elements_against_central_differences():
    rng = np.random.default_rng(0)
    density, step = rng.uniform(0.3, 0.9, (4, 6)), 1e-6
    pulled = fem.vector_jacobian_product(
        fem.InputSchema(density=density), {"density"}, {"compliance"}, {"compliance": np.float64(2.0)}
    )["density"]
    for _ in range(3):
        along = rng.normal(size=density.shape)
        slope = (compliance(density + step * along) - compliance(density - step * along)) / (2.0 * step)
        assert np.vdot(pulled, along) == pytest.approx(2.0 * slope, rel=1e-6)


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_densities_that_are_none_are_refused(components, bad):
    density = np.full((2, 3), 0.5)
    density[1, 2] = bad
    with pytest.raises(tf.errors.CallError, match="between 0 and 1"):
        components["fem"].apply({"density": density})


def test_the_filter_averages_as_its_formula_says_and_its_pullback_is_its_transpose():
    rng = np.random.default_rng(1)
    field, c, radius = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), 2.4
    inputs = filters.InputSchema(field=field, radius=radius)
    filtered = filters.apply(inputs).filtered
    rows, columns = np.indices(field.shape)
    for place in ((0, 0), (2, 3), (4, 5)):
        w = np.maximum(0.0, radius - np.hypot(rows - place[0], columns - place[1]))
        assert filtered[place] == pytest.approx((w * field).sum() / w.sum(), rel=1e-13)
    pulled = filters.vector_jacobian_product(inputs, {"field"}, {"filtered"}, {"filtered": c})["field"]
    assert np.vdot(c, filtered) == pytest.approx(np.vdot(pulled, field), rel=1e-12)


def test_a_small_beam_gets_as_stiff_as_by_optimality_criteria(components):
    sharpness = (1.0, 4.0)
    problem = mbb(18, 6, radius=1.5, sharpness=sharpness, every=20, **components)
    with count_requests() as sent:
        run = tf.optimize(problem)
    assert run.feasible and {record.stage for record in run.history} == {0, 1}
    reference = optimality_criteria(6, 18, 0.5, 1.5, sharpness, n_solves=60)
    assert run.value < 1.02 * reference.compliance
    assert sent["fem.apply"] == run.evaluations
    assert sent["fem.vector_jacobian_product"] <= run.steps + 2  # the start of either stage, and each step


@pytest.mark.slow
@pytest.mark.server
def test_the_example_is_as_stiff_as_by_optimality_criteria_in_a_hundred_solves(tmp_path):
    said = run_example("mbb", tmp_path)
    assert "by optimality criteria" in said
    result = json.loads((tmp_path / "runs" / "mbb" / "result.json").read_text())
    assert result["evaluations"] <= 100
    pictures = sorted(path.name for path in (tmp_path / "runs" / "mbb" / "pictures").iterdir())
    assert pictures == ["result.png", *(f"step-{k:05d}.png" for k in range(0, 73, 6))]


@pytest.mark.slow
def test_adam_gets_there_too_with_more_solves(components):
    run = tf.optimize(mbb(every=30, **components), "adam", learning_rate=0.2, stop={"max_steps": 180})
    reference = optimality_criteria(20, 60, 0.5, 2.4, (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), n_solves=100)
    assert run.feasible and run.value < 1.01 * reference.compliance
    assert greyness(np.asarray(run.evaluation.aux["density"])) < 0.01
