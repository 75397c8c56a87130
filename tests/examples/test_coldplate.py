"""The cold plate: components against balances, closed forms and differences; the gradient of the coupled state."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import tesseract_flow as tf
from examples.coldplate import by_hand
from examples.coldplate.problem import FLUID, METAL, SOLID, coldplate
from examples.mbb.reference import averaged
from tesseract_flow.testing import in_process
from tests.examples.helpers import EXAMPLES, component, run_example

flow, heat = component("coldplate/flow"), component("coldplate/heat")
SHAPE = (3, 5)
N_ACROSS = SHAPE[0] * (SHAPE[1] + 1)


@pytest.fixture(scope="module")
def components():
    folders = {"filter": "mbb/filter", "flow": "coldplate/flow", "heat": "coldplate/heat"}
    return {name: in_process(EXAMPLES / folder) for name, folder in folders.items()}


def inputs_of_flow():
    rng = np.random.default_rng(0)
    return flow.InputSchema(
        permeability=rng.uniform(0.1, 1.0, SHAPE), temperature=rng.uniform(0.0, 1.0, SHAPE), buoyancy=np.float64(0.7)
    )


def inputs_of_heat():
    conductivity = np.random.default_rng(1).uniform(0.05, 0.5, SHAPE)
    return heat.InputSchema(flux=flow.apply(inputs_of_flow()).flux, conductivity=conductivity)


def test_no_fluid_is_lost():
    flux = flow.apply(inputs_of_flow()).flux
    across, up = flux[:N_ACROSS].reshape(3, 6), np.pad(flux[N_ACROSS:].reshape(2, 5), ((1, 1), (0, 0)))
    np.testing.assert_allclose(np.diff(across, axis=1) + np.diff(up, axis=0), 0.0, atol=1e-14)


def test_all_heat_goes_out():
    inputs = inputs_of_heat()
    temperature, across = heat.apply(inputs).temperature, inputs.flux[:N_ACROSS].reshape(3, 6)
    out = np.maximum(across[:, -1], 0.0) @ temperature[:, -1] - np.minimum(across[:, 0], 0.0) @ temperature[:, 0]
    assert out == pytest.approx(1.0, rel=1e-12)


def test_a_uniform_plate_is_a_straight_line():
    given = flow.InputSchema(permeability=np.full(SHAPE, 0.5), temperature=np.ones(SHAPE), buoyancy=np.float64(0.0))
    flux = flow.apply(given).flux
    np.testing.assert_allclose(flux[:N_ACROSS], 0.1)  # permeability over length
    temperature = heat.apply(heat.InputSchema(flux=flux, conductivity=np.full(SHAPE, 1e-12))).temperature
    np.testing.assert_allclose(temperature, np.tile(np.arange(1, 6) / 15 / 0.1, (3, 1)), rtol=1e-9)


@pytest.mark.parametrize(
    ("api", "inputs", "output"), [(flow, inputs_of_flow(), "flux"), (heat, inputs_of_heat(), "temperature")]
)
def test_pullbacks_against_central_differences(api, inputs, output):
    rng, step = np.random.default_rng(2), 1e-6
    c = rng.normal(size=getattr(api.apply(inputs), output).shape)
    names = set(type(inputs).model_fields)
    pulled = api.vector_jacobian_product(inputs, names, {output}, {output: c})
    for name in sorted(names):
        x = np.asarray(getattr(inputs, name))
        along = rng.normal(size=x.shape)
        high, low = (
            getattr(api.apply(inputs.model_copy(update={name: x + s * step * along})), output) for s in (1.0, -1.0)
        )
        assert np.vdot(pulled[name], along) == pytest.approx(np.vdot(c, high - low) / (2.0 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("flow", {"permeability": np.zeros(SHAPE)}, "must be positive"),
        ("flow", {"temperature": np.ones((2, 2))}, "expected one"),
        ("heat", {"conductivity": np.full(SHAPE, np.nan)}, "must be positive"),
        ("heat", {"flux": np.ones(3)}, "3 fluxes for 28 faces"),
        ("heat", {"flux": np.zeros(28)}, "heat has no way out"),
    ],
)
def test_nonsense_is_refused(components, name, wrong, says):
    inputs = {"flow": inputs_of_flow, "heat": inputs_of_heat}[name]().model_dump()
    with pytest.raises(tf.errors.CallError, match=says):
        components[name].apply({**inputs, **wrong})


def mean_temperature(problem: tf.Problem):
    return lambda share: problem.evaluate({"share": share}, {"buoyancy": 3.0}).objective


def by_scipy(share: np.ndarray) -> float:
    return float(by_hand.coupled(averaged(share, 1.5), 3.0, SOLID, METAL, FLUID)[1].mean())


SHARE = 0.5 + 0.2 * np.random.default_rng(0).normal(size=(3, 6))


@pytest.mark.slow
def test_value_and_gradient_of_the_coupled_state_are_those_by_hand(components):
    value, gradient = tf.concurrent(jax.value_and_grad(mean_temperature(coldplate(6, 3, **components))))(SHARE)
    assert float(value) == pytest.approx(by_scipy(SHARE), rel=1e-8)
    along, step = np.random.default_rng(1).normal(size=SHARE.shape), 1e-5
    slope = (by_scipy(SHARE + step * along) - by_scipy(SHARE - step * along)) / (2.0 * step)
    assert np.vdot(np.asarray(gradient), along) == pytest.approx(slope, rel=1e-5)


def test_the_loop_gain_is_above_one():
    share = averaged(SHARE, 1.5)
    _, state = by_hand.coupled(share, 3.0, SOLID, METAL, FLUID)

    def round_at(temperature: np.ndarray) -> np.ndarray:
        rise = np.float64(3.0 / share.shape[0])
        given = flow.InputSchema(permeability=SOLID ** (1.0 - share), temperature=temperature, buoyancy=rise)
        conductivity = METAL + (FLUID - METAL) * share
        return heat.apply(heat.InputSchema(flux=flow.apply(given).flux, conductivity=conductivity)).temperature.ravel()

    moves = 1e-6 * np.eye(state.size).reshape(-1, *state.shape)
    jacobian = np.stack([round_at(state + h) - round_at(state - h) for h in moves], axis=1) / 2e-6
    assert np.abs(np.linalg.eigvals(jacobian)).max() > 1.0


@pytest.mark.slow
def test_round_after_round_gets_nowhere(components):
    with pytest.raises(tf.errors.NotConverged, match="gauss-seidel"):
        tf.concurrent(mean_temperature(coldplate(6, 3, solver="gauss-seidel", **components)))(SHARE)


@pytest.mark.slow
@pytest.mark.server
def test_the_example_agrees_with_the_state_by_hand(tmp_path):
    run_example("coldplate", tmp_path)
    result = json.loads((tmp_path / "runs" / "coldplate" / "result.json").read_text())
    assert result["value"] < 1.2 and result["feasible"]
