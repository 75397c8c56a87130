"""Going on: from a journal's last finished step, or from another journal's design.

Here is what has to be settled before the first new step. What the identities leave in doubt is decided by evaluating
the last finished point once more (`changes_at_last_point`). Changes that were accepted make a step of their own, in
which the design stays and is judged anew (`steps.reassess`). A run that starts from another one's design is a fresh run
with another start (`started_from`).
"""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import JournalError, OtherRun, ProblemError
from tesseract_flow.optimize.contents import read_contents
from tesseract_flow.optimize.contradictions import Verify
from tesseract_flow.optimize.journal import AbstractJournal, FileJournal, Resumption, refusal
from tesseract_flow.optimize.partition import leaf_names
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import Adapted, State, adapted, unpack
from tesseract_flow.optimize.steps import reassess, template_state
from tesseract_flow.optimize.totals import Totals
from tesseract_flow.storage import open_store, without_secrets

WhichDesign = Literal["best", "last"]
Address = str | os.PathLike[str]
StartFrom = Address | FileJournal | tuple[Address | FileJournal, WhichDesign]


# --- a fresh run from another one's design ----------------------------------------------------------------------------


def started_from(problem: Problem, start_from: StartFrom) -> tuple[Problem, str]:
    """The problem with its start taken from another journal, and a sentence about it.

    Leaves that do not vary stay the problem's own.

    Raises:
        JournalError: there is no such journal, or no finished step in it.
        ProblemError: its design has other leaves or other shapes.
    """
    source, which = start_from if isinstance(start_from, tuple) else (start_from, "best")
    if isinstance(source, str | os.PathLike) and str(source).endswith(".npz"):
        found, address = _design_in(source)
        return _starting_at(problem, found, address), f"started from the design in {address}"
    if which not in ("best", "last"):
        raise ProblemError(f"start_from: expected 'best' or 'last' beside the journal, received {which!r}.")
    contents = read_contents(source)
    if contents.checkpoint is None:
        raise JournalError(f"Journal {contents.address} has no finished step to start from.")
    found = contents.best if which == "best" else contents.last
    if which == "last" and not found:
        raise JournalError(
            f"Journal {contents.address} was written by a version that kept the last design in scaled units only.\n"
            "Start from its best design."
        )
    names = leaf_names(problem.partition.varying)
    if sorted(names) != sorted(found):
        raise ProblemError(
            f"Problem {problem.name!r} cannot start from journal {contents.address}: what varies here is "
            f"{', '.join(names)}, and there {', '.join(found) or 'nothing'}."
        )
    started = _starting_at(problem, found, f"journal {contents.address}")
    step = int(contents.checkpoint.arrays.get("best.step", contents.step)) if which == "best" else contents.step
    return (
        started,
        f"started from the {which} design (step {step}) of journal {contents.address}",
    )


def _starting_at(problem: Problem, found: Mapping[str, np.ndarray], where: str) -> Problem:
    leaves, treedef = jax.tree.flatten(problem.partition.varying)
    start = []
    for name, leaf in zip(leaf_names(problem.partition.varying), leaves, strict=True):
        if name not in found:
            raise ProblemError(
                f"Problem {problem.name!r} cannot start from {where}: there is no {name!r} there, which varies here."
            )
        if found[name].shape != leaf.shape:
            raise ProblemError(
                f"Problem {problem.name!r} cannot start from {where}: {name!r} has shape {leaf.shape} here, and "
                f"{found[name].shape} there."
            )
        start.append(jnp.asarray(found[name].astype(leaf.dtype)))
    return problem.starting_at(treedef.unflatten(start))


