"""Whether a design next to one that is about to be called an optimum is better.

What is left of a gradient is compared with the objective, but with no less than a small part of the slope that the run
has seen: objectives that fall to zero could not converge else. A run that began far up a wall has seen slopes beside
which the whole of what there is to win is nothing: `cosh(20 (x - 1))` from 3, or one direction 1e12 times as steep as
another. Gradients cannot tell the two apart, and values can: where the claim rests on the slope that was seen, a few
designs further down are looked at.
"""

from __future__ import annotations

import numpy as np

from tesseract_flow.errors import EvaluationFailed
from tesseract_flow.optimize.failures import evaluated, is_of_the_design
from tesseract_flow.optimize.optimality import unit_of
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State
from tesseract_flow.optimize.vicinity import Vicinity, largest

_DISTANCES = (1.0, 1e-2, 1e-4)  # of each entry's own size: less is as close as an objective that falls to zero comes
_LEGIBLE = 1e3  # roundings of the value
_ALIKE = 0.5  # of the steepest entry
_NOTHING = 1e-22  # of the slope that was seen: what is won by going from almost zero to zero


def honest_stationarity(run: Run, state: State, record: StepRecord) -> float | None:
    """What is left of the gradient relative to the objective itself, if a better design was found nearby; None if there
    is none, or if the claim does not rest on a slope that was seen elsewhere. Up to three evaluations."""
    assert run.tolerance is not None and record.stationarity is not None
    seen = record.slope or 0.0
    unit, size = unit_of(record.value, seen, run.evaluator.dtype), abs(record.value)
    if record.stationarity * unit <= run.tolerance * size:
        return None
    vicinity = Vicinity(state.u, run.box, state.here, lambda u: None, run.evaluator.dtype)
    free = vicinity.slopes_of(run.box.projected_gradient(state.u, state.here.gradient))
    steepest = largest(free)
    if not 0 < steepest < np.inf:
        return None
    # What is small beside the steepest may be all that rounding leaves of a direction that is steeper by far.
    free = np.where(np.abs(free) >= _ALIKE * steepest, free, 0.0)
    enough = max(run.tolerance * size, _LEGIBLE * vicinity.eps * size, _NOTHING * seen)
    for distance in _DISTANCES:
        found = _at(run, state, vicinity, -distance / steepest * free)
        if found is not None and found < record.value - enough:
            return record.stationarity * unit / max(size, _NOTHING * seen)
    return None


def _at(run: Run, state: State, vicinity: Vicinity, step: np.ndarray) -> float | None:
    """The objective a step away, as far as the bounds let it go; None where it fails, or is infeasible."""
    u = vicinity.moved(step)
    try:
        sample = evaluated(lambda: run.evaluator(run.varying_at(u), state.weights, run.scheduled))
    except Exception as error:
        if isinstance(error, EvaluationFailed) or not is_of_the_design(error):
            raise
        return None
    found = run.evaluator.evaluation(sample.leaves)
    if float(run.constraints.violation(found.constraints, state.duals)) > run.feasibility_tol:
        return None
    value = float(found.objective)
    return value if np.isfinite(value) else None
