"""Arrays and trees of arrays to what travels between a client and a Tesseract, and back. NumPy only.

`dumps` and `loads` are whole messages, `encode_tree` and `decode_tree` the same without the JSON text, `encode_array`
and `decode_array` one array; `accept_header` asks a server for an encoding, `check_once` refuses a text in which a
key stands twice. Everything that arrives is taken for hostile until it is decoded, and every refusal is a `WireError`
that names the place in the tree.

HTTP is not here (`client`), nor what a Tesseract's schema says about its arrays (`schema`).
"""

from __future__ import annotations

from tesseract_flow.wire._common import COMPRESSIONS, DEFAULT_MAX_BYTES, ENCODINGS, MAX_DEPTH, Compression, Encoding
from tesseract_flow.wire._keys import check_once
from tesseract_flow.wire._owned import CAN_LOCK, locked
from tesseract_flow.wire._splice import Message
from tesseract_flow.wire.arrays import DTYPES, decode_array, encode_array
from tesseract_flow.wire.binref import BinrefWriter
from tesseract_flow.wire.pool import BinrefPool, PooledWriter
from tesseract_flow.wire.trees import accept_header, decode_tree, dumps, encode_tree, loads, message

__all__ = [
    "CAN_LOCK",
    "COMPRESSIONS",
    "DEFAULT_MAX_BYTES",
    "DTYPES",
    "ENCODINGS",
    "MAX_DEPTH",
    "BinrefPool",
    "BinrefWriter",
    "Compression",
    "Encoding",
    "Message",
    "PooledWriter",
    "accept_header",
    "check_once",
    "decode_array",
    "decode_tree",
    "dumps",
    "encode_array",
    "encode_tree",
    "loads",
    "locked",
    "message",
]
