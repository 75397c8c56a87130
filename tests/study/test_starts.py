"""Where runs begin: stratified, within bounds, the same for the same seed, and only what varies."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import tesseract_flow as tf
from tesseract_flow.errors import BoundsError, ProblemError
from tesseract_flow.study.sampling import METHODS, unit_points
from tesseract_flow.study.starts import starts_of
from tests.study.helpers import camel_problem


def starts(problem, n=None, how: Any = "latin-hypercube", seed=0, spread=None, include_start=None):
    return starts_of(problem, n, how, seed, spread, include_start)


def varying(problem):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(problem.partition.varying)]


def flat(found):
    return np.array([np.concatenate([leaf.ravel() for leaf in varying(one)]) for one in found.problems.values()])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), d=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_a_latin_hypercube_has_one_point_in_each_slice_of_each_dimension(n, d, seed):
    points = unit_points("latin-hypercube", n, d, seed)
    slices = np.floor(points * n).astype(int)
    assert all(sorted(column) == list(range(n)) for column in slices.T)
    assert np.array_equal(points, unit_points("latin-hypercube", n, d, seed))
    assert n == 1 or not np.array_equal(points, unit_points("latin-hypercube", n, d, seed + 1))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 33), more=st.integers(0, 20), d=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_more_of_sobol_are_the_same_and_others(n, more, d, seed):
    points = unit_points("sobol", n + more, d, seed)
    assert np.array_equal(points[:n], unit_points("sobol", n, d, seed))
    assert len(np.unique(points, axis=0)) == n + more
    assert ((points >= 0) & (points < 1)).all()


def test_sobol_is_balanced_where_there_is_a_power_of_two():
    counts, _ = np.histogramdd(unit_points("sobol", 64, 2, 3), bins=(8, 8), range=[(0, 1)] * 2)
    assert (counts == 1).all()


@pytest.mark.parametrize(("n", "d", "n_points"), [(1, 1, 0), (2, 1, 2), (9, 2, 9), (15, 2, 9), (16, 2, 16), (8, 3, 8)])
def test_a_grid_is_the_largest_regular_one(n, d, n_points):
    if not n_points:
        with pytest.raises(ProblemError, match="at least 2\\^1 points, and n is 1"):
            unit_points("grid", n, d, 0)
        return
    points = unit_points("grid", n, d, 0)
    assert len(points) == n_points == len(np.unique(points, axis=0))
    assert points.min() == 0.0 and points.max() == 1.0


def mixed():
    """Leaves of every kind: entries that are free, held and bounded each in its own way."""
    design = {
        "mesh": [jnp.zeros((2, 2), jnp.float32), 7],
        "angle": jnp.asarray(0.5),
        "family": "fin",
        "count": jnp.arange(3),
        "fn": jnp.sin,
        "none": None,
    }
    lower = {"mesh": [jnp.asarray([[0.1, -5.0], [3.0, 0.0]], jnp.float32)], "angle": -1.0}
    upper = {"mesh": [jnp.asarray([[0.3, 5.0], [3.0, 1e-3]], jnp.float32)], "angle": 1e300}
    return tf.Problem(design, lambda d: jnp.sum(d["mesh"][0]).astype(float) + d["angle"], bounds=(lower, upper))


@pytest.mark.parametrize("how", ["latin-hypercube", "sobol"])
def test_only_what_varies_is_chosen_each_entry_between_its_own_bounds(how):
    problem = mixed()
    found = starts(problem, 33, how)
    assert len(found.problems) == 33 and not found.notes
    for one in list(found.problems.values())[1:]:
        assert one.box.contains(one.partition.varying)
        assert jax.tree.structure(one.design) == jax.tree.structure(problem.design)
        assert [leaf.dtype for leaf in varying(one)] == [leaf.dtype for leaf in varying(problem)]
        assert one.design["family"] == "fin" and one.design["mesh"][1] == 7 and one.design["fn"] is jnp.sin
        assert np.array_equal(one.design["count"], np.arange(3))
    points = flat(found)
    assert next(iter(found.problems.values())) is problem
    by_entry = points[1:].T
    assert len(np.unique(by_entry[3])) == 1  # held at 3
    assert all(len(np.unique(np.floor(32 * (row - row.min()) / np.ptp(row)))) > 16 for row in by_entry[[0, 1, 2, 4]])


def test_all_of_the_range_is_used_where_numbers_are_largest():
    problem = tf.Problem(jnp.zeros(1), lambda x: x[0], bounds=(-1.7e308, 1.7e308))
    points = flat(starts(problem, 16, include_start=False))
    assert np.isfinite(points).all() and points.max() > 1.4e308 and points.min() < -1.4e308


def test_the_same_seed_gives_the_same_keys_and_another_one_others():
    keys = [list(starts(camel_problem(), 5, seed=seed).problems) for seed in (1, 1, 2)]
    assert keys[0] == keys[1]
    assert set(keys[0]) & set(keys[2]) == {keys[0][0]}  # the problem's own
    assert set(starts(camel_problem(), 8, "sobol").problems) > set(starts(camel_problem(), 5, "sobol").problems)


@pytest.mark.parametrize(("how", "n_own"), [("latin-hypercube", 1), ("sobol", 1), ("grid", 0)])
def test_the_own_start_is_the_first_of_n_unless_the_starts_are_named(how, n_own):
    problem = camel_problem()
    for include, own in ((None, n_own), (True, 1), (False, 0)):
        found = list(starts(problem, 9 + own, how, include_start=include).problems.values())
        assert len(found) == 9 + own
        assert sum(one is problem for one in found) == own
    assert starts(problem, 1).problems.popitem()[1] is problem


def test_a_grid_that_does_not_fit_is_told():
    assert starts(camel_problem(), 10, "grid").notes == ("the largest regular grid within n=10 has 9 points",)


def test_entries_without_bounds_are_named_with_the_remedy():
    problem = tf.Problem({"a": jnp.zeros(3), "b": jnp.asarray(0.0)}, lambda d: d["b"], bounds=({"a": 0.0}, {"a": 1.0}))
    with pytest.raises(BoundsError, match="'b'") as refused:
        starts(problem, 4)
    assert "'a'" not in str(refused.value) and "spread=" in str(refused.value)
    half = tf.Problem(jnp.zeros(3), lambda x: x[0], bounds=(jnp.asarray([0.0, -np.inf, 0.0]), 1.0))
    with pytest.raises(BoundsError, match=r"1 entry, at \[1\]"):
        starts(half, 4)
    assert len(starts(problem, 1).problems) == 1  # its own start needs no bounds


def test_spread_is_around_the_start_and_within_the_bounds():
    problem = tf.Problem({"a": jnp.ones(2), "b": jnp.asarray(5.0)}, lambda d: d["b"], bounds=({"a": 0.5}, None))
    points = flat(starts(problem, 40, spread={"a": 2.0, "b": 0.25}, include_start=False))
    assert points[:, :2].min() >= 0.5 and 2.5 < points[:, :2].max() <= 3.0
    assert 4.75 <= points[:, 2].min() < 4.8 and 5.2 < points[:, 2].max() <= 5.25
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(BoundsError, match="spread of 'a' must be finite"):
            starts(problem, 4, spread=bad)
    with pytest.raises(BoundsError, match="Did you mean 'a'"):
        starts(problem, 4, spread={"aa": 1.0})


def test_a_list_of_designs():
    problem = mixed()
    there = {**problem.design, "angle": jnp.asarray(0.75)}
    only = {"mesh": [np.ones((2, 2))], "angle": 0.25}
    found = list(starts(problem, how=[there, only]).problems.values())
    assert [float(one.design["angle"]) for one in found] == [0.75, 0.25]
    assert found[1].design["mesh"][0].dtype == jnp.float32 and found[1].design["family"] == "fin"
    with_own = starts(problem, 2, how=[only], include_start=True)
    assert next(iter(with_own.problems.values())) is problem
    root = tf.Problem(jnp.zeros(2), jnp.sum)
    assert np.array_equal(flat(starts(root, how=np.arange(6.0).reshape(3, 2))), np.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize(
    ("design", "says"),
    [
        ({"x": 1.0}, "it has no 'y', which varies"),
        ({"x": 1.0, "y": 1.0, "z": 2.0}, "the design has no leaf 'z'"),
        ({"x": 1.0, "y": [1.0, 2.0]}, r"no leaf 'y\.\[0\]'"),
        ({"x": 1.0, "y": np.ones(2)}, r"'y' has shape \(2,\), expected \(\)"),
        ({"x": 1.0, "y": "far"}, "'y' is not a number"),
        ({"x": 1.0, "y": np.nan}, "not finite"),
        ({"x": 1.0, "y": 1.0, "n": 4}, "'n' does not vary"),
    ],
)
def test_designs_of_a_list_that_do_not_fit(design, says):
    with pytest.raises(ProblemError, match=says) as refused:
        starts(camel_problem(), how=[{"x": 0.0, "y": 0.0}, design])
    assert "starts[1]" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n": 0}, "n must be a whole number"),
        ({"n": 2.5}, "n must be a whole number"),
        ({"n": True}, "n must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"how": "latin-hypercub"}, "Did you mean 'latin-hypercube'"),
        ({"how": []}, "nothing to run"),
        ({"how": {"x": 1.0, "y": 1.0}}, "a list of designs, received dict"),
        ({"how": 3}, "a list of designs, received int"),
        ({"how": [{"x": 1.0, "y": 1.0}], "n": 3}, "there are 1 starts in the list"),
        ({"how": [{"x": 1.0, "y": 1.0}], "spread": 3.0}, "give one of them"),
    ],
)
def test_what_cannot_be_used_is_refused(options, says):
    with pytest.raises(ProblemError, match=says):
        starts(camel_problem(), **options)


def test_equal_starts_run_once_and_it_is_said():
    held = tf.Problem(jnp.ones(2), jnp.sum, bounds=(1.0, 1.0))
    found = starts(held, 5)
    assert len(found.problems) == 1
    assert found.notes == ("4 of 5 starts are the same as another one, and run once",)


def test_methods_are_all_tried_here():
    assert METHODS == ("latin-hypercube", "sobol", "grid")
