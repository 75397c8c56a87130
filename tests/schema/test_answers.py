"""What can be an answer to a question, and what cannot."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.schema import ArrayField, DictField, LeafField, ListField, ModelField, TesseractSchema, UnionField
from tesseract_flow.schema.answers import answer_faults
from tesseract_flow.schema.fields import NULL

VECTOR = ArrayField("float64", (None,), True)
MATRIX = ArrayField("float64", (2, None), True)
INPUTS = ModelField({"x": VECTOR, "m": MATRIX, "s": ArrayField("float64", (), True)}, frozenset({"x"}))
OUTPUTS = ModelField(
    {
        "y": VECTOR,
        "flags": ArrayField("bool", (3,), False),
        "margin": LeafField("float"),
        "note": UnionField((LeafField("str"), NULL)),
        "parts": DictField(VECTOR),
        "layers": ListField(ArrayField("int64", (), False)),
    },
    frozenset({"y", "margin"}),
)
SCHEMA = TesseractSchema("fem", "1", frozenset({"apply"}), INPUTS, OUTPUTS, None, None, "digest")
X = {"x": np.ones(3), "m": np.ones((2, 4)), "s": 1.0}
GOOD = {"y": np.ones(5), "margin": 1.0}


def kinds(endpoint: str, payload: dict[str, Any], answer: Any) -> list[str]:
    return sorted(f"{fault.path}: {fault.kind}" for fault in answer_faults(SCHEMA, endpoint, payload, answer))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (GOOD, []),
        (GOOD | {"note": None, "parts": {"a b": np.ones(1)}, "layers": [np.int64(3)]}, []),
        (GOOD | {"margin": float("nan")}, []),  # in this process; the value is there
        (GOOD | {"margin": None}, ["margin: not_finite"]),
        (GOOD | {"y": None}, ["y: wrong_kind"]),
        (GOOD | {"y": [1.0]}, ["y: wrong_kind"]),
        (GOOD | {"y": np.ones((5, 1))}, ["y: wrong_shape"]),
        (GOOD | {"y": np.ones(5, int)}, ["y: wrong_dtype"]),
        (GOOD | {"y": np.ones(5, bool)}, ["y: wrong_dtype"]),
        (GOOD | {"y": np.ones(5, np.float32)}, []),
        (GOOD | {"flags": np.ones(1, bool)}, ["flags: wrong_shape"]),  # outputs are broadcast already
        (GOOD | {"z": 1}, ["z: unknown_field"]),
        (GOOD | {"parts": {"a": np.ones((1, 1))}}, ["parts.{a}: wrong_shape"]),
        (GOOD | {"layers": [np.float64(1.0)]}, ["layers.[0]: wrong_dtype"]),
        ({"margin": 1.0}, ["y: missing_field"]),
        (None, [": wrong_kind"]),
        ([], [": wrong_kind"]),
    ],
)
def test_outputs(answer, expected):
    assert kinds("apply", {"inputs": X}, answer) == expected


PLAIN = {
    "int": ([3, -(2**40)], [3.7, 3.0, "3", True, 1e29]),
    "float": ([0.5, 3, "NaN", "-Infinity"], ["0.5", True, "nan"]),
    "bool": ([True], [1, 0.0, "true"]),
    "str": (["a", ""], [5, 1.5, False]),
    "path": (["mesh.h5"], [5, True]),
    "any": ([1, "a", True, None, [1], {"a": 1}], []),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_scalars_are_of_the_kind_that_the_schema_promises(kind):
    """A server is no pydantic: `n: int` came back as 3.7, as "3" or as True, and was handed on."""
    outputs = ModelField({"n": LeafField(kind)}, frozenset({"n"}))
    schema = TesseractSchema("fem", "1", frozenset({"apply"}), INPUTS, outputs, None, None, "digest")
    good, bad = PLAIN[kind]
    assert not [value for value in good if answer_faults(schema, "apply", {"inputs": X}, {"n": value})]
    assert not [value for value in bad if not answer_faults(schema, "apply", {"inputs": X}, {"n": value})]
    # What only a component in this process can answer with is its own business.
    own = datetime.date(2026, 1, 1), np.float64(1.0), np.int64(1), np.True_
    assert not [value for value in own if answer_faults(schema, "apply", {"inputs": X}, {"n": value})]


def test_a_choice_is_one_of_the_schemas():
    outputs = ModelField({"mode": LeafField("enum", ("fast", "exact", 2))}, frozenset({"mode"}))
    schema = TesseractSchema("fem", "1", frozenset({"apply"}), INPUTS, outputs, None, None, "digest")
    faulty = [v for v in ("fast", 2, "slow", 3) if answer_faults(schema, "apply", {"inputs": X}, {"mode": v})]
    assert faulty == ["slow", 3]


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ({"shape": [5], "dtype": "float64"}, []),
        (np.ones(5), ["y: wrong_kind"]),
        ({"shape": [-1], "dtype": "float64"}, ["y: wrong_shape"]),
        ({"shape": [2**40, 2**40], "dtype": "float64"}, ["y: wrong_shape"]),
        ({"shape": [2**62], "dtype": "float64"}, []),
        ({"shape": [2.5], "dtype": "float64"}, ["y: wrong_shape"]),
        ({"shape": ["2"], "dtype": "float64"}, ["y: wrong_shape"]),
        ({"shape": [True], "dtype": "float64"}, ["y: wrong_shape"]),
        ({"shape": {"0": 2}, "dtype": "float64"}, ["y: wrong_shape"]),
        ({"shape": [2, 3], "dtype": "float64"}, ["y: wrong_shape"]),
        ({"shape": [5], "dtype": "int64"}, ["y: wrong_dtype"]),
        ({"shape": [5], "dtype": None}, ["y: wrong_dtype"]),
        ({"shape": [5], "dtype": ["float64"]}, ["y: wrong_dtype"]),
        ({"shape": [5], "dtype": ">f8"}, ["y: wrong_dtype"]),
        ({"shape": [5]}, ["y: wrong_kind"]),
        (None, ["y: wrong_kind"]),
    ],
)
def test_shapes(y, expected):
    assert kinds("abstract_eval", {"inputs": X}, {"y": y, "margin": 0.0}) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"x": np.ones(3), "s": np.ones(())}, []),
        ({"x": np.ones(4), "s": np.ones(())}, ["x: wrong_shape"]),
        ({"x": np.ones(3), "s": np.ones(1)}, ["s: wrong_shape"]),
        ({"x": np.ones(3), "s": np.ones((), int)}, ["s: wrong_dtype"]),
        ({"x": np.ones(3)}, ["s: missing_field"]),
        ({"x": np.ones(3), "s": np.ones(()), "m": np.ones((2, 4))}, ["m: unknown_field"]),
        ({"y": np.ones(3)}, ["s: missing_field", "x: missing_field", "y: unknown_field"]),
        (None, [": wrong_kind"]),
    ],
)
def test_pullbacks(answer, expected):
    assert kinds("vector_jacobian_product", {"inputs": X, "vjp_inputs": ["x", "s"]}, answer) == expected


def test_a_pullback_of_what_the_server_broadcasts():
    payload = {"inputs": {"x": np.ones(3), "m": np.ones((1, 4))}, "vjp_inputs": ["m"]}
    assert kinds("vector_jacobian_product", payload, {"m": np.ones((2, 4))}) == []
    assert kinds("vector_jacobian_product", payload, {"m": np.ones((1, 4))}) == ["m: wrong_shape"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"y": np.ones(7), "parts.{a}": np.ones(2)}, []),
        ({"y": np.ones((7, 1)), "parts.{a}": np.ones(2)}, ["y: wrong_shape"]),
        ({"y": np.ones(7), "parts.{b}": np.ones(2)}, ["parts.{a}: missing_field", "parts.{b}: unknown_field"]),
    ],
)
def test_pushforwards(answer, expected):
    payload = {"inputs": X, "jvp_outputs": ["y", "parts.{a}"]}
    assert kinds("jacobian_vector_product", payload, answer) == expected


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"x": np.ones((5, 3)), "m": np.ones((5, 2, 4))}, []),
        ({"x": np.ones((3, 5)), "m": np.ones((5, 2, 4))}, ["y/x: wrong_shape"]),  # transposed
        ({"x": np.ones((5, 3)), "m": np.ones((6, 2, 4))}, ["y/m: wrong_shape"]),  # two lengths of one output
        ({"x": np.ones((5, 3)), "m": np.ones((2, 4))}, ["y/m: wrong_shape"]),
        ({"x": np.ones((5, 3))}, ["y/m: missing_field"]),
        (None, ["y: wrong_kind"]),
    ],
)
def test_jacobians(blocks, expected):
    payload = {"inputs": X, "jac_inputs": ["x", "m"], "jac_outputs": ["y"]}
    assert kinds("jacobian", payload, {"y": blocks}) == expected
    assert kinds("jacobian", payload, {"z": blocks}) == ["y: missing_field", "z: unknown_field"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    JSON, st.sampled_from(["apply", "abstract_eval", "jacobian", "jacobian_vector_product", "vector_jacobian_product"])
)
def test_anything_gets_a_list_of_faults(answer, endpoint):
    names = {"jvp_outputs": ["y"], "vjp_inputs": ["x"], "jac_inputs": ["x"], "jac_outputs": ["y"]}
    for wrapped in (answer, {"y": answer}, {"x": answer}, {"y": {"x": answer}}):
        faults = answer_faults(SCHEMA, endpoint, {"inputs": X, **names}, wrapped)
        assert all(len(str(fault)) < 1000 for fault in faults)
        json.dumps([str(fault) for fault in faults])
