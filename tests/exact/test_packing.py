"""Packed trees are equal exactly if keys are, come back as they were, and are never half believed."""

from __future__ import annotations

import enum
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tesseract_flow.exact import InputKey, copied, pack, unpack
from tests.exact.trees import TREES, Size, written_out


class Size2(enum.IntEnum):
    SMALL = 1


@given(TREES, TREES)
def test_bytes_are_equal_exactly_if_keys_are(a: Any, b: Any) -> None:
    assert (pack(a) == pack(b)) is (InputKey(a) == InputKey(b))


@given(TREES)
def test_round_trip(tree: Any) -> None:
    assume("Size" not in str(written_out(tree)))
    back = unpack(bytearray(pack(tree)))
    # A scalar comes back as an array without dimensions.
    assert written_out(back) == written_out(tree)
    assert str(unpack(bytearray(pack(tree, in_order=True)))) == str(copied(tree, np.asarray))


@given(st.recursive(st.text() | st.integers() | st.binary(), lambda t: st.dictionaries(st.text(), t) | st.tuples(t)))
def test_round_trip_of_any_text_and_number(tree: Any) -> None:
    assert unpack(bytearray(pack(tree))) == tree


def test_arrays_come_back_aligned_and_can_be_written_into() -> None:
    tree = {"a": np.arange(3, dtype=np.int8), "b": np.arange(4.0)[::2], "c": np.zeros((0, 2)), "d": np.arange(3) + 1j}
    back = unpack(bytearray(pack(tree)))
    for key, array in tree.items():
        np.testing.assert_array_equal(back[key], array)
        assert back[key].dtype == array.dtype
        assert back[key].flags.aligned
        back[key][...] = 0


def test_enumerations_differ_by_class_and_do_not_come_back() -> None:
    assert len({pack(leaf) for leaf in (1, Size.SMALL, Size2.SMALL, Size.LARGE)}) == 4
    with pytest.raises(ValueError, match="unknown tag 'enum'"):
        unpack(bytearray(pack([Size.SMALL])))


@pytest.mark.parametrize("leaf", [object(), np.array(["text"]), {1, 2}, np.array(["2026-01-01"], "datetime64[D]")])
def test_what_has_no_bytes_is_refused(leaf: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written as bytes"):
        pack({"x": leaf})


def test_no_part_of_it_is_taken_for_the_whole() -> None:
    data = pack({"x": np.arange(3.0), "n": [1, "a"]})
    for n in range(len(data)):
        with pytest.raises(ValueError, match="not a packed tree"):
            unpack(bytearray(data[:n]))
    with pytest.raises(ValueError, match="not a packed tree"):
        unpack(bytearray(data + b"\x00"))


@pytest.mark.parametrize(
    "node",
    [
        ["array", "|O", [1]],
        ["array", "<f8", [-1]],
        ["array", "<f8", ["1"]],
        ["array", "<f8", [10**30]],
        ["array", "<f8"],
        ["array", "nonsense", [1]],
        ["array", "<f8", [1, 10**30, 0]],
        ["float", "00"],
        ["bytes", 3],
        ["dict", [[["list", []], 1]]],
        ["dict", [1]],
        ["list"],
        [],
        {"a": 1},
        1.5,
        ["call", "os.system"],
    ],
)
def test_hostile_text_is_refused(node: Any) -> None:
    text = json.dumps(node).encode()
    with pytest.raises(ValueError, match="not a packed tree"):
        unpack(bytearray(struct.pack("<Q", len(text)) + text + bytes(24)))


def test_depth_is_an_error_of_ours() -> None:
    text = b"[" * 100_000
    with pytest.raises(ValueError, match="not a packed tree"):
        unpack(bytearray(struct.pack("<Q", len(text)) + text))
