"""One array: every dtype, shape and memory layout returns as it was, whatever the encoding."""

import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesseract_flow.errors import WireError
from tesseract_flow.wire import DTYPES, BinrefWriter, decode_array, encode_array

FORMS = [("json", None), ("base64", None), ("base64", "lz4"), ("binref", None), ("binref", "lz4")]
FORM_IDS = ["json", "base64", "base64+lz4", "binref", "binref+lz4"]

LAYOUTS = {
    "plain": lambda a: a,
    "transposed": lambda a: a.T,
    "Fortran order": np.asfortranarray,
    "reversed": lambda a: a[(..., *(slice(None, None, -1) for _ in a.shape))],
    "every other": lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "stride 0": lambda a: np.broadcast_to(a, (3, *a.shape)),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape) if a.size else a,
}


def round_trip(array, encoding, compression=None):
    """Through the wire form; also returns that form."""
    with tempfile.TemporaryDirectory() as folder, BinrefWriter(folder) as writer:
        obj = encode_array(array, encoding, compression=compression, binref=writer)
        return decode_array(obj, binref_root=folder), obj


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@st.composite
def arrays(draw, finite=False):
    dtype = np.dtype(draw(st.sampled_from(sorted(DTYPES))))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    finite_options = {"allow_nan": False, "allow_infinity": False} if finite and dtype.kind in "fc" else {}
    array = draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite_options)))
    array = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](array)
    if draw(st.booleans()):
        array = np.array(array, copy=True, order="K") if array.flags.writeable else array
        array.flags.writeable = False
    return array


@pytest.mark.parametrize(("encoding", "compression"), FORMS[1:], ids=FORM_IDS[1:])
@settings(deadline=None, max_examples=60)
@given(array=arrays())
def test_binary_encodings_return_every_bit(encoding, compression, array):
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("=")).reshape(array.shape)
    decoded, obj = round_trip(array, encoding, compression)
    assert same_bits(decoded, native)
    assert obj["shape"] == list(array.shape)
    assert obj["dtype"] == array.dtype.name
    assert set(obj["data"]) == {"buffer", "encoding"} | ({"compression"} if compression else set())


@settings(deadline=None, max_examples=150)
@given(array=arrays(finite=True))
def test_json_returns_every_bit_of_finite_values(array):
    if array.dtype.name == "uint64":
        array = array % np.uint64(2**63)
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("=")).reshape(array.shape)
    assert same_bits(round_trip(array, "json")[0], native)


@pytest.mark.parametrize(("encoding", "compression"), FORMS, ids=FORM_IDS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 5), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_decoded_arrays_are_native_contiguous_and_writable(name, shape, encoding, compression):
    array = np.ones(shape, dtype=name)
    decoded, _ = round_trip(array, encoding, compression)
    assert same_bits(decoded, array)
    assert decoded.dtype.isnative
    assert decoded.flags.c_contiguous
    assert decoded.flags.aligned
    decoded[...] = 0  # raises if read-only
    assert not decoded.any()


@pytest.mark.parametrize(("encoding", "compression"), FORMS, ids=FORM_IDS)
@pytest.mark.parametrize("name", ["int64", "uint64", "float16", "float32", "float64", "complex64", "complex128"])
def test_extreme_values_survive(name, encoding, compression):
    info = np.iinfo(name) if np.dtype(name).kind in "iu" else np.finfo(name)
    extremes = [info.min, info.max, 0] if (name, encoding) != ("uint64", "json") else [info.max, 2**63]
    if np.dtype(name).kind in "fc":
        extremes += [-0.0, info.smallest_subnormal, info.eps, 1 / 3]
    array = np.array(extremes, dtype=name)
    if array.dtype.kind == "c":
        array = np.concatenate([array, array * np.array(1j, dtype=name)])
    assert same_bits(round_trip(array, encoding, compression)[0], array)


