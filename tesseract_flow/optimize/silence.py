"""Entries of a design with a gradient of exactly zero: without effect, at rest, or cut off on their way.

A zero is right for an entry on which nothing depends, for one at a stationary point, on a symmetric start, behind a
rectifier that is off. It is also what comes back through `stop_gradient`, a rounding, a cast to integers, a component
with an input that has no derivative. Moving exactly these entries tells them apart, wherever they lie in the design:

* next to it they have a gradient: all is well;
* the value stays as it is: they have no effect here;
* no gradient there either, yet another value: the path is cut, or the design moved over a step from one flat place to
  another. A second, far shorter move decides. Through a path that is cut the value follows in proportion. Noise does
  not become smaller at all, and what is stationary changes by the square of the move, or not.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from tesseract_flow.optimize.vicinity import Mask, Seen, Vicinity, largest

_ROUNDS = 3  # of leaving out entries that came to life
_NARROWINGS = 4  # evaluations, once a path was shown to be cut, to tell which entries it is about
_SHORT = 1e-6  # of the first move; longer where digits are few
_LONGEST_SHORT = 0.1


@dataclasses.dataclass(frozen=True)
class Silence:
    """What entries with a gradient of zero, here and next to here, turned out to be.

    Attributes:
        kind: `"idle"`: no value changes with them; `"cut"`: the value follows them; `"jump"`: the value is another one
            there, and did not begin to change.
        entries: which ones.
        seen: what was found where only they had moved.
        change: of the value, with `entries` alone.
    """

    kind: Literal["idle", "cut", "jump"]
    entries: Mask
    seen: Seen
    change: float


def listen(vicinity: Vicinity, silent: Mask, first: Seen) -> Silence | None:
    """What the `silent` entries are like; `None` where they came to life, or where it cannot be told.

    Nothing is evaluated if all of them have a gradient at `first`, or if nothing else was moved there and the value
    did not change.

    Args:
        first: what was seen when they were moved, perhaps together with others.
    """
    still, seen = _alone(vicinity, silent, first)
    if seen is None or not still.any():
        return None
    rounding = vicinity.rounding(seen)
    if abs(seen.change) <= rounding:
        return Silence("idle", still, seen, 0.0)
    # Long enough to be more than rounding, of the value as of the design, where the value follows in proportion.
    short = max(_SHORT, 1e3 * vicinity.eps / largest(seen.step), 10.0 * rounding / abs(seen.change))
    if short > _LONGEST_SHORT:
        return None
    near = vicinity.look(short * seen.step)
    if near is None or near.slopes[still].any():
        return None
    share = np.linalg.norm(near.step) / np.linalg.norm(seen.step)
    if abs(near.change) <= rounding:
        return Silence("jump", *_narrowed(vicinity, still, seen))
    # Halfway, in orders of magnitude, to what a square would give on one side, and noise on the other.
    if math.sqrt(share) <= abs(near.change / (share * seen.change)) <= 1.0 / math.sqrt(share):
        return Silence("cut", *_narrowed(vicinity, still, seen))
    return None


def _alone(vicinity: Vicinity, silent: Mask, first: Seen) -> tuple[Mask, Seen | None]:
    """Entries that stay silent next to the design where nothing else is moved, and what was seen there."""
    seen = first
    still = silent & (seen.step != 0) & (seen.slopes == 0)
    for _ in range(_ROUNDS):
        if not still.any() or not ((seen.step != 0) & ~still).any():
            return still, seen
        found = vicinity.look(np.where(still, first.step, 0.0))
        if found is None:
            return still, None
        seen, still = found, still & (found.step != 0) & (found.slopes == 0)
    return still, None if ((seen.step != 0) & ~still).any() else seen


def _narrowed(vicinity: Vicinity, still: Mask, seen: Seen) -> tuple[Mask, Seen, float]:
    """Fewer entries that make the change, by halves, as long as one of the halves has no part in it."""
    suspects, change = np.flatnonzero(still), seen.change
    if vicinity.is_one_leaf(still):
        return still, seen, change
    rounding = vicinity.rounding(seen)
    for _ in range(_NARROWINGS):
        if len(suspects) == 1:
            break
        half, rest = np.array_split(suspects, 2)
        found = vicinity.look(np.where(np.isin(np.arange(still.size), half), seen.step, 0.0))
        if found is None:
            break
        if abs(found.change) <= rounding:
            suspects = rest
        elif abs(found.change - change) <= rounding:
            suspects = half
        else:
            break
    return np.isin(np.arange(still.size), suspects), seen, change
