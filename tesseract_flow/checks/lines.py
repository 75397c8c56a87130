"""The derivative along a line, from values: how large it is, and how well that is known.

NumPy only. As few values are asked for as settle it: two where they agree with what was said, a sweep of steps where
they do not, and more beside the point before anything is called wrong. What they tell is in `slopes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tesseract_flow.checks.slopes import NEIGHBOURS, Estimate, by_agreement, by_noise, noise_of

STEPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # relative to the size of what is moved
COARSE_STEPS = (1e-1, 1e-2, 1e-3)  # where numbers have seven digits
# Where values may oscillate within the finest of these; rounding of the point itself is felt here.
CLOSER, COARSE_CLOSER = (1e-7, 1e-8, 1e-9, 1e-10), (1e-4, 1e-5)
LONGEST = STEPS[0]
# Below this share of the derivative an error is no fault: solvers of the components stop somewhere, too.
TOLERANCE, COARSE_TOLERANCE = 1e-5, 1e-2
# Of the size of the others in its array: an entry so small may be in a unit of its own, and what it is moved by when it
# is moved like them be far beyond where values are like those at the point.
_SMALL, _COARSE_SMALL = 1e-3, 1e-1
_WAVE = 10.0  # steps within the length of a wave, or heights of one over what rounding makes, that tell it from noise
_SURE = 0.05  # of the slope: what is known so well is known

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a derivative endpoint says of one direction, against what the values say.

    Attributes:
        said: by the endpoint.
        found: by differences.
        bound: how far `found` may be from the truth.
        step: relative, at which it was found.
        is_kinked: values bend sharply here, and leave room for what was said.
        finest: if values change so much from one step to the next that what was said may be right all the same, and be
            on a smaller scale than all steps: the finest of these. Else zero.
        size: of what was added up to `said`, without regard to signs; what errors are relative to.
        tolerance: the relative error that is no fault.
    """

    said: float
    found: float
    bound: float
    step: float
    size: float
    is_kinked: bool = False
    finest: float = 0.0
    tolerance: float = TOLERANCE

    @property
    def error(self) -> float:
        return abs(self.said - self.found) if np.isfinite(self.said) else float("inf")

    @property
    def is_wrong(self) -> bool:
        """Whether the two cannot both be right."""
        if not np.isfinite(self.said):
            return True
        return not self._is_open and self.error > max(self.bound, self.tolerance * self.size)

    @property
    def is_off(self) -> bool:
        """Whether it errs at all, be it ever so little."""
        return not self._is_open and self.error > 3.0 * self.bound

    @property
    def is_sure(self) -> bool:
        """Whether a fault of some per cent would have been seen."""
        return not self._is_open and (self.bound <= _SURE * self.size or not self.size or self.is_wrong)

    @property
    def _is_open(self) -> bool:
        return self.is_kinked or self.finest > 0.0

    @property
    def doubt(self) -> str:
        """Why nothing is known for sure, in words."""
        if self.is_kinked:
            return f"not shown to be wrong, but the values bend sharply here, around a slope of {self.found:.4g}."
        if self.finest:
            return (
                f"not shown to be wrong, but the values oscillate, or are noise, on a smaller scale than the smallest "
                f"usable step ({self.finest:.0e} of the point's size): differences cannot tell a slope of "
                f"{self.said:.4g} from none."
            )
        return (
            f"not shown to be wrong, but the values leave open {self.bound:.1g} around {self.found:.4g}: they are too "
            "rough, or hardly depend on it."
        )

    @property
    def agreement(self) -> str:
        """How well the two agree along this direction, in words."""
        worst = max(self.error, self.bound) / (self.size or 1.0)
        return f"agrees with differences to {max(worst, np.finfo(np.float64).eps):.0e} along one direction."

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
        self.is_coarse = is_coarse
        self.steps = COARSE_STEPS if is_coarse else STEPS
        self.closer = COARSE_CLOSER if is_coarse else CLOSER
        self.tolerance = COARSE_TOLERANCE if is_coarse else TOLERANCE
        self.eps = float(np.finfo(np.float32 if is_coarse else np.float64).eps)
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

    def is_flat(self, h: float, said: float, weights: np.ndarray) -> bool:
        """Whether values do not change at all over this step, to the last bit, where by `said` they should.

        Those on both sides alike is not enough: an even function does that about its middle.
        """
        pair = self._known.get(h)
        if pair is None or abs(said) * h <= 10 * self._rounding(np.asarray(weights, np.float64)):
            return False
        return all(bool((value == self.at_zero).all()) for value in pair)

    def compare(self, said: float, size: float, weights: np.ndarray | None = None) -> Comparison:
        """Against `said`, the derivative of `weights · values`: by two values if that does, else by all steps.

        Args:
            size: of the terms of `said`, added up without regard to signs.
        """
        w = np.ones_like(self.at_zero) if weights is None else np.asarray(weights, np.float64)
        enough, step = 0.1 * self.tolerance * size, self._step_for(size, w)
        self.ask([step])
        first = self.difference(step)
        if first is not None:
            found = float((w * first).sum())
            if abs(said - found) <= enough:
                return Comparison(said, found, enough, step, size, tolerance=self.tolerance)
        self.ask(self.steps)
        return self._by_sweep(said, size, w)

    def _step_for(self, size: float, w: np.ndarray) -> float:
        """The one to begin with: a longer one where rounding would hide what the first one shows."""
        longer = [h for h in reversed(self.steps[1:]) if h >= self.first_step]
        enough = 0.1 * self.tolerance * size
        return next((h for h in longer if self._rounding(w) <= 0.3 * enough * h), longer[-1])

    def _by_sweep(self, said: float, size: float, w: np.ndarray) -> Comparison:
        rounding = self._rounding(w)
        found = by_agreement(self._changes(w), self.steps, rounding)
        if found is None:
            known = [(h, float((w * d).sum())) for h in self.steps if (d := self.difference(h)) is not None]
            found = Estimate(*(known or [(self.steps[0], float("nan"))])[0], float("inf"))
        answer = self._against(said, size, found)
        if not np.isfinite(said):
            return answer
        if not answer.is_wrong:
            is_closing = not answer.is_sure and found.step == self.steps[-1]
            return (self._closer(said, size, w) or answer) if is_closing else answer
        self.ask(k * self.steps[-1] for k in NEIGHBOURS)
        changes = self._changes(w)
        estimate = by_noise(changes, self.steps, rounding)
        if estimate is None:
            return answer
        answer = self._against(said, size, estimate)
        if not (answer.is_wrong or estimate.is_open):
            is_closing = not answer.is_sure and estimate.step == self.steps[-1]
            return (self._closer(said, size, w) or answer) if is_closing else answer
        # Values that are noise to these steps may be a wave of that height and the slope that was said. How long is it?
        noise = noise_of(changes, self.steps[-1])
        length = noise / (answer.size or 1.0)
        is_short = noise > _WAVE * rounding and self.eps < length < _WAVE * self.steps[-1]
        closer = self._closer(said, size, w) if is_short else None
        if closer is not None and not (estimate.is_open and closer.is_wrong):
            return closer
        if estimate.is_open:
            return dataclasses.replace(answer, is_kinked=True)
        is_level = abs(answer.found) <= 2.0 * answer.bound
        is_hidden = is_short and is_level and length < _WAVE**2 * self.closer[-1]
        return dataclasses.replace(answer, finest=self.closer[-1]) if is_hidden else answer

    def _closer(self, said: float, size: float, w: np.ndarray) -> Comparison | None:
        """By steps that are shorter still, where two of them agree well."""
        self.ask(self.closer)
        # The point itself is rounded, too, which changes values by some slope of it.
        rounding = self._rounding(w) + self.eps * size
        found = by_agreement(self._changes(w), (*self.steps[-2:], *self.closer), rounding)
        is_sure = found is not None and found.bound <= _SURE * abs(found.slope)
        return self._against(said, size, found) if found is not None and is_sure else None

    def _rounding(self, w: np.ndarray) -> float:
        """How far the weighted sum of values is off, as they have so many digits only."""
        return self.eps * float((np.abs(w) * np.abs(self.at_zero)).sum())

    def _against(self, said: float, size: float, found: Estimate) -> Comparison:
        size = max(size, abs(found.slope))
        return Comparison(said, found.slope, found.bound, found.step, size, tolerance=self.tolerance)

    def _changes(self, w: np.ndarray) -> dict[float, tuple[float, float]]:
        """Of the weighted sum of values, up and down, by step."""
        return {
            h: (float((w * (pair[0] - self.at_zero)).sum()), float((w * (pair[1] - self.at_zero)).sum()))
            for h, pair in self._known.items()
            if pair is not None
        }


