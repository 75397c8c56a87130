"""Optimising a design: problems, drivers, bounds, constraints, stop rules, and a journal that loses no finished step.

Knows neither HTTP nor Tesseracts nor Prefect: the objective is any JAX function, and how it runs is a `transform` that
is handed in. `optimize` is the way in; `loop` is where its steps are.
"""

from tesseract_flow.optimize.activity import Active, Activity
from tesseract_flow.optimize.afterwards import Account, read_account, read_journal
from tesseract_flow.optimize.asking import Asked, steer
from tesseract_flow.optimize.checkpoint import Checkpoint
from tesseract_flow.optimize.constraints import AugmentedLagrangian, Constraint
from tesseract_flow.optimize.contents import Contents, read_contents
from tesseract_flow.optimize.drivers.base import AbstractDriver, AbstractEngine
from tesseract_flow.optimize.drivers.registry import build_driver, driver_names, driver_settings
from tesseract_flow.optimize.epigraph import epigraph
from tesseract_flow.optimize.failures import FailureAction, FailurePolicy
from tesseract_flow.optimize.journal import AbstractJournal, FileJournal, Resumption
from tesseract_flow.optimize.loading import load_problem
from tesseract_flow.optimize.loop import optimize
from tesseract_flow.optimize.observers import AbstractObserver, Observer
from tesseract_flow.optimize.optimality import Optimality
from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.result import Result, StepRecord
from tesseract_flow.optimize.resuming import StartFrom, WhichDesign
from tesseract_flow.optimize.returned import check_evaluation
from tesseract_flow.optimize.schedule import Phase, Schedule
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.optimize.stopping import (
    DEFAULT_MAX_STEPS,
    AbstractStoppingRule,
    FirstOrder,
    GradientBelow,
    MaxEvaluations,
    MaxRequests,
    MaxSteps,
    Stagnation,
    Stalled,
    TargetValue,
    Until,
    WallTime,
    stop_rules_from,
)
from tesseract_flow.packages import make_callable

__all__ = [
    "DEFAULT_MAX_STEPS",
    "AbstractDriver",
    "AbstractEngine",
    "AbstractJournal",
    "AbstractObserver",
    "AbstractStoppingRule",
    "Account",
    "Active",
    "Activity",
    "Asked",
    "AugmentedLagrangian",
    "Checkpoint",
    "Constraint",
    "Contents",
    "Evaluation",
    "FailureAction",
    "FailurePolicy",
    "FileJournal",
    "FirstOrder",
    "GradientBelow",
    "MaxEvaluations",
    "MaxRequests",
    "MaxSteps",
    "Observer",
    "Optimality",
    "Phase",
    "Problem",
    "Result",
    "Resumption",
    "Schedule",
    "Shared",
    "Stagnation",
    "Stalled",
    "StartFrom",
    "StepRecord",
    "TargetValue",
    "Until",
    "WallTime",
    "WhichDesign",
    "build_driver",
    "check_evaluation",
    "driver_names",
    "driver_settings",
    "epigraph",
    "load_problem",
    "optimize",
    "read_account",
    "read_contents",
    "read_journal",
    "steer",
    "stop_rules_from",
]

make_callable(__name__, f"{__name__}.loop")
