"""The wiring of several components as data: named nodes, connections, groups; from Python or YAML, as one JAX function.

Plain functions with `apply_tesseract` do the same; this is for wiring that somebody should read, draw and check.
"""

from tesseract_flow.pipeline.description import Connection, Description, Group, Input, Node
from tesseract_flow.pipeline.pipeline import Pipeline

__all__ = ["Connection", "Description", "Group", "Input", "Node", "Pipeline"]
