"""Whether a design next to one that is about to be called an optimum is better.

What is left of a gradient is compared with the objective, but with no less than a small part of the slope that the run
has seen: objectives that fall to zero could not converge else. A run that began far up a wall has seen slopes beside
which the whole of what there is to win is nothing: `cosh(20 (x - 1))` from 3, or one direction 1e12 times as steep as
another. Gradients cannot tell the two apart, and values can: where the claim rests on the slope that was seen, a few
designs further down are looked at, the nearest one first. Where the value already rises to it, or a constraint does not
hold there, the bottom of that way lies before it, and designs farther on are on the other side.
"""

from __future__ import annotations

import numpy as np

from tesseract_flow.optimize.aside import around
from tesseract_flow.optimize.optimality import unit_of
from tesseract_flow.optimize.result import StepRecord
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State
from tesseract_flow.optimize.vicinity import Seen, Vector, Vicinity, largest

_DISTANCES = (1e-4, 1e-2, 1.0)  # of each entry's own size: less is as close as an objective that falls to zero comes
_LEGIBLE = 1e3  # roundings of the value
_ROUNDS = 2  # along the slope, and once more beside what is steep
_HARDLY = 1e-3  # of the change of the gradient: so much of it in entries that do not rise is none
_NOTHING = 1e-22  # of the slope that was seen: what is won by going from almost zero to zero


def honest_stationarity(run: Run, state: State, record: StepRecord) -> float | None:
    """What is left of the gradient relative to the objective itself, if a better design was found nearby; None if there
    is none, or if the claim does not rest on a slope that was seen elsewhere. Up to six evaluations; two where the
    nearest designs are past the bottom already."""
    assert run.tolerance is not None and record.stationarity is not None
    seen = record.slope or 0.0
    unit, size = unit_of(record.value, seen, run.evaluator.dtype), abs(record.value)
    if record.stationarity * unit <= run.tolerance * size:
        return None
    vicinity = around(run, state)
    enough = max(run.tolerance * size, _LEGIBLE * vicinity.eps * size, _NOTHING * seen)
    if run.evaluator.template.misfit is not None and record.value <= enough:
        return None  # a sum of squares falls no further than to zero
    way = -vicinity.slopes_of(run.box.projected_gradient(state.u, state.here.gradient))
    for _ in range(_ROUNDS):
        if not 0 < (steepest := largest(way)) < np.inf:
            return None
        closest = None
        for distance in _DISTANCES:
            if (found := vicinity.look(distance / steepest * way)) is None:
                continue
            if (value := _feasible_value(run, state, found)) is None:
                break
            if value < record.value - enough:
                return record.stationarity * unit / max(size, _NOTHING * seen)
            closest = closest or found
            if value > record.value + enough:
                break
        if closest is None:
            return None
        way = _beside_what_is_steep(vicinity, closest, way)
    return None


def _beside_what_is_steep(vicinity: Vicinity, found: Seen, way: Vector) -> Vector:
    """What is left of a way without what rises along it at once: of a direction that is far steeper than others, what
    rounding leaves may be as large as their whole slope, and may hide it. These are entries; or, where the gradient
    changes in others as well, the direction in which it does."""
    bend = found.slopes - vicinity.slopes
    rises = (found.slopes * way > 0) & (np.abs(found.slopes) > np.abs(vicinity.slopes))
    if not rises[way != 0].all() and np.linalg.norm(bend[~rises]) <= _HARDLY * np.linalg.norm(bend):
        return np.where(rises, 0.0, way)
    return way - (way @ bend) / (bend @ bend) * bend if bend.any() else way


def _feasible_value(run: Run, state: State, found: Seen) -> float | None:
    evaluation = run.evaluator.evaluation(found.sample.leaves)
    if float(run.constraints.violation(evaluation.constraints, state.duals)) > run.feasibility_tol:
        return None
    return float(evaluation.objective)
