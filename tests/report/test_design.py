"""Leaves of mixed designs by name."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.report.design import design_rows, named_leaves, split_leaves


class Wing(eqx.Module):
    knots: list[jax.Array]
    name: str = eqx.field(default="naca")
    solver: str = eqx.field(static=True, default="hidden")


def test_names_are_paths():
    tree = {"wing": Wing([jnp.zeros(2), jnp.ones(3)]), "n": 4, "off": None}
    assert set(named_leaves(tree)) == {"wing.knots.[0]", "wing.knots.[1]", "wing.name", "n", "off"}
    assert list(named_leaves(jnp.ones(3))) == ["design"]
    assert named_leaves({}) == {}


def test_names_stay_unique():
    leaves = named_leaves({"a.b": 1, "a": {"b": 2}, "a.b#2": 3})
    assert sorted(leaves.values()) == [1, 2, 3]


def test_arrays_and_the_rest():
    tree = {
        "jax": jnp.arange(3.0),
        "numpy": np.arange(4),
        "scalar": np.float64(2.0),
        "half": jnp.array([1.5, -2.0], dtype=jnp.bfloat16),
        "key": jax.random.key(0),
        "float": 2.0,
        "function": np.sin,
        "objects": np.array([{}, None], dtype=object),
    }
    arrays, static = split_leaves(tree)
    assert set(arrays) == {"jax", "numpy", "scalar", "half", "key"}
    assert set(static) == {"float", "function", "objects"}
    assert arrays["half"].dtype == np.float32 and arrays["half"].tolist() == [1.5, -2.0]
    assert arrays["key"].dtype == np.uint32
    assert len(design_rows(tree)) == len(tree)


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (np.array([[1.0, 3.0]]), ("1 x 2", "float64", 1.0, 2.0, 3.0, None)),
        (np.array(2, dtype=np.int32), ("scalar", "int32", 2.0, 2.0, 2.0, 2)),
        (np.array([3 + 4j, 0j]), ("2", "complex128", 0.0, 2.5, 5.0, None)),
        (np.zeros((0, 2)), ("0 x 2", "float64", None, None, None, None)),
        ("text", (None, "str", None, None, None, "text")),
        (None, (None, "NoneType", None, None, None, "None")),
    ],
)
def test_row_of_a_leaf(leaf, expected):
    (row,) = design_rows({"x": leaf})
    assert tuple(row.values()) == ("x", *expected)


def test_long_text_is_cut():
    (row,) = design_rows({"x": "y" * 1000})
    assert len(row["value"]) == 200
