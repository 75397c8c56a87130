"""Equal inputs have equal digests, and inputs that differ in any way that counts have others."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest

from tesseract_flow.client.http.digest import digest_of

X = np.arange(6.0)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": X, "b": [1, "text"]}, {"b": [1, "text"], "a": X.copy()}),  # however it is ordered
        (np.arange(12.0).reshape(3, 4).T, np.ascontiguousarray(np.arange(12.0).reshape(3, 4).T)),
        ([1.0], (1.0,)),  # as JSON has it
        (float("nan"), float("nan")),
        (np.float64(2.0), np.array(2.0)),
        ({"c": Colour.RED, "d": None}, {"c": Colour.RED, "d": None}),
        (np.empty((0, 3)), np.empty((0, 3))),
    ],
)
def test_equal(one: Any, other: Any):
    assert digest_of(one) == digest_of(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (X, X.reshape(2, 3)),
        (X, X.astype(np.float32)),
        (X, np.nextafter(X, 9.0)),
        (np.array(0.0), np.array(-0.0)),
        (np.zeros(3), np.zeros(3, np.int64)),
        (X, X[::-1]),
        (-1, -2),
        (1, 1.0),
        (1, True),
        ("1", 1),
        ({"a": X}, {"b": X}),
        ([X], X),
        (None, "None"),
        (np.empty((0, 3)), np.empty((3, 0))),
        (b"a", "a"),
    ],
)
def test_different(one: Any, other: Any):
    assert digest_of({"inputs": one}) != digest_of({"inputs": other})


@pytest.mark.parametrize("at", [0, 5000, 50_000, 99_999])
@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.complex128, np.bool_])
def test_every_entry_of_a_large_array_counts(at, dtype):
    x = np.zeros(100_001, dtype)
    y = x.copy()
    y[at] = 1
    assert digest_of(x) != digest_of(y)
    assert digest_of(x) == digest_of(x.copy())


def test_what_cannot_be_hashed_has_none():
    assert digest_of({"x": {1, 2}}) is None
    assert digest_of({"x": np.array([object()])}) is None
    assert digest_of({1: X, "a": X}) is None
