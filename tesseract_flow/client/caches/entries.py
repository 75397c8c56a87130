"""The files of one kept answer: JSON that people can read and compare, and beside it the long arrays as they are.

Here: their names, how they are written and read. Not here: the folder (`directory`). The one idea: an entry is believed
only if its checksum and the whole question in it are right. Everything else is none, and never a wrong answer.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tesseract_flow import errors
from tesseract_flow.client.base import Tree
from tesseract_flow.client.caches.base import Origin, RequestKey
from tesseract_flow.errors import CallError
from tesseract_flow.exact import texts
from tesseract_flow.storage import slug

FORMAT = "answer of a Tesseract, 2"
_ALIGNMENT = 16
_LONGEST_NAME = 40
NAME = re.compile(r"(?P<stem>[a-z0-9-]{1,40}\.[a-z_]{1,40}\.[0-9a-f]{32})\.json")
ARRAYS = re.compile(r"(?P<stem>[a-z0-9-]{1,40}\.[a-z_]{1,40}\.[0-9a-f]{32})\.[0-9a-f]{16}\.arrays")
# What a component said of one question, and would say again.
_FAILURES = ("ComponentFailed", "InvalidInput", "InvalidType", "InvalidAnswer", "NonFiniteAnswer", "CallTimeout")


def stem_of(key: RequestKey) -> str:
    """The name of the entry's files, without what follows the last dot: who was asked what, and a digest."""
    question: Any = key.question.tree
    return f"{short(question['component'][0])}.{question['endpoint']}.{key.digest.hex()[:32]}"


def short(name: str) -> str:
    return slug(name)[:_LONGEST_NAME].strip("-") or "tesseract"


def is_failure(error: CallError) -> bool:
    """Whether the error is an answer: what the component, or our look at its answer, said of this question alone."""
    return type(error).__name__ in _FAILURES


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry as it was read.

    Attributes:
        question: component, endpoint and payload, as a tree.
        answer: a tree, or the error that came instead.
        origin: who was asked, when, and how long it took.
        checksum: of all this.
    """

    question: Mapping[str, Any]
    answer: Tree | CallError
    origin: Origin
    checksum: str


def write_entry(key: RequestKey, answer: Tree | CallError, origin: Origin) -> tuple[bytes, str, bytes]:
    """The text of an entry, the name of the file of its arrays, and their bytes; both empty if there are none.

    Raises:
        TypeError: the answer has a leaf that cannot be written, such as an enumeration.
    """
    pieces = _Pieces()
    node: dict[str, Any] = {"format": FORMAT, "question": texts.write(key.question.tree, pieces.place)}
    if isinstance(answer, CallError):
        node["failure"] = _failure(answer)
    else:
        node["answer"] = texts.write(answer, pieces.place, to_come_back=True)
    node["asked"] = {"whom": origin.whom, "at": _time(origin.at), "seconds": origin.seconds}
    node["n_bytes_beside"] = pieces.n_bytes
    arrays = b"".join(pieces.parts)
    node["checksum"] = checksum = _checksum(node, arrays)
    text = texts.laid_out(node).encode("ascii") + b"\n"
    return text, f"{stem_of(key)}.{checksum[:16]}.arrays" if arrays else "", arrays


def read_entry(text: bytes, beside: Callable[[str, int], bytearray], stem: str, key: RequestKey | None = None) -> Entry:
    """The entry in a text, with arrays that are the caller's.

    Args:
        beside: (name, bytes that it should have) → content of a file.
        stem: of the name of this one.
        key: the question that it must answer; None takes any.

    Raises:
        ValueError: it is damaged, or the answer to something else.
    """
    node = parsed(text)
    checksum = node.pop("checksum", "")
    asked = _Pieces()
    if key is not None:
        question = texts.compact(texts.write(key.question.tree, asked.place))
        if question != texts.compact(node.get("question")):
            raise ValueError("it answers another question")
    try:
        n_bytes = node["n_bytes_beside"]
        arrays = beside(f"{stem}.{checksum[:16]}.arrays", n_bytes) if n_bytes else bytearray()
        if len(arrays) != n_bytes:
            raise ValueError("its length is wrong")
        if _checksum(node, arrays) != checksum:
            raise ValueError("its checksum is wrong")
        if not asked.begins(arrays):
            raise ValueError("it answers another question")
        take = _taker(arrays)
        question = texts.read(node["question"], take)
        answer = _error(node["failure"]) if "failure" in node else texts.read(node["answer"], take)
        asked_of = node["asked"]
        origin = Origin(str(asked_of["whom"]), _seconds(asked_of["at"]), float(asked_of["seconds"]))
    except FileNotFoundError as error:
        raise ValueError("the file of its arrays is not there") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is no entry of this cache ({error!r})") from error
    return Entry(question, answer, origin, checksum)


def parsed(text: bytes) -> dict[str, Any]:
    """The text of an entry as JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        node = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ValueError("it is cut off, or no entry of this cache") from error
    if not isinstance(node, dict) or node.get("format") != FORMAT:
        raise ValueError("it is no entry of this cache")
    return node


class _Pieces:
    """Long arrays, one after the other."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.n_bytes = 0

    def place(self, array: np.ndarray) -> int:
        padding = -self.n_bytes % _ALIGNMENT
        at = self.n_bytes + padding
        self.parts += [bytes(padding), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
        self.n_bytes = at + array.nbytes
        return at

    def begins(self, arrays: bytearray) -> bool:
        """Whether `arrays` begins with them; piece by piece, as fresh memory takes longer than the comparison."""
        view, start = memoryview(arrays), 0
        for part in self.parts:
            if view[start : start + len(part)] != part:
                return False
            start += len(part)
        return True


def _taker(arrays: bytearray) -> texts.Take:
    def take(dtype: np.dtype, shape: tuple[int, ...], at: int) -> np.ndarray:
        size = math.prod(shape)
        if not isinstance(at, int) or at < 0 or at % _ALIGNMENT or at + size * dtype.itemsize > len(arrays):
            raise ValueError("an array that is not there")
        return np.frombuffer(arrays, dtype, size, at).reshape(shape)

    return take


def _checksum(node: Mapping[str, Any], arrays: bytes | bytearray) -> str:
    checksum = hashlib.sha256(texts.compact(node))
    checksum.update(arrays)
    return checksum.hexdigest()


def _failure(error: CallError) -> dict[str, Any]:
    faults = [[fault.path, fault.message, fault.kind] for fault in getattr(error, "faults", ())]
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "endpoint": error.endpoint,
        "tesseract": error.tesseract,
        **({"faults": faults} if faults else {}),
    }


def _error(node: Mapping[str, Any]) -> CallError:
    if node["kind"] not in _FAILURES:
        raise ValueError(f"it has a failure of unknown kind {node['kind']!r}")
    options: dict[str, Any] = {"tesseract": node["tesseract"], "endpoint": node["endpoint"]}
    if "faults" in node:
        options["faults"] = [errors.Fault(*fault) for fault in node["faults"]]
    return getattr(errors, node["kind"])(node["message"], **options)


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
