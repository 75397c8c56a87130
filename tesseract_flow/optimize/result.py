"""What an optimisation leaves behind: one `StepRecord` per step, and a `Result` at the end.

Plain values only. Records are what stop rules look at and what a journal writes line by line, so everything in them
survives a round trip through JSON unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, PyTree

from tesseract_flow.optimize.activity import Activity
from tesseract_flow.optimize.optimality import Optimality
from tesseract_flow.optimize.problem import Evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One finished step. Step 0 is the start.

    Attributes:
        value: objective at this step's design.
        gradient_norm: max norm of the projected gradient of the Lagrangian (without constraints: of the objective), in
            units of objective per scaled design unit; `None` with a driver that asks for no gradients.
        violation: largest violation of a constraint, in units of the limit that is violated; 0 without constraints.
        residual: like `violation`, and also counts constraints whose price is not settled yet; 0 only at a solution.
        feasible: `violation` is within the tolerance of the run.
        best_value, best_step, best_feasible: the best design so far, and when it was found.
        move: largest change of a scaled variable since the step before.
        changes: how often multipliers have changed so far.
        evaluations: calls of the transformed value-and-gradient so far.
        requests: solves that the run has asked Tesseracts for so far, `apply` and derivatives.
        seconds: time spent so far, over all runs of this journal.
        failures: evaluations that failed so far.
        failed_in_a_row: how many of these since the last good one.
        stalled: the driver could not improve on this design, even after a restart.
        stationarity, complementarity: how far this design is from a first-order point, see `optimality`; `None` in
            journals that were written before there were figures, and without gradients.
        slope: the slope of the objective that the run had seen by then, which they are relative to, in units of
            objective per scaled design unit.
        steepness: the slope at this design alone: what the Lagrangian changes by if one entry moves by its own size.
        price: the largest multiplier of a constraint, in the same units as the objective.
        worst: the constraint with the largest violation, if there is one.
        doubt: why gradients of this run are not to be believed, as a sentence; found out at the start.
        since: from which step on the problem is what it is now; 0 unless changes were accepted.
        contradiction: what the gradient predicts and the values do not do; empty if they agree, or nobody looked.
        unmet: what is behind a violation here that further steps would not change, as a sentence; see `unmet`.
        endless: searches in a row, this step's included, that ran straight down as far as a search may go.
        claimed: the tolerance of the run in which this design was called an optimum, and was looked at as such.
        verified: whether values were compared with the gradient then.
        ending: in what words the driver's library came to its own end, where `stalled`.
        stage, phase: which of the stages and phases of the run this step is part of, from 0 on.
        scheduled: the numbers that held in this step, by name.
        coupled: by name of a fixed point, how it was reached at this design: `steps` of its solver, `rounds` through
            its components, and the relative `residual` that was left; under `vmap` the worst one, and all rounds.
        events: what happened on the way to this step that one should know, as sentences: evaluations that failed and
            what was done about it, changes of the problem that were accepted.
    """

    step: int
    value: float
    gradient_norm: float | None
    violation: float
    residual: float
    feasible: bool
    best_value: float
    best_step: int
    best_feasible: bool
    move: float
    changes: int
    evaluations: int
    requests: int
    seconds: float
    failures: int = 0
    failed_in_a_row: int = 0
    stalled: bool = False
    events: tuple[str, ...] = ()
    stationarity: float | None = None
    complementarity: float | None = None
    slope: float | None = None
    steepness: float | None = None
    price: float = 0.0
    worst: str | None = None
    doubt: str | None = None
    since: int = 0
    contradiction: str = ""
    unmet: str = ""
    endless: int = 0
    claimed: float | None = None
    verified: bool = False
    ending: str = ""
    stage: int = 0
    phase: int = 0
    scheduled: Mapping[str, float] = dataclasses.field(default_factory=dict)
    coupled: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        # Of a run in which nothing changes they say nothing.
        quiet = {"claimed": None, "verified": False, "stage": 0, "phase": 0, "scheduled": {}, "coupled": {}}
        return {name: value for name, value in fields.items() if quiet.get(name, ...) != value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> StepRecord:
        return cls(**{**fields, "events": tuple(fields.get("events", ()))})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The best design found, and how it was found.

    Attributes:
        design: the whole design tree, fixed parts included. Among feasible designs the one with the lowest Lagrangian
            (without constraints: objective); without a feasible one, the least violation.
        value: its objective.
        reason: why the search ended, as a sentence.
        converged: whether that reason is first-order optimality, measured at `design` itself. Every other reason to
            stop says nothing about the problem, however good the design may be.
        optimality: how far `design` is from a first-order point; `None` where that was not measured.
        steps: updates made, over all runs of the journal.
        constraints: values of all constraints that `evaluate` returned, at `design`.
        multipliers: λ in objective + λ·value: asking for ε more of a constraint's value changes the optimum by -λ·ε; 0
            where a constraint is slack.
        active: which entries of constraints and of leaves with bounds lie at a limit, at `design`; `None` for a run
            that has not ended.
        violation, feasible: of `design`.
        history: one record per step, step 0 included.
        evaluations, requests, seconds: totals over all runs of the journal.
        evaluation: what `evaluate` returned at `design`.
        notes: what else one should know, such as a start that was moved into the bounds.
    """

    design: PyTree
    value: float
    reason: str
    converged: bool
    steps: int
    constraints: dict[str, Array]
    multipliers: dict[str, Array]
    violation: float
    feasible: bool
    history: tuple[StepRecord, ...]
    evaluations: int
    requests: int
    seconds: float
    evaluation: Evaluation
    notes: tuple[str, ...] = ()
    optimality: Optimality | None = None
    active: Activity | None = None
