"""Answers from someone who means harm: refused with a WireError, before they cost memory."""

import copy
import json
import tracemalloc

import lz4.frame
import numpy as np
import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseract_flow.errors import WireError
from tesseract_flow.wire import BinrefWriter, decode_array, decode_tree, encode_array, loads


def form(buffer, shape=(2,), dtype="float64", encoding="base64", **data):
    data = {"buffer": buffer, "encoding": encoding} | data
    return {"object_type": "array", "shape": list(shape), "dtype": dtype, "data": data}


def base64(data):
    return pybase64.b64encode_as_string(data)


def with_(**changes):
    return form(base64(bytes(16))) | changes


def with_data(**changes):
    obj = form(base64(bytes(16)))
    return obj | {"data": obj["data"] | changes}


def without(key):
    obj = form(base64(bytes(16)))
    del obj[key]
    return obj


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (with_(shape=[-2]), r"list of integers from 0.*received \[-2\]"),
        (with_(shape=[-1, -2]), "list of integers"),
        (with_(shape=[2.0]), "list of integers"),
        (with_(shape=[True, 2]), "list of integers"),
        (with_(shape=[None]), "list of integers"),
        (with_(shape="2"), "list of integers"),
        (with_(shape=2), "list of integers"),
        (with_(shape={"0": 2}), "list of integers"),
        (with_(shape=[[2]]), "list of integers"),
        (with_(shape=[2**63]), "list of integers"),
        (with_(shape=[10**4000]), "an integer of .* bits"),
        (with_(shape=[2**62, 2**62]), "larger than any array"),
        (with_(shape=[2**32, 2**32]), "larger than any array"),
        (with_(shape=[0, 2**62, 4]), "larger than any array"),
        (with_(shape=[2**31, 2**31, 2]), "larger than any array"),
        (with_(shape=[10**12]), "takes 8000000000000 bytes; .*max_bytes"),
        (with_(shape=[1] * 65), "at most 64 dimensions; received 65"),
        (with_(shape=[3]), "makes 24 bytes, in base64 32 characters; received 24"),
        (with_(shape=[]), "makes 8 bytes, in base64 12 characters; received 24"),
        (with_(shape=[0]), "makes 0 bytes, in base64 0 characters; received 24"),
        (with_(dtype="float63"), "unknown dtype 'float63'.*Did you mean 'float64'"),
        (with_(dtype=">f8"), "unknown dtype"),
        (with_(dtype="object"), "unknown dtype 'object'"),
        (with_(dtype="x" * 10**6), "unknown dtype 'x{60}\\.\\.\\.'"),
        (with_(dtype=["float64"]), "unknown dtype"),
        (with_(dtype=None), "unknown dtype None"),
        (with_(object_type="arry"), "object_type 'array', received 'arry'"),
        (with_(data=[]), "array data as a dict"),
        (with_(strides=[8]), "unknown key 'strides'"),
        (without("shape"), "an array lacks 'shape'"),
        (without("data"), "an array lacks 'data'"),
        (with_data(encoding="cuda_ipc"), "unknown array encoding 'cuda_ipc'"),
        (with_data(encoding=["base64"]), "unknown array encoding"),
        (with_data(compression="zip"), "unknown compression 'zip'"),
        (with_data(compression={}), "unknown compression a dict"),
        (with_data(encoding="json", compression="lz4"), "goes with base64"),
        (with_data(checksum=1), "unknown key 'checksum'"),
        (with_data(buffer=None), "expected base64 text, received None"),
        (with_data(buffer=b"AAAA"), "expected base64 text, received a bytes"),
        (with_data(buffer="*" * 24), "expected base64 text"),
        (with_data(buffer="é" * 24), "expected base64 text"),
        (with_data(buffer="AAAA" * 5 + "AA=="), None),
        (with_data(buffer="AAAA" * 5 + "AAA="), "makes 16 bytes; received 17"),
        (with_data(buffer="AAAA" * 5 + "A==="), "expected base64 text"),
        (with_data(buffer="AAAA" * 5 + "AA\n="), "expected base64 text"),
        ([], "expected an array as a dict"),
        (None, "expected an array as a dict"),
        ("array", "expected an array as a dict"),
        (form(base64(b"\x00\x02"), dtype="bool"), "bool buffer holds bytes other than 0 and 1"),
        (form(base64(b""), shape=(0, 2**59)), None),
        (form("", shape=(1,) * 64 + (0,)), "at most 64 dimensions"),
        (form(base64(bytes(8)), shape=(1,) * 64), None),
    ],
    ids=lambda v: str(v)[:70],
)
def test_forms_that_are_not_exactly_an_array(obj, message):
    if message is None:
        assert decode_array(obj).shape == tuple(obj["shape"])
        return
    with pytest.raises(WireError, match=message):
        decode_array(obj)


