"""What is looked at before a step is believed: its gradient, what is behind its violation, and that an optimum is one.

The looks themselves are in `contradictions`, `nearby` and `unmet`; here is which of them a record is due, and what it
then says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tesseract_flow.optimize import optimality
from tesseract_flow.optimize.contradictions import Contradiction, Verify, is_due, verify_claim, verify_gradient
from tesseract_flow.optimize.ends import comparable, tail
from tesseract_flow.optimize.nearby import honest_stationarity
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State
from tesseract_flow.optimize.stopping import FirstOrder, Infeasible
from tesseract_flow.optimize.totals import Totals
from tesseract_flow.optimize.unmet import held_by_its_start, held_by_tolerance, in_conflict, infeasible


def _unmet(run: Run, state: State, history: Sequence[StepRecord], record: StepRecord) -> str:
    """What is behind a violation, if it is in the way of an optimum, or does not go away."""
    if run.tolerance is not None and optimality.is_first_order(record, run.tolerance):
        unit = optimality.unit_of(record.value, record.slope or 0.0, run.evaluator.dtype)
        rows = run.engine.rows(run, state)
        held = held_by_tolerance(run, state, unit / float(state.objective_scale), rows)
        return held or held_by_its_start(run, state, rows)
    known = comparable(tail([*history, record], "stage"))
    if (rows := run.engine.rows(run, state)) is None:
        return infeasible(run, state, ()) if Infeasible().reason_to_stop(known) else ""
    names = [] if record.best_feasible else in_conflict(run, state, known, rows)
    return infeasible(run, state, names) if names else ""


def is_claim(run: Run, known: Sequence[StepRecord]) -> bool:
    """Whether the last of these records is about to be called an optimum."""
    return (
        run.tolerance is not None
        and run.stage.index == run.problem.stages[-1].index
        and known[-1].best_step == known[-1].step
        and FirstOrder(run.tolerance).is_met(known)
    )


def is_unseen_claim(run: Run, known: Sequence[StepRecord], verify: Verify) -> bool:
    """Whether the last of these records is about to be called an optimum, and nobody has looked at it as one: the
    tolerance was tighter, or values were not to be compared, when its step was made."""
    last = known[-1]
    if not is_claim(run, known):
        return False
    assert run.tolerance is not None
    seen = last.claimed is not None and last.claimed >= run.tolerance
    return not seen or (verify is not None and not last.verified)


def verified(
    run: Run,
    state: State,
    history: Sequence[StepRecord],
    record: StepRecord,
    totals: Totals,
    verify: Verify,
    found: Contradiction | None = None,
) -> StepRecord:
    """With what looks at the gradient find, and what they took; `found` before already, if anything was."""
    if is_claim(run, [*history, record]) and (left := honest_stationarity(run, state, record)) is not None:
        record = dataclasses.replace(record, stationarity=left)
    if found is None and is_due(verify, record.step):
        found = verify_gradient(run, state)
    if found is None and verify is not None and is_claim(run, [*history, record]):
        assert run.tolerance is not None
        unit = optimality.unit_of(record.value, record.slope or 0.0, run.evaluator.dtype)
        found = verify_claim(run, state, unit / float(state.objective_scale), run.tolerance)
    if is_claim(run, [*history, record]):
        record = dataclasses.replace(record, claimed=run.tolerance, verified=verify is not None)
    if run.has_constraints and (unmet := _unmet(run, state, history, record)):
        record = dataclasses.replace(record, unmet=unmet)
    if found is None:
        return dataclasses.replace(record, **totals())
    event = f"{found}: one of them is wrong"
    return dataclasses.replace(record, contradiction=str(found), events=(*record.events, event), **totals())
