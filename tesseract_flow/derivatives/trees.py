"""A component's inputs and outputs as plain trees.

Here: models → dicts. Not here: what a model's annotations say about its leaves (`tesseract_flow.recipes.trees`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def is_model(value: Any) -> bool:
    """Whether it is a pydantic model: told by its methods, so that NumPy is all that this package needs."""
    return all(callable(getattr(type(value), method, None)) for method in ("model_dump", "model_validate"))


def as_tree(value: Any) -> Any:
    """Dicts, lists and tuples in place of models. Leaves that offer themselves as arrays become NumPy arrays."""
    if is_model(value):
        return as_tree(value.model_dump())
    if isinstance(value, Mapping):
        return {key: as_tree(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(as_tree(item) for item in value))
    if isinstance(value, list | tuple):
        # Plain ones: to JAX a list of another class is a leaf.
        return (list if isinstance(value, list) else tuple)(as_tree(item) for item in value)
    # JAX's own arrays stay where they are, on whatever device.
    if hasattr(value, "__array__") and hasattr(value, "shape") and not hasattr(value, "aval"):
        return np.asarray(value)
    return value
