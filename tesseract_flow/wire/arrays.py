"""One array to its wire form and back: `{"object_type": "array", "shape", "dtype", "data": {"encoding", "buffer"}}`.

Trees of arrays are in `trees.py`, files in `binref.py`, the `json` lists in `_lists.py`. The one idea: shape and dtype
say how many bytes an array has, so everything that arrives is measured against that number before memory is set aside.

A decoded array is always C-contiguous, native-endian and writable, and nobody else holds its memory.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import pybase64

from tesseract_flow.errors import WireError, did_you_mean
from tesseract_flow.schema.meaning import what_is_lost
from tesseract_flow.wire import _lists, _lz4
from tesseract_flow.wire._common import (
    DEFAULT_MAX_BYTES,
    Compression,
    Encoding,
    Path,
    abridged,
    check_encoding,
    name_of,
)
from tesseract_flow.wire._splice import Splicer, uncut
from tesseract_flow.wire.binref import BufferWriter, read_binref

_NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

DTYPES: Mapping[str, np.dtype] = {name: np.dtype(name).newbyteorder("<") for name in _NAMES}
"""The dtypes of the protocol, by name, in the byte order that they travel in."""

# NumPy's own limits: more dimensions, or more bytes counted with empty dimensions taken as 1, is no array at all.
_MAX_NDIM = 64
_MAX_EXTENT = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Target:
    """The form that arrays shall take, and where their bytes go."""

    encoding: Encoding = "base64"
    compression: Compression | None = None
    binref: BufferWriter | None = None
    splicer: Splicer | None = None  # a message under construction that takes the buffers as text
    inline_below: int = 0  # bytes; arrays that are smaller do not go by way of a file

    def __post_init__(self) -> None:
        check_encoding(self.encoding, self.compression)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the bytes of arrays may come from besides the message, and how many there may be."""

    binref_root: str | os.PathLike[str] | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    texts: Mapping[str, memoryview] = dataclasses.field(default_factory=dict)  # see _splice.cut


