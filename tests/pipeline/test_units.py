"""Units: what becomes what, and what would be a wrong number."""

from __future__ import annotations

import math

import jax.numpy as jnp
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import PipelineError
from tesseract_flow.pipeline.units import conversion

TURN = 2.0 * math.pi


@pytest.mark.parametrize(
    ("given", "wanted", "factor"),
    [
        ("rpm", "rad/s", TURN / 60.0),
        ("deg", "rad", TURN / 360.0),
        ("turn", "rad", TURN),
        ("N*m/rad", "N*m/deg", TURN / 360.0),
        ("sr", "rad**2", 1.0),
        ("lux", "lm/m**2", 1.0),
        ("Ci", "Bq", 3.7e10),
        ("mrem", "uSv", 10.0),
        ("Gy", "J/kg", 1.0),
        ("byte", "bit", 8.0),
        ("delta_degF", "K", 5.0 / 9.0),
        ("percent", "", 0.01),
        ("N*m", "J", 1.0),
    ],
)
def test_what_measures_the_same_is_converted(given: str, wanted: str, factor: float):
    assert conversion(given, wanted) == (pytest.approx(factor, rel=1e-14), 0.0)


@pytest.mark.parametrize(
    ("given", "wanted", "of_a_turn", "of_a_radian"),
    [("Hz", "rad/s", TURN, 1.0), ("rpm", "Hz", 1.0 / 60.0, TURN / 60.0), ("turn", "", 1.0, TURN)],
)
def test_an_angle_is_no_number(given: str, wanted: str, of_a_turn: float, of_a_radian: float):
    with pytest.raises(PipelineError, match=f"Leave units at {given}") as caught:
        conversion(given, wanted)
    turn, radian = (float(part.split()[0]) for part in str(caught.value).split("scale: ")[1:])
    assert (turn, radian) == pytest.approx((of_a_turn, of_a_radian), rel=1e-14)


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ("Bq", "Hz", "different things"),
        ("Gy", "Sv", "different things"),
        ("lm", "cd", "counts a solid angle"),
        ("bit", "", "different things"),
        ("degC", "delta_degC", "Subtract where both are in one unit"),
        ("delta_degC", "degF", "Subtract where both are in one unit"),
        ("dB", "", "by no straight line"),
    ],
)
def test_what_is_not_the_same_is_refused(given: str, wanted: str, message: str):
    with pytest.raises(PipelineError, match=f"cannot become.*{message}|{message}"):
        conversion(given, wanted)


def wired(**connection: object) -> tf.Pipeline:
    return tf.Pipeline(
        inputs={"f": {"units": "Hz"}},
        nodes={"n": {"function": lambda omega: omega * 1.0, "inputs": {"omega": {"from": "f", **connection}}}},
        outputs={"omega": "n"},
    )


def test_the_remedy_works():
    with pytest.raises(PipelineError, match=r"nodes\.n\.inputs\.omega\.units: 'Hz' .* cannot become 'rad/s'") as caught:
        wired(units="rad/s")
    factor = float(str(caught.value).split("scale: ")[1].split()[0])
    assert jnp.isclose(wired(units="Hz", scale=factor)({"f": jnp.asarray(2.0)})["omega"], 2.0 * TURN)
