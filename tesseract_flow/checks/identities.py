"""What is true of derivative endpoints whatever the function is: they are linear, each other's transposes, and the same
when asked again.

One request to each endpoint that a component offers, compared with a pullback whose answer is known. A run may ask for
any of them: a search for least squares for pushforwards, rows of a Jacobian at once for the Jacobian, where a component
has one. No differences, so nothing here tells which of two endpoints is wrong; `component` does.
"""

from __future__ import annotations

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

Arrays = Mapping[str, np.ndarray]


def n_questions(handle: AbstractTesseract, *, is_elsewhere: bool) -> int:
    """How many requests `verdicts_of_identities` sends to a component at most."""
    _, endpoints = own_derivatives(handle)
    return len(endpoints) + (PULLBACK in endpoints and not is_elsewhere)


def verdicts_of_identities(site: Site, budget: Budget, seed: int, *, is_elsewhere: bool) -> list[Verdict]:
    """One verdict on each endpoint of a component, at a point where it pulled something back.

    Args:
        is_elsewhere: whether it was asked for values at other points since then, which an answer that depends on them
            takes. Else it is now.
    """
    pulled = site.pulled
    if pulled is None or not pulled.answer:
        return []
    site = Site(site.handle, site.inputs, tuple(pulled.answer), tuple(pulled.cotangents), pulled)
    probe, verdicts = Probe(site, budget, np.random.default_rng(seed)), list[Verdict]()
    look = _Look(probe, pulled)
    questions: Mapping[str, Callable[[], Verdict]] = {
        PULLBACK: lambda: look.once_more(is_elsewhere=is_elsewhere),
        PUSHFORWARD: look.pushforward,
        JACOBIAN: look.jacobian,
    }
    for endpoint in probe.endpoints:
        try:
            verdicts.append(questions[endpoint]())
        except Spent as spent:
            verdicts.append(Verdict("unsure", probe.site.handle.name, endpoint, message=f"not looked at: {spent}"))
        except CallError as error:
            verdicts.append(Verdict("wrong", probe.site.handle.name, endpoint, "error", message=str(error)))
    return verdicts


def factor_of(size: float, target: float, *, is_coarse: bool = False) -> float:
    """A negative power of two, near to which `size` is as large as `target`: numbers keep their digits times it, and
    what does not care about signs is found out. Never -1, as a question to which the answer may be kept."""
    most = _COARSE_MOST if is_coarse else _MOST
    exponent = round(math.log2(target / size)) if size and target and math.isfinite(target / size) else 0
    return -(2.0 ** (min(max(exponent, -most), most) or 1))


class _Look:
    def __init__(self, probe: Probe, pulled: Pulled):
        self.probe, self.c, self.x_bar = probe, pulled.cotangents, pulled.answer
        self.reach = pulled.reach
        self.tolerance = COARSE_TOLERANCE if probe.is_coarse else TOLERANCE
        self._pushed: tuple[Arrays, Arrays] | None = None

    # --- the pullback ---

    def once_more(self, *, is_elsewhere: bool) -> Verdict:
        """A multiple of the same cotangents, after other questions."""
        probe = self.probe
        if not is_elsewhere:
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
        probe, rng = self.probe, self.probe.rng
        t = {}
        for path, step in direction(probe.x, rng).items():
            # Each input counts as much as any other, whatever it adds.
            share = float(np.max(np.abs(self.x_bar[path] * step), initial=0.0))
            t[path] = step / share if share else step
        longest = max((float(np.max(np.abs(s) / sizes(probe.x[p]), initial=0.0)) for p, s in t.items()), default=0.0)
        # Long, as what is linear does not mind, and what cuts off large tangents shows.
        t = {path: np.asarray(step * (_LONG / (longest or 1.0)), probe.x[path].dtype) for path, step in t.items()}
        (pushed,) = probe.pushforwards(probe.x, [t])
        self._pushed = t, pushed
        said, found = inner(self.c, pushed), inner(self.x_bar, t)
        size = max(size_of(self.x_bar, t), abs(said))
        return self._of_transposes(PUSHFORWARD, abs(said - found) / (size or 1.0), said, found, size)

    def jacobian(self) -> Verdict:
        probe, c = self.probe, self.c
        n_numbers = sum(x.size for x in probe.x.values()) * sum(map(np.size, c.values()))
        if n_numbers > _MOST_NUMBERS:
            message = f"not asked for, as it has {n_numbers:.1g} numbers; components=True asks for it."
            return Verdict("unsure", probe.site.handle.name, JACOBIAN, message=message)
        blocks = probe.jacobian(probe.x)
        absolute = {y: _absolute(of_y) for y, of_y in blocks.items()}
        size = pulled_through(absolute, _absolute(c), probe.x)
        error, at = _worst(pulled_through(blocks, c, probe.x), self.x_bar, size, probe.x)
        if error <= self.tolerance and self._pushed is not None:
            # Rows by which next to nothing is pulled back; both are known, and nobody is asked for it.
            t, pushed = self._pushed
            of_rows, _ = _worst(product(blocks, t), pushed, product(absolute, _absolute(t)))
            if of_rows > error:
                error, at = of_rows, None
        return self._of_transposes(JACOBIAN, error, input=at)

    # --- verdicts ---

    def _of_transposes(
        self,
        endpoint: str,
        error: float,
        said: float | None = None,
        found: float | None = None,
        size: float = 0.0,
        input: str | None = None,
    ) -> Verdict:
        if error <= self.tolerance:
            return self._right(endpoint, "agrees with the pullback", error)
        of = "" if said is None else f": <c, J t> = {said:.6g}, <J^T c, t> = {found:.6g}"
        message = (
            f"it and the pullback contradict each other, by {error:.1g} of what they say{of}. One of them is wrong."
        )
        remedy = "Compare both with the formula; either can be replaced with derive=tf.Derive(replace=...)."
        return self._wrong(
            endpoint, "adjoint", error, message, remedy, input, said=said, found=found, bound=self.tolerance * size
        )

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