def test_numpy_scalars_and_jax_arrays_are_arrays():
    assert same_bits(round_trip(np.float32(1.5), "base64")[0], np.array(1.5, dtype=np.float32))
    assert same_bits(round_trip(np.bool_(True), "json")[0], np.array(True))
    x = jnp.arange(6.0).reshape(2, 3)
    assert same_bits(round_trip(x, "base64")[0], np.asarray(x))


def test_a_wire_array_is_not_copied_on_the_way_to_base64(monkeypatch):
    import pybase64

    seen = []
    monkeypatch.setattr(pybase64, "b64encode_as_string", lambda data: seen.append(data) or "")
    array = np.arange(10.0)
    encode_array(array)
    assert np.shares_memory(np.frombuffer(seen[0]), array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_json_refuses_non_finite_floats_and_says_where(name, value):
    array = np.ones((2, 3), dtype=name)
    array[1, 2] = value
    with pytest.raises(WireError, match=rf"cannot carry {value} \(at index \(1, 2\)\).*base64"):
        encode_array(array, "json")
    with pytest.raises(WireError, match=r"at index \(\)"):
        encode_array(array[1, 2], "json")


def test_json_refuses_uint64_values_that_a_server_would_round():
    with pytest.raises(WireError, match=r"both sides of 2\*\*63 \(here 5 and 9223372036854775809\)"):
        encode_array(np.array([[5], [2**63 + 1]], dtype=np.uint64), "json")
    # Reading them is exact.
    decoded = decode_array(json_form([5, 2**63 + 1], "uint64"))
    assert decoded.tolist() == [5, 2**63 + 1]


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_json_carries_non_finite_complex_numbers(name):
    array = np.array([complex(np.nan, np.inf), complex(-np.inf, -0.0), complex(-0.0, -1)], dtype=name)
    decoded, obj = round_trip(array, "json")
    assert obj["data"]["buffer"] == ["nan+infj", "-inf-0j", "-0-1j"]
    np.testing.assert_array_equal(decoded, array)
    np.testing.assert_array_equal(np.signbit(decoded.real), np.signbit(array.real))
    np.testing.assert_array_equal(np.signbit(decoded.imag), np.signbit(array.imag))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, dtype="M8[s]"),
        np.array(["a"]),
        np.array([object()]),
        np.zeros(2, dtype=[("a", "f8")]),
        jnp.ones(2, dtype=jnp.bfloat16),
        *([np.zeros(2, dtype=np.longdouble)] if np.dtype(np.longdouble).itemsize > 8 else []),
    ],
    ids=lambda a: str(a.dtype),
)
def test_dtypes_outside_the_protocol_are_refused_by_name(value):
    with pytest.raises(WireError, match=r"dtype '.*' is not one of the protocol's: bool, .*complex128"):
        encode_array(value)


def test_masked_arrays_are_refused():
    with pytest.raises(WireError, match="mask"):
        encode_array(np.ma.masked_equal([1.0, 2.0], 2.0))


def test_what_refuses_to_become_an_array_is_a_wire_error():
    with pytest.raises(WireError, match="PRNGKey") as caught:
        encode_array(jax.random.key(0))
    assert isinstance(caught.value.__cause__, WireError)


@pytest.mark.parametrize(
    ("encoding", "compression", "message"),
    [
        ("base46", None, "Did you mean 'base64'"),
        (None, None, "unknown array encoding None"),
        (["json"], None, "unknown array encoding"),
        ("json", "lz4", "goes with base64 and binref"),
        ("base64", "zip", "unknown compression 'zip'"),
        ("binref", None, "BinrefWriter"),
    ],
)
def test_unknown_forms_are_refused(encoding, compression, message):
    with pytest.raises(WireError, match=message):
        encode_array(np.zeros(2), encoding, compression=compression)


