"""What a study leaves: one `StudyRun` per run, ranked, with the best of them as a `Result`.

Ranks, optima and fronts are about values and designs alone, so they are the same in whatever order runs were asked for
or came to their end.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import EvaluationFailed, ProblemError, did_you_mean
from tesseract_flow.optimize import Problem, Result
from tesseract_flow.optimize.partition import named_leaves
from tesseract_flow.study.table import as_csv, as_parquet, as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["converged", "stopped", "failed", "waiting"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StudyRun:
    """One run of a study.

    Attributes:
        index: its place in the order that was asked for, from 0.
        key: what it is called; its folder is made of it.
        settings: of the factory, in a sweep.
        start: the design that it began with; `None` where there is no problem.
        result: what it found; `None` if it failed.
        error: the text of what it failed of.
        waits: why it has not begun; it does when the study is started again.
        requests: solves that it has asked for, over all its lives; of one that failed, in this one.
        sent: those of them that were asked for on this occasion, here or elsewhere.
        seconds: the same of time.
        journal: the address of its journal, if there is one.
        problem: what it was about.
    """

    index: int
    key: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)  # there may be secrets in it
    start: PyTree = None
    result: Result | None = None
    error: str | None = None
    waits: str | None = None
    requests: int = 0
    sent: int = 0
    seconds: float = 0.0
    journal: str | None = None
    problem: Problem | None = dataclasses.field(default=None, repr=False)

    @property
    def status(self) -> Status:
        """Whether it `converged`, `stopped` for another reason, `failed`, or is `waiting` to begin."""
        if self.result is None:
            return "failed" if self.waits is None else "waiting"
        return "converged" if self.result.converged else "stopped"

    @property
    def why(self) -> str:
        """The reason why it ended, or the error, in one line."""
        if self.result is None:
            return (self.waits or self.error or "").strip().partition("\n")[0]
        n = self.stages_left
        return self.result.reason + (f", before {n} of its {_n_stages(self.problem)} stages" if n else "")

    @property
    def stages_left(self) -> int:
        """How many stages of the problem, with other numbers or demands, the run has not come to."""
        n = _n_stages(self.problem)
        if n == 1 or self.result is None:
            return 0
        return max(0, n - 1 - self.result.history[-1].stage)

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """Smaller is better: feasible designs by value, then infeasible ones by violation, then failures.

        Values of different stages are of different functions: who has come further is ahead, whatever the value. Of
        equal values the converged one comes first, and then the design decides, so that the order of runs does not.
        """
        result = self.result
        if result is None or not math.isfinite(result.value):
            return (2, self.key)
        design = tuple(float(x) for x in self.varying)
        if result.feasible:
            return (0, self.stages_left, result.value, not result.converged, result.violation, design, self.key)
        return (1, self.stages_left, result.violation, result.value, not result.converged, design, self.key)

    @property
    def varying(self) -> np.ndarray:
        """What varies of its design, as one vector."""
        if self.result is None or self.problem is None:
            return np.zeros(0)
        names = {name for name, _ in named_leaves(self.problem.partition.varying)}
        return _flat([leaf for name, leaf in named_leaves(self.result.design) if name in names])


def _n_stages(problem: Problem | None) -> int:
    """How many stages a problem has."""
    return 1 if problem is None else len(problem.stages)


def _flat(leaves: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves] or [np.zeros(0)])


class AbstractStudy(abc.ABC):
    """Runs that belong together.

    Attributes:
        name: of the problem, or of the factory.
        runs: in the order that was asked for.
        notes: what one should know of the study as a whole.
        journal: the folder of the study, if there is one.
    """

    kind: str  # in words
    axes: str  # which columns its picture has beside the objective
    has_optima: bool = False

    def __init__(self, name: str, runs: Sequence[StudyRun], notes: Sequence[str] = (), journal: str | None = None):
        self.name = name
        self.runs = tuple(runs)
        self.notes = tuple(notes)
        self.journal = journal

    @property
    @abc.abstractmethod
    def optima(self) -> list[list[StudyRun]]:
        """Runs that ended at the same design, the best first; where that is a question."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name!r}: {self.summary}>"

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def requests(self) -> int:
        """Solves that all runs have asked for, over all lives of the study."""
        return sum(run.requests for run in self.runs)

    @property
    def sent(self) -> int:
        """Those of them that were asked for on this occasion: none where all runs were finished before."""
        return sum(run.sent for run in self.runs)

    @property
    def summary(self) -> str:
        """How many runs ended in which way."""
        counts = {status: sum(run.status == status for run in self.runs) for status in get_args(Status)}
        return f"{len(self.runs)} runs, " + ", ".join(f"{n} {status}" for status, n in counts.items() if n)

    @property
    def ranked(self) -> list[StudyRun]:
        """The best first: feasible designs by value, then infeasible ones by violation, then what failed.

        A design is as good as its value, whether its run converged or stopped; of equal ones the converged is first.
        """
        return sorted(self.runs, key=lambda run: run.sort_key)

    @property
    def best_run(self) -> StudyRun:
        """The run with the best design: of the feasible ones that of the least value; without any, the least violation.

        Raises:
            EvaluationFailed: no run has a design.
        """
        first = self.ranked[0]
        if first.result is None:
            raise EvaluationFailed(
                f"None of the {len(self.runs)} runs of {self.name!r} has a design; the first {first.status} of: "
                f"{first.why}\ntable() has the error of each."
            )
        return first

    @property
    def best(self) -> Result:
        """What the best run found.

        Raises:
            EvaluationFailed: no run has a design.
        """
        result = self.best_run.result
        assert result is not None
        return result

    def rows(self) -> list[dict[str, Any]]:
        """The runs as plain values, the best first; what `table`, `to_csv` and `to_parquet` show.

        Start and design are in it entry by entry where no more than 100 entries vary.
        """
        optimum_of = {id(run): k for k, group in enumerate(self.optima, start=1) for run in group}
        return [
            _row(rank, run, optimum_of.get(id(run)) if self.has_optima else _NO_QUESTION)
            for rank, run in enumerate(self.ranked, start=1)
        ]

    def table(self, limit: int | None = None) -> str:
        """The runs as text, the best first, at most `limit` of them."""
        title = f"{self.kind} of {self.name!r}: {self.summary}"
        if self.has_optima and self.optima:
            n = len(self.optima)
            title += f"; {n} {'optimum' if n == 1 else 'distinct optima'}"
        best = self.ranked[0].result
        if best is not None and not best.feasible:
            title += "; no feasible design"
        return as_text(f"{title}; {self.requests} requests", self.rows(), self.notes, limit)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as a file, whole or not at all; numbers read back as the same."""
        as_csv(path, self.rows())

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """The same as a Parquet file.

        Raises:
            OptionError: pyarrow is not installed (the extra `parquet`).
        """
        as_parquet(path, self.rows())

    def picture(self) -> Figure | None:
        """Parallel coordinates: settings or designs, and what came of each; `None` where no two runs differ."""
        from tesseract_flow.study.reporting import study_figure  # matplotlib, which the runs need not wait for

        return study_figure(self)

    def report(self, out: str | os.PathLike[str]) -> dict[str, str]:
        """Write the table as `runs.txt` and `runs.csv`, and the best run's files as `tf.report` does, with all runs on
        its page; their addresses by name.

        Args:
            out: a folder or URL.
        """
        from tesseract_flow.study.reporting import write_study

        return write_study(self, out)

    def pareto(self, objectives: Sequence[str], *, maximize: Sequence[str] = ()) -> list[StudyRun]:
        """The runs that no other one beats in all objectives at once, in order of the first.

        Of feasible designs of the last stage only, and of numbers only: where one is NaN or infinite, the run is left
        out. Runs that are
        equal in all of them are there together.

        Args:
            objectives: `"value"` for the objective, or names in `Evaluation.aux` (`"mass"`, `"flow.drag"`) or of
                constraints, each one number, to be as small as possible.
            maximize: those of them that should be as large as possible.

        Raises:
            ProblemError: a name that is not there, or that is not one number.
        """
        if isinstance(objectives, str) or not objectives:
            raise ProblemError(f'objectives are a list of names such as ["value", "mass"], received {objectives!r}.')
        if unknown := [name for name in maximize if name not in objectives]:
            raise ProblemError(f"maximize has {unknown[0]!r}, which is none of the objectives {list(objectives)}.")
        signs = np.array([-1.0 if name in maximize else 1.0 for name in objectives])
        runs, points = [], []
        for run in self.runs:
            if run.result is None or not run.result.feasible or run.stages_left:
                continue
            point = signs * [_number(run.result, name) for name in objectives]
            if np.isfinite(point).all():
                runs.append(run)
                points.append(point)
        front = [
            (tuple(point), run)
            for run, point in zip(runs, points, strict=True)
            if not any((other <= point).all() and (other < point).any() for other in points)
        ]
        return [run for _, run in sorted(front, key=lambda pair: (pair[0], pair[1].sort_key))]


class MultiStart(AbstractStudy):
    """Runs of one problem from several starts."""

    kind = "multi-start"
    axes = "design"
    has_optima = True

    @property
    def optima(self) -> list[list[StudyRun]]:
        """Runs that ended at the same design, the best first: the distinct optima that were found.

        Each has a run that converged at its head; others are beside it if they came as close. Close is within a
        thousandth of the range between bounds, of the scale where there are none, for every entry.
        """
        groups: list[list[StudyRun]] = []
        heads: list[np.ndarray] = []
        candidates = [run for run in self.ranked if run.result is not None and run.result.feasible]
        # Heads first, so that a run which stopped near an optimum belongs to it even if it is the better by a hair.
        for run in sorted(candidates, key=lambda run: run.status != "converged"):
            point = run.varying / _sizes(run)
            near = [k for k, head in enumerate(heads) if np.abs(point - head).max(initial=0.0) <= _CLOSE]
            if near:
                groups[near[0]].append(run)
            elif run.status == "converged":
                groups.append([run])
                heads.append(point)
        return groups


class Sweep(AbstractStudy):
    """Runs of the problems that a factory makes of several settings."""

    kind = "sweep"
    axes = "setting"

    @property
    def optima(self) -> list[list[StudyRun]]:
        """None: the runs are about different problems."""
        return []


_CLOSE = 1e-3
_NO_QUESTION = object()
_MOST_ENTRIES = 100


def _sizes(run: StudyRun) -> np.ndarray:
    """How large a difference is, per entry of what varies."""
    assert run.problem is not None
    box, scale = run.problem.box, run.problem.partition.scale
    lower, upper, size = (_flat(jax.tree.leaves(tree)) for tree in (box.lower, box.upper, scale))
    with np.errstate(over="ignore", invalid="ignore"):
        width = upper - lower
    return np.where(np.isfinite(width) & (width > 0), width, size)


def _number(result: Result, name: str) -> float:
    values: dict[str, Any] = {"value": result.value, **result.constraints}
    values |= {key: leaf for key, leaf in named_leaves(result.evaluation.aux) if key not in values}
    if name not in values:
        raise ProblemError(
            f"There is no {name!r} among what the runs found.{did_you_mean(name, values)}\n"
            f"There is: {', '.join(map(repr, values))}. What else counts is for evaluate to return in aux."
        )
    try:
        array = np.asarray(values[name], np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.size != 1:
        raise ProblemError(
            f"{name!r} is not one number, so it is no objective (shape {np.shape(values[name])}).\n"
            "Reduce it in evaluate, and return the number in aux."
        )
    return float(array.reshape(()))


def _row(rank: int, run: StudyRun, optimum: Any) -> dict[str, Any]:
    result = run.result
    row: dict[str, Any] = {"rank": rank, "run": run.index}
    row |= {_column("setting", name): value for name, value in run.settings.items()}
    row |= {
        "status": run.status,
        "value": None if result is None else result.value,
        "feasible": None if result is None else result.feasible,
        "violation": None if result is None else result.violation,
    }
    if optimum is not _NO_QUESTION:
        row["optimum"] = optimum
    row |= {
        "steps": None if result is None else result.steps,
        "evaluations": None if result is None else result.evaluations,
        "requests": run.requests,
        "seconds": run.seconds,
        "why": run.why,
        "error": run.error,
        "key": run.key,
        "journal": run.journal,
    }
    names = set() if run.problem is None else {name for name, _ in named_leaves(run.problem.partition.varying)}
    for what, tree in (("start", run.start), ("design", None if result is None else result.design)):
        leaves = [(name, np.asarray(leaf)) for name, leaf in named_leaves(tree) if name in names]
        if sum(leaf.size for _, leaf in leaves) <= _MOST_ENTRIES:
            for name, leaf in leaves:
                row |= {_column(what, name, index): float(leaf[index]) for index in np.ndindex(leaf.shape)}
    for name, value in ({} if result is None else result.constraints).items():
        array = np.asarray(value)
        if array.size <= _MOST_ENTRIES:
            row |= {_column("constraint", name, index): float(array[index]) for index in np.ndindex(array.shape)}
    return row


def _column(what: str, name: str, index: tuple[int, ...] = ()) -> str:
    shown = "" if name == "(root)" else f".{name}"
    return f"{what}{shown}" + (f"[{','.join(map(str, index))}]" if index else "")
