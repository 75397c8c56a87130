"""Where a function of arrays is probed for a difference, and what the answers say; in traced code.

A derivative along a direction t is told by two points and their values (for `"forward"` by one, and the value here):
with lengths L1 and L2 along t, which are those that the entries have really moved by after rounding,

    J t = ((y1 - y0) L2 / L1 - (y2 - y0) L1 / L2) / (L2 - L1).

For L2 = -L1 that is the central difference, in which y0 cancels. At a bound both points lie on the side that is open,
the second twice as far, which keeps the second order. Where a direction pushes some entries against their lower and
others against their upper bounds, each entry moves to its own open side, half of them up in one point and the rest down
in the other: first order, and never outside.

Sources: J. E. Dennis and R. B. Schnabel, Numerical Methods for Unconstrained Optimization (1983), sections 5.4 and 5.6;
J. Nocedal and S. J. Wright, Numerical Optimization (2006), section 8.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from tesseract_flow.autodiff.batching import named_elements
from tesseract_flow.autodiff.judging import AbstractCase, judged
from tesseract_flow.autodiff.stepping import scale
from tesseract_flow.errors import BoundsError, ProbeFailed, in_brief

Arrays = list[Any]


@dataclasses.dataclass(frozen=True)
class Places:
    """The inputs that vary.

    Attributes:
        names: of the arrays.
        shapes: theirs.
        noise: relative error of the function where one of them moves, each.
        typical: magnitudes that count as usual, or None.
        lower, upper: bounds, or None where there are none at all.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    noise: tuple[float, ...]
    typical: tuple[Any, ...]
    lower: tuple[Any, ...] | None = None
    upper: tuple[Any, ...] | None = None

    @property
    def sizes(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.shapes]

    @property
    def n(self) -> int:
        return sum(self.sizes)

    @property
    def is_bounded(self) -> bool:
        return self.lower is not None

    def entry(self, k: int) -> str:
        """The name of one of all entries."""
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            if k < size:
                index = ", ".join(str(int(i)) for i in np.unravel_index(k, shape))
                return f"{name}[{index}]" if shape else name
            k -= size
        raise IndexError(k)

    def unit(self, k: Any, like: Arrays) -> Arrays:
        """The direction of one entry."""
        parts, start = [], 0
        for x, size in zip(like, self.sizes, strict=True):
            parts.append((jnp.arange(size) == k - start).astype(x.dtype).reshape(x.shape))
            start += size
        return parts


class Probes(NamedTuple):
    """Attributes:
    points: one list of arrays for each.
    weights: J t is the sum of weight times what the value has changed by, over the points.
    """

    points: list[Arrays]
    weights: list[Any]


