"""When a driver walks on the spot: steps that are no longer than what the values have of noise.

A library that owns its loop may not notice. Below the noise a trial is better or not by accident, so searches go on for
long, and each of them ends in a step that is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.stopping import AbstractStoppingRule

_SHORTEST = 1e-9  # a move, in units of the scaled design, and a relative change of the value, that may be noise
_MANY = 3  # evaluations per step: the driver has trouble
_LESS = 0.5  # of what is left of the gradient: that would be progress


class Resting(AbstractStoppingRule):
    """Stop where the last steps were no longer than the noise, and led nowhere.

    Over `patience` steps the design moved, and the value changed, by no more than a billionth, or than the residual to
    which fixed points were solved; what is left of the gradient did not halve, nor did the violation; and each step
    took several evaluations. Always in force; it is no success.
    """

    patience: int = 5
    means_success: ClassVar[bool] = False
    is_budget: ClassVar[bool] = False

    def reason_to_stop(self, history: Sequence[StepRecord]) -> str | None:
        if len(history) <= self.patience:
            return None
        before, *since = history[-self.patience - 1 :]
        residuals = [(left["residual"], name) for record in since for name, left in record.coupled.items()]
        residual, name = max(residuals, default=(0.0, ""))
        noise = max(_SHORTEST, residual)
        n_evaluations = since[-1].evaluations - before.evaluations
        moved = max(record.move for record in since)
        changed = max(abs(record.value - before.value) for record in since)
        if (
            moved > noise
            or changed > noise * abs(before.value)
            or n_evaluations < _MANY * self.patience
            or before.changes != since[-1].changes
            or min(record.stationarity or 0.0 for record in since) <= _LESS * (before.stationarity or 0.0)
            or (not before.feasible and min(record.violation for record in since) <= _LESS * before.violation)
        ):
            return None
        last = since[-1]
        above = (
            "above the tolerance"
            if last.feasible
            else f"where constraint {last.worst!r} is violated by {last.violation:.3g} of its limit"
        )
        reason = (
            f"the driver came to rest {above}: its last {self.patience} steps, of {n_evaluations} "
            f"evaluations, moved the design by {moved:.1g} and changed the value by {changed:.1g} at most"
        )
        if not last.feasible:
            return f"{reason}. The problem may be infeasible, or another driver (trust-constr, lbfgs) may find a way"
        reason += ", which is no more than its noise"
        if not name:
            return reason
        return (
            f"{reason}. Fixed point {name!r} is solved to a residual of {residual:.1g}, and its state is off by that "
            "times 1/|1 - gain|: a smaller rtol makes less noise"
        )
