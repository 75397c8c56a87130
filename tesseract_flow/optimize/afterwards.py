"""What a journal tells whoever reads it later: what the problem was called and made of, and how the run ended.

Two files beside the steps: `about.json` with its arrays in `about.bin`, written when a run begins or goes on, and
`outcome.json`, written when it ends, however it ends. With the last checkpoint they make a `Result` again
(`read_journal`), without the problem, and while the run is still going. Where they are missing, it is told as much as
the checkpoint knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from tesseract_flow.autodiff.carried import Left
from tesseract_flow.errors import TesseractFlowError
from tesseract_flow.optimize.activity import Activity
from tesseract_flow.optimize.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from tesseract_flow.optimize.contents import Contents, read_attached, read_contents
from tesseract_flow.optimize.history import Damaged
from tesseract_flow.optimize.journal import AbstractJournal, FileJournal
from tesseract_flow.optimize.optimality import best_record, optimality_of
from tesseract_flow.optimize.partition import leaf_names, named_leaves, path_name
from tesseract_flow.optimize.problem import Evaluation
from tesseract_flow.optimize.result import Result, StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.storage import without_secrets

_ABOUT, _ARRAYS, _OUTCOME = "about.json", "about.bin", "outcome.json"


# -- writing


def describe(journal: AbstractJournal, run: Run) -> None:
    """Write down what a reader needs beside the steps. How an earlier run of the journal ended no longer counts."""
    partition = run.problem.partition
    varying = set(leaf_names(partition.varying))
    parts: list[tuple[str, str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    # None is an empty node to JAX, but to the reader of a report it is a setting.
    for path, leaf in jtu.tree_flatten_with_path(run.problem.design, is_leaf=lambda x: x is None)[0]:
        name = path_name(path)
        if name in varying:
            parts.append((name, "varying", None))
        elif _is_plain_array(leaf):
            parts.append((name, "fixed", None))
            arrays[name] = np.asarray(leaf)
        else:
            parts.append((name, "static", without_secrets(_plain(leaf), name)))
    about = {
        "problem": run.problem.name,
        "tolerance": run.tolerance,
        "design": parts,
        "evaluation": [
            name for name, leaf in named_leaves(run.evaluator.template) if isinstance(leaf, jax.ShapeDtypeStruct)
        ],
        # A constraint with two limits of different magnitude is two demands; see `ConstraintSet`.
        "demands": [
            [
                key,
                name,
                np.asarray(run.constraints.size[key]).tolist(),
                np.asarray(run.constraints.is_zero[key]).tolist(),
            ]
            for key, name in run.constraints.names.items()
        ],
    }
    start = {name: np.asarray(leaf) for name, leaf in named_leaves(run.problem.start)}
    journal.attach(_OUTCOME, b"null")
    journal.attach(_ARRAYS, encode_checkpoint(Checkpoint(0, arrays, start)))
    journal.attach(_ABOUT, json.dumps(about, ensure_ascii=False).encode())


def conclude(journal: AbstractJournal, result: Result) -> None:
    """Write down how the run ended."""
    _write_outcome(
        journal,
        step=result.steps,
        reason=result.reason,
        converged=result.converged,
        tolerance=result.optimality.tolerance if result.optimality else None,
        notes=list(result.notes),
        multipliers={name: np.asarray(value).tolist() for name, value in result.multipliers.items()},
        active=None if result.active is None else result.active.to_json(),
        evaluations=result.evaluations,
        requests=result.requests,
    )


def interrupt(journal: AbstractJournal, step: int, error: BaseException) -> None:
    """Write down that the run ended early, and why. The finished steps are safe, whether this can be written or not."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, Exception):
        reason = f"ended by an error: {text or type(error).__name__}"
    else:
        reason = f"interrupted ({type(error).__name__})"
    with contextlib.suppress(TesseractFlowError):
        _write_outcome(journal, step=step, reason=reason, converged=False)


def _write_outcome(journal: AbstractJournal, **outcome: Any) -> None:
    journal.attach(_OUTCOME, json.dumps(without_secrets(outcome), ensure_ascii=False).encode())


