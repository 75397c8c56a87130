"""Long buffers are kept away from the JSON library: written beside it, and cut out before it reads.

A JSON library copies every string, and looks at every character to escape or unescape it. The base64 text of an array
needs none of that, and it is nearly all of a message. So `Splicer` lets orjson write the small rest with a hole for
each buffer, a `Message` is encoded while it is sent, and `cut` puts a short token in place of each long buffer before
orjson reads.

Measured with 1e6 float64, three repetitions alike, in ms. Writing: `orjson.dumps` of the base64 string 4.7; the string
in an `orjson.Fragment` 10; base64 text made at once and joined to the rest 0.5 to 9, depending on whether the allocator
has kept two buffers of 10 MB; as here 0.45 (the first two calls of a process 9, all of it page faults, as with the
others). As a `Message` no text of that size is there at any time. Reading: `orjson.loads` and `b64decode` 6.9 to 17, as
here 0.45.
"""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Iterator, Mapping

import orjson
import pybase64

from tesseract_flow.wire._common import as_bytes

# JSON text never contains a raw NUL, orjson's output least of all, so a NUL can only be a hole made here.
_HOLE = b"\x00"

# Bytes encoded at a time; a multiple of 3, so that the pieces of base64 text fit together. Not more, as they stay in
# the processor's cache on their way to the socket, and not less, as each is a system call.
_CHUNK = 192 * 1024

# Shorter texts cost less to parse than to cut out.
_LONG = 8192

_BUFFER = b'"buffer"'
_OPENING = re.compile(rb'"buffer"[ \t\r\n]*:[ \t\r\n]*"')


class Message:
    """JSON text in pieces, which are made while they are taken, as often as that is.

    Arrays of the tree that it was made from are in it until then: they must not change.
    """

    def __init__(self, *parts: bytes | _Base64):
        self._parts = parts
        self.n_bytes = sum(map(len, parts))

    def __iter__(self) -> Iterator[bytes]:
        """Few pieces: what is small goes with what is next to it."""
        held: list[bytes] = []
        n_held = 0
        for part in self._parts:
            for piece in (part,) if isinstance(part, bytes) else part:
                held.append(piece)
                n_held += len(piece)
                if n_held >= _CHUNK:
                    yield b"".join(held)  # of a single one no copy
                    held, n_held = [], 0
        if held:
            yield b"".join(held)

    def __bytes__(self) -> bytes:
        out = io.BytesIO()
        for piece in self:
            out.write(piece)
        return out.getvalue()  # not a copy: CPython's BytesIO hands over its buffer


class _Base64:
    """The bytes of a buffer as base64 text."""

    def __init__(self, payload: bytes | memoryview):
        self._data = as_bytes(payload)

    def __len__(self) -> int:
        return 4 * -(-len(self._data) // 3)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), _CHUNK):
            yield pybase64.b64encode(self._data[start : start + _CHUNK])


class Splicer:
    """Writes JSON around buffers that are not looked at. One per message; holes go into the tree in the order made."""

    def __init__(self) -> None:
        self._fillings: list[bytes | _Base64] = []

    def raw(self, text: bytes) -> orjson.Fragment:
        """A hole that will hold `text`, which must be JSON."""
        return self._hole(text, _HOLE)

    def base64(self, payload: bytes | memoryview) -> orjson.Fragment:
        """A hole that will hold the bytes of `payload` as a base64 string."""
        return self._hole(_Base64(payload), b'"' + _HOLE + b'"')

    def message(self, tree: object) -> Message:
        """`tree` as JSON, its holes filled."""
        first, *rest = orjson.dumps(tree).split(_HOLE)
        parts: list[bytes | _Base64] = [first]
        for filling, piece in zip(self._fillings, rest, strict=True):
            parts += (filling, piece)
        return Message(*parts)

    def _hole(self, filling: bytes | _Base64, fragment: bytes) -> orjson.Fragment:
        self._fillings.append(filling)
        return orjson.Fragment(fragment)


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
