"""Projection and projected gradient, by their defining properties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesseract_flow.errors import BoundsError
from tesseract_flow.optimize.bounds import Box, box_from
from tesseract_flow.optimize.partition import Partition

vectors = hnp.arrays(np.float64, 4, elements=st.floats(-10, 10))


@given(vectors, vectors, vectors, vectors)
def test_projection_is_the_nearest_point_of_the_box(x, a, b, inside):
    box = Box(jnp.asarray(np.minimum(a, b)), jnp.asarray(np.maximum(a, b)))
    nearest = box.project(jnp.asarray(x))
    assert box.contains(nearest)
    assert (box.project(nearest) == nearest).all()
    # Variational inequality: (x - P x)·(z - P x) <= 0 for every z in the box.
    other = box.project(jnp.asarray(inside))
    assert float((x - nearest) @ (other - nearest)) <= 1e-9


@given(vectors, vectors, vectors, vectors)
def test_projected_gradient_vanishes_exactly_where_no_step_along_it_stays_inside(x, a, b, g):
    box = Box(jnp.asarray(np.minimum(a, b)), jnp.asarray(np.maximum(a, b)))
    point = box.project(jnp.asarray(x))
    projected = box.projected_gradient(point, jnp.asarray(g))
    step = 1e-9
    moved = box.project(point - step * g) - point
    # A component survives if and only if a short step against it moves the point.
    survives = np.asarray(projected) != 0
    movable = np.abs(np.asarray(moved)) > 0
    visible = np.abs(step * g) > 1e-14
    assert (survives[visible] == movable[visible]).all()
    assert (np.asarray(projected)[survives] == g[survives]).all()


def test_outside_the_box_the_projected_path_is_flat():
    box = Box(jnp.zeros(2), jnp.ones(2))
    assert box.projected_gradient(jnp.array([-1.0, 2.0]), jnp.array([-5.0, 5.0])).tolist() == [0.0, 0.0]


def test_bounds_may_be_numbers_arrays_prefixes_or_absent():
    varying = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(()), "d": jnp.zeros(3)}}
    box = box_from(({"a": -1.0, "b": None}, {"a": jnp.array([1.0, 2.0]), "b": {"d": 5.0}}), varying)
    assert box.lower["a"].tolist() == [-1.0, -1.0]
    assert box.upper["a"].tolist() == [1.0, 2.0]
    assert float(box.lower["b"]["c"]) == -np.inf and float(box.upper["b"]["c"]) == np.inf
    assert box.upper["b"]["d"].tolist() == [5.0, 5.0, 5.0]
    assert box_from(None, varying).contains(varying)
    lists = box_from(([0.0, 1.0], [2.0, 3.0]), jnp.zeros(2))
    assert lists.lower.tolist() == [0.0, 1.0]


def test_bounds_keep_the_dtype_of_the_leaf():
    box = box_from((0.0, 1.0), jnp.zeros(2, jnp.float32))
    assert box.lower.dtype == jnp.float32


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (({"x": jnp.array([0.0, 3.0, 0.0])}, 1.0), r"bounds of 'x'.*1 entry with \[1\]: lower 3.0 > upper 1.0"),
        ((jnp.nan, None), r"3 entries with \[0\]: lower nan"),
        ((0.0, jnp.ones(2)), r"upper bound of 'x'.*shape \(3,\).*shape \(2,\)"),
        ((0.0, 1.0, 2.0), "pair"),
        (5.0, "pair"),
        (({"y": 0.0}, None), "lower bound given for 'y', which does not vary"),
        (([0.0, 0.0, 0.0], None), r"lower bound given for '\[0\]', which does not vary. Varying leaves are: 'x'"),
        ((None, {"x": "wide"}), "upper bound of 'x' does not fit"),
    ],
)
def test_bounds_that_cannot_be_are_refused(bounds, message):
    with pytest.raises(BoundsError, match=f"(?s){message}"):
        box_from(bounds, {"x": jnp.zeros(3)})


def test_scaled_box_holds_the_scaled_points():
    varying = {"x": jnp.array([0.2, 3.0])}
    scale = {"x": jnp.array([0.1, 10.0])}
    box = box_from((0.1, jnp.array([1.0, 20.0])), varying)
    scaled = box.scaled(Partition(varying, None, scale))
    point = jnp.array([5.0, 7.0])
    inside = jax.tree.map(jnp.multiply, scaled.project({"x": point}), scale)
    assert jnp.allclose(inside["x"], box.project({"x": point * scale["x"]})["x"])
