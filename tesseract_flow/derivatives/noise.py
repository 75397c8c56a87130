"""How exact a component's outputs are, measured by calling it a few times at points close together.

The one idea: differences of high order wipe out a smooth function and leave its noise, which has the same size at
every order once binomial growth is divided out.

Source: J. J. Moré and S. M. Wild, Estimating Computational Noise, SIAM Journal on Scientific Computing 33 (2011),
1292-1314 (the algorithm ECNoise), applied here to all entries of an output at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from tesseract_flow.derivatives.differences import Differences, Neighbourhood, Point
from tesseract_flow.derivatives.paths import get_at
from tesseract_flow.derivatives.probes import MapProbes, is_complex


def estimate_noise(
    apply: Callable[[Any], Any],
    inputs: Any,
    input_paths: Collection[str],
    output_paths: Collection[str],
    *,
    n_points: int = 8,
    n_attempts: int = 6,
    seed: int = 0,
    map_probes: MapProbes = map,
) -> dict[str, float]:
    """Relative noise of each output, by path, for `Differences(noise=...)`.

    It is relative to the root mean square of the output's entries, never below the rounding error of the output's
    dtype, and right to within a factor of some 4. It tells noise from curvature, not from an error that is the same
    at neighbouring points: a solver stopped after a fixed number of steps is smooth, however wrong it is.

    Cost: `n_points` calls of `apply` per attempt, mostly one; the spacing of the points is changed by factors of 100.

    Raises:
        ValueError: no spacing gave a verdict. The component may be discontinuous near this point.
    """
    near = Neighbourhood(apply, inputs, input_paths, Differences(n_samples=1, seed=seed))
    (direction,) = near.directions()
    # Small against the scale of the inputs, large against their rounding error.
    spacing = 100.0 * near.noise
    verdicts: dict[str, float] = {}
    for _ in range(n_attempts):
        points = [Point(direction, spacing * (k - (n_points - 1) / 2)) for k in range(n_points)]
        answers = list(map_probes(near.answer_at, points))
        hints = []
        for path in sorted(set(output_paths) - set(verdicts)):
            values = _as_real(np.stack([np.asarray(get_at(answer, path)).ravel() for answer in answers]))
            verdict = _verdict(values)
            if isinstance(verdict, float):
                verdicts[path] = verdict
            else:
                hints.append(verdict)
        if not hints:
            return verdicts
        spacing *= 100.0 if hints.count("wider") * 2 > len(hints) else 0.01
    missing = sorted(set(output_paths) - set(verdicts))
    raise ValueError(
        f"The noise of {missing} could not be told after {n_attempts} attempts with {n_points} points each; "
        "the component may be discontinuous here. Pass Differences(noise=...) from what you know of it."
    )


def _as_real(values: np.ndarray) -> np.ndarray:
    """Real and imaginary parts beside each other."""
    return np.concatenate([np.real(values), np.imag(values)], axis=1) if is_complex(values) else values


def _verdict(values: np.ndarray) -> float | str:
    """Relative noise of values at equally spaced points, (points, entries); or how to space them instead."""
    floor = float(np.finfo(values.dtype).eps)
    values = values.astype(np.float64)
    spread = np.ptp(values, axis=0)
    magnitude = math.sqrt(np.mean(values**2)) if values.size else 0.0
    varying = values[:, spread > 0.0]
    if magnitude == 0.0:
        return floor
    if not varying.size or np.mean(np.diff(varying, axis=0) == 0.0) >= 0.5:
        return "wider"  # the points are so close that rounding gives them the same value
    if np.max(spread) > 0.1 * magnitude:
        return "narrower"
    levels = []  # (noise by differences of this order, whether they change sign)
    table = values
    for order in range(1, len(values)):
        table = np.diff(table, axis=0)
        gamma = math.factorial(order) ** 2 / math.factorial(2 * order)
        changes_sign = bool(np.any((table.min(axis=0) < 0.0) & (table.max(axis=0) > 0.0)))
        levels.append((math.sqrt(gamma * np.mean(table**2)), changes_sign))
    for first in range(len(levels) - 2):
        sizes = [size for size, _ in levels[first : first + 3]]
        if max(sizes) == 0.0 or (max(sizes) <= 4.0 * min(sizes) and levels[first][1]):
            return max(sizes[0] / magnitude, floor)
    return "narrower"
