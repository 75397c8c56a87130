"""tesseract-core's own codec reads what we write, and we read what it writes: runtime and SDK, both directions.

The runtime is driven the way a served Tesseract drives it: a pydantic model with an `Array` field, serialised by
`output_to_bytes`, validated with the folder of the files as context.
"""

import json

import numpy as np
import orjson
import pytest
from pydantic import create_model
from tesseract_core.runtime import Array, schema_types
from tesseract_core.runtime.array_encoding import ALLOWED_DTYPE_NAMES
from tesseract_core.runtime.file_interactions import output_to_bytes
from tesseract_core.runtime.serve import negotiate_encoding
from tesseract_core.sdk import binref as sdk_binref
from tesseract_core.sdk import tesseract as sdk

from tesseract_flow.wire import (
    COMPRESSIONS,
    DTYPES,
    ENCODINGS,
    BinrefWriter,
    accept_header,
    decode_array,
    dumps,
    encode_array,
    loads,
)

FORMS = [("json", None), ("base64", None), ("base64", "lz4"), ("binref", None), ("binref", "lz4")]
FORM_IDS = ["json", "base64", "base64+lz4", "binref", "binref+lz4"]
FORMATS = {"json": "json", "base64": "json+base64", "binref": "json+binref"}

ANNOTATIONS = {name.lower(): getattr(schema_types, name) for name in dir(schema_types) if name.lower() in DTYPES}
MODELS = {name: create_model(f"Model_{name}", x=(Array[..., dtype], ...)) for name, dtype in ANNOTATIONS.items()}

over_forms = pytest.mark.parametrize(("encoding", "compression"), FORMS, ids=FORM_IDS)
over_shapes = pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)], ids=str)
over_dtypes = pytest.mark.parametrize("name", DTYPES)


def example(name, shape):
    """Values that a wrong byte order, sign, part or axis would change."""
    rng = np.random.default_rng(7)
    kind = np.dtype(name).kind
    if kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if kind in "iu":
        info = np.iinfo(name)
        low = info.min if name != "uint64" else 2**63  # a list on both sides of 2**63 is rounded, see _lists.py
        return np.asarray(rng.integers(low, info.max, shape, dtype=name, endpoint=True))
    real = rng.normal(size=shape)
    return np.asarray(real + 1j * rng.normal(size=shape) if kind == "c" else real).astype(name)


def assert_same(received, array):
    assert received.dtype == array.dtype
    assert received.shape == array.shape
    assert received.tobytes() == array.tobytes()


def test_we_know_the_same_dtypes():
    assert set(DTYPES) == set(ALLOWED_DTYPE_NAMES) == set(MODELS)


@over_forms
@over_shapes
@over_dtypes
def test_the_runtime_reads_what_we_write(tmp_path, name, shape, encoding, compression):
    array = example(name, shape)
    with BinrefWriter(tmp_path) as writer:
        text = dumps({"x": array}, encoding, compression=compression, binref=writer)
        received = MODELS[name].model_validate(json.loads(text), context={"base_dir": str(tmp_path)}).x
    assert_same(received, array)


@over_forms
@over_shapes
@over_dtypes
def test_we_read_what_the_runtime_writes(tmp_path, name, shape, encoding, compression):
    array = example(name, shape)
    # A folder within the folder, as a server gives each run its own.
    text = output_to_bytes(
        MODELS[name](x=array), FORMATS[encoding], base_dir=str(tmp_path), binref_dir="run_1", compression=compression
    )
    assert_same(loads(text, binref_root=tmp_path)["x"], array)


@over_forms
@over_shapes
@over_dtypes
def test_the_sdk_reads_what_we_write(tmp_path, name, shape, encoding, compression):
    array = example(name, shape)
    with BinrefWriter(tmp_path) as writer:
        obj = encode_array(array, encoding, compression=compression, binref=writer)
        received = sdk._decode_array(orjson.loads(orjson.dumps(obj)), output_path=tmp_path)
    assert_same(received, array)


@over_shapes
@over_dtypes
def test_we_read_what_the_sdk_writes(tmp_path, name, shape):
    array = example(name, shape)
    written = []
    for obj in (sdk._encode_array(array, "base64"), sdk_binref.encode_array_binref(array, tmp_path, written)):
        obj = orjson.loads(orjson.dumps(obj))
        assert_same(decode_array(obj, binref_root=tmp_path), array)


@pytest.mark.parametrize("encoding", ["json", "base64"])
@pytest.mark.parametrize("name", sorted(set(DTYPES) - {"complex64", "complex128"}))
def test_our_text_is_the_runtime_s_text(name, encoding):
    """Complex numbers in json differ: the runtime writes them without exponents."""
    array = example(name, (2, 3))
    assert dumps({"x": array}, encoding) == output_to_bytes(MODELS[name](x=array), FORMATS[encoding])


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_non_finite_complex_json_goes_both_ways(name):
    array = np.array([complex(np.nan, np.inf), complex(1e-30, -np.inf), 1e30 - 0.1j], dtype=name)
    received = MODELS[name].model_validate(json.loads(dumps({"x": array}, "json"))).x
    np.testing.assert_array_equal(received, array)
    np.testing.assert_array_equal(loads(output_to_bytes(MODELS[name](x=array), "json"))["x"], array)


@over_forms
def test_the_server_understands_the_accept_header(encoding, compression):
    negotiated = negotiate_encoding(accept_header(encoding, compression))
    assert negotiated.output_format == FORMATS[encoding]
    assert negotiated.compression == compression
    assert {encoding} <= set(ENCODINGS)
    assert {compression} <= {None, *COMPRESSIONS}
