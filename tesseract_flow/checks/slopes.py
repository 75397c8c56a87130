"""How steep a function is at a point, from its values on both sides: an estimate per step, and how far it may be off.

NumPy only; functions are numbers of one variable here, as changes against the value at the point. Two ideas. Central
differences at steps that shrink by ten err by a hundredth of the truncation and ten times the noise, so where two of
them agree, both errors are small: that is enough to believe what somebody says. It is not enough to contradict it,
because far from a bend, too, differences agree with each other. Before that the noise is measured on its own, from
values so close together that nothing else makes them differ, and a step is believed only if what finer steps say
otherwise is explained by noise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

_SAFETY = 4.0
# Times the finest step: where values are asked for their noise, beside the finest itself. Odd, for the sake of values
# that are rounded: over even steps those of a function of slope 1 would all be rounded alike.
NEIGHBOURS = (1.7, 2.6, 3.9, 4.7)
# In standard deviations of one value, of which a central difference has 0.7, and the second difference 2.4, over h.
_BAND, _EXPLAINED, _RESOLVED = 2.5, 6.0, 15.0

Changes = Mapping[float, tuple[float, float]]  # step → f(h) - f(0), f(-h) - f(0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A slope.

    Attributes:
        bound: how far it may be from the truth.
        is_open: values get steeper the closer one looks, so that there is no bound.
    """

    step: float
    slope: float
    bound: float
    is_open: bool = False


def by_agreement(changes: Changes, steps: Sequence[float], rounding: float) -> Estimate | None:
    """Where two steps agree best; None with less than two of them. Too sure of itself where values bend nearby."""
    estimates = _agreeing(_differences(changes, steps), rounding)
    return min(estimates[1:], key=lambda one: one.bound) if len(estimates) > 1 else None


def by_noise(changes: Changes, steps: Sequence[float], rounding: float) -> Estimate | None:
    """The surest step that no finer one contradicts by more than the noise, and what bends leave open there."""
    noise = max(noise_of(changes, steps[-1]), rounding)
    if (quantum := _quantum(changes, steps)) is not None:
        noise = max(noise, 0.3 * quantum)  # the standard deviation of rounding
    differences = _differences(changes, steps)
    bends = {h: sum(changes[h]) / h for h, _ in differences}  # between the slopes on both sides
    estimates: list[Estimate] = []
    for before, one in itertools.pairwise([None, *_agreeing(differences, rounding)]):
        assert one is not None
        # Of a smooth function it shrinks like the step; the truth at a bend is somewhere between both sides.
        bend = abs(bends[one.step] - bends[before.step] * one.step / before.step) if before else float("inf")
        truncation = min(one.bound, 0.5 * abs(one.slope - before.slope)) if before else float("inf")
        estimates.append(dataclasses.replace(one, bound=truncation + _BAND * noise / one.step + bend))
    while estimates:
        best = min(estimates, key=lambda one: one.bound)
        finer = [one for one in estimates if one.step < best.step]
        if any(abs(one.slope - best.slope) > best.bound + _EXPLAINED * noise / one.step for one in finer):
            estimates = finer
            continue
        steeper = (
            abs(bends[one.step]) > max(_RESOLVED * noise / one.step, 1.5 * abs(bends[best.step])) for one in finer
        )
        return dataclasses.replace(best, is_open=any(steeper))
    return None


def noise_of(changes: Changes, finest: float) -> float:
    """The standard deviation of values around a parabola, next to the point; infinite with too few of them."""
    places, values = [0.0], [0.0]
    for k in (1, *NEIGHBOURS):
        if (pair := changes.get(finest * k)) is not None:
            places += [k, -k]
            values += pair
    if len(values) <= 5:
        return float("inf")
    _, residual, *_ = np.linalg.lstsq(np.vander(places, 3), np.asarray(values), rcond=None)
    return float(np.sqrt(residual.sum() / (len(values) - 3)))


def _differences(changes: Changes, steps: Sequence[float]) -> list[tuple[float, float]]:
    return [(h, (changes[h][0] - changes[h][1]) / (2 * h)) for h in steps if h in changes]


def _agreeing(differences: Sequence[tuple[float, float]], rounding: float) -> list[Estimate]:
    """Each difference with a bound from those beside it; the first one has none."""
    gaps = [abs(a[1] - b[1]) for a, b in itertools.pairwise(differences)]
    estimates = []
    for k, (step, slope) in enumerate(differences):
        bound = float("inf")
        if k:
            noise = gaps[k] / 5 if k < len(gaps) else gaps[k - 1]
            truncation = gaps[k - 2] / 20 if k >= 2 else gaps[k - 1] / 2
            bound = _SAFETY * max(gaps[k - 1], noise, truncation, rounding / step)
        estimates.append(Estimate(step, slope, bound))
    return estimates


def _quantum(changes: Changes, steps: Sequence[float]) -> float | None:
    """What rounded values jump by: nothing next to the point, and something further off on both sides.

    Of values that a limiter holds, one side stays as it is.
    """
    known = [changes[h] for h in steps if h in changes]
    if not known or any(known[-1]) or not all(known[0]):
        return None
    return next(max(map(abs, pair)) for pair in reversed(known) if any(pair))