def probes_along(places: Places, x: Arrays, t: Arrays, is_forward: bool) -> Probes:
    """Where to look for a derivative along `t`: at two points, or one and `x` itself."""
    wide = jnp.result_type(float)
    scales = [scale(a, typical).astype(wide) for a, typical in zip(x, places.typical, strict=True)]
    rates = [jnp.abs(a.astype(wide)) / s for a, s in zip(t, scales, strict=True)]
    speed = jnp.max(jnp.stack([jnp.max(rate, initial=0.0) for rate in rates]))
    speed = jnp.where(speed > 0.0, speed, 1.0)
    moves = [jnp.any(a != 0) for a in t]
    noise = jnp.max(jnp.stack([jnp.where(m, n, 0.0) for m, n in zip(moves, places.noise, strict=True)]))
    noise = jnp.where(noise > 0.0, noise, max(places.noise))
    length = sum(jnp.sum(rate**2) for rate in rates)
    length = jnp.where(length > 0.0, length, 1.0)

    def along(p: Arrays, q: Arrays) -> Any:
        """How far q is from p, in units of t."""
        terms = [
            jnp.sum(a.astype(wide) / s * ((d.astype(wide) - c.astype(wide)) / s))
            for a, s, c, d in zip(t, scales, p, q, strict=True)
        ]
        return sum(terms) / length

    def at(step: Any, direction: Arrays) -> Arrays:
        return [
            places_in(places, k, a + (step * d.astype(wide)).astype(a.dtype))
            for k, (a, d) in enumerate(zip(x, direction, strict=True))
        ]

    far, near = noise ** (1 / 3) / speed, noise**0.5 / speed
    if not places.is_bounded:
        if is_forward:
            point = at(near, t)
            return Probes([point], [_inverse(along(x, point))])
        up, down = at(far, t), at(-far, t)
        weight = _inverse(along(down, up))
        return Probes([up, down], [weight, -weight])
    up, down = _room(places, x, t), _room(places, x, [-a for a in t])
    if is_forward:
        # One point, on the side with more room.
        is_up = (up >= near) | (up >= down)
        step = jnp.where(is_up, jnp.minimum(near, up), -jnp.minimum(near, down))
        point = at(step, t)
        return Probes([point], [_inverse(along(x, point))])
    central = jnp.minimum(far, jnp.minimum(up, down))
    above, below = jnp.minimum(far, up / 2), jnp.minimum(far, down / 2)
    best = jnp.maximum(central, jnp.maximum(above, below))
    first = jnp.where(central >= best, central, jnp.where(above >= best, above, -below))
    second = jnp.where(central >= best, -first, 2.0 * first)
    bend = _bend(places, x, t, near)
    is_straight = best >= bend.step
    p1, p2 = at(first, t), at(second, t)
    q1, q2 = at(bend.step, bend.up), at(-bend.step, bend.down)
    l1, l2 = along(x, p1), along(x, p2)
    w = _inverse(along(q2, q1))
    weights = (
        jnp.where(is_straight, l2 * _inverse(l1) * _inverse(l2 - l1), w),
        jnp.where(is_straight, -l1 * _inverse(l2) * _inverse(l2 - l1), -w),
    )
    points = [[jnp.where(is_straight, a, b) for a, b in zip(p, q, strict=True)] for p, q in ((p1, q1), (p2, q2))]
    return Probes(points, list(weights))


class _Bend(NamedTuple):
    step: Any
    up: Arrays
    down: Arrays


def _bend(places: Places, x: Arrays, t: Arrays, step: Any) -> _Bend:
    """Each entry of a direction to the side where it has more room, and how far all of them may go."""
    up, down = [], []
    for k, (a, d) in enumerate(zip(x, t, strict=True)):
        above, below = _rooms(places, k, a, d), _rooms(places, k, a, -d)
        is_up = above >= below
        up.append(jnp.where(is_up, d, jnp.zeros_like(d)))
        down.append(jnp.where(is_up, jnp.zeros_like(d), d))
        step = jnp.minimum(step, jnp.min(jnp.maximum(above, below), initial=jnp.inf))
    return _Bend(step, up, down)


def _room(places: Places, x: Arrays, t: Arrays) -> Any:
    """How far along `t` the bounds allow to go."""
    rooms = [jnp.min(_rooms(places, k, a, d), initial=jnp.inf) for k, (a, d) in enumerate(zip(x, t, strict=True))]
    return jnp.min(jnp.stack(rooms))


def _rooms(places: Places, k: int, x: Any, t: Any) -> Any:
    assert places.lower is not None and places.upper is not None
    wide = jnp.result_type(float)
    x, t = x.astype(wide), t.astype(wide)
    gap = jnp.where(t > 0, jnp.asarray(places.upper[k], wide) - x, x - jnp.asarray(places.lower[k], wide))
    return jnp.where(t == 0, jnp.inf, jnp.maximum(gap, 0.0) / jnp.where(t == 0, 1.0, jnp.abs(t)))


def places_in(places: Places, k: int, x: Any) -> Any:
    """`x` where rounding has not taken it beyond a bound."""
    if places.lower is None or places.upper is None:
        return x
    return jnp.clip(x, jnp.asarray(places.lower[k], x.dtype), jnp.asarray(places.upper[k], x.dtype))


def _inverse(x: Any) -> Any:
    return jnp.where(x == 0.0, 0.0, 1.0 / jnp.where(x == 0.0, 1.0, x))


