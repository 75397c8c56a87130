"""What models say: descriptions of arrays, and which arrays are differentiable."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Optional

import numpy as np
import pytest
from pydantic import BaseModel, Field, RootModel

from tesseract_flow.recipes.trees import as_abstract_tree, differentiable_patterns, matches

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
    from tesseract_core.runtime import Array, Differentiable, Float32, Float64, ShapeDType

X = Differentiable[Array[(None,), Float64]]


class Inner(BaseModel):
    x: X  # pyright: ignore[reportInvalidTypeForm]
    fixed: Array[(None,), Float64]  # pyright: ignore[reportInvalidTypeForm]


class Wrapped(RootModel[list[X]]):  # pyright: ignore[reportInvalidTypeForm]
    pass


class Everything(BaseModel):
    inner: Inner
    scalar: Differentiable[Float32]  # pyright: ignore[reportInvalidTypeForm]
    named: dict[str, Inner]
    listed: list[X]  # pyright: ignore[reportInvalidTypeForm]
    pair: tuple[X, Float64]  # pyright: ignore[reportInvalidTypeForm]
    maybe: Optional[X] = None  # noqa: UP045 -- both spellings of a union
    either: X | str  # pyright: ignore[reportInvalidTypeForm]
    noted: Annotated[X, Field(description="noted")]  # pyright: ignore[reportInvalidTypeForm]
    abstract: Mapping[str, Sequence[X]]  # pyright: ignore[reportInvalidTypeForm]
    wrapped: Wrapped
    count: int = 3


def test_patterns_are_where_the_model_is_differentiable() -> None:
    assert differentiable_patterns(Everything) == {
        ("inner", "x"),
        ("scalar",),
        ("named", None, "x"),
        ("listed", None),
        ("pair", None),
        ("maybe",),
        ("either",),
        ("noted",),
        ("abstract", None, None),
        ("wrapped", None),
    }


def test_patterns_match_keys() -> None:
    patterns = differentiable_patterns(Everything)
    assert matches(["named", "wing", "x"], patterns)
    assert matches(["abstract", "wing", 3], patterns)
    assert not matches(["named", "wing", "fixed"], patterns)
    assert not matches(["inner"], patterns)
    assert matches(["anything"], None)


class Plain(BaseModel):
    x: float


class Chain(BaseModel):
    x: X  # pyright: ignore[reportInvalidTypeForm]
    next: Optional[Chain] = None  # noqa: UP045


@pytest.mark.parametrize("model", [Plain, Chain])
def test_model_that_does_not_tell_leaves_it_open(model: type) -> None:
    assert differentiable_patterns(model) is None


class Grid(BaseModel):
    shape: tuple[int, ...]
    dtype: str


class Abstract(BaseModel):
    grid: Grid
    x: ShapeDType
    named: dict[str, ShapeDType]


def test_description_of_an_array_is_told_from_a_model_that_looks_like_one() -> None:
    x = ShapeDType(shape=(2,), dtype="float32")
    abstract = Abstract(grid=Grid(shape=(9,), dtype="coarse"), x=x, named={"a": x})
    seen = as_abstract_tree({"model": abstract, "plain": {"shape": [3], "dtype": "int8"}, "value": np.ones(4)}, _aval)
    assert seen == {
        "model": {
            "grid": {"shape": (9,), "dtype": "coarse"},
            "x": _aval((2,), np.dtype("float32")),
            "named": {"a": _aval((2,), np.dtype("float32"))},
        },
        "plain": _aval((3,), np.dtype("int8")),
        "value": _aval((4,), np.dtype("float64")),
    }


def _aval(shape: tuple[int, ...], dtype: Any) -> Any:
    return "aval", shape, str(dtype)
