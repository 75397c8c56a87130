"""Long buffers are kept away from the JSON library: written beside it, and cut out before it reads.

A JSON library copies every string, and looks at every character to escape or unescape it. The base64 text of an array
needs none of that, and it is nearly all of a message. So `Splicer` lets orjson write the small rest with a hole for
each buffer, and `cut` puts a short token in place of each long buffer before orjson reads.

Measured with 1e6 float64, three repetitions alike, in ms. Writing: `orjson.dumps` of the base64 string 4.7; the string
in an `orjson.Fragment` 10; base64 text made at once and joined to the rest 0.5 to 9, depending on whether the allocator
has kept two buffers of 10 MB; as here 0.45 (the first two calls of a process 9, all of it page faults, as with the
others). Reading: `orjson.loads` and `b64decode` 6.9 to 17, as here 0.45.
"""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Callable, Mapping
from typing import TypeAlias

import orjson
import pybase64

from tesseract_flow.wire._common import as_bytes

_Filling: TypeAlias = Callable[[io.BytesIO], object]

# JSON text never contains a raw NUL, orjson's output least of all, so a NUL can only be a hole made here.
_HOLE = b"\x00"

# Bytes encoded at a time; a multiple of 3, so that the pieces of base64 text fit together.
_CHUNK = 48 * 1024

# Shorter texts cost less to parse than to cut out.
_LONG = 8192

_BUFFER = b'"buffer"'
_OPENING = re.compile(rb'"buffer"[ \t\r\n]*:[ \t\r\n]*"')


class Splicer:
    """Writes JSON around buffers that are not looked at. One per message; holes go into the tree in the order made."""

    def __init__(self) -> None:
        self._fillings: list[_Filling] = []

    def raw(self, text: bytes) -> orjson.Fragment:
        """A hole that will hold `text`, which must be JSON."""
        return self._hole(lambda out: out.write(text), _HOLE)

    def base64(self, payload: bytes | memoryview) -> orjson.Fragment:
        """A hole that will hold the bytes of `payload` as a base64 string."""
        return self._hole(lambda out: _write_base64(payload, out), b'"' + _HOLE + b'"')

    def dumps(self, tree: object) -> bytes:
        """`tree` as JSON, its holes filled."""
        first, *rest = orjson.dumps(tree).split(_HOLE)
        out = io.BytesIO()
        out.write(first)
        for fill, piece in zip(self._fillings, rest, strict=True):
            fill(out)
            out.write(piece)
        return out.getvalue()  # not a copy: CPython's BytesIO hands over its buffer

    def _hole(self, fill: _Filling, fragment: bytes) -> orjson.Fragment:
        self._fillings.append(fill)
        return orjson.Fragment(fragment)


def _write_base64(payload: bytes | memoryview, out: io.BytesIO) -> None:
    # In pieces that stay in the processor's cache and in memory that the allocator keeps: a second buffer as large as
    # the message costs 2600 page faults and 5 ms at 1e6 float64, the encoding itself 0.2 ms.
    data = as_bytes(payload)
    for start in range(0, len(data), _CHUNK):
        out.write(pybase64.b64encode(data[start : start + _CHUNK]))


def cut(data: bytes) -> tuple[bytes, Mapping[str, memoryview]]:
    """JSON in which each long string that is the value of a `buffer` is a short token, and the text of each token.

    Valid JSON stays valid and invalid JSON outside of the texts stays invalid. A raw `"buffer"`, colon, quote can only
    be a key (perhaps the end of one) and the start of its string: a quote *inside* a string is escaped, and then the
    next quote would be escaped as well, or end the string. Text that has an escaped quote is not cut; other
    escapes are left for `uncut`.
    """
    pieces: list[bytes] = []
    texts: dict[str, memoryview] = {}
    view = memoryview(data)
    nonce = ""
    done = 0  # everything before has been copied to `pieces`
    position = data.find(_BUFFER) if len(data) >= _LONG else -1
    while position >= 0:
        opening = _OPENING.match(data, position)
        if opening is None:
            position = data.find(_BUFFER, position + 1)
            continue
        start = opening.end()
        end = data.find(b'"', start)
        if end < 0 or data[end - 1] == ord("\\"):
            # Unfinished, or an escaped quote: let orjson judge from here on, as the next match could be in mid-string.
            break
        if end - start >= _LONG:
            # Random, so that no other string of the message can be taken for a token.
            nonce = nonce or secrets.token_hex(16)
            token = f"{nonce}-{len(texts)}"
            texts[token] = view[start:end]
            pieces += (data[done:start], token.encode())
            done = end
        position = data.find(_BUFFER, end + 1)
    if not pieces:
        return data, texts
    pieces.append(data[done:])
    return b"".join(pieces), texts


def uncut(text: memoryview) -> str:
    """The string that a cut-out `text` stands for, had the JSON library read it.

    Raises:
        orjson.JSONDecodeError: it is not the inside of a JSON string.
    """
    return orjson.loads(b'"%b"' % bytes(text))