@pytest.mark.parametrize("missing", ["lz4", "lz4.frame"])
def test_lz4_is_optional_and_its_absence_names_the_extra(monkeypatch, missing):
    encoded = encode_array(np.zeros(9), compression="lz4")
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "lz4":
        monkeypatch.delitem(sys.modules, "lz4.frame", raising=False)
    with pytest.raises(WireError, match=r"pip install 'tesseract-flow\[lz4\]'"):
        encode_array(np.zeros(9), compression="lz4")
    with pytest.raises(WireError, match=r"pip install 'tesseract-flow\[lz4\]'"):
        decode_array(encoded)
    assert decode_array(encode_array(np.zeros(9))).shape == (9,)


def json_form(buffer, name="float64", shape=(2,)):
    return {"shape": list(shape), "dtype": name, "data": {"buffer": buffer, "encoding": "json"}}


@pytest.mark.parametrize(
    ("buffer", "name", "shape", "expected"),
    [
        ([1, 2], "float64", (2,), [1.0, 2.0]),
        ([1, 2.5], "float32", (2,), [1.0, 2.5]),
        ([1.0, 2.0], "int8", (2,), [1, 2]),
        ([1, 2, 3, 4], "float64", (2, 2), [[1, 2], [3, 4]]),
        ([[1], [2]], "float64", (2, 1), [[1], [2]]),
        ([], "float64", (3, 0), [[], [], []]),
        ([7], "int64", (), 7),
        ([1, 2.5, "1e3-2j"], "complex128", (3,), [1, 2.5, 1000 - 2j]),
        (["NaN+infj", "-0j"], "complex64", (2,), [complex(np.nan, np.inf), 0]),
    ],
)
def test_json_buffers_may_be_flat_and_mix_numbers(buffer, name, shape, expected):
    decoded = decode_array(json_form(buffer, name, shape))
    np.testing.assert_array_equal(decoded, np.array(expected, dtype=name).reshape(shape))
    assert decoded.dtype == name


@pytest.mark.parametrize(
    ("buffer", "name", "shape", "message"),
    [
        ([1.0, None], "float64", (2,), "holds numbers; received None .*lost NaN or inf.*base64"),
        ([1.0, "2"], "float64", (2,), "holds numbers; received '2'"),
        ([1.0, True], "float64", (2,), "holds numbers; received True"),
        ([1, 0], "bool", (2,), "holds true or false; received 1"),
        ([1.5, 2], "int64", (2,), "1.5, which is not an integer"),
        ([300, 2], "uint8", (2,), "beyond the range of uint8"),
        ([-1, 2], "uint64", (2,), "beyond the range of uint64"),
        ([1e300, 2], "int64", (2,), "beyond the range of int64"),
        ([10**400, 2], "float64", (2,), "beyond the range of float64"),
        ([70000.0, 2], "float16", (2,), "beyond the range of float16"),
        ([1e39, 2], "float32", (2,), "beyond the range of float32"),
        (["1e39+0j", 2], "complex64", (2,), "beyond the range of complex64"),
        (["one", 2], "complex64", (2,), "such as '1.2j', received 'one'"),
        (["1" * 2000, 2], "complex64", (2,), "such as '1.2j', received '111.{1,80}$"),
        ([1, 2, 3], "float64", (2,), "wants 2 elements along axis 0; received 3"),
        ([[1, 2], [3]], "float64", (2, 2), "wants 2 elements along axis 1; received 1"),
        ([[1, 2], 3], "float64", (2, 2), "wants lists along axis 1; received 3"),
        ([[[1]], [[2]]], "float64", (2, 1), "holds numbers; received"),
        ("ab", "float64", (2,), "wants lists along axis 0; received 'ab'"),
        ({"a": 1}, "float64", (), "holds numbers; received a dict"),
    ],
)
def test_json_buffers_that_do_not_fit_are_refused(buffer, name, shape, message):
    with pytest.raises(WireError, match=message):
        decode_array(json_form(buffer, name, shape))


def test_one_long_string_in_a_list_costs_no_memory():
    """NumPy would make each of the elements as long as the longest: 400 GB here."""
    with pytest.raises(WireError, match=r"holds numbers; received 'x{60}\.\.\.'"):
        decode_array(json_form(["x" * 1_000_000] + ["y"] * 99_999, shape=(100_000,)))
