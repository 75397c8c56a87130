"""Structures tell inputs apart that may have other outputs, and only these; memories are bounded."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from tesseract_flow.client.deriving import memory
from tesseract_flow.client.deriving.memory import described, described_inputs, memory_of, structure_of
from tesseract_flow.testing import FunctionTesseract

TREE = {"x": np.zeros((2, 3)), "parts": {"a.b": [np.float32(1.0), "text"]}, "n": 1, "none": None}


def test_values_of_arrays_do_not_matter() -> None:
    other = {"none": None, "n": 1, "parts": {"a.b": [np.float32(7.0), "text"]}, "x": np.ones((2, 3))}
    assert structure_of(TREE) == structure_of(other)
    assert hash(structure_of(TREE)) == hash(structure_of(other))
    # What was asked of abstract_eval has the structure of what is asked of apply.
    assert structure_of(described(TREE)) == structure_of(TREE)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1.0},
        {"n": True},
        {"n": 2},
        {"none": 0},
        {"x": np.zeros((3, 2))},
        {"x": np.zeros((2, 3), np.float32)},
        {"parts": {"a.b": [np.float32(1.0), "txet"]}},
        {"parts": {"a.b": [np.float32(1.0)]}},
        {"parts": {}},
        {"more": 1},
    ],
)
def test_everything_else_does(change: dict[str, Any]) -> None:
    assert structure_of({**TREE, **change}) != structure_of(TREE)


def test_numbers_where_the_schema_has_arrays_are_described_as_such() -> None:
    example = {"x": np.float32(1.0), "deep": [{"y": np.zeros(2)}], "n": 3}
    schema = FunctionTesseract(lambda i: i, example).schema
    asked = described_inputs(schema, {"x": 2.0, "deep": [{"y": np.ones(5)}], "n": 3})
    assert asked == {
        "x": {"shape": [], "dtype": "float32"},
        "deep": [{"y": {"shape": [5], "dtype": "float64"}}],
        "n": 3,
    }


def test_memories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_REMEMBERED", 3)
    monkeypatch.setattr(memory, "_REMEMBERED_SETTINGS", 2)
    handle = FunctionTesseract(lambda i: i, {"x": np.ones(2)})
    first = memory_of(handle, "a")
    for k in range(5):
        first.remember_shapes(k, {})
    assert list(first.shapes) == [2, 3, 4]
    memory_of(handle, "b")
    assert memory_of(handle, "a") is first
    memory_of(handle, "c")
    assert list(memory._memories[handle.anchor]) == ["a", "c"]


def test_a_memory_goes_with_its_handle() -> None:
    handle = FunctionTesseract(lambda i: i, {"x": np.ones(2)})
    gone = weakref.ref(memory_of(handle, None))
    del handle
    gc.collect()
    assert gone() is None
