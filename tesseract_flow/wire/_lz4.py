"""lz4 frames in and out, the only place that knows that lz4 is an optional package.

Decompression is told how many bytes to expect and never produces more than one byte beyond that, whatever the frame
claims: a decompression bomb costs what the honest array would have cost.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from tesseract_flow.errors import WireError

# An lz4 block byte stands for at most 255 bytes of output, so a short frame that promises more is refused before
# memory is set aside for it.
_MAX_RATIO = 255


def compress(data: memoryview) -> bytes:
    """One lz4 frame with the bytes of a C-contiguous buffer."""
    return _lz4_frame().compress(data)


def decompress(frame: bytes | bytearray | np.ndarray, n_bytes: int) -> bytearray:
    """The `n_bytes` bytes inside one lz4 `frame`.

    Raises:
        WireError: not a complete lz4 frame, bytes after its end, or other than `n_bytes` bytes inside.
    """
    lz4_frame = _lz4_frame()
    if n_bytes > _MAX_RATIO * len(frame):
        raise WireError(f"expected {n_bytes} bytes, but an lz4 frame of {len(frame)} bytes cannot hold that many.")
    decompressor = lz4_frame.LZ4FrameDecompressor(return_bytearray=True)
    try:
        # One byte of slack tells "exactly n_bytes" from "more than n_bytes" without decompressing the rest.
        data = decompressor.decompress(frame, max_length=n_bytes + 1)
    except RuntimeError as error:
        raise WireError(f"expected an lz4 frame, received something else: {error}") from error
    if len(data) > n_bytes:
        raise WireError(f"expected {n_bytes} bytes, but the lz4 frame holds more.")
    if not decompressor.eof:
        raise WireError(f"the lz4 frame breaks off after {len(data)} of {n_bytes} expected bytes.")
    if len(data) < n_bytes:
        raise WireError(f"expected {n_bytes} bytes, but the lz4 frame holds only {len(data)}.")
    if decompressor.unused_data:
        raise WireError(f"{len(decompressor.unused_data)} stray bytes follow the lz4 frame.")
    return data


def _lz4_frame() -> ModuleType:
    try:
        return importlib.import_module("lz4.frame")
    except ImportError as error:
        raise WireError(
            "compression 'lz4' needs the lz4 package, which is not installed here. "
            "Install it with `pip install 'tesseract-flow[lz4]'`, or ask for no compression."
        ) from error
