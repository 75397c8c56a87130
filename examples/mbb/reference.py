"""The same design by optimality criteria: no optimiser, no differentiation, components called as Python functions.

Each element's variable is multiplied by the square root of what it gains over what it costs, within a move limit, and
the price of material is found by bisection. Filter, projection and continuation are those of the problem.

Source: M. P. Bendsoe and O. Sigmund, Topology Optimization (2003), sections 1.2.1 and 1.2.2.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
MOVE = 0.2  # by how much a variable changes in a step


class Reference(NamedTuple):
    """What optimality criteria find."""

    density: np.ndarray
    compliance: float


@functools.cache
def component(name: str) -> ModuleType:
    """The module of a component."""
    spec = importlib.util.spec_from_file_location(f"mbb_{name}_api", HERE / name / "tesseract_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def projected(filtered: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Densities, and their derivative."""
    edge = np.tanh(sharpness / 2.0)
    t = np.tanh(sharpness * (filtered - 0.5))
    return (edge + t) / (2.0 * edge), sharpness * (1.0 - t**2) / (2.0 * edge)


def averaged(field: np.ndarray, radius: float) -> np.ndarray:
    """The filter's answer."""
    filters = component("filter")
    return filters.apply(filters.InputSchema(field=field, radius=radius)).filtered


def work(field: np.ndarray, radius: float, sharpness: float) -> tuple[np.ndarray, float]:
    """Densities and compliance of a field."""
    fem, density = component("fem"), projected(averaged(field, radius), sharpness)[0]
    return density, float(fem.apply(fem.InputSchema(density=density)).compliance)


def optimality_criteria(
    n_rows: int, n_columns: int, volume: float, radius: float, sharpness: Sequence[float], n_solves: int = 100
) -> Reference:
    """The design of least compliance at a share `volume` of material, after `n_solves` that are spread evenly over the
    values of `sharpness`; the last one tells what the last design does."""
    filters, fem = component("filter"), component("fem")
    field = np.full((n_rows, n_columns), volume)
    for k in range(n_solves - 1):
        beta = sharpness[k * len(sharpness) // n_solves]
        density, slope = projected(averaged(field, radius), beta)
        pulled = fem.vector_jacobian_product(
            fem.InputSchema(density=density), {"density"}, {"compliance"}, {"compliance": -1.0}
        )["density"]
        inputs = filters.InputSchema(field=field, radius=radius)
        gain, cost = (
            filters.vector_jacobian_product(inputs, {"field"}, {"filtered"}, {"filtered": c})["field"]
            for c in (pulled * slope, slope / field.size)
        )
        field = _moved(field, gain / cost, lambda x, b=beta: projected(averaged(x, radius), b)[0].mean() - volume)
    return Reference(*work(field, radius, sharpness[-1]))


def _moved(field: np.ndarray, worth: np.ndarray, excess: Callable[[np.ndarray], float]) -> np.ndarray:
    """The field where each element is worth its price, as far as a step may go."""

    def at(price: float) -> np.ndarray:
        wanted = field * np.sqrt(np.maximum(worth, 0.0) / price)
        return np.clip(wanted, np.maximum(field - MOVE, 1e-3), np.minimum(field + MOVE, 1.0))

    low, high = 1e-9, 1e12
    while high / low > 1.0 + 1e-10:
        middle = np.sqrt(low * high)
        low, high = (middle, high) if excess(at(middle)) > 0.0 else (low, middle)
    return at(high)


def greyness(density: np.ndarray) -> float:
    """0 for elements that are full or empty, 1 where all are half full: the mean of 4 r (1 - r).

    Source: O. Sigmund, Morphology-based black and white filters, Struct. Multidisc. Optim. 33 (2007), 401-424.
    """
    return float(np.mean(4.0 * density * (1.0 - density)))