def direction(
    x: Arrays, rng: np.random.Generator, only: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """A random direction that moves each entry by its size at `x`, at most; zero outside of `only`, masks by path."""
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


def own_share(value: np.ndarray) -> np.ndarray:
    """How much of its `sizes` each entry has by itself: one that is small beside the others may have another unit."""
    magnitude = np.abs(np.asarray(value)).astype(np.float64)
    return np.where(magnitude > 0.0, magnitude / sizes(value), 1.0)


def by_own_size(x: Arrays, t: Arrays, *, is_coarse: bool) -> dict[str, np.ndarray] | None:
    """A direction with no entry moved by more than its own size; None if that is the same, or nearly."""
    shares = {path: own_share(x[path]) for path in t}
    small = _COARSE_SMALL if is_coarse else _SMALL
    if not any(((share < small) & (t[path] != 0)).any() for path, share in shares.items()):
        return None
    return {path: np.asarray(step * shares[path], step.dtype) for path, step in t.items()}


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


def pulled_through(
    blocks: Mapping[str, Mapping[str, np.ndarray]], c: Mapping[str, np.ndarray], paths: Iterable[str]
) -> dict[str, np.ndarray]:
    """J^T c by some inputs, from the blocks of J."""
    return {
        path: np.asarray(sum(np.tensordot(c[y], blocks[y][path], axes=c[y].ndim) for y in blocks)) for path in paths
    }
