"""The derivative along a line, from values: how large it is, and how well that is known.

NumPy only. The one idea: central differences at steps that shrink by ten err by a hundredth of the truncation and ten
times the noise, so where two of them agree, both errors are small, and their distance bounds what is left.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

STEPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # relative to the size of what is moved
COARSE_STEPS = (1e-1, 1e-2, 1e-3)  # where numbers have seven digits
LONGEST = STEPS[0]
_SAFETY = 4.0
# Below this share of the derivative an error is no fault: solvers of the components stop somewhere, too.
TOLERANCE, COARSE_TOLERANCE = 1e-5, 1e-2

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a derivative endpoint says of one direction, against what the values say.

    Attributes:
        said: by the endpoint.
        found: by differences.
        bound: how far `found` may be from the truth.
        step: relative, at which it was found.
        is_kinked: values bend sharply here, and what was said lies between the slopes on both sides.
        size: of what was added up to `said`, without regard to signs; what errors are relative to.
        tolerance: the relative error that is no fault.
    """

    said: float
    found: float
    bound: float
    step: float
    size: float
    is_kinked: bool = False
    tolerance: float = TOLERANCE

    @property
    def error(self) -> float:
        return abs(self.said - self.found) if np.isfinite(self.said) else float("inf")

    @property
    def is_wrong(self) -> bool:
        """Whether the two cannot both be right."""
        if not np.isfinite(self.said):
            return True
        return not self.is_kinked and self.error > max(self.bound, self.tolerance * self.size)

    @property
    def is_off(self) -> bool:
        """Whether it errs at all, be it ever so little."""
        return not self.is_kinked and self.error > 3.0 * self.bound

    @property
    def is_sure(self) -> bool:
        """Whether a fault of some per cent would have been seen."""
        return not self.is_kinked and (self.bound <= 0.05 * self.size or not self.size or self.is_wrong)

    @property
    def confidence(self) -> float:
        """How many times larger the error is than what differences leave open."""
        return self.error / self.bound if self.bound else float("inf")


class Line:
    """Values along a direction, asked for step by step as far as it takes.

    Args:
        values: steps → values there, of any shape; None where there is no finite value.
        at_zero: the value in the middle.
        is_coarse: whether numbers have only seven digits.
    """

    def __init__(
        self,
        values: Callable[[Sequence[float]], Sequence[np.ndarray | None]],
        at_zero: np.ndarray,
        *,
        is_coarse: bool = False,
    ):
        self._values = values
        self.at_zero = np.asarray(at_zero, np.float64)
        self.steps = COARSE_STEPS if is_coarse else STEPS
        self.tolerance = COARSE_TOLERANCE if is_coarse else TOLERANCE
        self._known: dict[float, tuple[np.ndarray, np.ndarray] | None] = {}

    @property
    def first_step(self) -> float:
        return self.steps[1] if len(self.steps) == len(COARSE_STEPS) else 1e-4

    def ask(self, steps: Iterable[float]) -> None:
        """Make sure that values at these steps, up and down, are known."""
        missing = [h for h in dict.fromkeys(steps) if h not in self._known]
        answers = self._values([s for h in missing for s in (h, -h)]) if missing else []
        for k, h in enumerate(missing):
            up, down = answers[2 * k], answers[2 * k + 1]
            fits = up is not None and down is not None
            self._known[h] = (np.asarray(up, np.float64), np.asarray(down, np.float64)) if fits else None

    def difference(self, h: float) -> np.ndarray | None:
        """The central difference at a step that was asked for."""
        pair = self._known.get(h)
        return None if pair is None else (pair[0] - pair[1]) / (2 * h)

    def is_flat(self, h: float) -> bool:
        """Whether values do not change at all over this step, to the last bit."""
        pair = self._known.get(h)
        return pair is not None and bool((pair[0] == pair[1]).all())

    def compare(self, said: float, size: float, weights: np.ndarray | None = None) -> Comparison:
        """Against `said`, the derivative of `weights · values`: by two values if that does, else by all steps.

        Args:
            size: of the terms of `said`, added up without regard to signs.
        """
        w = np.ones_like(self.at_zero) if weights is None else np.asarray(weights, np.float64)
        self.ask([self.first_step])
        first = self.difference(self.first_step)
        if first is not None:
            found, enough = float((w * first).sum()), 0.1 * self.tolerance * size
            if abs(said - found) <= enough:
                return Comparison(said, found, enough, self.first_step, size, tolerance=self.tolerance)
        self.ask(self.steps)
        return self._by_sweep(said, size, w)

    def _by_sweep(self, said: float, size: float, w: np.ndarray) -> Comparison:
        found = [(h, float((w * d).sum())) for h in self.steps if (d := self.difference(h)) is not None]
        if len(found) < 2:
            value = found[0][1] if found else float("nan")
            return Comparison(said, value, float("inf"), self.steps[0], size, tolerance=self.tolerance)
        gaps = [abs(a[1] - b[1]) for a, b in itertools.pairwise(found)]
        rounding = np.finfo(np.float64).eps * float((np.abs(w) * np.abs(self.at_zero)).sum())
        bounds = []
        for k in range(1, len(found)):
            noise = gaps[k] / 5 if k < len(gaps) else gaps[k - 1]
            truncation = gaps[k - 2] / 20 if k >= 2 else gaps[k - 1] / 2
            bounds.append(_SAFETY * max(gaps[k - 1], noise, truncation, rounding / found[k][0]))
        best = int(np.argmin(bounds))
        step, slope = found[best + 1]
        answer = Comparison(said, slope, bounds[best], step, max(size, abs(slope)), tolerance=self.tolerance)
        if answer.is_wrong and self._is_kinked(said, w, step, answer.bound):
            return dataclasses.replace(answer, is_kinked=True)
        return answer

    def _is_kinked(self, said: float, w: np.ndarray, step: float, bound: float) -> bool:
        """Whether slopes on both sides differ by as much at a tenth of the step, with `said` between them."""
        sides = []
        for h in (step, next((s for s in self.steps if s < step), step)):
            pair = self._known.get(h)
            if pair is None:
                return False
            up, down = (float((w * (side - self.at_zero)).sum()) / h for side in pair)
            sides.append((min(up, -down), max(up, -down)))
        (low, high), (low_near, high_near) = sides
        gap, gap_near = high - low, high_near - low_near
        slack = bound + 1e-3 * gap
        # Of a smooth function it would shrink with the step, of a rough one grow.
        return 0.5 * gap < gap_near < 2.0 * gap and gap > bound and low - slack <= said <= high + slack