@dataclasses.dataclass(frozen=True)
class _Header:
    """Shape and dtype as the other side declares them, found credible."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"shape {self.shape} of {self.dtype.name}"


def encode_array(
    array: Any,
    encoding: Encoding = "base64",
    *,
    compression: Compression | None = None,
    binref: BufferWriter | None = None,
) -> dict[str, Any]:
    """The wire form of an array, a NumPy scalar, or anything with `__array__`.

    `binref` takes the bytes when `encoding` is `"binref"`.

    Raises:
        WireError: a dtype that the protocol does not have, values that `json` cannot carry (NaN and inf in floats,
            uint64 on both sides of 2**63), an unknown encoding or compression.
    """
    return encode(array, Target(encoding, compression, binref), None)


def decode_array(
    obj: object,
    *,
    binref_root: str | os.PathLike[str] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> np.ndarray:
    """The array whose wire form is `obj`, which may come from someone who means harm.

    Raises:
        WireError: anything that is not exactly the wire form of one array of at most `max_bytes` bytes.
    """
    return decode(obj, Source(binref_root, max_bytes), None)


def encode(value: Any, target: Target, path: Path) -> dict[str, Any]:
    """`encode_array` for an array at `path` of a tree."""
    try:
        array = _wire_array(value)
        encoding = target.encoding
        if encoding == "binref" and array.nbytes < target.inline_below:
            encoding = "base64"
        data = {"buffer": _buffer(array, encoding, target), "encoding": encoding}
    except WireError as error:
        raise WireError(f"cannot encode the array at {name_of(path)}: {error}") from error
    if target.compression is not None:
        data["compression"] = target.compression
    return {"object_type": "array", "shape": list(array.shape), "dtype": array.dtype.name, "data": data}


def is_wire_form(obj: dict[str, Any]) -> bool:
    """Whether a dict of an answer stands for an array. That it is a good one is for `decode` to find out."""
    object_type = obj.get("object_type")
    return isinstance(object_type, str) and object_type == "array"


def decode(obj: object, source: Source, path: Path) -> np.ndarray:
    """`decode_array` for an array at `path` of a tree."""
    try:
        header, data = _opened(obj, source.max_bytes)
        encoding = data["encoding"]
        if encoding == "json":
            return _lists.from_lists(data["buffer"], header.shape, _native(header.dtype))
        compression = data.get("compression")
        if encoding == "base64":
            payload = _from_base64(data["buffer"], None if compression else header, source.texts)
        else:
            n_expected = None if compression else header.n_bytes
            payload = read_binref(data["buffer"], n_expected, source.binref_root, max_bytes=source.max_bytes)
        if compression:
            payload = _lz4.decompress(payload, header.n_bytes)
        return _assemble(payload, header)
    except WireError as error:
        raise WireError(f"cannot decode the array at {name_of(path)}: {error}") from error


def _wire_array(value: Any) -> np.ndarray:
    """`value` as a C-contiguous little-endian array of a dtype of the protocol; itself, if it is one already."""
    if (lost := what_is_lost(value)) is not None:
        raise WireError(f"{lost}.")
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever a foreign __array__ raises
        raise WireError(f"a {type(value).__name__} could not be turned into a NumPy array: {error}") from error
    dtype = DTYPES.get(array.dtype.name)
    if dtype is None:
        raise WireError(f"dtype {array.dtype.name!r} is not one of the protocol's: {', '.join(DTYPES)}.")
    return np.asarray(array, dtype=dtype, order="C")


def _buffer(array: np.ndarray, encoding: Encoding, target: Target) -> object:
    """What stands under `buffer` for a wire array."""
    if encoding == "json":
        if target.splicer is None:
            return _lists.to_lists(array)
        return target.splicer.raw(_lists.to_json(array))
    payload = array.data if target.compression is None else _lz4.compress(array.data)
    if encoding == "base64":
        if target.splicer is None:
            return pybase64.b64encode_as_string(payload)
        return target.splicer.base64(payload)
    if target.binref is None:
        raise WireError("encoding 'binref' needs binref=BinrefWriter(directory) to write to.")
    return target.binref.write(payload, compressed=target.compression is not None)


def _opened(obj: object, max_bytes: int) -> tuple[_Header, dict[str, Any]]:
    """The parts of a wire form, everything but the buffer checked."""
    # tesseract-core's SDK leaves object_type out when it encodes.
    outer = _fields(obj, "an array", {"shape", "dtype", "data"}, {"object_type"})
    if "object_type" in outer and not is_wire_form(outer):
        raise WireError(f"expected object_type 'array', received {abridged(outer['object_type'])}.")
    header = _Header(_shape(outer["shape"]), _dtype(outer["dtype"]))
    if math.prod(max(n, 1) for n in header.shape) * header.dtype.itemsize > _MAX_EXTENT:
        raise WireError(f"{header} is larger than any array can be.")
    if header.n_bytes > max_bytes:
        raise WireError(f"{header} takes {header.n_bytes} bytes; {max_bytes} are left of those accepted (max_bytes).")
    data = _fields(outer["data"], "array data", {"buffer", "encoding"}, {"compression"})
    check_encoding(data["encoding"], data.get("compression"))
    return header, data


def _fields(obj: object, what: str, required: Set[str], optional: Set[str]) -> dict[str, Any]:
    """`obj` as a dict with these keys. Others are refused: a meaning that we do not know could change the values."""
    if not isinstance(obj, dict):
        raise WireError(f"expected {what} as a dict with {_listed(required)}; received {abridged(obj)}.")
    missing = required - obj.keys()
    if missing:
        raise WireError(f"{what} lacks {_listed(missing)}.")
    unknown = [key for key in obj if key not in required and key not in optional]
    if unknown:
        known = _listed(required | optional)
        raise WireError(f"{what} has the unknown key {abridged(unknown[0])}; it may have {known}.")
    return obj


def _listed(names: Set[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or any(type(n) is not int or not 0 <= n <= _MAX_EXTENT for n in shape):
        raise WireError(f"expected a shape, a list of integers from 0 to 2**63 - 1; received {abridged(shape)}.")
    if len(shape) > _MAX_NDIM:
        raise WireError(f"expected at most {_MAX_NDIM} dimensions; received {len(shape)}.")
    return tuple(shape)


def _dtype(name: object) -> np.dtype:
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        hint = did_you_mean(name, DTYPES) if isinstance(name, str) and len(name) < 60 else ""
        raise WireError(f"unknown dtype {abridged(name)}; the protocol has {', '.join(DTYPES)}.{hint}")
    return dtype


def _native(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("=")


def _from_base64(buffer: object, header: _Header | None, texts: Mapping[str, memoryview]) -> bytearray:
    """The bytes of a base64 text, which is as long as `header` says if there is one."""
    if not isinstance(buffer, str):
        raise WireError(f"expected base64 text, received {abridged(buffer)}.")
    text = texts.get(buffer, buffer)
    try:
        return _decoded_text(text, header)
    except WireError:
        if not isinstance(text, memoryview) or b"\\" not in bytes(text):
            raise
    # Some JSON writers escape the slash, which is legal, and base64 is full of slashes.
    try:
        unescaped = uncut(text)
    except ValueError as error:
        raise WireError(f"expected base64 text: {error}") from error
    return _decoded_text(unescaped, header)


def _decoded_text(text: str | memoryview, header: _Header | None) -> bytearray:
    if header is not None and len(text) != -(-header.n_bytes // 3) * 4:
        raise WireError(
            f"{header} makes {header.n_bytes} bytes, in base64 {-(-header.n_bytes // 3) * 4} characters; "
            f"received {len(text)}."
        )
    try:
        # A bytearray, because an array made from bytes would be read-only; it takes the same time.
        return pybase64.b64decode_as_bytearray(text, validate=True)
    except ValueError as error:
        raise WireError(f"expected base64 text: {error}") from error


def _assemble(payload: bytearray | np.ndarray, header: _Header) -> np.ndarray:
    if len(payload) != header.n_bytes:
        raise WireError(f"{header} makes {header.n_bytes} bytes; received {len(payload)}.")
    if header.dtype.kind == "b" and header.n_bytes and np.frombuffer(payload, dtype=np.uint8).max() > 1:
        # NumPy would take other bytes for True in one operation and for a number in the next.
        raise WireError("a bool buffer holds bytes other than 0 and 1.")
    flat = np.frombuffer(payload, dtype=header.dtype) if header.n_bytes else np.empty(0, dtype=header.dtype)
    return flat.astype(_native(header.dtype), copy=False).reshape(header.shape)