def _is_plain_array(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return False
    return (eqx.is_array(leaf) or isinstance(leaf, np.generic | np.ndarray)) and not np.asarray(leaf).dtype.hasobject


def _plain(leaf: Any) -> Any:
    return leaf if leaf is None or isinstance(leaf, bool | int | float | str) else repr(leaf)


# -- reading


@dataclasses.dataclass(frozen=True, eq=False)
class Account:
    """What a journal has to tell.

    Attributes:
        result: as of the last finished step. Its design is a dictionary by leaf name (or the array, if the design is
            one), and so is the `aux` of its evaluation.
        problem: the problem's name.
        start: the design that the run started from, in the same form.
    """

    result: Result
    problem: str
    start: Any


def read_journal(journal: FileJournal | str | os.PathLike[str]) -> Result:
    """The result of a run as its journal has it: of one that is finished, that ended early, or that is still going.

    Takes no lock and changes nothing. The design is a dictionary by leaf name (`mesh.knots.[0]`), or the array where
    the design is one.

    Raises:
        JournalError: there is no journal, or nothing in it can be read.
    """
    return read_account(journal).result


def read_account(journal: FileJournal | str | os.PathLike[str]) -> Account:
    """The same, with what a report says besides.

    Raises:
        JournalError: there is no journal, or nothing in it can be read.
    """
    contents = read_contents(journal)
    about = _json(read_attached(journal, _ABOUT))
    outcome = _json(read_attached(journal, _OUTCOME))
    arrays, start = _kept_arrays(read_attached(journal, _ARRAYS))
    history = tuple(StepRecord.from_json(fields) for fields in contents.history)
    # A run that is interrupted between a checkpoint and what follows it counts one step less than there are. An end
    # beyond what can still be read, and success at another design, are not told.
    end = outcome.get("step", contents.step)
    if end > contents.step or (end < contents.step and outcome.get("converged")):
        outcome = {}
    evaluation = _evaluation(contents, about, history)
    result = Result(
        design=_design(about, contents.best or start, arrays),
        value=float(np.asarray(evaluation.objective)),
        reason=outcome.get("reason") or _unfinished(contents),
        converged=bool(outcome.get("converged", False)),
        steps=max(contents.step, history[-1].step if history else 0),
        constraints=dict(evaluation.constraints),
        multipliers=_multipliers(contents, about, outcome),
        violation=_violation(history),
        feasible=bool(history and history[-1].best_feasible),
        history=history,
        evaluations=outcome.get("evaluations", history[-1].evaluations if history else 0),
        requests=outcome.get("requests", history[-1].requests if history else 0),
        seconds=history[-1].seconds if history else 0.0,
        evaluation=evaluation,
        notes=tuple(outcome.get("notes", ())) or contents.notes,
        optimality=optimality_of(
            best_record(history) if history else None, outcome.get("tolerance", about.get("tolerance"))
        ),
        active=Activity.from_json(outcome["active"]) if outcome.get("active") else None,
    )
    name = about.get("problem") or (contents.identity or {}).get("problem") or "problem"
    return Account(result, str(name), _design(about, start, arrays))


def _unfinished(contents: Contents) -> str:
    if contents.step < 0 and contents.history:
        return "the checkpoints are gone: values are those of the history, and the design is the start"
    if contents.step < 0:
        return "not finished: no step so far"
    return f"not finished: the last step so far is {contents.step}"


def _violation(history: tuple[StepRecord, ...]) -> float:
    """That of the best design, which some step found."""
    if not history:
        return 0.0
    found = [record.violation for record in history if record.step == history[-1].best_step]
    return found[0] if found else history[-1].violation


def _design(about: Mapping[str, Any], varying: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray]) -> Any:
    parts = about.get("design") or [(name, "varying", None) for name in varying]
    design = {}
    for name, kind, value in parts:
        known = varying if kind == "varying" else fixed
        design[name] = value if kind == "static" else known.get(name)
    return next(iter(design.values())) if list(design) == ["(root)"] else design


def _evaluation(contents: Contents, about: Mapping[str, Any], history: tuple[StepRecord, ...]) -> Evaluation:
    """That of the best design. Its arrays are in the checkpoint in order; their names are in `about`."""
    objective = np.asarray(history[-1].best_value if history else np.nan)
    constraints: dict[str, Any] = {}
    aux: dict[str, Any] = {}
    misfit: dict[str, Any] = {}
    coupled: dict[str, Any] = {}
    names = about.get("evaluation", ())
    kept = contents.checkpoint.arrays if contents.checkpoint else {}
    for k, name in enumerate(names):
        array = kept.get(f"best.leaves.[{k}]")
        kind, _, rest = name.partition(".")
        if array is None:
            continue
        if kind == "objective":
            objective = array
        elif kind == "constraints":
            constraints[rest] = array
        elif kind == "misfit":
            misfit[rest or kind] = array
        elif kind == "coupled":
            name, _, part = rest.rpartition(".")
            coupled.setdefault(name, {})[part] = array
        else:
            aux[rest or kind] = array
    lefts = {name: Left(**parts) for name, parts in coupled.items() if len(parts) == len(Left._fields)}
    return Evaluation(objective, constraints, aux or None, misfit or None, lefts)  # type: ignore[arg-type]


def _multipliers(contents: Contents, about: Mapping[str, Any], outcome: Mapping[str, Any]) -> dict[str, Any]:
    if "multipliers" in outcome:
        return {name: np.asarray(value) for name, value in outcome["multipliers"].items()}
    kept = contents.checkpoint.arrays if contents.checkpoint else {}
    found: dict[str, Any] = {}
    for key, name, size, is_zero in about.get("demands", ()):
        price = kept.get(f"duals.price.{key}")
        if price is not None:
            measure = np.where(np.asarray(is_zero), np.asarray(size) * kept.get(f"duals.unit.{key}", 1.0), size)
            found[name] = found.get(name, 0.0) + price * kept["objective_scale"] / measure
    return found


def _json(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data) if data is not None else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _kept_arrays(data: bytes | None) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
    """What does not vary, and the start."""
    if data is None:
        return {}, {}
    try:
        kept = decode_checkpoint(data).checkpoint
    except Damaged:
        return {}, {}
    return kept.arrays, kept.design
