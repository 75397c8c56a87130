"""What a raw call would send as another number is refused before it is sent; what loses nothing goes out."""

import httpx
import numpy as np
import orjson
import pytest

from tesseract_flow.errors import InvalidInput
from tesseract_flow.schema import ArrayField, LeafField
from tesseract_flow.testing import FunctionTesseract
from tests.client.helpers import Mock, document
from tests.helpers import Watched


def component(dtype, field=None):
    field = field or ArrayField(dtype, (), True)
    return Watched(FunctionTesseract(lambda i: {"y": 1.0}, {"x": np.ones((), dtype)}, inputs={"x": field}))


LOST = {
    "Python's": ("float64", 2**53 + 1),
    "single": ("float32", 2**24 + 1),
    "negative": ("float64", -(2**53) - 1),
    "NumPy's": ("float64", np.int64(2**53 + 1)),
    "array": ("float64", np.array(2**53 + 1)),
    "half": ("float16", 2049),
    "wraps": ("int8", np.array(300)),
    "infinite": ("float32", np.array(1e40)),
    "infinite, Python's": ("float32", 1e40),
}
KEPT = {
    "exact": ("float64", 2**53),
    "single": ("float32", 2**24),
    "rounded": ("float32", 0.1),
    "array": ("float64", np.array(2**60)),
    "small": ("int8", np.array(100)),
}


@pytest.mark.parametrize("name", LOST)
def test_what_would_arrive_as_another_number_is_refused(name):
    dtype, value = LOST[name]
    t = component(dtype)
    with pytest.raises(
        InvalidInput, match=r"(?s)x: .* (is not exact in|does not fit into) .*Nothing was sent"
    ) as caught:
        t.apply({"x": value})
    assert [fault.kind for fault in caught.value.faults] == ["out_of_range"]
    assert not t.requests


@pytest.mark.parametrize("name", KEPT)
def test_what_loses_nothing_is_sent(name):
    dtype, value = KEPT[name]
    t = component(dtype)
    t.apply({"x": value})
    assert t.payloads("apply") == [{"inputs": {"x": value}}]


def test_a_plain_float_is_no_exception():
    t = component("float64", LeafField("float"))
    t.apply({"x": 2**53})
    with pytest.raises(InvalidInput, match="9007199254740993 is not exact in float64"):
        t.apply({"x": 2**53 + 1})


def test_the_schema_is_asked_for_where_a_value_may_be_lost():
    about = orjson.loads(document())
    body = about["paths"]["/apply"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    body["properties"]["inputs"]["properties"]["x"] = {"type": "number"}
    fake = Mock(lambda request: httpx.Response(200, content=orjson.dumps(about)))
    handle = fake.handle()
    with pytest.raises(InvalidInput, match="not exact"):
        handle.apply({"x": 2**53 + 1})
    assert [request.url.path for request in fake.requests] == ["/openapi.json"]