# --- is there anything to ask? ----------------------------------------------------------------------------------------

_any_p = Primitive("any_nonzero")


def is_any(vectors: Sequence[Any]) -> Any:
    """Whether anything in some arrays is not zero; under `vmap`, whether there is in any element.

    So a condition on it stays one condition for all elements. JAX would make it a choice for each of them, run both
    branches, and in these everything once for each element: probes at one point, for each row of a Jacobian.
    """
    return _any_p.bind(*vectors)


def _any(*vectors: Any) -> Any:
    return jnp.any(jnp.stack([jnp.any(part != 0) for part in vectors]))


_any_p.def_impl(_any)
_any_p.def_abstract_eval(lambda *_: ShapedArray((), np.dtype(np.bool_)))
batching.primitive_batchers[_any_p] = lambda vectors, _: (_any_p.bind(*vectors), None)
mlir.register_lowering(_any_p, mlir.lower_fun(_any, multiple_results=False))


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Probing:
    """A function near one point.

    Attributes:
        name: of the function, for messages.
        fn: the inputs that vary -> outputs; closes over nothing that is traced.
        outputs: names of the outputs.
        is_mapped: whether probes go through `lax.map`, and not `vmap`.
    """

    name: str
    fn: Callable[[Arrays], Arrays]
    places: Places
    outputs: tuple[str, ...]
    is_forward: bool
    is_mapped: bool

    @property
    def needs_value(self) -> bool:
        """Whether the value at the point itself is part of a difference."""
        return self.is_forward or self.places.is_bounded

    def push(self, x: Arrays, y: Arrays, t: Arrays) -> Arrays:
        """J t, by one difference along t."""
        x = self._inside(x)
        names = ("along the tangent, a step up", "along the tangent, a step down")
        # At a corner of the box one point along t does not do.
        found = probes_along(self.places, x, t, self.is_forward and not self.places.is_bounded)
        stacked = [jnp.stack(parts) for parts in zip(*found.points, strict=True)]
        values = self._values(stacked, names[: len(found.points)], [jnp.ones((), bool)] * len(self.outputs))
        return [_weighted(v, jnp.stack(found.weights), base) for v, base in zip(values, self._bases(y), strict=True)]

    def pull(self, x: Arrays, y: Arrays, c: Arrays) -> Arrays:
        """J^T c, by one difference along each entry."""
        x = self._inside(x)
        found = self.columns(x)
        n, m = self.places.n, 1 if self.is_forward else 2
        stacked = [jnp.stack(parts, 1).reshape(n * m, *parts[0].shape[1:]) for parts in zip(*found.points, strict=True)]
        names = [f"{self.places.entry(k)}, a step {side}" for k in range(n) for side in self._sides]
        values = self._values(stacked, names, [jnp.any(part != 0) for part in c])
        wide = jnp.result_type(float)
        total = jnp.zeros(n, wide)
        weights = jnp.stack(found.weights, 1)
        for value, base, part in zip(values, self._bases(y), c, strict=True):
            column = jax.vmap(_weighted, in_axes=(0, 0, None))(value.reshape(n, m, *part.shape), weights, base)
            # As everywhere: what no cotangent asks for counts nothing, NaN included.
            terms = jnp.where(part == 0, 0.0, column.astype(wide) * part.astype(wide))
            total = total + jnp.sum(terms.reshape(n, -1), axis=1)
        ends = np.cumsum(self.places.sizes)[:-1]
        return [part.reshape(a.shape).astype(a.dtype) for part, a in zip(jnp.split(total, ends), x, strict=True)]

    @property
    def _sides(self) -> Sequence[str]:
        return ("aside",) if self.is_forward else ("up", "down")

    def columns(self, x: Arrays) -> Probes:
        """The probes along each entry, with the number of the entry as the first axis."""

        def of(k: Any) -> Probes:
            return probes_along(self.places, x, self.places.unit(k, x), self.is_forward)

        return jax.vmap(of)(jnp.arange(self.places.n))

    def _inside(self, x: Arrays) -> Arrays:
        """`x`, which is inside of the bounds where this has returned."""
        places = self.places
        if places.lower is None or places.upper is None:
            return x
        outside = [(a < lo) | (a > hi) for a, lo, hi in zip(x, places.lower, places.upper, strict=True)]
        flat = jnp.concatenate([part.ravel() for part in outside])
        is_good = judged(Outside(self.name, places), ~jnp.any(flat), flat, *x)
        return [jnp.where(is_good, a, jnp.full_like(a, jnp.nan)) for a in x]

    def _bases(self, y: Arrays) -> Arrays:
        return y if self.needs_value else [None] * len(self.outputs)

    def _values(self, points: Arrays, names: Sequence[str], wanted: Arrays) -> Arrays:
        """What the function gives at some points, whose number is the first axis."""
        with named_elements(tuple(f"probe {k + 1} of {len(names)} ({name})" for k, name in enumerate(names))):
            values = jax.lax.map(self.fn, points) if self.is_mapped else jax.vmap(self.fn)(points)
        faults = [_is_missing(value) & is_wanted for value, is_wanted in zip(values, wanted, strict=True)]
        case = MissingValue(self.name, tuple(names), self.places.names, self.outputs)
        missing = jnp.stack(faults)
        is_good = judged(case, ~jnp.any(missing), missing, *points)
        return [jnp.where(is_good, value, jnp.full_like(value, jnp.nan)) for value in values]


