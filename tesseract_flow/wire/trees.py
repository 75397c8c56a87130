"""Trees of arrays to JSON and back. A tree is nested dicts, lists and tuples; what stands at its ends are leaves.

Leaves are arrays (also jax arrays, NumPy scalars, anything with `__array__`), str, int, float, bool, None, and enum
members, which travel as their values. Single arrays are in `arrays.py`. The one idea: one walk turns each array into
its wire form, and long buffers go around the JSON library instead of through it (`_splice.py`).
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from typing import Any

import numpy as np
import orjson

from tesseract_flow.errors import WireError
from tesseract_flow.wire import _splice
from tesseract_flow.wire._common import (
    DEFAULT_MAX_BYTES,
    MAX_DEPTH,
    Compression,
    Encoding,
    Path,
    abridged,
    check_encoding,
    name_of,
)
from tesseract_flow.wire._keys import check_once
from tesseract_flow.wire._splice import Message
from tesseract_flow.wire.arrays import Source, Target, decode, encode, is_wire_form
from tesseract_flow.wire.binref import BufferWriter

# What JSON has no words for, in those that JavaScript, Python's `json` and pydantic have. Servers of tesseract-core
# read them, and answer with null: see `schema.answers`.
_NOT_FINITE = {
    "inf": orjson.Fragment(b"Infinity"),
    "-inf": orjson.Fragment(b"-Infinity"),
    "nan": orjson.Fragment(b"NaN"),
}


def encode_tree(
    tree: Any,
    encoding: Encoding = "base64",
    *,
    compression: Compression | None = None,
    binref: BufferWriter | None = None,
) -> Any:
    """`tree` with every array in its wire form, tuples as lists and enum members as their values: ready for JSON.

    Raises:
        WireError: a leaf that cannot travel, named by its path: an unknown type, a NaN or inf as a bare float (in an
            array, and in a `message`, they travel), an integer beyond 64 bits, a key that is no string; or more than
            200 levels.
    """
    return _encoded(tree, Target(encoding, compression, binref), None, MAX_DEPTH)


def decode_tree(
    obj: Any, *, binref_root: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> Any:
    """`obj` with every wire form (a dict whose `object_type` is `"array"`) as an array, dicts and lists rebuilt.

    `max_bytes` bounds all arrays of the tree together.

    Raises:
        WireError: a malformed array, more than `max_bytes`, more than 200 levels, something that is not JSON.
    """
    return _Decoder(Source(binref_root, max_bytes), max_bytes).tree(obj, None, MAX_DEPTH)


def message(
    tree: Any,
    encoding: Encoding = "base64",
    *,
    compression: Compression | None = None,
    binref: BufferWriter | None = None,
    inline_below: int = 0,
) -> Message:
    """`tree` as JSON in pieces, the same text as dumping `encode_tree(tree, ...)`. Base64 is made piece by piece.

    With `binref`, arrays of less than `inline_below` bytes are in the text nevertheless, as base64.

    Raises:
        WireError: as `encode_tree`, but for NaN and inf.
    """
    splicer = _splice.Splicer()
    target = Target(encoding, compression, binref, splicer, inline_below)
    return splicer.message(_encoded(tree, target, None, MAX_DEPTH))


def dumps(
    tree: Any,
    encoding: Encoding = "base64",
    *,
    compression: Compression | None = None,
    binref: BufferWriter | None = None,
    inline_below: int = 0,
) -> bytes:
    """The text of a `message`, in one piece."""
    return bytes(message(tree, encoding, compression=compression, binref=binref, inline_below=inline_below))


def loads(
    data: bytes | bytearray, *, binref_root: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> Any:
    """The tree in a JSON text, its arrays decoded.

    Raises:
        WireError: not JSON, a key that stands twice in one object; else as `decode_tree`.
    """
    data = bytes(data)  # no copy if it is bytes; bytearray and memoryview are welcome
    skeleton, texts = _splice.cut(data)
    try:
        obj = orjson.loads(skeleton)
    except orjson.JSONDecodeError as error:
        # Positions in the skeleton would mislead; what it starts with tells an HTML page from a cut-off answer.
        start = bytes(data[:60]).decode("utf-8", "replace")
        raise WireError(f"expected JSON, received {len(data)} bytes that start {start!r}: {error.msg}.") from error
    decoder = _Decoder(Source(binref_root, max_bytes, texts), max_bytes)
    tree = decoder.tree(obj, None, MAX_DEPTH)
    check_once(skeleton, decoder.n_keys)
    return tree


def accept_header(encoding: Encoding, compression: Compression | None = None) -> str:
    """The `Accept` header that asks a Tesseract to answer in `encoding`.

    Servers before tesseract-core 1.13 do not read the compression parameter and refuse the whole header.

    >>> accept_header("base64", "lz4")
    'application/json+base64; compression=lz4'
    """
    check_encoding(encoding, compression)
    media_type = "application/json" if encoding == "json" else f"application/json+{encoding}"
    return media_type if compression is None else f"{media_type}; compression={compression}"


def _encoded(node: Any, target: Target, path: Path, n_levels: int) -> Any:
    """`node` made of what orjson writes. Types before duck typing: a NumPy float is also a Python float."""
    if isinstance(node, dict):
        _check_depth(path, n_levels)
        return {_key(key, path): _encoded(v, target, (path, key), n_levels - 1) for key, v in node.items()}
    if isinstance(node, list | tuple):
        _check_depth(path, n_levels)
        return [_encoded(v, target, (path, i), n_levels - 1) for i, v in enumerate(node)]
    if isinstance(node, enum.Enum):
        _check_depth(path, n_levels)
        return _encoded(node.value, target, path, n_levels - 1)
    if node is None or isinstance(node, bool):
        return node
    if isinstance(node, str):
        return _text(node, path)
    if isinstance(node, np.generic | np.ndarray):
        return encode(node, target, path)
    if isinstance(node, int):
        if not -(2**63) <= node < 2**64:
            raise WireError(f"the integer at {name_of(path)} has {node.bit_length()} bits; JSON carries 64 here.")
        return node
    if isinstance(node, float):
        if math.isfinite(node):
            return float(node)
        if target.splicer is not None:
            return _NOT_FINITE[repr(float(node))]
        raise WireError(
            f"the float at {name_of(path)} is {node}, which JSON has no word for. A message (`message`, `dumps`) says "
            "it as Python's and pydantic's readers of JSON understand it."
        )
    if hasattr(type(node), "__array__"):
        return encode(node, target, path)
    raise WireError(
        f"the leaf at {name_of(path)} is a {type(node).__module__}.{type(node).__qualname__}, which cannot travel. "
        "Expected an array, str, int, float, bool, None or an enum member, in dicts, lists and tuples."
    )


def _check_depth(path: Path, n_levels: int) -> None:
    if n_levels <= 0:
        raise WireError(f"the tree is deeper than {MAX_DEPTH} levels (or contains itself) at {name_of(path)[:200]}...")


def _key(key: object, path: Path) -> str:
    if not isinstance(key, str):
        raise WireError(f"the dict at {name_of(path)} has the key {abridged(key)}; keys must be strings.")
    return _text(key, path)


def _text(text: str, path: Path) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise WireError(f"the string at {name_of(path)} is not valid Unicode: {error}") from error
    return text


@dataclasses.dataclass
class _Decoder:
    """One walk over one answer.

    Attributes:
        n_left: what remains of the bytes that its arrays may take together.
        n_keys: how many keys the dicts have that were met, those of wire forms included.
    """

    source: Source
    n_left: int
    n_keys: int = 0

    def tree(self, node: Any, path: Path, n_levels: int) -> Any:
        if isinstance(node, dict):
            self.n_keys += len(node)
            if is_wire_form(node):
                return self._array(node, path)
            _check_depth(path, n_levels)
            return {_key(key, path): self.tree(v, (path, key), n_levels - 1) for key, v in node.items()}
        if isinstance(node, list | tuple):
            _check_depth(path, n_levels)
            return [self.tree(v, (path, i), n_levels - 1) for i, v in enumerate(node)]
        if isinstance(node, str):
            return self._string(node, path)
        if node is None or isinstance(node, bool | int | float):
            return node
        raise WireError(f"expected JSON at {name_of(path)}, received a {type(node).__name__}.")

    def _array(self, node: dict[str, Any], path: Path) -> np.ndarray:
        array = decode(node, dataclasses.replace(self.source, max_bytes=self.n_left), path)
        self.n_left -= array.nbytes
        self.n_keys += len(node["data"])
        return array

    def _string(self, text: str, path: Path) -> str:
        if text not in self.source.texts:
            return text
        # Not an array after all, just a long string under the key "buffer".
        try:
            return _splice.uncut(self.source.texts[text])
        except orjson.JSONDecodeError as error:
            raise WireError(f"the string at {name_of(path)} is not valid JSON: {error.msg}.") from error