def peak_memory(fn):
    """The most bytes that `fn` had allocated at a time."""
    tracemalloc.start()
    try:
        fn()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMB = lz4.frame.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2,), "expected 16 bytes, but the lz4 frame holds more"),
        ((0,), "expected 0 bytes, but the lz4 frame holds more"),
        ((500_000_000,), "expected 4000000000 bytes, but an lz4 frame of .* cannot hold that many"),
    ],
)
def test_lz4_bombs_cost_what_an_honest_array_would(tmp_path, shape, message):
    (tmp_path / "bomb").write_bytes(BOMB)
    text = base64(BOMB)

    def explode():
        with pytest.raises(WireError, match=message):
            decode_array(form(text, shape, compression="lz4"))
        with pytest.raises(WireError, match=message):
            decode_array(form(f"bomb:0:{len(BOMB)}", shape, encoding="binref", compression="lz4"), binref_root=tmp_path)

    assert peak_memory(explode) < 2_000_000


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (lz4.frame.compress(bytes(16))[:-4], "breaks off|something else"),
        (lz4.frame.compress(bytes(16)) + b"x", "1 stray bytes"),
        (lz4.frame.compress(bytes(8)), "holds only 8"),
        (lz4.frame.compress(bytes(8)) * 2, "holds only 8"),
        (b"", "cannot hold that many"),
        (b"garbage" * 9, "something else"),
    ],
)
def test_damaged_frames_are_refused(frame, message):
    with pytest.raises(WireError, match=message):
        decode_array(form(base64(frame), compression="lz4"))


def test_large_claims_are_refused_before_memory_is_set_aside(tmp_path):
    (tmp_path / "small").write_bytes(bytes(8))

    def claim():
        for obj in (
            form("AAAA", (2**28,)),
            form("small", (2**28,), encoding="binref"),
            form([1.0], (2**28,), encoding="json"),
            form([], (2**31, 0), encoding="binref"),
        ):
            with pytest.raises(WireError):
                decode_array(obj, binref_root=tmp_path)

    assert peak_memory(claim) < 1_000_000


@pytest.mark.parametrize(
    ("encoding", "compression"), [("json", None), ("base64", None), ("base64", "lz4"), ("binref", None)]
)
def test_max_bytes_bounds_one_array_and_all_of_a_tree(tmp_path, encoding, compression):
    with BinrefWriter(tmp_path) as writer:
        obj = encode_array(np.zeros(100), encoding, compression=compression, binref=writer)
        assert decode_array(obj, max_bytes=800, binref_root=tmp_path).shape == (100,)
        with pytest.raises(WireError, match="takes 800 bytes; 799 are left"):
            decode_array(obj, max_bytes=799, binref_root=tmp_path)
        assert len(decode_tree([obj, obj], max_bytes=1600, binref_root=tmp_path)) == 2
        with pytest.raises(WireError, match=r"array at \[1\]: .*takes 800 bytes; 799 are left"):
            decode_tree([obj, obj], max_bytes=1599, binref_root=tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"<html>502 Bad Gateway</html>", b"\xff\xfe", b"NaN", b'{"a":1e400}', b'"\\ud800"', b"[1,]", b"{} {}"],
)
def test_what_is_not_json_is_refused_and_shown(data):
    with pytest.raises(WireError, match=f"expected JSON, received {len(data)} bytes that start"):
        loads(data)


