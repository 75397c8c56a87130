"""Prefect flows: what one deploys and triggers."""

from tesseract_flow.flows.optimize import Optimizer, Stop, optimize_design

__all__ = ["Optimizer", "Stop", "optimize_design"]
