"""Trees in writing are equal exactly if keys are, and come back to the last bit, whoever lays out the JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tesseract_flow.exact import InputKey, copied, texts
from tests.exact.trees import TREES, Size, written_out


def there(tree: Any, **options: Any) -> tuple[bytes, list[np.ndarray]]:
    long: list[np.ndarray] = []

    def place(array: np.ndarray) -> int:
        long.append(array)
        return len(long) - 1

    return texts.compact(texts.write(tree, place, **options)), long


def back(text: bytes, long: list[np.ndarray]) -> Any:
    node = json.loads(texts.laid_out(json.loads(text)))
    assert texts.compact(node) == text
    return texts.read(node, lambda dtype, shape, at: long[at])


@given(TREES, TREES)
def test_texts_are_equal_exactly_if_keys_are(a: Any, b: Any) -> None:
    assert (there(a)[0] == there(b)[0]) is (InputKey(a) == InputKey(b))


@given(TREES)
def test_round_trip(tree: Any) -> None:
    assume("Size" not in str(written_out(tree)))
    assert written_out(back(*there(tree))) == written_out(tree)
    assert str(back(*there(tree, to_come_back=True))) == str(copied(tree, np.asarray))


_DTYPES = ["f2", "f4", "f8", ">f8", "c8", "c16", "i1", "i8", "u8", "?"]


@given(st.sampled_from(_DTYPES).flatmap(lambda d: st.binary(min_size=48, max_size=48).map(lambda b: (d, b))))
def test_any_bits_come_back(given: tuple[str, bytes]) -> None:
    code, data = given
    array = np.frombuffer(data, "u1").astype("?") if code == "?" else np.frombuffer(data, code)
    for shape in ((-1,), (3, -1), (1, 1, -1)):
        again = back(*there({"a": array.reshape(shape)}))["a"]
        assert again.dtype == array.dtype
        assert again.shape == array.reshape(shape).shape
        assert again.tobytes() == array.tobytes()
        again[...] = 0


@given(st.recursive(st.text() | st.integers() | st.binary(), lambda t: st.dictionaries(st.text(), t) | st.tuples(t)))
def test_round_trip_of_any_text_and_number(tree: Any) -> None:
    assert back(*there(tree)) == tree
    assert back(*there({"!array": tree, "!": [tree]})) == {"!array": tree, "!": [tree]}


@given(arrays("f8", st.integers(250, 260)))
def test_long_arrays_are_put_beside(array: np.ndarray) -> None:
    text, long = there([array, 1])
    assert len(long) == (array.size > texts.N_READABLE)
    assert back(text, long)[0].tobytes() == array.tobytes()


def test_enumerations_come_back_as_names_or_not_at_all() -> None:
    assert repr(back(*there([Size.SMALL]))) == "[<Size.SMALL: 1>]"
    with pytest.raises(TypeError, match="cannot be written down"):
        there([Size.SMALL], to_come_back=True)


@pytest.mark.parametrize("leaf", [object(), np.array(["text"]), {1, 2}, np.array(["2026-01-01"], "datetime64[D]")])
def test_what_has_no_bytes_is_refused(leaf: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written down"):
        there({"a": leaf})


@pytest.mark.parametrize(
    "node",
    [
        {"!pickle": "x"},
        {"!array": "float64[2]", "values": [1.0]},
        {"!array": "float64[2]", "values": [1.0, True]},
        {"!array": "float64[2]", "values": [1.0, None]},
        {"!array": "float64[2]", "values": [1.0, "0x00"]},
        {"!array": "float64[2]", "values": [1.0, "many"]},
        {"!array": "int8[1]", "values": [300]},
        {"!array": "int8[1]", "values": [1.5]},
        {"!array": "float64[99999999]", "values": []},
        {"!array": "object[1]", "values": [1]},
        {"!array": "float64", "values": 1.0},
        {"!array": "float64[1]"},
        {"!array": 3},
        {"!dict": [1]},
        {"!dict": [[[1], 2]]},
        {"!float": "00"},
        {"!bytes": 1},
        {"!enum": []},
    ],
    ids=str,
)
def test_what_was_never_written_is_refused(node: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        texts.read(node, lambda dtype, shape, at: np.zeros(shape, dtype))