def test_messages_stay_short():
    with pytest.raises(WireError) as caught:
        decode_array(with_(shape=[10**4000], dtype="x" * 10**6))
    assert len(str(caught.value)) < 500
    with pytest.raises(WireError) as caught:
        loads(b"<" * 10**6)
    assert len(str(caught.value)) < 500


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            ["json", "base64", "binref", "lz4", "bool", "float16", "complex64", "AAAA", "a.bin:0:1", "../a", 2**63]
        ),
    ),
    lambda t: st.one_of(st.lists(t, max_size=3), st.dictionaries(st.text(max_size=6), t, max_size=3)),
    max_leaves=5,
)


def places(obj):
    """Every (container, key) of a wire form, from the outside in."""
    for key in list(obj) if isinstance(obj, dict) else range(len(obj)):
        yield obj, key
        if isinstance(obj[key], dict | list):
            yield from places(obj[key])


@settings(deadline=None, max_examples=400)
@given(data=st.data())
@pytest.mark.slow
def test_mutated_forms_give_an_array_as_declared_or_a_wire_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    dtype = data.draw(st.sampled_from(["bool", "int16", "float32", "complex128"]))
    encoding, compression = data.draw(
        st.sampled_from([("json", None), ("base64", None), ("base64", "lz4"), ("binref", None), ("binref", "lz4")])
    )
    with BinrefWriter(folder) as writer:
        obj = encode_array(np.ones((2, 3), dtype), encoding, compression=compression, binref=writer)
        for _ in range(data.draw(st.integers(1, 3))):
            container, key = data.draw(st.sampled_from(list(places(obj)) or [(obj, "x")]))
            action = data.draw(st.sampled_from(["replace", "delete", "damage"]))
            if action == "delete":
                container.pop(key, None) if isinstance(container, dict) else container.pop(key)
            elif action == "damage" and isinstance(container.get(key) if isinstance(container, dict) else 0, str):
                text = container[key]
                cut = data.draw(st.integers(0, len(text)))
                container[key] = (
                    text[:cut] + data.draw(st.text(max_size=3)) + text[cut + data.draw(st.integers(0, 3)) :]
                )
            else:
                container[key] = data.draw(JSON)
        before = copy.deepcopy(obj)
        for decode in (decode_array, lambda o, **kw: decode_tree({"x": [o]}, **kw)):
            try:
                result = decode(obj, binref_root=folder, max_bytes=10_000)
            except WireError:
                continue
            if isinstance(result, np.ndarray):
                assert result.shape == tuple(obj["shape"])
                assert result.dtype == obj["dtype"]
        assert repr(obj) == repr(before)


# --- a key that stands twice ------------------------------------------------------------------------------------------

ARRAY = b'{"object_type":"array","shape":[1],"dtype":"float64","data":{"buffer":[1.0],"encoding":"json"}}'


@pytest.mark.parametrize(
    "text",
    [
        b'{"y":1,"y":2}',
        b'{"y":1,"y":1}',
        b'{"a:b":[{"y":1,"y":2}]}',
        b'{"y":1,"\\u0079":2}',
        b'{"y":' + ARRAY + b',"y":' + ARRAY.replace(b"1.0", b"2.0") + b"}",
        ARRAY.replace(b'"buffer":[1.0]', b'"buffer":[2.0],"buffer":[1.0]'),
        ARRAY.replace(b'"shape":[1]', b'"shape":[2],"shape":[1]'),
        ARRAY.replace(b"[1.0]", b'"' + b"A" * 5000 + b'","buffer":[1.0]'),
    ],
)
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(WireError, match=r"stands twice in one object.*nothing tells which"):
        loads(text)


keys = st.sampled_from(["y", "buffer", "data", "a:b", ":", '"', "\\", "α", '":'])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(tree=plain)
def test_no_healthy_text_is_refused_for_its_colons(tree):
    assert loads(json.dumps(tree).encode()) == tree


@given(tree=st.dictionaries(keys, plain, min_size=1, max_size=4), data=st.data())
def test_wherever_it_stands_twice_it_is_seen(tree, data):
    twice = data.draw(st.sampled_from(sorted(tree)))
    inside = json.dumps(tree)[:-1] + f", {json.dumps(twice)}: null}}"
    outside = data.draw(st.sampled_from(["{}", '{{"other": {}}}', "[1, {}]", '[":", {{"a:b": [{}]}}]']))
    with pytest.raises(WireError, match="stands twice"):
        loads(outside.format(inside).encode())
