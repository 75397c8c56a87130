"""Each example has a form: the parameters of its factory, with the components as endpoints."""

from __future__ import annotations

import pytest

from tesseract_flow.flows.of_problem import flow_of
from tests.examples.helpers import EXAMPLES

FACTORIES = {
    "lorenz96/problem.py:assimilation": {"n", "n_times", "every", "noise", "seed", "stepper"},
    "coating/problem.py:coating": {"index", "band", "n_wavelengths", "substrate", "worst", "stack"},
    "mbb/problem.py:mbb": {"n_columns", "n_rows", "volume", "radius", "sharpness", "every", "filter", "fem"},
    "coldplate/problem.py:coldplate": {
        "n_columns",
        "n_rows",
        "buoyancy",
        "channels",
        "solver",
        "filter",
        "flow",
        "heat",
    },
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_form_has_the_parameters_of_the_factory(factory):
    properties = flow_of(str(EXAMPLES / factory)).parameters.properties
    assert FACTORIES[factory] | {"driver", "stop", "run_key"} <= set(properties)
