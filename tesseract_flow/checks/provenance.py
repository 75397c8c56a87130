"""Whose answers the numbers of a run are made of.

The numbers of its best design are computed once more, from kept answers alone, and each answer on the way is noted. So
the list is no log that one has to believe: what is in it gives these numbers, and nothing else does.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.checks.recording import Traced
from tesseract_flow.client import AbstractTesseract, DirectoryCache, Endpoint, Tree
from tesseract_flow.client.caches.archive import origin
from tesseract_flow.client.caches.components import Component
from tesseract_flow.client.handles.cached import CachedTesseract
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.errors import JournalError, NotRecorded
from tesseract_flow.optimize import FileJournal, Problem, read_journal
from tesseract_flow.optimize.problem import as_evaluation
from tesseract_flow.optimize.resuming import started_from

_ROUNDING = 1e-12  # relative; the program is another one than that of the run, which had derivatives in it


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What `provenance` found.

    Attributes:
        problem: its name.
        step: of the run, at which its best design was found.
        numbers: by name what the run says and what the answers give, as arrays.
        answers: each kept answer on the way, with its component (name, version, schema, build), endpoint, whom was
            asked, when, and how long it took.
    """

    problem: str
    step: int
    numbers: Mapping[str, tuple[np.ndarray, np.ndarray]]
    answers: tuple[Mapping[str, Any], ...]

    @property
    def differing(self) -> list[str]:
        """Numbers of the run that the answers do not give."""
        return [
            name
            for name, (said, found) in self.numbers.items()
            if said.shape != found.shape
            or not np.allclose(said, found, rtol=_rounding(found), atol=0.0, equal_nan=True)
        ]

    @property
    def ok(self) -> bool:
        return not self.differing

    @property
    def headline(self) -> str:
        """The outcome as a sentence."""
        n = len(self.answers)
        of = f"of problem {self.problem!r}, step {self.step}"
        if self.ok:
            return f"All {len(self.numbers)} numbers {of}, are made of {n} kept answer{'' if n == 1 else 's'}."
        return f"Kept answers do not give {', '.join(map(repr, self.differing))} {of}: components or code have changed."

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return {
            "ok": self.ok,
            "headline": self.headline,
            "step": self.step,
            "numbers": {name: [said.tolist(), found.tolist()] for name, (said, found) in self.numbers.items()},
            "answers": [dict(row) for row in self.answers],
        }


def _rounding(array: np.ndarray) -> float:
    return max(_ROUNDING, 100.0 * float(jnp.finfo(array.dtype).eps)) if array.dtype.kind == "f" else 0.0


def provenance(problem: Problem, journal: FileJournal | str | os.PathLike[str]) -> Provenance:
    """Objective, constraints and misfit of a run's best design, from the answers in the folders of its components.

    Sends questions for shapes, and no other: `open_tesseract(..., cache=tf.DirectoryCache(folder))` says where answers
    are. They are those of values; gradients are not computed again.

    Args:
        problem: that of the run.
        journal: folder or URL of the run.

    Raises:
        NotRecorded: a component keeps no answers in a folder, or none to a question that these numbers take.
        JournalError: there is no such journal, or no finished step in it.
    """
    result = read_journal(journal)
    if not result.history:
        raise JournalError("The run has no finished step, so no numbers either.")
    best = next(
        (record for record in result.history if record.step == result.history[-1].best_step), result.history[-1]
    )
    problem, _ = started_from(problem, (journal, "best"))
    scheduled = {
        **problem.scheduled(),
        **{k: jnp.asarray(v, problem.partition.dtype) for k, v in best.scheduled.items()},
    }
    demanded = sorted(problem.constraints or {})

    def numbers(varying: Any, scheduled: Mapping[str, Any]) -> dict[str, Any]:
        evaluation = as_evaluation(problem.answer(problem.partition.combine(varying), scheduled))
        return {"objective": evaluation.objective, **{name: evaluation.constraints[name] for name in demanded}}

    varying = problem.partition.varying
    kept: dict[str, Mapping[str, Any]] = {}
    found = Traced(numbers, varying, scheduled).through(_from(kept), varying, scheduled)
    said = {"objective": np.asarray(result.value), **{k: np.asarray(result.constraints[k]) for k in demanded}}
    pairs = {name: (said[name], np.asarray(value)) for name, value in jax.device_get(found).items()}
    return Provenance(problem.name, best.step, pairs, tuple(kept[name] for name in sorted(kept)))


def _from(kept: dict[str, Mapping[str, Any]]) -> Callable[[AbstractTesseract], AbstractTesseract]:
    """Handle -> one that answers from its folder and nowhere else."""

    def swap(handle: AbstractTesseract) -> AbstractTesseract:
        if isinstance(handle, CachedTesseract) and isinstance(handle.cache, DirectoryCache):
            return _Kept(handle, handle.cache, kept)
        if isinstance(handle, AbstractWrapper):
            return dataclasses.replace(handle, tesseract=swap(handle.tesseract))  # type: ignore[type-var]
        raise NotRecorded(
            f"Tesseract {handle.name!r} keeps no answers in a folder, so its part in these numbers cannot be told.\n"
            "Open it with cache=tf.DirectoryCache(folder) for the run.",
            tesseract=handle.name,
        )

    return swap


@dataclasses.dataclass(frozen=True)
class _Kept(AbstractWrapper):
    """Answers from a folder, noted by the name of their file. Equal if the handles are."""

    tesseract: CachedTesseract
    cache: DirectoryCache = dataclasses.field(compare=False, repr=False)
    kept: dict[str, Mapping[str, Any]] = dataclasses.field(compare=False, repr=False)

    @functools.cached_property
    def _components(self) -> list[Component]:
        return self.cache.components()

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        key = self.tesseract.key_of(endpoint, payload)
        found = None if key is None else self.cache.entry(key)
        if found is None or isinstance(found[1].answer, Exception):
            raise NotRecorded(
                f"{self.cache.path} has no answer to a question to {endpoint!r} of Tesseract {self.tesseract.name!r} "
                "that these numbers take. It made room for others, the run kept its answers elsewhere, or the "
                "component or the problem is another one now.",
                tesseract=self.tesseract.name,
                endpoint=endpoint,
            )
        file, entry = found
        self.kept[file.name] = origin(file, entry, self._components)
        return entry.answer
