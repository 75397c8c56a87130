"""The `json` encoding: an array as nested lists of numbers.

What JSON can and cannot carry, as tesseract-core's own encoder does it:

* Booleans are `true` and `false`; integers are exact, up to uint64; float16 and float32 are written as the float64 of
  equal value, so every finite float returns bit for bit.
* **NaN and inf do not travel as floats.** JSON has no word for them; tesseract-core 1.15 writes `null` for both and
  reads `null` as NaN, so an inf silently turns into a NaN. Here both directions are refused: base64 carries them.
* uint64 arrays with values on both sides of 2**63 are not written: tesseract-core 1.15 reads such a list by way of
  float64 (NumPy's common type of int64 and uint64), which rounds. Reading them here is exact.
* Complex numbers are strings such as `"1+2j"`. NaN and inf do travel inside those.

Buffers are nested or flat on reading, nested on writing. Lists are checked element type by element type before NumPy
sees them: left to itself NumPy reads `"12"` as 12 and drops the .5 of 1.5, and one long string in a list makes every
element as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import orjson

from tesseract_flow.errors import WireError
from tesseract_flow.wire._common import abridged

# tesseract-core writes complex128 without exponents, about 330 characters for each part.
_LONGEST_COMPLEX = 1024

_ADVICE = "JSON has no NaN and no inf: ask for base64."

_ELEMENTS: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "i": (frozenset({int, float}), "integers"),
    "u": (frozenset({int, float}), "non-negative integers"),
    "f": (frozenset({int, float}), "numbers"),
    "c": (frozenset({int, float, str}), "complex numbers such as '1+2j'"),
}


def to_lists(array: np.ndarray) -> object:
    """Nested lists of Python numbers; a bare number for a 0-d `array`.

    Raises:
        WireError: a float is NaN or inf, or uint64 values that the other side would round.
    """
    _refuse_what_json_loses(array)
    if array.dtype.kind == "c":
        # Python prints complex numbers in brackets, which readers other than Python's own do not expect.
        texts = [str(z).strip("()") for z in array.reshape(-1).tolist()]
        return np.array(texts, dtype=object).reshape(array.shape).tolist()
    return array.tolist()


def to_json(array: np.ndarray) -> bytes:
    """The JSON text of `to_lists(array)`, without building the lists where orjson can read the array itself.

    1e6 float64: 20 ms, against 54 ms by way of lists.
    """
    if array.ndim == 0 or array.dtype.kind == "c":
        return orjson.dumps(to_lists(array))
    _refuse_what_json_loses(array)
    # orjson would print the shortest decimal that identifies a float32 as a float32; readers parse float64 first, so
    # print the float64 of equal value, as tesseract-core does. It also wants native byte order.
    printed = np.dtype(np.float64) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return orjson.dumps(array.astype(printed, copy=False), option=orjson.OPT_SERIALIZE_NUMPY)


def from_lists(buffer: object, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of `shape` and `dtype` that holds the numbers of `buffer`, which is nested like `shape`, or flat.

    Raises:
        WireError: another structure, other elements than the dtype has, or a number that the dtype cannot hold.
    """
    elements = _elements(buffer, shape)
    expected, described = _ELEMENTS[dtype.kind]
    received = set(map(type, elements))
    if not received <= expected:
        culprit = next(e for e in elements if type(e) not in expected)
        advice = f" (null stands for a lost NaN or inf; {_ADVICE})" if culprit is None else ""
        raise WireError(f"a json buffer of {dtype.name} holds {described}; received {abridged(culprit)}{advice}.")
    if dtype.kind in "iu" and float in received:
        elements = [_integer(e) for e in elements]
    if dtype.kind == "c" and str in received:
        elements = [_complex(e) for e in elements]
    # Floats and complex numbers by way of 64 bits per part, so that an overflow is noticed on the way down.
    wide = {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}.get(dtype.kind, dtype)
    try:
        with np.errstate(over="raise"):
            return np.array(elements, dtype=wide).astype(dtype, copy=False).reshape(shape)
    except (OverflowError, FloatingPointError) as error:
        raise WireError(f"the json buffer holds a number beyond the range of {dtype.name}: {error}") from error


def _refuse_what_json_loses(array: np.ndarray) -> None:
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            index = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
            raise WireError(f"encoding 'json' cannot carry {array[index]} (at index {index}). {_ADVICE}")
    elif array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size:
        low, high = int(array.min()), int(array.max())
        if low < 2**63 <= high:
            raise WireError(
                f"encoding 'json' cannot carry uint64 values on both sides of 2**63 (here {low} and {high}): "
                "a Tesseract would round them. Use base64."
            )


def _elements(buffer: object, shape: Sequence[int]) -> list[object]:
    """The elements of `buffer` in C order; its structure is checked, its elements are not."""
    size = math.prod(shape)
    if isinstance(buffer, list) and len(buffer) == size and not (buffer and isinstance(buffer[0], list)):
        return buffer
    if not shape:
        return [buffer]
    rows: list[object] = [buffer]
    for axis, n_expected in enumerate(shape):
        below: list[object] = []
        for row in rows:
            if not isinstance(row, list):
                raise WireError(f"shape {tuple(shape)} wants lists along axis {axis}; received {abridged(row)}.")
            if len(row) != n_expected:
                raise WireError(
                    f"shape {tuple(shape)} wants {n_expected} elements along axis {axis}; received {len(row)}."
                )
            below.extend(row)
        rows = below
    return rows


def _integer(element: object) -> int:
    assert isinstance(element, int | float)
    if isinstance(element, float) and not element.is_integer():
        raise WireError(f"an integer buffer holds {element!r}, which is not an integer.")
    return int(element)


def _complex(element: object) -> complex:
    assert isinstance(element, int | float | str)
    try:
        if isinstance(element, str) and len(element) > _LONGEST_COMPLEX:
            raise ValueError("too long")
        return complex(element)
    except (ValueError, OverflowError) as error:
        raise WireError(f"expected a complex number such as '1+2j', received {abridged(element)}.") from error
