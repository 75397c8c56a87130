"""A design splits into what varies and what does not, and comes back whole."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.autodiff.prefixes import spread
from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize.bounds import box_from
from tesseract_flow.optimize.partition import leaf_names, partition_design
from tesseract_flow.optimize.scaling import scaled


class Wing(eqx.Module):
    span: jax.Array
    n_ribs: int
    name: str


class Tail(eqx.Module):
    width: jax.Array


def mixed_design():
    return {
        "wing": Wing(jnp.array([1.0, 2.0]), 3, "left"),
        "knots": [jnp.asarray(0.5), np.array([4, 5]), None],
        "activation": jnp.tanh,
        "density": 7.8,
    }


def test_mixed_trees_come_back_whole():
    design = mixed_design()
    partition = partition_design(design, eqx.is_inexact_array)
    again = partition.combine(partition.varying)
    assert jax.tree.structure(again) == jax.tree.structure(design)
    assert leaf_names(partition.varying) == ["knots.[0]", "wing.span"]
    assert again["activation"] is design["activation"] and again["wing"].n_ribs == 3 and again["density"] == 7.8
    assert isinstance(again["density"], float)
    assert again["knots"][1] is design["knots"][1]


def test_filter_may_be_a_tree_of_booleans():
    design = {"a": jnp.ones(2), "b": jnp.zeros(3), "c": 1}
    partition = partition_design(design, {"a": False, "b": True, "c": False})
    assert leaf_names(partition.varying) == ["b"]


def test_python_floats_vary_when_asked_to():
    partition = partition_design({"x": 2.0, "n": 3}, {"x": True, "n": False})
    assert isinstance(partition.varying["x"], jax.Array) and not partition.varying["x"].weak_type


def scaled_by(start, scale, vary=eqx.is_inexact_array):
    partition = partition_design(start, vary)
    return scaled(partition, box_from(None, partition.varying), scale)


@given(scale=st.floats(1e-6, 1e6), x=st.floats(-1e6, 1e6, allow_subnormal=False))
def test_scaling_and_back_is_the_identity_up_to_rounding(scale, x):
    partition = scaled_by(jnp.asarray(x), scale)
    again = partition.from_scaled(partition.to_scaled(partition.varying))
    assert abs(float(again) - x) <= 4 * np.finfo(float).eps * abs(x) + 1e-300


def test_scaled_gradient_is_the_gradient_of_the_scaled_function():
    def f(x):
        return (jnp.sin(x["a"]) * x["b"]).sum()

    start = {"a": jnp.array([0.3, 0.4]), "b": jnp.asarray(2.0)}
    partition = scaled_by(start, {"a": jnp.array([0.1, 10.0]), "b": 3.0})
    expected = jax.grad(lambda u: f(partition.from_scaled(u)))(partition.to_scaled(start))
    received = partition.scale_gradient(jax.grad(f)(start))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(received), strict=True):
        assert jnp.allclose(a, b, rtol=1e-14)


def test_prefixes_spread_over_subtrees_and_skip_what_they_do_not_name():
    varying = {"mesh": {"knots": [jnp.ones(2), jnp.ones(3)], "angle": jnp.asarray(1.0)}, "speed": jnp.asarray(1.0)}
    names = leaf_names(varying)
    values = dict(zip(names, spread({"mesh": {"knots": 5.0}}, varying, what="scale", error=ProblemError), strict=True))
    assert values == {"mesh.angle": None, "mesh.knots.[0]": 5.0, "mesh.knots.[1]": 5.0, "speed": None}
    per_item = spread({"mesh": {"knots": [1.0, None]}, "speed": 2.0}, varying, what="scale", error=ProblemError)
    assert dict(zip(names, per_item, strict=True)) == {
        "mesh.angle": None,
        "mesh.knots.[0]": 1.0,
        "mesh.knots.[1]": None,
        "speed": 2.0,
    }


def test_prefixes_follow_modules():
    varying = partition_design(mixed_design(), eqx.is_inexact_array).varying
    wing = Wing(jnp.array([1.0, 2.0]), None, None)  # type: ignore[arg-type]
    scales = spread({"wing": wing}, varying, what="scale", error=ProblemError)
    assert scales[0] is None and scales[1].tolist() == [1.0, 2.0]


@dataclasses.dataclass
class Plain:
    """A node that JAX knows, but not the names of its parts."""

    x: Any


jax.tree_util.register_pytree_node(Plain, lambda node: ((node.x,), None), lambda _, parts: Plain(*parts))


@pytest.mark.parametrize(
    "design",
    [
        {"x": jnp.ones(2), "about": {"name": "fin", "of": [{"n": 3}]}},
        [jnp.ones(2), ("fin", 3)],
        Wing(jnp.ones(2), 3, "fin"),  # type: ignore[arg-type]
        {"inner": Plain(jnp.ones(2)), "about": Plain("fin")},
        {"inner": Plain({"x": jnp.ones(2), "about": ()})},
    ],
    ids=["dictionary", "list", "module", "unnamed", "within"],
)
def test_the_varying_part_itself_is_a_prefix_of_it(design):
    varying = partition_design(design, eqx.is_inexact_array).varying
    (received,) = spread(varying, varying, what="lower bound", error=ProblemError)
    assert received.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("design", "prefix", "where"),
    [
        ({"x": jnp.ones(2)}, [0.0, 0.0], "[0]"),
        ({"x": {"y": jnp.ones(2)}}, {"x": [0.0]}, "x.[0]"),
        ([{"x": jnp.ones(2)}], [{"z": 0.0}], "[0].z"),
        ([jnp.ones(2), 3], [0.0, 1.0], "[1]"),
        (Wing(jnp.ones(2), 3, "fin"), {"knots": 1.0}, "knots"),  # type: ignore[arg-type]
        ({"x": jnp.ones(2)}, Wing(1.0, None, None), "span"),  # type: ignore[arg-type]
        (Wing(jnp.ones(2), 3, "fin"), Tail(1.0), "width"),  # type: ignore[arg-type]
    ],
)
def test_no_part_of_a_prefix_is_passed_over(design, prefix, where):
    varying = partition_design(design, eqx.is_inexact_array).varying
    with pytest.raises(ProblemError, match=f"scale given for '{re.escape(where)}', which does not vary"):
        spread(prefix, varying, what="scale", error=ProblemError)


@pytest.mark.parametrize(
    ("design", "vary", "scale", "message"),
    [
        ({"n": 3, "s": "text"}, eqx.is_inexact_array, None, "Nothing in the design varies.*'n', 's'"),
        ({"x": jnp.array([1 + 2j])}, eqx.is_inexact_array, None, "'x' cannot vary: it is complex"),
        ({"x": jnp.array([1, 2])}, {"x": True}, None, "'x' cannot vary: expected floating point, received dtype int"),
        ({"x": "text"}, {"x": True}, None, "'x' cannot vary.*str 'text'"),
        ({"x": 3}, {"x": True}, None, "'x' cannot vary.*int 3"),
        ({"x": jnp.array([1.0, jnp.nan, jnp.inf])}, eqx.is_inexact_array, None, r"'x' has 2 .* at \[1\], \[2\]"),
        ({"x": jnp.ones(2)}, {"y": True}, None, "`vary` does not fit the design"),
        ({"x": jnp.ones(2)}, eqx.is_inexact_array, 0.0, "scale of 'x' must be positive"),
        ({"x": jnp.ones(2)}, eqx.is_inexact_array, {"x": "big"}, "scale of 'x' must be .*'bounds', received 'big'"),
        ({"x": jnp.ones(2)}, eqx.is_inexact_array, {"x": jnp.ones(3)}, r"scale of 'x'.*\(2,\).*shape \(3,\)"),
        ({"thickness": jnp.ones(2)}, eqx.is_inexact_array, {"thicknes": 1.0}, "Did you mean 'thickness'"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(design, vary, scale, message):
    with pytest.raises(ProblemError, match=f"(?s){message}"):
        scaled_by(design, scale, vary)


def test_tolerances_follow_the_least_precise_leaf():
    partition = partition_design({"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2)}, eqx.is_inexact_array)
    assert partition.dtype == jnp.float32
