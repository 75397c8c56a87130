"""The driver of a problem that none was named for.

With constraints it is SLSQP: on the problems of CUTEst with up to ten variables it solves as many as SciPy called by
hand, with no more evaluations and no false claim, and an augmented Lagrangian takes several times as many
(`benchmarks/cutest.py`). Its own work grows with the cube of the unknowns, and each step pulls back every row of the
constraints, so it is not for fields, and not for arrays of stresses that components compute. Without constraints, and
for those, it is Adam, which walks on where values are noisy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, PyTree

from tesseract_flow.autodiff import informed
from tesseract_flow.errors import JournalError
from tesseract_flow.optimize.canonical import handles_of
from tesseract_flow.optimize.constraints import AugmentedLagrangian
from tesseract_flow.optimize.contents import read_contents
from tesseract_flow.optimize.drivers.registry import CHOICES, driver_settings
from tesseract_flow.optimize.failures import FailurePolicy
from tesseract_flow.optimize.journal import AbstractJournal
from tesseract_flow.optimize.problem import Problem, as_evaluation
from tesseract_flow.optimize.returned import check_evaluation
from tesseract_flow.optimize.shared import Shared

_STEPS, _CONSTRAINED = CHOICES
_MOST_UNKNOWNS = 500
_MOST_ROWS = 100  # that components are asked for at each step
_MOST_ENTRIES = _MOST_UNKNOWNS * _MOST_ROWS  # of the Jacobian


def automatic_driver(
    problem: Problem,
    *,
    learning_rate: float | None,
    settings: Mapping[str, Any] | None,
    method: AugmentedLagrangian | None,
    policy: FailurePolicy,
    journal: AbstractJournal | str | os.PathLike[str] | None,
    shared: Shared,
) -> str:
    """The name that `auto` stands for. What is asked for besides, and a run that is under way, decide before the
    problem does."""
    asks_for_steps = learning_rate is not None or method is not None or policy.action == "skip"
    if not problem.constraints or asks_for_steps or not set(settings or {}) <= set(driver_settings(_CONSTRAINED)):
        return _STEPS
    if _driver_of(journal) == _STEPS:  # which was the default of all problems once
        return _STEPS
    unknowns = sum(leaf.size for leaf in jax.tree.leaves(problem.partition.varying))
    shapes = shared.once("template", lambda: check_evaluation(problem)).constraints
    rows = {name: math.prod(shapes[name].shape) for name in problem.constraints if name in shapes}
    # Those of linear constraints are asked for once.
    asked = sum(n for name, n in rows.items() if not problem.constraints[name].linear)
    is_small = unknowns <= _MOST_UNKNOWNS and sum(rows.values()) * unknowns <= _MOST_ENTRIES
    is_cheap = asked <= _MOST_ROWS or not shared.once("asks", lambda: _asks_components(problem))
    return _CONSTRAINED if is_small and is_cheap else _STEPS


def _asks_components(problem: Problem) -> bool:
    """Whether there is anybody to ask for rows of a Jacobian; else they are computed here, all at once. Runs nothing,
    but what it takes to trace."""

    def evaluate(varying: PyTree) -> list[Array]:
        found = as_evaluation(problem.answer(problem.partition.combine(varying)))
        return [found.objective, *found.constraints.values()]

    closed = informed(lambda: jax.make_jaxpr(evaluate)(problem.start), lambda: evaluate(problem.start))
    return next(handles_of(closed.jaxpr), None) is not None


def _driver_of(journal: AbstractJournal | str | os.PathLike[str] | None) -> str | None:
    """By which driver the run of a journal began, as far as that can be told."""
    files: Any = getattr(journal, "journal", journal)  # what a flow wraps
    if files is None or not (isinstance(files, str | os.PathLike) or hasattr(files, "store")):
        return None
    try:
        identity = read_contents(files).identity
    except JournalError:
        return None
    driver = (identity or {}).get("driver")
    return driver.get("name") if isinstance(driver, Mapping) else None