def _is_missing(values: Any) -> Any:
    """Per point, whether there is no number: NaN, or inf that its neighbours do not have."""
    axes = tuple(range(1, values.ndim))
    is_inf = jnp.isinf(values)
    return jnp.any(jnp.isnan(values) | (is_inf & ~jnp.all(is_inf, axis=0)), axis=axes)


def _weighted(values: Any, weights: Any, base: Any) -> Any:
    """A derivative out of the values at the points and their weights."""
    wide = jnp.result_type(float)
    if base is None:
        return ((values[0] - values[1]).astype(wide) * weights[0]).astype(values.dtype)
    moved = (values - base).astype(wide)
    return jnp.tensordot(weights, moved, axes=1).astype(values.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Outside(AbstractCase):
    """A point that lies outside of the bounds itself."""

    name: str
    places: Places = dataclasses.field(repr=False)

    def fault(self, where: tuple[int, ...], is_good: np.ndarray, *facts: np.ndarray) -> BoundsError:
        k = int(np.argmax(facts[0][where]))
        values = np.concatenate([array[where].ravel() for array in facts[1:]])
        assert self.places.lower is not None and self.places.upper is not None
        lower, upper = (
            np.concatenate([np.ravel(a) for a in side])[k] for side in (self.places.lower, self.places.upper)
        )
        return BoundsError(
            f"Differences of {self.name!r}: {self.places.entry(k)} = {values[k]:.17g} lies outside of the bounds "
            f"[{lower:.17g}, {upper:.17g}], so no probe next to it may be made.\n"
            "Evaluate inside of the bounds, or give bounds= that hold."
        )


@dataclasses.dataclass(frozen=True)
class MissingValue(AbstractCase):
    """A probe whose answer is no number."""

    name: str
    probes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def fault(self, where: tuple[int, ...], is_good: np.ndarray, *facts: np.ndarray) -> ProbeFailed:
        missing, points = facts[0][where], [points[where] for points in facts[1:]]
        output, probe = (int(k) for k in np.argwhere(missing)[0])
        n = int(missing.any(axis=0).sum())
        at = {name: array[probe] for name, array in zip(self.inputs, points, strict=True)}
        return ProbeFailed(
            f"Differences of {self.name!r}: {n} of {len(self.probes)} probes gave NaN or inf; the first is "
            f"{self.probes[probe]}, in {self.outputs[output]}.\n"
            f"Its inputs: {in_brief(at)}.\n"
            "A domain that ends here is said by bounds=(lower, upper): no probe then leaves it.",
            name=self.name,
            probe=self.probes[probe],
            inputs=at,
        )