def direction(
    x: Arrays, rng: np.random.Generator, only: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """A random direction that moves each entry by its own size, at most; zero outside of `only`, masks by path."""
    t = {}
    for path, value in x.items():
        size = sizes(value)
        signs = rng.choice([-1.0, 1.0], value.shape) * rng.uniform(0.5, 1.0, value.shape)
        t[path] = np.asarray(size * signs)
        if np.iscomplexobj(value):
            t[path] = t[path] * np.exp(1j * rng.uniform(0.0, 2 * np.pi, value.shape))
    return t if only is None else {path: t[path] * only[path] for path in t if path in only}


def sizes(value: np.ndarray) -> np.ndarray:
    """The size of each entry; of zeros that of the others, and at most 1."""
    magnitude = np.abs(np.asarray(value)).astype(np.float64)
    return np.maximum(magnitude, min(1.0, float(np.max(magnitude, initial=0.0))) or 1.0)


def moved(x: Arrays, t: Arrays, step: float) -> dict[str, np.ndarray]:
    """`x + step t` in the dtypes of `x`, where `t` says something."""
    return {path: np.asarray(x[path] + step * t[path], x[path].dtype) for path in t}


def inner(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Sum of products over the paths of `a`; of complex numbers the real part."""
    return float(sum(np.sum(np.asarray(a[path]) * np.asarray(b[path])).real for path in a))


def size_of(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The same sum without regard to signs."""
    return float(sum(np.sum(np.abs(a[path]) * np.abs(b[path])) for path in a))


def stacked(values: Mapping[str, Any], paths: Sequence[str]) -> np.ndarray:
    """Some arrays as one vector of real numbers, real and imaginary parts beside each other."""
    parts = []
    for path in paths:
        flat: Any = np.asarray(values[path]).ravel()
        parts += [flat.real, flat.imag] if np.iscomplexobj(flat) else [flat]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def stacked_weights(c: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cotangents as weights of the stacked outputs, of which those that are left out weigh nothing."""
    parts = []
    for path, value in y.items():
        flat: Any = np.asarray(c[path]).ravel() if path in c else np.zeros(value.size)
        parts += [flat.real, -flat.imag] if np.iscomplexobj(value) else [flat.real]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def product(blocks: Mapping[str, Mapping[str, np.ndarray]], t: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """J t, from the blocks of J."""
    return {
        y: np.asarray(sum(np.tensordot(of_x[path], t[path], axes=t[path].ndim) for path in t))
        for y, of_x in blocks.items()
    }
