"""Running JAX functions with Tesseracts inside as dataflow."""

from tesseract_flow.execute.concurrent import Concurrent, concurrent
from tesseract_flow.execute.host import HostPrimitive
from tesseract_flow.execute.plan import Plan
from tesseract_flow.execute.planning import make_plan
from tesseract_flow.execute.run import run_plan
from tesseract_flow.execute.submit import (
    AbstractFuture,
    AbstractSubmitter,
    InlineSubmitter,
    ThreadSubmitter,
    default_submitter,
)
from tesseract_flow.execute.units import Answer, Node, Segment

__all__ = [
    "AbstractFuture",
    "AbstractSubmitter",
    "Answer",
    "Concurrent",
    "HostPrimitive",
    "InlineSubmitter",
    "Node",
    "Plan",
    "Segment",
    "ThreadSubmitter",
    "concurrent",
    "default_submitter",
    "make_plan",
    "run_plan",
]
