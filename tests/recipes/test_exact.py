"""Constants of compiled functions are equal if and only if a computation cannot tell them apart."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest

from tesseract_flow.recipes.exact import Static
from tests.exact.trees import PLAIN


@pytest.mark.parametrize("a", range(len(PLAIN)))
def test_every_two_plain_leaves_differ(a: int) -> None:
    assert [b for b in range(len(PLAIN)) if Static({"n": PLAIN[a]}) == Static({"n": PLAIN[b]})] == [a]


@pytest.mark.parametrize(
    "a, b",
    [
        ({"a": 1}, {"b": 1}),
        ({1: "x"}, {True: "x"}),
        ([], ()),
        ({}, []),
        ({"a": None}, {}),
        ([1, [2]], [[1], 2]),
        ({1, 2}, {1.0, 2.0}),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (
            datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC),
            datetime.datetime(2026, 1, 1, 13, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
        ),
    ],
)
def test_near_misses(a: Any, b: Any) -> None:
    assert Static(a) != Static(b)
    assert Static(a) == Static(a)
    assert hash(Static(b)) == hash(Static(b))


def test_leaf_that_can_change_in_place_is_refused() -> None:
    with pytest.raises(TypeError, match="bytearray, which is neither an array nor hashable"):
        Static({"x": bytearray(b"1")})
