"""Plain numbers that JSON has no word for: sent as they are, and never taken for something else on the way back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesseract_flow.client import CoreTesseract, ServedTesseract, open_tesseract
from tesseract_flow.errors import InvalidAnswer, NonFiniteAnswer, NonFiniteError

MARGINS = Path(__file__).parents[1] / "components" / "margins" / "tesseract_api.py"
ODD = [math.inf, -math.inf, math.nan]


@pytest.fixture(scope="module")
def margins() -> Iterator[ServedTesseract]:
    handle = ServedTesseract(MARGINS)
    yield handle
    handle.stop()


@pytest.mark.server
@pytest.mark.parametrize("limit", [*ODD, 1e308, -0.0])
def test_the_component_gets_what_was_sent(margins, limit):
    assert margins.apply({"x": 1.0, "limit": limit})["limit"] == repr(limit)


@pytest.mark.server
@pytest.mark.parametrize("limit", ODD)
def test_what_json_does_not_say_is_refused_by_name(margins, limit):
    with pytest.raises(NonFiniteAnswer, match=r"margin: null in place of a plain float.*NaN, inf and -inf") as caught:
        margins.apply({"x": 1.0, "limit": limit, "is_told": True})
    assert isinstance(caught.value, InvalidAnswer) and isinstance(caught.value, NonFiniteError)
    assert "Float64 in place of float" in str(caught.value)  # what to do
    assert margins.apply({"x": 1.0, "limit": 2.5, "is_told": True})["margin"] == 2.5


@pytest.mark.server
def test_it_is_not_kept_either(margins, tmp_path):
    handle = open_tesseract(margins, cache=tmp_path)
    for _ in range(2):
        with pytest.raises(NonFiniteAnswer):
            handle.apply({"x": 1.0, "limit": math.inf, "is_told": True})
    assert handle.cache.stats()["entries"] == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", ODD)
def test_in_process_it_comes_back_as_it_is(limit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core import Tesseract

        handle = CoreTesseract(Tesseract.from_tesseract_api(MARGINS))
    answer = handle.apply({"x": 1.0, "limit": limit, "is_told": True})
    assert repr(answer["margin"]) == repr(limit) == answer["limit"]
