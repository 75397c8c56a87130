"""Words that every wire module shares: encodings, limits, and how a place in a tree is named.

Not here: anything about one encoding. The one idea: a path is a linked list that costs one small tuple
per step down, and becomes text only when an error needs it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np

from tesseract_flow.errors import WireError, did_you_mean

Encoding: TypeAlias = Literal["json", "base64", "binref"]
Compression: TypeAlias = Literal["lz4"]

ENCODINGS: tuple[str, ...] = get_args(Encoding)
COMPRESSIONS: tuple[str, ...] = get_args(Compression)

DEFAULT_MAX_BYTES = 4 * 2**30
"""How many bytes of arrays one `decode_array`, `decode_tree` or `loads` may produce unless told otherwise."""

MAX_DEPTH = 200
"""Deepest nesting of dicts and lists in a tree, both ways. orjson itself stops at 254 writing and at 1024 reading."""

Path: TypeAlias = "tuple[Path, str | int] | None"


def as_bytes(buffer: bytes | bytearray | memoryview) -> memoryview:
    """The memory of a C-contiguous `buffer` as single bytes, whatever its items and shape are."""
    view = memoryview(buffer)
    # Not `view.cast("B")`, which knows neither complex numbers nor empty dimensions.
    return np.frombuffer(view, dtype=np.uint8).data if view.nbytes else memoryview(b"")


def name_of(path: Path) -> str:
    """`mesh.knots.[3]` for a place in a tree, `(root)` for the tree itself."""
    parts: list[str] = []
    while path is not None:
        path, part = path
        parts.append(f"[{part}]" if isinstance(part, int) else part)
    return ".".join(reversed(parts)) or "(root)"


def abridged(value: object) -> str:
    """`repr(value)` cut to a length that fits a message: what arrives from outside may be megabytes long."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple) and len(value) <= 8:
        return f"[{', '.join(abridged(v) if not isinstance(v, list | tuple) else '[...]' for v in value)}]"
    return f"a {type(value).__name__}"


def check_encoding(encoding: object, compression: object) -> None:
    """Refuse encodings and compressions that the protocol does not have.

    Raises:
        WireError: an unknown name, or `json` together with a compression.
    """
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        hint = did_you_mean(encoding, ENCODINGS) if isinstance(encoding, str) and len(encoding) < 60 else ""
        raise WireError(f"unknown array encoding {abridged(encoding)}; expected one of {', '.join(ENCODINGS)}.{hint}")
    if compression is None:
        return
    if not isinstance(compression, str) or compression not in COMPRESSIONS:
        raise WireError(f"unknown compression {abridged(compression)}; expected {' or '.join(COMPRESSIONS)}, or None.")
    if encoding == "json":
        raise WireError(f"compression {compression!r} goes with base64 and binref; json buffers are plain lists.")
