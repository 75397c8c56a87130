"""The answers that a library was given, as bytes in a journal: a part for each step, which knows its leg."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from tesseract_flow.optimize.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from tesseract_flow.optimize.drivers.base import Answers
from tesseract_flow.optimize.drivers.conversation import Answer, Question


def encoded(leg: int, given: Sequence[tuple[Question, Answer]]) -> bytes:
    """The answers of a step."""
    arrays: dict[str, np.ndarray] = {}
    for k, (question, answer) in enumerate(given):
        arrays[f"{k}.{question.kind}.x"] = question.x
        for field in dataclasses.fields(answer):
            arrays[f"{k}.{question.kind}.{field.name}"] = np.asarray(getattr(answer, field.name))
    return encode_checkpoint(Checkpoint(leg, arrays))


def decoded(leg: int, answers: Answers) -> Iterator[tuple[Question, Answer]]:
    """The answers of one leg, the first one first.

    Raises:
        Damaged: a part of the journal is not what was written.
    """
    parts = []
    for data in answers():
        kept = decode_checkpoint(data).checkpoint
        if kept.step != leg:
            break
        parts.append(kept.arrays)
    for arrays in reversed(parts):
        heads = [name.removesuffix(".x") for name in arrays if name.endswith(".x")]
        for head in heads:
            value, *others = (arrays[f"{head}.{field.name}"] for field in dataclasses.fields(Answer))
            answer = Answer(float(value), *others)
            yield Question(head.partition(".")[2], arrays[f"{head}.x"]), answer  # type: ignore[arg-type]
