"""A checkpoint as bytes: a line of JSON, then raw arrays, then the history up to that step.

Whole in itself: one intact checkpoint is enough to go on from, to report from, and to tell whose it is. The digest in
its first line covers everything. No pickle: reading one runs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import JournalError

_FORMAT = "tesseract-flow checkpoint"
_VERSION = 2
_OLD_VERSION = 1  # without a history of its own and without saying whose it is


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after a step, as named arrays, and the varying part of the design there, in its own units."""

    step: int
    arrays: Mapping[str, np.ndarray]
    design: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> dict[str, np.ndarray]:
        """The varying part of the best design so far, by name."""
        prefix = "best.varying"
        found = {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}
        return {name.removeprefix(".") or "(root)": array for name, array in found.items()}


class Damaged(Exception):
    """A checkpoint that is not what was once written."""


class History:
    """Records of a run, and their compressed form, to which each step adds a little.

    Compressed as one stream that is flushed after each record: what a step adds is some 100 bytes, and the same bytes
    come out whether a run was interrupted or not.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()):
        self.records: list[Mapping[str, Any]] = []
        self._packed = bytearray()
        self._compressor = zlib.compressobj(6)
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> bytes:
        """Add a record; its line is returned."""
        line = json.dumps(dict(record), sort_keys=True, allow_nan=False).encode() + b"\n"
        self._packed += self._compressor.compress(line) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        self.records.append(record)
        return line

    @property
    def packed(self) -> bytes:
        return bytes(self._packed)

    @property
    def lines(self) -> bytes:
        return zlib.decompressobj().decompress(self._packed) if self._packed else b""


def encode_checkpoint(checkpoint: Checkpoint, identity: str, history: bytes) -> bytes:
    """The checkpoint as bytes.

    Args:
        identity: the digest of the run's identity.
        history: `History.packed`.
    """
    state = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    design = {name: np.asarray(array, order="C") for name, array in checkpoint.design.items()}
    payload = b"".join(array.tobytes() for array in [*state.values(), *design.values()]) + history
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": checkpoint.step,
        "run": identity,
        "byteorder": sys.byteorder,
        "length": len(payload),
        "history": len(history),
        "arrays": _described(state),
        "design": _described(design),
    }
    header["sha256"] = _digest(header, payload)
    return json.dumps(header).encode() + b"\n" + payload


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """What a file held: the checkpoint, whose it is, and the records up to its step.

    `run` and `history` are `None` in a file of an old version; it says how long the journal's history was then, and its
    digest, in `history_length` and `history_digest`.
    """

    checkpoint: Checkpoint
    run: str | None
    history: Sequence[Mapping[str, Any]] | None
    history_length: int = 0
    history_digest: str = ""


def decode_checkpoint(data: bytes) -> Decoded:
    """What was encoded.

    Raises:
        Damaged: it is not what was once written.
        JournalError: it is, by another version or another kind of machine.
    """
    line, _, payload = data.partition(b"\n")
    try:
        header = json.loads(line)
        digest = header.pop("sha256")
        if header["format"] != _FORMAT:
            raise Damaged("not a checkpoint")
        version, length = header["version"], header["length"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged("unreadable header") from error
    if version not in (_OLD_VERSION, _VERSION):
        raise JournalError(
            f"A checkpoint has format version {version}; this tesseract-flow reads version {_VERSION}.\n"
            "Go on with the version that wrote it, or use another folder."
        )
    if len(payload) != length:
        raise Damaged(f"{len(payload)} bytes instead of {length}")
    if digest != _digest(header, payload):
        raise Damaged("digest does not match")
    if header["byteorder"] != sys.byteorder:
        raise JournalError(f"A checkpoint was written on a {header['byteorder']}-endian machine; this one is not.")
    arrays, offset = _arrays(header["arrays"], payload, 0)
    if version == _OLD_VERSION:
        checkpoint = Checkpoint(header["step"], arrays)
        return Decoded(checkpoint, None, None, header["history_length"], header["history_sha256"])
    design, offset = _arrays(header["design"], payload, offset)
    records = _records(payload[offset:])
    if len(payload) - offset != header["history"] or [r.get("step") for r in records] != list(range(len(records))):
        raise Damaged("its history is not whole")
    return Decoded(Checkpoint(header["step"], arrays, design), header["run"], records)


def _records(packed: bytes) -> list[dict[str, Any]]:
    try:
        lines = zlib.decompressobj().decompress(packed) if packed else b""
        return [json.loads(line) for line in lines.splitlines()]
    except (zlib.error, ValueError) as error:
        raise Damaged("its history is unreadable") from error


def _described(arrays: Mapping[str, np.ndarray]) -> list[Any]:
    return [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]


def _arrays(described: Sequence[Any], payload: bytes, offset: int) -> tuple[dict[str, np.ndarray], int]:
    arrays = {}
    for name, dtype_name, shape in described:
        dtype = jnp.dtype(dtype_name)  # knows bfloat16 and its kin, where NumPy alone does not
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(payload[offset : offset + size], dtype).reshape(shape)
        offset += size
    return arrays, offset


def _digest(header: Mapping[str, Any], payload: bytes) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(payload)
    return digest.hexdigest()
