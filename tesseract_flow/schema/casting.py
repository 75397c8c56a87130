"""Arrays in another dtype, or the entry that would not survive it.

Here: `lossless` (can a dtype hold all of another's values), `cast` (values, looked at). Not here: which dtypes may be
converted at all, which is a matter of kinds (`validate.is_castable`). The one idea: to round a float is what floats are
for and is accepted, as tesseract-core does; an integer that wraps around or is rounded, and a number that becomes
infinite, is another value, and nobody gets it without a word.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


class ValueLost(ValueError):
    """An entry of an array has no counterpart in the dtype that is wanted. The message names the first one."""


@functools.cache
def lossless(source: Any, target: Any) -> bool:
    """Whether each value of one dtype has its counterpart in the other, so that nobody has to look at values."""
    source, target = np.dtype(source), np.dtype(target)
    if source == target:
        return True
    if _is_bfloat16(source):
        return target.kind in "fc" and target.itemsize >= (8 if target.kind == "c" else 4)
    if source.kind in "iu" and target.kind in "fc":
        # NumPy calls int64 -> float64 safe; 2**53 + 1 is not.
        return 8 * source.itemsize - (source.kind == "i") <= _digits(target)
    return np.can_cast(source, target, "safe")


def is_same_kind(source: Any, target: Any) -> bool:
    """Whether an answer of one dtype can stand for one of the other: floats for floats, integers for integers.

    Stricter than what is accepted of a caller: whoever answers knows its own schema, and flags or integers in place of
    floats say that something else was answered.
    """
    source, target = np.dtype(source), np.dtype(target)
    return source.kind == target.kind or source.kind + target.kind in ("iu", "ui", "fc")


def cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    """`array` in another dtype; itself, if it has that.

    Raises:
        ValueLost: an integer out of range, or not exact as a float; a finite number that becomes infinite; a kind of
            number that the dtype does not have (complex for real, a fraction for an integer).
    """
    target = np.dtype(dtype)
    if array.dtype == target:
        return array
    if not (np.can_cast(array.dtype, target, "same_kind") or _is_number_for(array.dtype, target)):
        raise ValueLost(f"{array.dtype} cannot be converted to {target}")
    with np.errstate(all="ignore"):
        converted = array.astype(target)
        if not array.size or lossless(array.dtype, target):
            return converted
        lost = _lost(array, converted)
    if lost is not None and lost.any():
        where = np.unravel_index(int(np.argmax(lost)), lost.shape)
        n_more = int(np.count_nonzero(lost)) - 1
        place = f" at {[int(k) for k in where]}" if where else ""
        more = f" (and {n_more} more of {lost.size} entries)" if n_more else ""
        fate = "is not exact in" if converted.dtype.kind in "fc" and array.dtype.kind in "iu" else "does not fit into"
        raise ValueLost(f"{array[where]}{place} {fate} {target}{more}")
    return converted


def cast_number(value: Any, dtype: Any) -> np.ndarray:
    """A Python number as an array without dimensions, by the rules of `cast`.

    NumPy would round an integer on its way to a float before anybody could look at it.

    Raises:
        ValueLost: as `cast`; also an integer for which NumPy has no array, having more than 64 bits.
    """
    target = np.dtype(dtype)
    if not isinstance(value, int) or isinstance(value, bool):
        return cast(np.asarray(value), target)
    if not -(2**63) <= value < 2**64:
        # Python refuses to write down thousands of digits.
        shown = f"{value:d}" if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
        raise ValueLost(f"{shown} does not fit into {target}")
    return cast(np.asarray(int(value), np.int64 if value < 2**63 else np.uint64), target)


def _is_number_for(source: np.dtype, target: np.dtype) -> bool:
    """Conversions that look at values: among integers, and from the one float that NumPy does not know."""
    return source.kind + target.kind in ("ui", "iu") or (_is_bfloat16(source) and target.kind in "fc")


def _lost(array: np.ndarray, converted: np.ndarray) -> np.ndarray | None:
    """Which entries are other numbers now; None if no entry is."""
    if array.dtype.kind in "iu" and converted.dtype.kind in "iu":
        limits = np.iinfo(converted.dtype)
        # As Python's integers: NumPy compares int64 with uint64 as floats.
        if int(array.min()) >= limits.min and int(array.max()) <= limits.max:
            return None
        return np.asarray(array < limits.min if limits.min else array < 0) | (array > min(limits.max, _top(array)))
    if array.dtype.kind in "iu":
        real = np.real(converted)
        # What is beyond the largest integer would come back as any number.
        return (
            ~np.isfinite(real)
            | (real >= 2.0 ** (8 * array.itemsize - (array.dtype.kind == "i")))
            | (real.astype(array.dtype) != array)
        )
    if array.dtype.kind == "c" and converted.dtype.kind == "c":
        # Part by part: beside an infinite real part, an imaginary one may become infinite as well.
        return _overflows(np.real(array), np.real(converted)) | _overflows(np.imag(array), np.imag(converted))
    return _overflows(array, converted)


def _overflows(array: np.ndarray, converted: np.ndarray) -> np.ndarray:
    return np.isfinite(array) & ~np.isfinite(converted)


def _top(array: np.ndarray) -> int:
    return int(np.iinfo(array.dtype).max)


def _digits(dtype: np.dtype) -> int:
    """Bits of the integers that a floating-point dtype holds exactly."""
    return int(np.finfo(dtype).nmant) + 1


def _is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.name == "bfloat16"
