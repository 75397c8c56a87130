"""Trees as bytes: equal bytes for equal keys, and the tree back from its bytes. Nothing is unpickled.

Written is the description of the tree as JSON, in which everything is tagged by its type, and after it the bytes of
its arrays as they are. The wire's own form will not do for this: there tuples become lists, enumerations their values,
NaN is refused, and base64 takes a third more.
"""

from __future__ import annotations

import enum
import json
import math
import struct
from collections.abc import Hashable
from typing import Any

import numpy as np

from tesseract_flow.exact.keys import describe

_HEAD = struct.Struct("<Q")  # length of the JSON text
_ALIGNMENT = 16
_KINDS = "biufc"  # dtypes that are their bytes and nothing else


def pack(tree: Any, *, in_order: bool = False) -> bytes:
    """`tree` as bytes. Two trees have equal ones exactly if they are equal as `InputKey`.

    Args:
        tree: dicts, lists and tuples of arrays, numbers, text, bytes and None.
        in_order: whether dicts come back with their entries in the same order. Then equal trees may have other bytes.

    Raises:
        TypeError: a leaf that has no bytes of its own: an object of some class, an array of text.
    """
    leaves: list[np.ndarray | None] = []
    text = json.dumps(_written(describe(tree, leaves, in_order=in_order)), separators=(",", ":")).encode("ascii")
    parts = [_HEAD.pack(len(text)), text]
    n_bytes = _HEAD.size + len(text)
    for array in leaves:
        if array is not None:
            padding = -n_bytes % _ALIGNMENT
            parts += [bytes(padding), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
            n_bytes += padding + array.nbytes
    return b"".join(parts)


def unpack(data: bytearray) -> Any:
    """The tree that was packed. Its arrays are views into `data`; enumerations do not come back.

    Raises:
        ValueError: these are not the bytes of a tree, or not all of them.
    """
    try:
        (n_text,) = _HEAD.unpack_from(data)
        start = _HEAD.size + n_text
        reader = _Reader(data, start)
        tree = reader.read(json.loads(data[_HEAD.size : start].decode("ascii")))
        if reader.position != len(data):
            raise ValueError(f"{len(data)} bytes where {reader.position} were expected")
    except (struct.error, ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a packed tree: {error}") from error
    return tree


def _written(description: Any) -> Any:
    """A description as JSON: what JSON has itself stands for itself, all else is a list that begins with a tag."""
    kind, *rest = description
    if kind is dict:
        return ["dict", [[_written(key), _written(value)] for key, value in rest[0]]]
    if kind is list or kind is tuple:
        return [kind.__name__, [_written(item) for item in rest[0]]]
    if kind is np.ndarray:
        dtype, shape, is_weak = rest
        if dtype.kind not in _KINDS:
            raise TypeError(f"An array of dtype {dtype} cannot be written as bytes.")
        return ["array", dtype.str, list(shape), *([1] if is_weak else [])]
    if kind in (type(None), bool, int, str):
        return rest[0]
    if kind in (float, complex, bytes):
        return [kind.__name__, rest[0].hex()]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ["enum", f"{kind.__module__}.{kind.__qualname__}", repr(rest[0])]
    raise TypeError(f"A {getattr(kind, '__name__', kind)} cannot be written as bytes.")


class _Reader:
    """One walk over one description, taking the bytes of each array as it comes to it."""

    def __init__(self, data: bytearray, position: int):
        self.data = data
        self.position = position

    def read(self, node: Any) -> Any:
        if node is None or isinstance(node, bool | int | str):
            return node
        tag, *rest = node
        if tag == "dict":
            return {_key(self.read(key)): self.read(value) for key, value in rest[0]}
        if tag == "list":
            return [self.read(item) for item in rest[0]]
        if tag == "tuple":
            return tuple(self.read(item) for item in rest[0])
        if tag == "array":
            return self._array(*rest)
        if tag == "float":
            return struct.unpack("<d", bytes.fromhex(rest[0]))[0]
        if tag == "complex":
            return complex(*struct.unpack("<2d", bytes.fromhex(rest[0])))
        if tag == "bytes":
            return bytes.fromhex(rest[0])
        raise ValueError(f"unknown tag {tag!r}")

    def _array(self, code: str, shape: list[int], is_weak: int = 0) -> np.ndarray:
        dtype = np.dtype(code)
        if dtype.kind not in _KINDS or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"an array of dtype {code!r} and shape {shape!r}")
        start = self.position + -self.position % _ALIGNMENT
        self.position = start + math.prod(shape) * dtype.itemsize
        if self.position > len(self.data):
            raise ValueError("it ends inside an array")
        if self.position == start:
            return np.empty(shape, dtype)
        return np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape)


def _key(value: Any) -> Hashable:
    hash(value)
    return value
