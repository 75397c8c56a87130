"""What is true of derivative endpoints whatever the function is: they are linear, each other's transposes, and the same
when asked again.

A few requests to each endpoint that a component offers, compared with pullbacks whose answers are known, at two points:
an answer that is kept from the first one is right only there. A run may ask for any of them: a search for least
squares for pushforwards, rows of a Jacobian at once for the Jacobian, where a component has one. No differences, so
nothing here tells which of two endpoints is wrong; `component` does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tesseract_flow.checks.budget import Budget, Spent
from tesseract_flow.checks.lines import (
    COARSE_TOLERANCE,
    TOLERANCE,
    direction,
    inner,
    product,
    pulled_through,
    size_of,
    sizes,
)
from tesseract_flow.checks.probe import Probe, Pulled, Site, own_derivatives
from tesseract_flow.checks.verdicts import Verdict, replacement
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.client.deriving.routes import JACOBIAN, PULLBACK, PUSHFORWARD
from tesseract_flow.errors import CallError

_PLAIN = 1e-3  # relative: beyond, one endpoint is wrong, whatever the digits of the component
_DIGITS = 1e-9  # of the largest: below, an input or output has nothing but rounding to show
_MOST, _COARSE_MOST = 100, 30  # powers of two
_MOST_NUMBERS = 10**7  # of a Jacobian that is asked for unasked
_LONG = 2.0**10  # times the size of the inputs
_FAR = 1e-2  # relative distance of a point elsewhere
_BESIDE = "at a second point, close by, "

Arrays = Mapping[str, np.ndarray]


def n_questions(handle: AbstractTesseract, *, is_elsewhere: bool) -> int:
    """How many requests `verdicts_of_identities` sends to a component at most.

    Args:
        is_elsewhere: whether it is known at a second point as well.
    """
    _, endpoints = own_derivatives(handle)
    price = {PULLBACK: 2 - is_elsewhere, PUSHFORWARD: 2 + 3 * is_elsewhere, JACOBIAN: 1 + is_elsewhere}
    return sum(price[endpoint] for endpoint in endpoints)


def verdicts_of_identities(site: Site, beside: Site | None, budget: Budget, seed: int) -> list[Verdict]:
    """One verdict on each endpoint of a component, at a point where it pulled something back.

    Args:
        beside: the same at a point close by, which was asked about since. Without one a value elsewhere is asked for
            now, and the others are looked at where it is only.
    """
    if site.pulled is None or not site.pulled.answer:
        return []
    rng = np.random.default_rng(seed)
    look = _Look(site, site.pulled, budget, rng)
    if beside is not None and beside.pulled is not None:
        look.beside = _Look(beside, beside.pulled, budget, rng)
    questions: Mapping[str, Callable[[], Verdict]] = {
        PULLBACK: look.once_more,
        PUSHFORWARD: look.pushforward,
        JACOBIAN: look.jacobian,
    }
    name, verdicts = site.handle.name, list[Verdict]()
    for endpoint in look.probe.endpoints:
        try:
            verdicts.append(questions[endpoint]())
        except Spent as spent:
            verdicts.append(Verdict("unsure", name, endpoint, message=f"not looked at: {spent}"))
        except CallError as error:
            verdicts.append(Verdict("wrong", name, endpoint, "error", message=str(error)))
    return verdicts


def factor_of(size: float, target: float, *, is_coarse: bool = False) -> float:
    """A negative power of two, near to which `size` is as large as `target`: numbers keep their digits times it, and
    what does not care about signs is found out. Never -1, as a question to which the answer may be kept."""
    most = _COARSE_MOST if is_coarse else _MOST
    exponent = round(math.log2(target / size)) if size and target and math.isfinite(target / size) else 0
    return -(2.0 ** (min(max(exponent, -most), most) or 1))


@dataclasses.dataclass(frozen=True)
class _Seen:
    """How far an answer is from what the pullback says, relative to the size of what was added up."""

    error: float
    input: str | None = None
    said: float | None = None
    found: float | None = None
    size: float = 0.0


class _Look:
    """A component at a point where the answer of its pullback is known.

    Attributes:
        beside: at another point.
    """

    def __init__(self, site: Site, pulled: Pulled, budget: Budget, rng: np.random.Generator):
        paths = dataclasses.replace(site, x_paths=tuple(pulled.answer), y_paths=tuple(pulled.cotangents))
        self.probe, self.c, self.x_bar = Probe(paths, budget, rng), pulled.cotangents, pulled.answer
        self.reach = pulled.reach
        self.tolerance = COARSE_TOLERANCE if self.probe.is_coarse else TOLERANCE
        self.beside: _Look | None = None
        self._pushed: tuple[Arrays, Arrays] | None = None
        self._blocks: Mapping[str, Arrays] = {}

    # --- the pullback ---

    def once_more(self) -> Verdict:
        """A multiple of the same cotangents, after other questions."""
        probe = self.probe
        if self.beside is None:
            away = direction(probe.x, probe.rng)
            probe.values([{path: np.asarray(x + _FAR * away[path], x.dtype) for path, x in probe.x.items()}])
        factor = factor_of(1.0, self.reach, is_coarse=probe.is_coarse)
        (again,) = probe.pullbacks(probe.x, [{path: np.asarray(c * factor, c.dtype) for path, c in self.c.items()}])
        said = {path: value / factor for path, value in again.items()}
        error, at = unlike(said, self.x_bar, probe.x)
        if error <= self.tolerance:
            return self._right(PULLBACK, "is linear, and the same when asked again after others", error)
        message = (
            f"asked again after other questions, for {factor:.4g} times the cotangent, its answer is not {factor:.4g} "
            f"times as large (by {error:.1g} of its size): it keeps something from one call to the next, or is not "
            "linear."
        )
        return self._wrong(PULLBACK, "stale", error, message, replacement(PULLBACK), input=at)

    # --- its transposes ---

    def pushforward(self) -> Verdict:
        long = self._long()
        first, pushed = self._along(long)
        self._pushed = long, pushed
        one, another = self._units()
        # One entry of one input alone, as columns of a Jacobian are asked for: the same at both points, and at the
        # second one another, so that columns that are kept show, by their number or by the point.
        questions: list[tuple[_Look, Arrays, _Seen, Arrays]] = [(self, long, first, pushed)]
        questions.append((self, one, *self._along(one, is_alone=True)))
        if self.beside is not None and max(seen.error for _, _, seen, _ in questions) <= self.tolerance:
            for t in (long, one, another):
                questions.append((self.beside, t, *self.beside._along(t, is_alone=t is not long)))
        look, t, worst, answer = max(questions, key=lambda question: question[2].error)
        before = next((known for where, u, _, known in questions if where is self and u is t), None)
        if look is not self and before is not None and worst.error > self.tolerance and _is_kept(answer, before):
            return self._kept(PUSHFORWARD, worst)
        where = "" if look is self else _BESIDE
        alone = "" if t is long else f"along one entry of {next(iter(t))!r} alone "
        return self._of_transposes(PUSHFORWARD, worst, where + alone)

    def jacobian(self) -> Verdict:
        probe, c = self.probe, self.c
        n_numbers = sum(x.size for x in probe.x.values()) * sum(map(np.size, c.values()))
        if n_numbers > _MOST_NUMBERS:
            message = f"not asked for, as it has {n_numbers:.1g} numbers; components=True asks for it."
            return Verdict("unsure", probe.site.handle.name, JACOBIAN, message=message)
        first = self._through()
        if self.beside is None or self.tolerance < first.error:
            return self._of_transposes(JACOBIAN, first)
        seen = self.beside._through()
        is_kept = all(_is_kept(of_y, self._blocks[y]) for y, of_y in self.beside._blocks.items())
        if is_kept and seen.error > self.tolerance:
            return self._kept(JACOBIAN, seen)
        return self._of_transposes(JACOBIAN, seen, _BESIDE)

    def _long(self) -> Arrays:
        """A direction of which each input's part counts as much as any other's, whatever it adds; long, as what is
        linear does not mind, and what cuts off large tangents shows."""
        probe, t = self.probe, {}
        for path, step in direction(probe.x, probe.rng).items():
            share = float(np.max(np.abs(self.x_bar[path] * step), initial=0.0))
            t[path] = step / share if share else step
        longest = max((float(np.max(np.abs(s) / sizes(probe.x[p]), initial=0.0)) for p, s in t.items()), default=0.0)
        return {path: np.asarray(step * (_LONG / (longest or 1.0)), probe.x[path].dtype) for path, step in t.items()}

    def _units(self) -> tuple[Arrays, Arrays]:
        """The entry that counts most, and that of the next input, or the second one of the only input."""
        x = self.probe.x
        shares = {path: np.abs(self.x_bar[path] * sizes(x[path])) for path in x}
        by_size = sorted(x, key=lambda path: -float(np.max(shares[path], initial=0.0)))
        units = []
        for path in (by_size[0], by_size[min(1, len(by_size) - 1)]):
            k = int(np.argmax(shares[path]))
            unit = np.zeros_like(x[path])
            unit.flat[k] = 1.0
            shares[path].flat[k] = -1.0
            units.append({path: unit})
        return units[0], units[1]

    def _along(self, t: Arrays, *, is_alone: bool = False) -> tuple[_Seen, Arrays]:
        """What is pushed forward along `t`, beside what was pulled back: <c, J t> = <J^T c, t>.

        Args:
            is_alone: whether that is one entry, of which next to nothing may be pulled back.
        """
        x = self.probe.x
        (pushed,) = self.probe.pushforwards(x, [t])
        x_bar = {path: self.x_bar[path] for path in t}
        said, found = inner(self.c, pushed), inner(x_bar, t)
        size = max(size_of(x_bar, t), abs(said))
        if is_alone:
            # Terms that cancel leave rounding; and beside the entry that counts most a small one shows its own digits.
            largest = max(float(np.max(np.abs(self.x_bar[path]) * sizes(x[path]), initial=0.0)) for path in x)
            length = max(float(np.max(np.abs(t[path]) / sizes(x[path]), initial=0.0)) for path in t)
            size = max(size, size_of(self.c, pushed), largest * length)
        return _Seen(abs(said - found) / (size or 1.0), None, said, found, size), pushed

    def _through(self) -> _Seen:
        """What is pulled back through the Jacobian, beside what the pullback says."""
        probe, c = self.probe, self.c
        blocks = self._blocks = probe.jacobian(probe.x)
        absolute = {y: _absolute(of_y) for y, of_y in blocks.items()}
        size = pulled_through(absolute, _absolute(c), probe.x)
        error, at = _worst(pulled_through(blocks, c, probe.x), self.x_bar, size, probe.x)
        if error <= self.tolerance and self._pushed is not None:
            # Rows by which next to nothing is pulled back; both are known, and nobody is asked for it.
            t, pushed = self._pushed
            of_rows, _ = _worst(product(blocks, t), pushed, product(absolute, _absolute(t)))
            if of_rows > error:
                error, at = of_rows, None
        return _Seen(error, at)

    # --- verdicts ---

    def _of_transposes(self, endpoint: str, seen: _Seen, where: str = "") -> Verdict:
        if seen.error <= self.tolerance:
            return self._right(endpoint, "agrees with the pullback", seen.error)
        of = "" if seen.said is None else f": <c, J t> = {seen.said:.6g}, <J^T c, t> = {seen.found:.6g}"
        message = (
            f"{where}it and the pullback contradict each other, by {seen.error:.1g} of what they say{of}. One of them "
            "is wrong."
        )
        remedy = "Compare both with the formula; either can be replaced with derive=tf.Derive(replace=...)."
        bound = self.tolerance * seen.size
        return self._wrong(
            endpoint, "adjoint", seen.error, message, remedy, seen.input, said=seen.said, found=seen.found, bound=bound
        )

    def _kept(self, endpoint: str, seen: _Seen) -> Verdict:
        message = (
            "at a second point, close by, it answers what it answered at the first one, to the last bit, where the "
            f"pullback changes by {seen.error:.1g}: it keeps something from one call to the next."
        )
        return self._wrong(endpoint, "stale", math.inf, message, replacement(endpoint), seen.input)

    def _right(self, endpoint: str, how: str, error: float) -> Verdict:
        message = f"{how}, to {max(error, np.finfo(np.float64).eps):.0e}."
        return Verdict("right", self.probe.site.handle.name, endpoint, message=message)

    def _wrong(
        self,
        endpoint: str,
        kind: str,
        error: float,
        message: str,
        remedy: str,
        input: str | None,
        **facts: Any,
    ) -> Verdict:
        status = "wrong" if error > _PLAIN or not np.isfinite(error) else "unsure"
        name = self.probe.site.handle.name
        return Verdict(status, name, endpoint, kind, input=input, message=message, remedy=remedy, **facts)


def _is_kept(a: Arrays, b: Arrays) -> bool:
    return all(np.array_equal(value, b[path]) for path, value in a.items())


def unlike(a: Arrays, b: Arrays, x: Arrays) -> tuple[float, str | None]:
    """How far two answers of a pullback at `x` are apart, relative to the array in which they are worst, and which."""
    return _worst(a, b, _absolute(b), x)


def _worst(a: Arrays, b: Arrays, size: Arrays, x: Arrays | None = None) -> tuple[float, str | None]:
    """The largest difference, relative to the `size` of the terms in that array, and in which one it is.

    Args:
        x: what the arrays are derivatives by: what is moved by its own size tells which of them have next to nothing
            to show.
    """
    unit = {path: float(np.max(sizes(x[path]), initial=0.0)) if x is not None else 1.0 for path in size}
    scale = {path: float(np.max(value, initial=0.0)) for path, value in size.items()}
    least = _DIGITS * max((scale[path] * unit[path] for path in size), default=0.0)
    worst, at = 0.0, None
    for path in size:
        off = float(np.max(np.abs(a[path] - b[path]), initial=0.0))
        if off * unit[path] <= least:
            continue
        error = off / scale[path] if scale[path] else math.inf
        error = math.inf if math.isnan(error) else error
        if error > worst:
            worst, at = error, path
    return worst, at


def _absolute(arrays: Arrays) -> dict[str, np.ndarray]:
    return {path: np.abs(value) for path, value in arrays.items()}
