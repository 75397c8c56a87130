"""The components by themselves, in this process, and what they give together. Run `pytest` in the folder above."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tesseract_core import Tesseract

import tesseract_flow as tf

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from problem import problem  # noqa: E402

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def components() -> dict[str, Tesseract]:
    names = ("section", "rod", "price")
    return {name: Tesseract.from_tesseract_api(str(HERE / name / "tesseract_api.py")) for name in names}


def test_pullback_of_the_rod_agrees_with_differences(components):
    area, load = jnp.array([0.3, 0.2, 0.1]), np.array([1.0, 0.0, 2.0])

    def tip(area):
        return tf.apply_tesseract(components["rod"], {"area": area, "load": load})["displacement"][-1]

    gradient = jax.grad(tip)(area)
    step = 1e-6
    for i in range(3):
        change = tip(area.at[i].add(step)) - tip(area.at[i].add(-step))
        assert float(gradient[i]) == pytest.approx(float(change) / (2 * step), rel=1e-6)


def test_optimum_is_the_one_that_is_known(components):
    """Where every piece bears the same stress: areas like the forces that they carry."""
    n = 4
    result = tf.optimize(problem(n, **components), "slsqp")
    carried = np.arange(n, 0, -1.0)
    area = carried / carried.sum() * 0.5  # a budget of 1 buys 0.5 m^3
    np.testing.assert_allclose(result.design["width"] ** 2, area, rtol=1e-4)
    assert result.value == pytest.approx(np.sum(carried**2 / area), rel=1e-6)
