"""Trees to JSON and back: what goes in comes out, and what cannot travel is refused with the path to it."""

import collections
import enum
import json
import math

import jax.numpy as jnp
import numpy as np
import orjson
import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesseract_flow.errors import WireError
from tesseract_flow.wire import DTYPES, BinrefWriter, accept_header, decode_tree, dumps, encode_tree, loads

FORMS = [("json", None), ("base64", None), ("base64", "lz4"), ("binref", None), ("binref", "lz4")]


class Color(enum.Enum):
    RED = "red"
    BOTH = ("red", 2)


class Level(enum.IntEnum):
    HIGH = 3


Point = collections.namedtuple("Point", ["x", "y"])


@st.composite
def finite_arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(sorted(DTYPES))))
    options = {"allow_nan": False, "allow_infinity": False} if dtype.kind in "fc" else {}
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    return draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **options)))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.sampled_from([Color.RED, Color.BOTH, Level.HIGH, "buffer", '"buffer":"', "\0", '"\0"', "array"]),
    finite_arrays().filter(lambda array: not crosses_the_sign_bit(array)),
)
TREES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.tuples(children, children),
        st.dictionaries(st.one_of(TEXT, st.just("buffer")), children, max_size=3),
    ),
    max_leaves=12,
)


def crosses_the_sign_bit(leaf):
    """uint64 arrays that `json` refuses, see test_arrays."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.name != "uint64":
        return False
    return leaf.size > 0 and leaf.min() < 2**63 <= leaf.max()


def arrived(tree):
    """What a tree looks like after a journey: tuples are lists and enum members values."""
    if isinstance(tree, enum.Enum):
        return arrived(tree.value)
    if isinstance(tree, dict):
        return {key: arrived(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [arrived(value) for value in tree]
    return tree


def equal(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


@pytest.mark.parametrize(("encoding", "compression"), FORMS)
@settings(deadline=None, max_examples=60)
@given(tree=TREES)
def test_trees_return(tmp_path_factory, encoding, compression, tree):
    folder = tmp_path_factory.getbasetemp()
    with BinrefWriter(folder) as writer:
        text = dumps(tree, encoding, compression=compression, binref=writer)
        assert equal(arrived(tree), loads(text, binref_root=folder))
        encoded = encode_tree(tree, encoding, compression=compression, binref=writer)
        assert equal(arrived(tree), decode_tree(encoded, binref_root=folder))
        assert equal(arrived(tree), decode_tree(json.loads(json.dumps(encoded)), binref_root=folder))
        if encoding != "binref":
            assert text == orjson.dumps(encoded)


def test_dumps_holds_buffers_of_any_length_in_the_right_places():
    tree = {f"x{n}": [np.arange(float(n)), "\0", n] for n in (0, 1, 1000, 1023, 1024, 100_000)}
    for encoding in ("base64", "json"):
        text = dumps(tree, encoding)
        assert text == orjson.dumps(encode_tree(tree, encoding))
        assert equal(arrived(tree), loads(text))
        assert equal(arrived(tree), loads(json.dumps(json.loads(text), indent=1).encode()))
        assert equal(arrived(tree), loads(memoryview(bytearray(text))))


def test_all_kinds_of_leaves_and_containers():
    tree = {
        "jax": jnp.arange(3.0),
        "scalar": np.float32(2.5),
        "numpy text": np.str_("hi"),
        "named": Point(1, Level.HIGH),
        "ordered": collections.OrderedDict(b=Color.BOTH, a=None),
        "nan inside": np.array([np.nan, np.inf]),
    }
    tree = loads(dumps(tree))
    assert list(tree) == ["jax", "scalar", "numpy text", "named", "ordered", "nan inside"]
    np.testing.assert_array_equal(tree["jax"], np.arange(3.0))
    assert tree["scalar"].shape == ()
    assert tree["scalar"].dtype == np.float32
    assert tree["numpy text"] == "hi"
    assert tree["named"] == [1, 3]
    assert tree["ordered"] == {"b": ["red", 2], "a": None}
    np.testing.assert_array_equal(tree["nan inside"], [np.nan, np.inf])


def nested(n_levels, leaf):
    for _ in range(n_levels):
        leaf = [leaf]
    return leaf


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [2**64]}, r"integer at a\.\[0\] has 65 bits"),
        ({"a": -(2**63) - 1}, "integer at a has 64 bits"),
        ({"a": {1: 2}}, "dict at a has the key 1; keys must be strings"),
        ({"a": {"b": "\ud800"}}, r"string at a\.b is not valid Unicode"),
        ({"a": {"\ud800": 1}}, "string at a is not valid Unicode"),
        ({"mesh": {"points": [{1, 2}]}}, r"leaf at mesh\.points\.\[0\] is a builtins\.set"),
        ({"a": b"bytes"}, "leaf at a is a builtins.bytes"),
        ({"a": 1j}, "leaf at a is a builtins.complex"),
        ({"a": np.float64}, "leaf at a is a builtins.type"),
        ({"a": np.array(["x"])}, "cannot encode the array at a: dtype"),
        ({"a": [np.datetime64("2020-01-01")]}, r"cannot encode the array at a\.\[0\]: dtype 'datetime64"),
        (nested(201, 0), "deeper than 200 levels"),
    ],
    ids=str,
)
def test_what_cannot_travel_is_refused_with_its_path(tree, message):
    for encode in (encode_tree, dumps):
        with pytest.raises(WireError, match=message):
            encode(tree)


def test_json_refuses_nan_in_arrays_with_the_path():
    for encode in (encode_tree, dumps):
        with pytest.raises(WireError, match=r"array at a\.\[1\]: encoding 'json' cannot carry nan"):
            encode({"a": [0, np.array([np.nan])]}, "json")


def test_two_hundred_levels_travel_and_no_more():
    deepest = nested(200, np.zeros((1,) * 60))
    assert equal(deepest, loads(dumps(deepest)))
    assert equal(deepest, loads(dumps(deepest, "json")))
    for text in (b"[" * 201 + b"]" * 201, b"[" * 5000 + b"]" * 5000, b'{"a":' * 201 + b"1" + b"}" * 201):
        with pytest.raises(WireError, match=r"deeper than 200|depth limit"):
            loads(text)
    with pytest.raises(WireError, match="deeper than 200"):
        decode_tree(nested(201, 0))


def test_a_tree_that_contains_itself_is_refused():
    tree = {}
    tree["again"] = [tree]
    with pytest.raises(WireError, match="contains itself"):
        dumps(tree)
    with pytest.raises(WireError, match="contains itself"):
        decode_tree(tree)


@pytest.mark.parametrize("encoding", ["bse64", "JSON", None, 3])
def test_unknown_encodings_are_refused_even_without_arrays(encoding):
    for encode in (encode_tree, dumps, lambda _, e: accept_header(e)):
        with pytest.raises(WireError, match="unknown array encoding"):
            encode({}, encoding)


def test_accept_header():
    assert accept_header("json") == "application/json"
    assert accept_header("base64") == "application/json+base64"
    assert accept_header("binref") == "application/json+binref"
    assert accept_header("base64", "lz4") == "application/json+base64; compression=lz4"
    with pytest.raises(WireError, match="goes with base64 and binref"):
        accept_header("json", "lz4")


def test_foreign_objects_are_no_json():
    with pytest.raises(WireError, match=r"expected JSON at a\.\[0\], received a ndarray"):
        decode_tree({"a": [np.zeros(2)]})
    with pytest.raises(WireError, match="received a ndarray"):
        decode_tree({"object_type": np.array(["array"])})


def test_a_large_array_reads_and_writes_like_the_bare_libraries():
    """Spliced around the JSON library for speed, which the text must not show; its cost is for `make bench`."""
    x = np.random.default_rng(0).normal(size=10**6)

    def bare_dumps():
        data = {"buffer": pybase64.b64encode_as_string(x.data), "encoding": "base64"}
        return orjson.dumps({"x": {"object_type": "array", "shape": [x.size], "dtype": "float64", "data": data}})

    def bare_loads():
        return np.frombuffer(pybase64.b64decode(orjson.loads(text)["x"]["data"]["buffer"], validate=True))

    text = dumps({"x": x})
    assert text == bare_dumps()
    np.testing.assert_array_equal(loads(text)["x"], bare_loads())


def test_plain_numbers_that_json_has_no_word_for():
    tree = {"a": [math.inf, -math.inf], "b": np.float64(1.0), "c": math.nan}
    text = dumps(tree)
    assert b"[Infinity,-Infinity]" in text and b'"c":NaN' in text
    read = json.loads(text)  # as servers of tesseract-core do
    assert read["a"] == [math.inf, -math.inf] and math.isnan(read["c"])
    with pytest.raises(WireError, match=r"float at a\.\[0\] is inf"):  # whatever writes this may write null
        encode_tree(tree)
