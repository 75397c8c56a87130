"""Cutting long buffers out of JSON changes nothing but the time: `loads` agrees with the plain way on any bytes."""

import json
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.errors import WireError
from tesseract_flow.wire import _splice, decode_tree, dumps, encode_array, encode_tree, loads, message

LONG = "A" * _splice._LONG
FRAGMENTS = st.sampled_from(
    [
        *('"buffer"', '"buffer":"', '"buffer" :\n "', '"', '\\"', "\\", "\\\\", '\\"buffer":"', '"x\\"buffer":"'),
        *(LONG, LONG + "\\", LONG + '\\"', LONG + "\n", LONG + "\\n", LONG + "é", LONG + '"', "buffer", "1"),
        *("{", "}", "[", "]", ":", ",", " ", "\\u0022", "\0"),
        *(f'"buffer":"{LONG}"', f'{{"buffer":"{LONG}"}}', f'"buffer": "{LONG}\\/"', f'"\\"buffer":"{LONG}"'),
    ]
)


def plainly(data):
    try:
        return decode_tree(orjson.loads(data))
    except orjson.JSONDecodeError:
        return WireError


def cutting(data):
    try:
        return loads(data)
    except WireError:
        return WireError


@settings(deadline=None, max_examples=500)
@given(pieces=st.lists(FRAGMENTS, max_size=12))
def test_any_text_is_read_as_without_cutting(pieces):
    data = "".join(pieces).encode()
    assert cutting(data) == plainly(data)


@st.composite
def tricky_json(draw):
    """Valid JSON with long strings under `buffer` and under keys that end like it."""
    strings = st.sampled_from(
        [LONG, LONG + '"', LONG + "\\", LONG + "/", LONG + "\n", 'x"buffer":"' + LONG, "", "é" * 9000]
    )
    keys = st.sampled_from(["buffer", '"buffer', "\\buffer", 'x"buffer', "a"])
    tree = draw(
        st.recursive(
            strings,
            lambda t: st.one_of(st.lists(t, max_size=3), st.dictionaries(keys, t, max_size=3)),
            max_leaves=8,
        )
    )
    indent = draw(st.sampled_from([None, 1]))
    return tree, json.dumps(tree, indent=indent, ensure_ascii=draw(st.booleans())).encode()


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(case=tricky_json())
def test_long_strings_that_are_no_arrays_return(case):
    tree, data = case
    assert loads(data) == tree


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_messages_are_read_as_without_cutting(data):
    message = bytearray(dumps({"a": np.arange(1500.0), "b": [np.arange(1100), "x"]}))
    interesting = st.one_of(st.integers(0, 120), st.integers(len(message) - 160, len(message) - 1))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.one_of(interesting, st.integers(0, len(message) - 1)))
        replacement = data.draw(st.sampled_from([b'"', b"\\", b"", b"}", b"0", b"\xff", b"\n", b"=", b'""', b"buffer"]))
        message[position : position + 1] = replacement
    message = bytes(message)

    def outcome(read):
        try:
            return repr(read(message))
        except WireError:
            return "refused"

    def read_plainly(text):
        try:
            return decode_tree(orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise WireError from error

    assert outcome(loads) == outcome(read_plainly)


def test_long_buffers_are_really_cut_and_short_ones_are_not():
    message = dumps({"name": "buffer", "buffer": 1, "long": np.arange(2000.0), "short": np.arange(3.0)})
    skeleton, texts = _splice.cut(message)
    (text,) = texts.values()
    assert bytes(text).decode() == encode_array(np.arange(2000.0))["data"]["buffer"]
    assert len(skeleton) < 600
    assert orjson.loads(skeleton)["short"] == encode_array(np.arange(3.0))


def test_escaped_slashes_in_base64_are_legal_json():
    x = np.full(3000, -1, dtype=np.int16)  # all bits set: nothing but slashes
    message = dumps({"x": x}).replace(b"/", b"\\/").replace(b"application\\/", b"application/")
    np.testing.assert_array_equal(loads(message)["x"], x)


def test_writing_a_message_needs_no_second_buffer_of_its_size():
    x = np.random.default_rng(0).normal(size=500_000)
    size = len(dumps({"x": x}))
    tracemalloc.start()
    try:
        dumps({"x": x})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * size  # the buffer grows by an eighth at a time


def test_a_message_is_never_there_as_a_whole():
    x = np.random.default_rng(0).normal(size=500_000)
    text = message({"x": x})
    tracemalloc.start()
    try:
        n_bytes = sum(map(len, text))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_bytes == text.n_bytes > 5_000_000
    assert peak < 1_000_000


@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers(0, 200_000).map(lambda n: np.arange(n, dtype=np.uint8)),
        lambda trees: st.lists(trees, max_size=4) | st.dictionaries(st.text(max_size=3), trees, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from(["base64", "json"]),
)
def test_a_message_in_pieces_is_the_same_text_as_often_as_it_is_taken(tree, encoding):
    text = message(tree, encoding)
    pieces = list(text)
    whole = orjson.dumps(encode_tree(tree, encoding))
    assert b"".join(pieces) == b"".join(text) == bytes(text) == dumps(tree, encoding) == whole
    assert text.n_bytes == len(whole)
    assert all(len(piece) >= 2**16 for piece in pieces[:-1])  # each is a system call


def test_a_token_of_one_message_means_nothing_in_another():
    skeleton, _ = _splice.cut(dumps({"x": np.arange(2000.0)}))
    with pytest.raises(WireError, match=r"array at x: .* characters; received"):
        loads(skeleton)


def test_holes_are_filled_in_order():
    splicer = _splice.Splicer()
    tree = {"a": splicer.base64(b"first"), "b": ["\0", splicer.raw(b"[2]")]}
    assert bytes(splicer.message(tree)) == b'{"a":"Zmlyc3Q=","b":["\\u0000",[2]]}'