def _design_in(file: Address) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a `design.npz`, as a run leaves it or as it was written for a run; and what to call it."""
    folder, _, name = os.fspath(file).replace(os.sep, "/").rpartition("/")
    address = str(without_secrets(os.fspath(file)))
    try:
        with np.load(io.BytesIO(open_store(folder or ".").read(name)), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}, address
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ProblemError(f"The design in {address} cannot be read: {error}.") from error


# --- going on ---------------------------------------------------------------------------------------------------------


def go_on(
    run: Run,
    journal: AbstractJournal,
    resumed: Resumption,
    totals: Totals,
    *,
    recheck: bool,
    accept_changes: bool,
    verify: Verify = None,
) -> tuple[State, StepRecord | None, tuple[str, ...]]:
    """The state to go on from, a record if that took a step of its own, and notes.

    Raises:
        OtherRun: the last finished point is not what it was, and changes are not accepted.
    """
    last = StepRecord.from_json(resumed.history[-1])
    taken = _state_in(run, resumed)
    state = taken.state
    found: list[str] = []
    if not resumed.changes and (resumed.doubts or recheck):
        found = changes_at_last_point(run, resumed, state)
        if found and not accept_changes:
            why = f"evaluated again because of {'; '.join(resumed.doubts)}" if resumed.doubts else "evaluated again"
            raise OtherRun(refusal(journal.address, [*found, f"({why}; tolerance {_RTOL:g}, relative)"]), found)
    changes = (*resumed.changes, *found)
    journal.confirm(found)
    if changes:
        varying = _last_design(run, resumed, state)
        state, record = reassess(run, state, varying, last, totals, verify, unseen=taken.new)
        events = (*(f"changed and accepted: {line}" for line in changes), *_anew(run, taken))
        note = f"after step {last.step} the run went on in spite of these changes, which were accepted: "
        return state, dataclasses.replace(record, events=(*record.events, *events)), (note + "; ".join(changes),)
    if resumed.doubts or recheck:
        because = "; ".join(resumed.doubts) or "asked for"
        note = f"step {last.step} was evaluated again and is the same, before the run went on ({because})"
        return state, None, (note,)
    return state, None, ()


def _state_in(run: Run, resumed: Resumption) -> Adapted:
    """The state in a journal; where changes were accepted, as far as it fits.

    Raises:
        JournalError: it does not fit.
    """
    arrays, like = resumed.checkpoint.arrays, template_state(run)
    try:
        return Adapted(unpack(arrays, like))
    except JournalError:
        if not resumed.changes:
            raise
    return adapted(arrays, like)


def _anew(run: Run, taken: Adapted) -> list[str]:
    """What begins anew, in words."""
    names = dict.fromkeys(run.constraints.names[key] for key in sorted(taken.new))
    said = [f"multipliers begin anew ({', '.join(names)})"] if names else []
    return said if taken.has_memory else [*said, f"the memory of {run.driver.name} begins anew"]


def _last_design(run: Run, resumed: Resumption, state: State) -> Any:
    """In its own units: what is a scaled variable may have another scale now."""
    varying = run.varying_at(state.u)
    kept = resumed.checkpoint.design
    names = leaf_names(varying)
    if set(names) != set(kept):
        return varying
    leaves, treedef = jax.tree.flatten(varying)
    return treedef.unflatten(
        [jnp.asarray(kept[name].astype(leaf.dtype)) for name, leaf in zip(names, leaves, strict=True)]
    )


# Relative, in double and in single precision: far above what another version of a compiler does to the last digits, far
# below what a change of a problem is about. Near zero it is widened by what rounding leaves of the largest value that
# the run has seen, which is the second figure.
_RTOL, _ROUNDING = 1e-6, 1e-10
_RTOL_SINGLE, _ROUNDING_SINGLE = 1e-3, 1e-5


def changes_at_last_point(run: Run, resumed: Resumption, state: State) -> list[str]:
    """What is not the same when the last finished point is evaluated once more: objective, constraints, gradient.

    Raises:
        EvaluationFailed: it can no longer be evaluated.
    """
    run.attempts.begin(resumed.checkpoint.step, decisive="the last finished step, once more")
    # Of several fixed points, the one that it was.
    run.evaluator.begin_at(state.here.leaves, once_more=True)
    again = run.sample(state.u, state.weights)
    eps = float(jnp.finfo(run.evaluator.dtype).eps)
    rtol, rounding = (_RTOL, _ROUNDING) if eps < 1e-10 else (_RTOL_SINGLE, _ROUNDING_SINGLE)
    was, now = (run.evaluator.evaluation(sample.leaves) for sample in (state.here, again))
    history = [StepRecord.from_json(fields) for fields in resumed.history]
    scale = float(state.objective_scale)
    pairs: list[tuple[str, Any, Any, float]] = [
        ("objective", was.objective, now.objective, _largest([record.value for record in history])),
        *(
            (f"constraint {name!r}", was.constraints[name], now.constraints[name], _limit(run.problem, name))
            for name in sorted(run.problem.constraints or {})
        ),
    ]
    steepest = _largest([record.gradient_norm or 0.0 for record in history]) / scale
    names = leaf_names(state.here.gradient)
    for name, a, b in zip(names, jax.tree.leaves(state.here.gradient), jax.tree.leaves(again.gradient), strict=True):
        pairs.append((f"gradient with respect to {name!r}", a, b, steepest))
    lines = []
    for name, before, after, typical in pairs:
        a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
        tolerance = rtol * max(_largest(a), _largest(b)) + rounding * typical
        # Written so that NaN is a difference.
        if a.shape != b.shape or not (np.abs(a - b) <= tolerance).all():
            lines.append(f"{name} at step {resumed.checkpoint.step}: {_shown(a)} -> {_shown(b)}")
    return lines


def _largest(values: Sequence[float] | np.ndarray) -> float:
    finite = np.abs(np.asarray(values, np.float64))
    return float(finite[np.isfinite(finite)].max(initial=0.0))


def _limit(problem: Problem, name: str) -> float:
    """The size of what a constraint demands, or 1."""
    constraint = (problem.constraints or {})[name]
    given: Mapping[str, Any] = {field.name: getattr(constraint, field.name) for field in dataclasses.fields(constraint)}
    limits = [_largest(np.asarray(given[side])) for side in ("equals", "lower", "upper") if given.get(side) is not None]
    return max([limit for limit in limits if 0 < limit < 1e20], default=1.0)


def _shown(array: np.ndarray) -> str:
    return f"{float(array):.12g}" if array.size == 1 else f"norm {float(np.linalg.norm(array)):.12g}"
