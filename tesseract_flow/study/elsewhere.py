"""Runs of a study that are made elsewhere: in another process, on another machine, by somebody's scheduler.

A run is its journal, wherever it is made. So whoever makes it is told what begins where and in which folder; the study
asks for runs that are not over, waits, and then reads each journal as it reads that of a run which was finished before:
held against the problem as it is here, and asking nothing of a solver.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tesseract_flow.errors import JournalError, OtherRun
from tesseract_flow.optimize import (
    AbstractJournal,
    Checkpoint,
    Problem,
    Result,
    Resumption,
    StepRecord,
    read_account,
    read_contents,
)
from tesseract_flow.optimize.ends import limits_of, stop_of
from tesseract_flow.optimize.identity import compare
from tesseract_flow.optimize.journal import refusal
from tesseract_flow.optimize.loop import optimize
from tesseract_flow.optimize.partition import leaf_names
from tesseract_flow.optimize.stopping import Until, rules_given


@dataclasses.dataclass(frozen=True, eq=False)
class Errand:
    """A run that is to be made.

    Attributes:
        index, key: as in `StudyRun`.
        problem: with the start that the run has.
        settings: of the factory, in a sweep.
        folder: of all runs; that of this one is the key's in there (`folder_name`), with its journal in `journal`.
        until: seconds since the epoch, before which it is to be over, to go on another time (`in_time`).
    """

    index: int
    key: str
    problem: Problem
    settings: Mapping[str, Any]
    folder: str
    until: float | None = None


class AbstractElsewhere(abc.ABC):
    """Who makes the runs of a study. Asked from several threads at once."""

    @abc.abstractmethod
    def run(self, errand: Errand, sleep: Callable[[float], None]) -> None:
        """Come back when the run is over, or raise what its row is to say.

        Args:
            sleep: how to wait; raises when the study ends, or its time is up. What is under way is then to be called
                off.
        """


def in_time(problem: Problem, options: Mapping[str, Any], until: float | None) -> Mapping[str, Any]:
    """Options of `optimize` by which a run stops in time before a moment (`Until`); the same where there is none."""
    if until is None:
        return options
    rules = rules_given(stop_of(problem, options.get("stop")), problem.partition.dtype)
    return {**options, "stop": [*rules, Until(until)]}


def is_over(address: str, problem: Problem, stop: Any) -> bool:
    """Whether the run of a journal has come to its end, by what is said of it (`stop`) and by its problem."""
    try:
        history = read_contents(address).history
    except JournalError:
        return False
    if not history:
        return False
    limits = limits_of(problem, stop_of(problem, stop))
    verdict = limits.verdict([StepRecord.from_json(fields) for fields in history])
    return verdict is not None and verdict.next is None


def requests_of(address: str) -> int:
    """How many solves the run of a journal has asked for in its finished steps."""
    try:
        history = read_contents(address).history
    except JournalError:
        return 0
    return StepRecord.from_json(history[-1]).requests if history else 0


def identity_here(problem: Problem, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run of `optimize` would write into its journal about what it is. Traces, and runs nothing."""
    probe = _Probe()
    with contextlib.suppress(_Known):
        optimize(problem, **{**options, "journal": probe})
    return probe.identity


def result_of(address: str, problem: Problem, identity: Mapping[str, Any]) -> Result:
    """What the run of a journal has found, if it is one of this identity.

    Raises:
        OtherRun: it is about something else.
        JournalError: it has no finished step.
    """
    contents = read_contents(address)
    changes = compare(contents.identity or {}, identity).changes
    if changes:
        raise OtherRun(refusal(contents.address, changes), changes)
    found = read_account(address).result
    named = found.design if isinstance(found.design, dict) else {"(root)": found.design}
    leaves, treedef = jax.tree.flatten(problem.partition.varying)
    names = leaf_names(problem.partition.varying)
    varying = [jnp.asarray(named[name], leaf.dtype) for name, leaf in zip(names, leaves, strict=True)]
    return dataclasses.replace(found, design=problem.partition.combine(treedef.unflatten(varying)))


class _Known(Exception):
    pass


class _Probe(AbstractJournal):
    """A journal that learns what a run is, and lets none begin."""

    identity: Mapping[str, Any]

    @property
    def address(self) -> str:
        return "nowhere"

    def open(self, identity: Mapping[str, Any], *, accept_changes: bool = False) -> Resumption | None:
        self.identity = json.loads(json.dumps(identity))
        raise _Known

    def confirm(self, changes: Sequence[str] = ()) -> None:
        raise AssertionError("a run that must not begin")

    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        raise AssertionError("a run that must not begin")

    def attach(self, name: str, data: bytes) -> None:
        raise AssertionError("a run that must not begin")

    def close(self) -> None:
        return None
