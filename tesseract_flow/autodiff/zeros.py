"""What is zero: tangents and cotangents of which nobody needs to be asked, as J·0 and Jᵀ·0 are zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_HEAD = 1024  # entries: what is not zero hardly ever begins with so many of them
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def are_zero(vectors: Sequence[np.ndarray]) -> bool:
    """Whether there are any, and nothing but zeros in them."""
    return bool(vectors) and all(map(is_zero, vectors))


def is_zero(array: np.ndarray) -> bool:
    """Whether every entry is 0.0 or -0.0. NaN is something, and so is the smallest of numbers.

    The bits tell: on XLA's threads subnormal numbers compare equal to zero, so a call would be asked eagerly and left
    out in compiled code.
    """
    if array.dtype.kind == "c":
        return is_zero(np.real(array)) and is_zero(np.imag(array))
    unsigned = _UNSIGNED.get(array.itemsize)
    if unsigned is None or array.dtype.kind in "biu":
        return not array.any()
    bits = array.view(unsigned)
    if bits.size > 2 * _HEAD and not _has_no_bits(bits.flat[:_HEAD]):
        return False
    return _has_no_bits(bits)


def _has_no_bits(bits: np.ndarray) -> bool:
    but_for_sign = np.iinfo(bits.dtype).max >> 1
    return not int(np.bitwise_or.reduce(bits, axis=None)) & but_for_sign
