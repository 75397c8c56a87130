"""Trees as readable JSON, to the last bit: short arrays as numbers, long ones beside it. Nothing is unpickled.

For files that people look at and compare. What JSON has itself stands for itself; everything else is an object whose
first name begins with `!`:

```text
{"thickness": {"!array": "float64[3]", "values": [0.1, 0.2, 0.3]}, "mesh": {"!array": "float64[5000,3]", "at": 0}}
```

The one idea: a number in decimal that reads back as the same bits is as exact as its bytes. What has no such decimal
(NaN with a payload) is written in hexadecimal.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tesseract_flow.exact.keys import describe

N_READABLE = 256  # entries; a longer array is put beside
_KINDS = "biufc"  # dtypes that are their bytes and nothing else
_ARRAY = re.compile(r"(?P<dtype>[<>|]?[a-z]+[0-9]*)\[(?P<shape>[0-9,]*)\](?P<weak> weak)?")
_NUMBERS: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": (int, float)}
_NO_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Place = Callable[[np.ndarray], int]
Take = Callable[[np.dtype, tuple[int, ...], int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Named:
    """A member of an enumeration, as far as it can be read without its class."""

    kind: str
    text: str

    def __repr__(self) -> str:
        return self.text


def write(tree: Any, place: Place, *, to_come_back: bool = False) -> Any:
    """`tree` as what JSON can say. Equal results for trees that are equal as `InputKey`, and for no others.

    Args:
        tree: dicts, lists and tuples of arrays, numbers, text, bytes and None.
        place: puts a long array somewhere, and tells where.
        to_come_back: dicts keep the order of their entries, so that equal trees may differ, and enumerations, which
            cannot be read again, are refused.

    Raises:
        TypeError: a leaf that has no bytes of its own: an object of some class, an array of text.
    """
    leaves: list[np.ndarray | None] = []
    description = describe(tree, leaves, in_order=to_come_back)
    return _Writer(iter(leaves), place, to_come_back).write(description)


class _Writer:
    """One walk over one description, along with its leaves."""

    def __init__(self, leaves: Iterator[np.ndarray | None], place: Place, to_come_back: bool):
        self._leaves = leaves
        self._place = place
        self._comes_back = to_come_back

    def write(self, description: Any) -> Any:
        kind, *rest = description
        if kind is dict:
            return self._dict(rest[0])
        if kind is list:
            return [self.write(item) for item in rest[0]]
        if kind is tuple:
            return {"!tuple": [self.write(item) for item in rest[0]]}
        array = next(self._leaves)
        if kind is np.ndarray:
            assert array is not None
            return self._array(array, *rest)
        if kind in (type(None), bool, int, str):
            return rest[0]
        if kind is float:
            (value,) = struct.unpack("<d", rest[0])
            return value if math.isfinite(value) else {"!float": rest[0].hex()}
        if kind in (complex, bytes):
            return {f"!{kind.__name__}": rest[0].hex()}
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and not self._comes_back:
            return {"!enum": [f"{kind.__module__}.{kind.__qualname__}", repr(rest[0])]}
        raise TypeError(f"A {getattr(kind, '__name__', kind)} cannot be written down.")

    def _dict(self, entries: Sequence[tuple[Any, Any]]) -> Any:
        if all(key[0] is str and not key[1].startswith("!") for key, _ in entries):
            return {key[1]: self.write(value) for key, value in entries}
        # Keys have no arrays, so the leaves are those of the values.
        keys = [_Writer(iter([None]), self._place, self._comes_back).write(key) for key, _ in entries]
        return {"!dict": [[key, self.write(value)] for key, (_, value) in zip(keys, entries, strict=True)]}

    def _array(self, array: np.ndarray, dtype: np.dtype, shape: tuple[int, ...], is_weak: bool) -> Any:
        if dtype.kind not in _KINDS:
            raise TypeError(f"An array of dtype {dtype} cannot be written down.")
        name = dtype.name if dtype.str[0] in "<|" else dtype.str
        said = f"{name}[{','.join(map(str, shape))}]{' weak' if is_weak else ''}"
        if array.size > N_READABLE:
            return {"!array": said, "at": self._place(array)}
        return {"!array": said, "values": _values(array)}


def _values(array: np.ndarray) -> Any:
    if array.dtype.kind == "c":  # pairs of real and imaginary part
        parts = np.stack([np.real(array), np.imag(array)], axis=-1)
        return _values(parts)
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    words = np.ascontiguousarray(array).reshape(-1)
    flat = [_number(entry) for entry in words]
    return np.array(flat, object).reshape(array.shape).tolist()


def _number(entry: np.floating) -> Any:
    value = float(entry)
    if math.isfinite(value):
        return value
    for name, number in _NO_NUMBERS.items():
        if entry.dtype.type(number).tobytes() == entry.tobytes():
            return name
    return f"0x{entry.tobytes().hex()}"


def read(node: Any, take: Take) -> Any:
    """The tree that was written; enumerations come back as `Named`.

    Args:
        node: parsed JSON.
        take: (dtype, shape, place) → a long array.

    Raises:
        ValueError: this is not what `write` writes.
    """
    try:
        return _read(node, take)
    except (struct.error, TypeError, LookupError, RecursionError, OverflowError, AttributeError) as error:
        raise ValueError(f"not a tree in writing: {error}") from error


def _read(node: Any, take: Take) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return [_read(item, take) for item in node]
    if not node or not (tag := next(iter(node))).startswith("!"):
        return {key: _read(value, take) for key, value in node.items()}
    content = node[tag]
    if tag == "!array":
        return _read_array(node, take)
    if tag == "!tuple":
        return tuple(_read(item, take) for item in content)
    if tag == "!dict":
        return {_read(key, take): _read(value, take) for key, value in content}
    if tag == "!float":
        return struct.unpack("<d", bytes.fromhex(content))[0]
    if tag == "!complex":
        return complex(*struct.unpack("<2d", bytes.fromhex(content)))
    if tag == "!bytes":
        return bytes.fromhex(content)
    if tag == "!enum":
        return Named(*content)
    raise ValueError(f"unknown tag {tag!r}")


def _read_array(node: dict[str, Any], take: Take) -> np.ndarray:
    said = _ARRAY.fullmatch(node["!array"])
    if said is None:
        raise ValueError(f"an array that says {node['!array']!r}")
    dtype = np.dtype(said["dtype"])
    dtype = dtype if said["dtype"][0] in "<>|" else dtype.newbyteorder("<")
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of dtype {dtype}")
    shape = tuple(int(n) for n in said["shape"].split(",") if n)
    if "at" in node:
        return take(dtype, shape, node["at"])
    size = math.prod(shape)
    if size > N_READABLE:
        raise ValueError("a long array among the short ones")
    flat: list[Any] = []
    _flatten(node["values"], flat)
    if dtype.kind == "c":
        if len(flat) != 2 * size:
            raise ValueError("an array with another number of values than it says")
        part = np.dtype(f"{dtype.str[0]}f{dtype.itemsize // 2}")
        return _from(flat, part).view(dtype).reshape(shape)
    if len(flat) != size:
        raise ValueError("an array with another number of values than it says")
    return _from(flat, dtype).reshape(shape)


def _from(flat: list[Any], dtype: np.dtype) -> np.ndarray:
    array = np.empty(len(flat), dtype)
    for k, value in enumerate(flat):
        if isinstance(value, str) and dtype.kind == "f":
            if value in _NO_NUMBERS:
                array[k] = _NO_NUMBERS[value]
            else:
                array[k : k + 1] = np.frombuffer(bytes.fromhex(value.removeprefix("0x")), dtype)
        elif isinstance(value, bool) is (dtype.kind == "b") and isinstance(value, _NUMBERS[dtype.kind]):
            array[k] = value
        else:
            raise ValueError(f"a value {value!r} in an array of {dtype}")
    return array


def _flatten(values: Any, into: list[Any]) -> None:
    if isinstance(values, list):
        for item in values:
            _flatten(item, into)
    else:
        into.append(values)


def compact(node: Any) -> bytes:
    """What was written, in one line: equal for equal content, whatever the layout it was read from."""
    return json.dumps(node, separators=(",", ":")).encode("ascii")


def laid_out(node: Any, indent: str = "") -> str:
    """The same for people: an entry of an object a line, and so a row of an array."""
    if isinstance(node, dict) and node and "!array" not in node:
        lines = [f"{indent}  {json.dumps(key)}: {laid_out(value, indent + '  ')}" for key, value in node.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(node, dict) and any(isinstance(row, list) for row in _rows(node)):
        rows = [f"{indent}  {json.dumps(row)}" for row in _rows(node)]
        return f'{{"!array": {json.dumps(node["!array"])}, "values": [\n' + ",\n".join(rows) + f"\n{indent}]}}"
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        return "[\n" + ",\n".join(f"{indent}  {laid_out(item, indent + '  ')}" for item in node) + f"\n{indent}]"
    return json.dumps(node)


def _rows(node: dict[str, Any]) -> list[Any]:
    values = node.get("values")
    return values if isinstance(values, list) else []
