"""A checkpoint as bytes: a line of JSON, then raw arrays, then the end of the history up to that step.

The state is whole in itself, and of the history before its end (`history`) it knows the digest. It tells whose it is.
The digest in its first line covers everything. No pickle: reading one runs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import JournalError
from tesseract_flow.optimize.answers import AnswersLink
from tesseract_flow.optimize.history import Damaged, Link, records_of

_FORMAT = "tesseract-flow checkpoint"
_VERSION = 3
_WHOLE_VERSION = 2  # with all of the history in it
_OLD_VERSION = 1  # without a history of its own and without saying whose it is


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after a step, as named arrays, and the varying part of the design there, in its own units.

    `answers` are those that the driver's library was given in this step; a journal keeps them in a file of their own.
    `is_new`: what a library was told before this step is of no use to it any more.
    """

    step: int
    arrays: Mapping[str, np.ndarray]
    design: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    answers: bytes = b""
    is_new: bool = False

    @property
    def best(self) -> dict[str, np.ndarray]:
        """The varying part of the best design so far, by name."""
        prefix = "best.varying"
        found = {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}
        return {name.removeprefix(".") or "(root)": array for name, array in found.items()}


def encode_checkpoint(
    checkpoint: Checkpoint,
    identity: str = "",
    history: bytes = b"",
    link: Link | None = None,
    answers: AnswersLink | None = None,
) -> bytes:
    """The checkpoint as bytes.

    Args:
        identity: the digest of the run's identity.
        history: `History.end`.
        link: to what came before.
        answers: to those that the driver's library was given up to this step.
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
        "before": None if link is None else dataclasses.asdict(link),
        "arrays": _described(state),
        "design": _described(design),
    }
    if answers is not None:
        header["answers"] = dataclasses.asdict(answers)
    header["sha256"] = _digest(header, payload)
    return json.dumps(header).encode() + b"\n" + payload


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """What a file held: the checkpoint, whose it is, and the history up to its step.

    Attributes:
        run: `None` in a file of an old version.
        records: the last ones.
        link: to those before.
        answers: to those of the driver's library.
    """

    checkpoint: Checkpoint
    run: str | None
    records: Sequence[Mapping[str, Any]]
    link: Link | None = None
    answers: AnswersLink | None = None


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
    if version not in (_OLD_VERSION, _WHOLE_VERSION, _VERSION):
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
        link = Link("", header["step"] + 1, header["history_length"], header["history_sha256"])
        return Decoded(Checkpoint(header["step"], arrays), None, (), link)
    design, offset = _arrays(header["design"], payload, offset)
    if len(payload) - offset != header["history"]:
        raise Damaged("its history is not whole")
    link = None if header.get("before") is None else Link(**header["before"])
    answers = None if header.get("answers") is None else AnswersLink(**header["answers"])
    checkpoint = Checkpoint(header["step"], arrays, design)
    return Decoded(checkpoint, header["run"], records_of(payload[offset:]), link, answers)


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
