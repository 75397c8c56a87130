"""What stays the same in a stage of a run from its first step to its last, and how it looks at a point."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from jaxtyping import PyTree

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import AugmentedLagrangian, ConstraintSet
from tesseract_flow.optimize.drivers.base import AbstractDriver, AbstractEngine
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Scheduled, Transform, Weights
from tesseract_flow.optimize.failures import Attempts, Failure
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.schedule import Stage

# What the objective is divided by for the driver: its size at the start, a number, or (None) what suits the driver: the
# first where there are constraints to be weighed against, and one elsewhere, or what makes its first step a good one.
ObjectiveScale = Literal["start"] | float | None


def as_objective_scale(scale: ObjectiveScale) -> ObjectiveScale:
    """The setting, if it is one.

    Raises:
        ProblemError: it is not `"start"`, a positive number, or None.
    """
    if scale is None or (isinstance(scale, str) and scale == "start"):
        return scale
    if isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < math.inf:
        return float(scale)
    raise ProblemError(
        f'objective_scale must be "start", a positive number, or None, received {scale!r}.\n'
        "It is what the objective is divided by before a driver sees it; 1 leaves it as it is."
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What stays the same from the first step to the last; where numbers are scheduled or there are phases, from the
    first to the last one of a stage."""

    problem: Problem
    driver: AbstractDriver
    engine: AbstractEngine  # the driver, at work
    box: Box  # in scaled units
    constraints: ConstraintSet
    method: AugmentedLagrangian
    evaluator: Evaluator
    attempts: Attempts  # the evaluator, and what is done when it fails
    feasibility_tol: float
    tolerance: float | None  # of first-order optimality, if a stop rule asks for it
    assess: Callable[..., dict[str, Any]]  # compiled `_assess`
    notes: tuple[str, ...]
    objective_scale: ObjectiveScale = None
    stage: Stage = dataclasses.field(default_factory=Stage)
    scheduled: Scheduled = dataclasses.field(default_factory=dict)  # what `evaluate` receives in it
    transform: Transform | None = None  # of functions that are evaluated

    @property
    def is_scaled(self) -> bool:
        """Whether the driver sees the objective divided by its size."""
        if self.objective_scale is None:
            return self.has_constraints or self.engine.is_scaled
        return self.objective_scale != 1.0

    @property
    def has_constraints(self) -> bool:
        return bool(self.constraints.size)

    def varying_at(self, u: PyTree) -> PyTree:
        # Projected again in the design's units: scaling back may round a bound away by one digit.
        return self.problem.box.project(self.problem.partition.from_scaled(u))

    def design_at(self, u: PyTree) -> PyTree:
        return self.problem.partition.combine(self.varying_at(u))

    def look(self, u: PyTree, weights: Weights) -> Sample | Failure:
        """The sample at `u`, with the gradient in scaled units; or how its evaluation failed."""
        sample = self.attempts(self.varying_at(u), weights, self.scheduled)
        if isinstance(sample, Failure):
            return sample
        return Sample(sample.lagrangian, self.problem.partition.scale_gradient(sample.gradient), sample.leaves)

    def sample(self, u: PyTree, weights: Weights) -> Sample:
        """The sample at a point that there is no way back from; see `Attempts.begin`."""
        sample = self.look(u, weights)
        assert isinstance(sample, Sample), "a decisive evaluation that fails is raised"
        return sample
