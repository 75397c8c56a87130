"""What is small beside the rest, moved alone: a derivative lost in a sum of larger ones may be wrong in any way.

NumPy only. A sum of products says something about those of its terms that stand out of what its comparison leaves open.
The others are moved by themselves, three decades at a time, and likewise the results that hardly move: along the same
direction, weighed alone. Terms that are said to be zero are a group of their own. What does not show even then is
named, and nobody calls it right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tesseract_flow.checks.lines import TOLERANCE, Comparison, Line, by_own_size, inner, size_of

_EQUAL = 0.03  # of the largest: terms that are one of many like it, and as well known as these
_DECADES = 1e-3  # between the largest and the smallest of a group
_OPEN = 200.0  # times what is left open: terms that are known to half a hundredth
_NOTHING = 1e-13  # of the largest: what rounding leaves of a zero
# Of the whole: no entry of a gradient of so many terms is better than this, whatever its own size.
_FINEST = 1e-12
MOST_GROUPS = 6  # that one sum is cut into, besides the zeros

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some entries that were moved, some results that were weighed, and what came of it.

    Attributes:
        t: the direction, zero but for these entries; without the paths that have none.
        weights: of the results, zero but for these.
        gradient: of the weighted results, by all entries.
        share: of the sum that it was hidden in.
    """

    t: Arrays
    weights: np.ndarray
    gradient: Arrays
    line: Line
    comparison: Comparison
    share: float = 1.0

    @property
    def names(self) -> str:
        return named(self.t)


class Closer:
    """Looks at what one comparison cannot show.

    Args:
        x: the point.
        line_of: a direction → its line; may cost values.
        pull: weights → the gradient of the results weighed so; may cost requests.
        names: of the results, one for each weight.
        is_rough: the gradients come from differences, and are not better than the tolerance in any entry.

    Attributes:
        parts: what was looked at.
        wrong: of these, what is contradicted.
        unseen: names of what does not show.
    """

    def __init__(
        self,
        x: Arrays,
        line_of: Callable[[Arrays], Line],
        pull: Callable[[np.ndarray], Arrays] | None,
        names: Sequence[str],
        *,
        is_rough: bool = False,
    ):
        self._x = x
        self._line_of, self._pull, self._names, self._is_rough = line_of, pull, names, is_rough
        self._lines: dict[bytes, Line] = {}
        self.parts: list[Part] = []
        self.wrong: list[Part] = []
        self.unseen: list[str] = []

    def look(self, whole: Part) -> None:
        """At all that is hidden in a comparison which found nothing wrong."""
        self._at_entries(whole)
        slopes = whole.line.difference(whole.comparison.step)
        if self._pull is None or slopes is None or slopes.size < 2:
            return
        pull, terms = self._pull, np.abs(whole.weights * slopes)

        def compare(mask: np.ndarray) -> Comparison:
            weights = np.where(mask, whole.weights, 0.0)
            part = self._compared(whole, whole.t, weights, pull(weights), whole.line, float(terms[mask].sum()))
            if not part.comparison.is_wrong:
                self._at_entries(part)
            return part.comparison

        unseen = _peel(terms, whole.comparison, whole.weights != 0.0, compare)
        if unseen.any():
            of = dict.fromkeys(name for name, one in zip(self._names, unseen, strict=True) if one)
            self.unseen.append(f"the derivatives of {', '.join(list(of)[:6])}")

    def _at_entries(self, whole: Part) -> None:
        if not whole.t:
            return
        moved = np.concatenate([np.ravel(step) != 0 for step in whole.t.values()])
        terms = [np.ravel(np.abs(whole.gradient[path]) * np.abs(step)) for path, step in whole.t.items()]
        flat = np.concatenate(terms).astype(np.float64)

        def compare(mask: np.ndarray) -> Comparison:
            t, share = _masked(whole.t, mask), float(flat[mask].sum())
            return self._compared(whole, t, whole.weights, whole.gradient, self._line(t), share).comparison

        unseen = _peel(flat, whole.comparison, moved, compare)
        if unseen.any() and (names := named(_masked(whole.t, unseen))) not in self.unseen:
            self.unseen.append(names)

    def _line(self, t: Arrays) -> Line:
        key = b"".join(path.encode() + step.tobytes() for path, step in t.items())
        if key not in self._lines:
            self._lines[key] = self._line_of(t)
        return self._lines[key]

    def _compared(
        self, whole: Part, t: Arrays, weights: np.ndarray, gradient: Arrays, line: Line, share: float
    ) -> Part:
        of_t = {path: gradient[path] for path in t}
        comparison = line.compare(inner(of_t, t), size_of(of_t, t), weights)
        own = by_own_size(self._x, t, is_coarse=line.is_coarse) if comparison.is_wrong else None
        if own is not None:
            line, t = self._line(own), own
            comparison = line.compare(inner(of_t, t), size_of(of_t, t), weights)
        size = whole.comparison.size or 1.0
        part = Part(t, weights, gradient, line, comparison, share / size * whole.share)
        self.parts.append(part)
        floor = whole.comparison.tolerance if self._is_rough else _FINEST
        if comparison.is_wrong and comparison.error > floor * size:
            self.wrong.append(part)
        return part


def _peel(
    terms: np.ndarray, whole: Comparison, only: np.ndarray, compare: Callable[[np.ndarray], Comparison]
) -> np.ndarray:
    """Compare hidden terms by themselves: those said to be zero, then the others by size. Which of them never show?"""
    unseen = np.zeros(terms.shape, bool)
    if not np.isfinite(terms).all() or not only.any():
        return unseen
    is_zero = only & (terms <= _NOTHING * terms[only].max())
    if is_zero.any() and not is_zero[only].all():
        found, enough = compare(is_zero), whole.tolerance * whole.size
        if found.is_wrong or not (found.is_sure or found.bound <= enough):
            unseen |= is_zero
    left = only & ~is_zero & _hidden(terms, only, whole)
    for _ in range(MOST_GROUPS):
        if not left.any():
            break
        group = left & (terms >= _DECADES * terms[left].max())
        found = compare(group)
        if found.is_wrong or not found.is_sure:
            break  # what is smaller still does not show either
        left = (left & ~group) | (group & _hidden(terms, group, found))
    return unseen | left


def _hidden(terms: np.ndarray, mask: np.ndarray, found: Comparison) -> np.ndarray:
    """Those of which a fault of a hundredth need not show, and which are not one of many alike. Among numbers of seven
    digits: even a wrong sign, as what can be known to a hundredth is hardly more than the largest."""
    open_ = max(found.bound, found.tolerance * found.size)
    enough = _OPEN if found.tolerance <= TOLERANCE else 2.0
    return (terms < enough * open_) & (terms < _EQUAL * terms[mask].max(initial=0.0))


def _masked(t: Arrays, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Of a direction the entries that a flat mask chooses, without the paths that have none."""
    masked, start = {}, 0
    for path, step in t.items():
        part = mask[start : start + step.size].reshape(step.shape)
        start += step.size
        if part.any():
            masked[path] = np.where(part, step, np.zeros_like(step))
    return masked


def named(t: Arrays) -> str:
    """`b, x (3 of 100 entries)`."""
    names = []
    for path, value in t.items():
        n = int(np.count_nonzero(value))
        if n == 1 and value.size > 1:
            index = [int(i) for i in np.unravel_index(int(np.flatnonzero(value)[0]), value.shape)]
            names.append(f"{path}{index}")
        else:
            names.append(path if n == value.size else f"{path} ({n} of {value.size} entries)")
    return ", ".join(names[:6])
