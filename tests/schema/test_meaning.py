"""What says more than its numbers is refused: masks, units, sparse matrices; what says nothing more is not."""

import pathlib

import numpy as np
import pytest
import scipy.sparse

from tesseract_flow.schema import ArrayField, LeafField, ModelField, check_inputs, what_is_lost


class Quantity(np.ndarray):
    """An array with a unit, as astropy and unyt have it."""

    unit = "mm"


class Named:
    """An array with named places, in which anything may be found as an attribute, as pandas has it."""

    def __init__(self, attrs=None):
        self.attrs = attrs or {}

    def __array__(self, dtype=None, copy=None):
        return np.ones(2)

    def __getattr__(self, name):
        if name in ("unit", "units", "mask"):
            return 1.0
        raise AttributeError(name)


def quantity(unit):
    value = np.ones(2).view(Quantity)
    value.unit = unit
    return value


LOST = {
    "masked": (np.ma.masked_array([1.0, 1e20, 3.0], mask=[0, 1, 0]), "mask"),
    "nothing masked": (np.ma.masked_array([1.0, 2.0]), "mask"),
    "one masked": (np.ma.masked, "mask"),
    "unit": (quantity("mm"), "unit 'mm'"),
    "percent": (quantity("%"), "unit '%'"),
    "units in attributes": (Named({"units": "mm"}), "unit 'mm'"),
    "sparse": (scipy.sparse.csr_array(np.eye(2)), "sparse"),
}
KEPT = {
    "array": np.ones(2),
    "scalar": np.float64(1.0),
    "matrix": np.matrix([1.0, 2.0]),
    "without a unit": quantity(""),
    "dimensionless": quantity("dimensionless"),
    "names": Named(),
    "number": 1.0,
    "text": "mask",
    "nothing": None,
    "path": pathlib.Path("units"),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("field", [ArrayField("float64", None, True), LeafField("any"), LeafField("float")])
def test_what_is_lost_is_named(name, field):
    value, word = LOST[name]
    assert word in what_is_lost(value)
    (fault,) = check_inputs(ModelField({"x": field}, frozenset()), {"x": value})
    assert (fault.path, fault.kind) == ("x", "meaning_lost")
    assert word in fault.message


@pytest.mark.parametrize("name", KEPT)
def test_what_says_nothing_more_is_taken(name):
    assert what_is_lost(KEPT[name]) is None
