"""What a driver's library was told, as a journal keeps it: a file per step, each knowing the one before.

A library that keeps its state in its own frames is taken up again by telling it the same once more
(`drivers.library`). Files are written once, before the checkpoint that knows them, with their digests, so what is read
back is what was written or nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator

from tesseract_flow.optimize.history import Damaged
from tesseract_flow.storage import AbstractStore

ANSWERS = re.compile(r"answers-\d{8,}(?:-\d{4,})?\.part")


@dataclasses.dataclass(frozen=True)
class AnswersLink:
    """The last file with answers up to some step."""

    part: str
    digest: str


def write_answers(
    store: AbstractStore, step: int, generation: int, answers: bytes, before: AnswersLink | None
) -> AnswersLink:
    """Keep the answers of a step."""
    name = f"answers-{step:08d}" + (f"-{generation:04d}" if generation else "") + ".part"
    head = {"before": None if before is None else dataclasses.asdict(before)}
    data = json.dumps(head).encode() + b"\n" + answers
    store.write(name, data)
    return AnswersLink(name, hashlib.sha256(data).hexdigest())


def read_answers(store: AbstractStore, link: AnswersLink | None) -> Iterator[bytes]:
    """The answers of each step that has some, the last one first.

    Raises:
        Damaged: a file is not what was once written.
        OSError: it cannot be read.
    """
    while link is not None:
        if not ANSWERS.fullmatch(link.part):
            raise Damaged(f"{link.part} is no file of answers")
        try:
            data = store.read(link.part)
        except FileNotFoundError as error:
            raise Damaged(f"{link.part} is not there") from error
        if hashlib.sha256(data).hexdigest() != link.digest:
            raise Damaged(f"{link.part} is damaged")
        head, _, answers = data.partition(b"\n")
        yield answers
        before = json.loads(head)["before"]
        link = None if before is None else AnswersLink(**before)
