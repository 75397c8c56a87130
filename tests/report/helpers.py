"""Histories and results to show: small stand-ins with the names that the report reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Step:
    step: int
    value: float
    best_value: float
    gradient_norm: float | None = 1.0
    violation: float = 0.0
    seconds: float = 0.5
    requests: float = 0


@dataclasses.dataclass(frozen=True)
class Finished:
    design: Any
    value: float = 1.5
    reason: str = "gradient below tolerance"
    steps: int = 3
    converged: bool = True
    constraints: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    requests: int | Mapping[str, int] = 0
    history: Sequence[Any] = ()


def history_of(values: ArrayLike, **columns: ArrayLike) -> list[Step]:
    """Records of steps 0, 1, ... with these values; best_value is their running minimum over what is finite."""
    value = np.asarray(values, dtype=np.float64)
    best = np.minimum.accumulate(np.where(np.isfinite(value), value, np.inf))
    others = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    return [
        Step(
            i, float(v), float(best[i]), seconds=0.5 * i, **{name: float(column[i]) for name, column in others.items()}
        )
        for i, v in enumerate(value)
    ]
