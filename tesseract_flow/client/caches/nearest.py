"""What a new question differs in from the nearest one that is known.

The one idea: a replay fails because one thing is another than it was, and naming it is worth a look at all entries.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tesseract_flow.exact import exact, is_array

_MOST_LINES = 8


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one question from another.

    Attributes:
        lines: what it is, leaf by leaf.
        distance: 2-norm of the difference of all arrays of equal form, relative to them.
        n_other: places that are not there, or of another form, or no number.
    """

    lines: tuple[str, ...]
    distance: float
    n_other: int

    @property
    def order(self) -> tuple[int, float]:
        return self.n_other, self.distance


def nearest(asked: Any, known: Iterable[tuple[str, Any]]) -> tuple[str, Difference] | None:
    """The name of the nearest one of the payloads that are known, and the difference; None if none is known."""
    found = None
    for name, payload in known:
        difference = differ(asked, payload)
        if found is None or difference.order < found[1].order:
            found = name, difference
    return found


def differ(asked: Any, known: Any) -> Difference:
    """What `asked` has otherwise than `known`."""
    mine, yours = dict(_leaves(asked, ())), dict(_leaves(known, ()))
    lines: list[str] = []
    distance, n_other = 0.0, 0
    for keys in dict.fromkeys([*mine, *yours]):
        path = ".".join(f"[{key}]" if isinstance(key, int) else key for key in keys) or "all of it"
        if keys not in yours:
            lines.append(f"{path}: {_said(mine[keys])} asked for, nothing recorded")
        elif keys not in mine:
            lines.append(f"{path}: {_said(yours[keys])} recorded, nothing asked for")
        else:
            a, b = mine[keys], yours[keys]
            if is_array(a) and is_array(b):
                a, b = np.asarray(a), np.asarray(b)
                if (a.shape, a.dtype) == (b.shape, b.dtype):
                    if a.tobytes() != b.tobytes():
                        line, d = _entries(a, b)
                        lines.append(f"{path}: {line}")
                        distance = math.hypot(distance, d)
                    continue
            elif not (is_array(a) or is_array(b)) and exact(a) == exact(b):
                continue
            lines.append(f"{path}: {_said(a)} asked for, {_said(b)} recorded")
        n_other += 1
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1 :] = [f"and {len(lines) - _MOST_LINES + 1} places more"]
    return Difference(tuple(lines), distance, n_other)


def _entries(a: np.ndarray, b: np.ndarray) -> tuple[str, float]:
    """How two arrays of one form differ, in words and as a relative distance."""
    # As bytes: NaN is equal to the same NaN, and 0.0 is not -0.0.
    mine, yours = (np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(a.size, -1) for array in (a, b))
    differing = np.flatnonzero((mine != yours).any(axis=1))
    first = tuple(int(k) for k in np.unravel_index(differing[0], a.shape))
    where = f"[{', '.join(map(str, first))}]" if first else ""
    with np.errstate(all="ignore"):
        wide = a.astype(complex if a.dtype.kind == "c" else float), b.astype(complex if b.dtype.kind == "c" else float)
        norm = float(np.linalg.norm((wide[0] - wide[1]).reshape(-1)))
        scale = float(np.linalg.norm(wide[1].reshape(-1)))
    relative = norm / scale if scale > 0 and math.isfinite(norm / scale) else norm
    line = (
        f"{len(differing)} of {a.size} entries differ, the first at {where or 'the number itself'}: "
        f"{a[first].item()!r} asked for, {b[first].item()!r} recorded; distance {norm:.3g}"
    )
    return line, relative if math.isfinite(relative) else math.inf


def _leaves(tree: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*keys, str(key)))
    elif isinstance(tree, list | tuple) and tree:
        for k, value in enumerate(tree):
            yield from _leaves(value, (*keys, k))
    else:
        yield keys, tree


def _said(leaf: Any) -> str:
    if is_array(leaf):
        array = np.asarray(leaf)
        return f"{array.dtype}{list(array.shape)}"
    return f"{leaf!r:.80}"
