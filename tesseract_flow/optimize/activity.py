"""Which limits hold a design back: for each constraint, and each leaf with bounds, the entries that lie at one.

A limit is active where the value is at it to within the tolerance of the run; or nearly, and its multiplier is larger
than what room is left, which is what tells an active limit from one that is close by, also where a method comes near to
it and never meets it.

Source: F. Facchinei, A. Fischer and C. Kanzow, On the accurate identification of active constraints, SIAM Journal on
Optimization 9 (1998), 14-32: the room is compared with a function of the error that goes to zero more slowly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.constraints import ConstraintSet, Duals
from tesseract_flow.optimize.partition import entries, named_leaves

_NEAR = 1e-3  # in units of a constraint's measure, or of the design's size: nothing further away is active
_KINDS = ("constraints", "bounds")
_AT_A_BOUND = 1e-6  # of the design's size, or of the range between the bounds


@dataclasses.dataclass(frozen=True, eq=False)
class Active:
    """Attributes:
    lower, upper: per entry, whether it lies at this limit; both where the limits are equal.
    """

    lower: np.ndarray
    upper: np.ndarray

    @property
    def any(self) -> bool:
        return bool(self.lower.any() or self.upper.any())

    def __str__(self) -> str:
        both = self.lower & self.upper
        sides = (("equal", both), ("lower", self.lower & ~both), ("upper", self.upper & ~both))
        return "; ".join(_where(name, mask) for name, mask in sides if mask.any()) or "none"

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.lower.shape),
            "lower": np.argwhere(self.lower).tolist(),
            "upper": np.argwhere(self.upper).tolist(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Active:
        sides = []
        for side in ("lower", "upper"):
            mask = np.zeros(fields["shape"], bool)
            for index in fields[side]:
                mask[tuple(index)] = True
            sides.append(mask)
        return cls(*sides)


def _where(side: str, mask: np.ndarray) -> str:
    if not mask.ndim:
        return side
    return f"{side}: {'all ' if mask.all() and mask.size > 1 else ''}{entries(np.argwhere(mask), limit=4)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Activity:
    """Which limits hold a design back.

    Attributes:
        constraints: by name of the constraint, of those with a demand.
        bounds: by name of the leaf, of those with a bound.
    """

    constraints: dict[str, Active]
    bounds: dict[str, Active]

    def to_json(self) -> dict[str, Any]:
        return {
            kind: {name: active.to_json() for name, active in found.items()}
            for kind, found in (("constraints", self.constraints), ("bounds", self.bounds))
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Activity:
        kinds = ({name: Active.from_json(active) for name, active in fields[kind].items()} for kind in _KINDS)
        return cls(*kinds)


def active_constraints(
    constraints: ConstraintSet, values: Mapping[str, Any], duals: Duals, tolerance: float
) -> dict[str, Active]:
    """Of each constraint, which entries lie at a limit.

    Args:
        tolerance: of feasibility, in units of the constraints' measures.
    """
    prices = constraints.estimates(values, duals)
    found: dict[str, Active] = {}
    for key, value in constraints.scaled(values, duals).items():
        c, price = np.asarray(value, np.float64), np.asarray(prices[key], np.float64)
        lower, upper = np.asarray(constraints.lower[key]), np.asarray(constraints.upper[key])
        at = Active(_meets(c - lower, -price, tolerance), _meets(upper - c, price, tolerance))
        name = constraints.names[key]
        before = found.get(name)
        found[name] = at if before is None else Active(before.lower | at.lower, before.upper | at.upper)
    return dict(sorted(found.items()))


def _meets(room: np.ndarray, push: np.ndarray, tolerance: float) -> np.ndarray:
    return (room <= tolerance) | ((push > room) & (room <= _NEAR))


def active_bounds(box: Box, u: Any, gradient: Any = None) -> dict[str, Active]:
    """Of each leaf with a bound, which entries lie at one.

    Args:
        box, u: of the scaled design.
        gradient: of the Lagrangian there, if it is known.
    """
    points = named_leaves(u)
    size = max([1.0, *(float(np.abs(np.asarray(leaf)).max(initial=0.0)) for _, leaf in points)])
    slopes = [None] * len(points) if gradient is None else jax.tree.leaves(gradient)
    found: dict[str, Active] = {}
    sides = (jax.tree.leaves(side) for side in (box.lower, box.upper))
    for (name, leaf), slope, low, high in zip(points, slopes, *sides, strict=True):
        x, lower, upper = (np.asarray(array, np.float64) for array in (leaf, low, high))
        if not (np.isfinite(lower).any() or np.isfinite(upper).any()):
            continue
        g = np.zeros_like(x) if slope is None else np.asarray(slope, np.float64)
        width = np.minimum(np.where(np.isfinite(upper - lower), upper - lower, np.inf), size)
        above, below = x - lower, upper - x
        masks = []
        for room, push in ((above, g), (below, -g)):
            is_pushed = (push > room) & (room <= _NEAR * width)
            masks.append((room <= _AT_A_BOUND * width) | is_pushed)
        found[name] = Active(*masks)
    return found
