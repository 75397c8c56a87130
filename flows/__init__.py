"""Prefect flows: what one deploys and triggers."""

from tesseract_flow.flows.check import check_design, check_gradients_of_design
from tesseract_flow.flows.forms import Failures, Optimizer, Running, Stop
from tesseract_flow.flows.multi_start import multi_start
from tesseract_flow.flows.of_problem import flow_of
from tesseract_flow.flows.optimize import optimize_design
from tesseract_flow.flows.sweep import sweep

__all__ = [
    "Failures",
    "Optimizer",
    "Running",
    "Stop",
    "check_design",
    "check_gradients_of_design",
    "flow_of",
    "multi_start",
    "optimize_design",
    "sweep",
]
