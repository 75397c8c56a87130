"""Where differences would be cheapest: around which calls of an evaluation `tf.differences` would stand best.

A component without derivatives is asked twice for each number that it is given. Several of them, one after the other,
are one function, which takes its differences along what enters the first of them: a field of thousands of numbers
between two components costs nothing then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from tesseract_flow.autodiff import HOST, apply_p
from tesseract_flow.checks.differentiability import input_avals
from tesseract_flow.checks.findings import Finding
from tesseract_flow.client import DerivedTesseract
from tesseract_flow.client.deriving.routes import PULLBACK, price, sources
from tesseract_flow.derivatives import Differences
from tesseract_flow.execute.steps import Flattener, Step, without_unused

_MOST_CALLS = 40  # of which all neighbours are tried
_WORTH_IT = 0.5  # of the requests that are sent without


class _Group(NamedTuple):
    calls: frozenset[int]  # numbers of steps
    n_in: int
    n_out: int
    now: int
    then: int


def cheapest_differences(closed: ClosedJaxpr) -> Iterator[Finding]:
    """Groups of calls whose derivatives would take half of the requests, or less, by differences of all together.

    Args:
        closed: the evaluation; its arguments are what varies.
    """
    graph = _Graph(closed)
    left = [k for k in graph.calls if graph.price_of(k)[0]]
    if not any(graph.price_of(k)[1] for k in left) or len(left) > _MOST_CALLS:
        return
    while left:
        groups = [graph.group(left[i : j + 1]) for i in range(len(left)) for j in range(i, len(left))]
        worth = [g for g in groups if g is not None and g.calls <= set(left) and g.then <= _WORTH_IT * g.now]
        if not worth:
            return
        best = max(worth, key=lambda g: (g.now - g.then, -len(g.calls)))
        left = [k for k in left if k not in best.calls]
        labels = [graph.steps[k].eqn.params["call"].tesseract.name for k in sorted(best.calls)]
        names = ", ".join(dict.fromkeys(labels))
        numbers = f"{best.n_in} number{'s' if best.n_in != 1 else ''}"
        yield Finding(
            "differences",
            names,
            f"a gradient through {'them' if len(best.calls) > 1 else 'it'} takes {best.now} requests, as derivatives "
            f"are made by differences of each call. Of all together ({numbers} in, {best.n_out} out) it is "
            f"{best.then}: {2 * best.n_in + 1} runs.",
            "Put the function that makes these calls into tf.differences(...), with what it starts from as its "
            "arguments.",
            "note",
        )


class _Graph:
    """The steps of an evaluation, and what of them depends on the design."""

    def __init__(self, closed: ClosedJaxpr):
        flattener = Flattener()
        arguments = [flattener.new_slot(var.aval) for var in closed.jaxpr.invars]
        results = flattener.flatten(closed.jaxpr, closed.consts, arguments)
        self.steps = without_unused(flattener.steps, results)
        self.avals = flattener.avals
        self.results = {ref for ref in results if isinstance(ref, int)}
        self.active = {slot for slot in arguments if self._is_floating(slot)}
        self.maker: dict[int, int] = {}
        self.before: list[int] = []  # per step, all that it waits for, as bits
        for k, step in enumerate(self.steps):
            slots = self._read(step)
            makers = {self.maker[slot] for slot in slots if slot in self.maker}
            self.before.append(sum(1 << m for m in makers) | _union(self.before[m] for m in makers))
            if self.active.intersection(slots):
                self.active.update(slot for slot in step.outputs if self._is_floating(slot))
            self.maker.update(dict.fromkeys(step.outputs, k))
        self.calls = [k for k, step in enumerate(self.steps) if step.eqn.primitive is apply_p]

    def price_of(self, k: int) -> tuple[int, bool]:
        """Requests of a call and of its pullback, and whether differences are among them; 0 where nobody needs one."""
        step = self.steps[k]
        call = step.eqn.params["call"]
        avals = input_avals(step.eqn)
        x = {
            call.input.paths[i]: avals[i]
            for i, ref in enumerate(step.inputs)
            if isinstance(ref, int) and ref in self.active
        }
        if not x or call.batch is not None:
            return 0, False
        handle = call.tesseract
        is_derived = isinstance(handle, DerivedTesseract)
        have = handle.schema.endpoints
        have = handle.settings.believed(handle.tesseract.schema.endpoints) if is_derived else have
        if PULLBACK in have:
            return 2, False
        source = sources(PULLBACK, have)[0]
        how = handle.settings.differences if is_derived else Differences()
        y = {call.output.paths[j]: call.out_avals[j] for j in call.outputs}
        return 1 + price(PULLBACK, source, x, y, how), source == "apply"

    def group(self, calls: Sequence[int]) -> _Group | None:
        """Some calls with what lies between them; None if that cannot be one function of its own."""
        chosen = sum(1 << k for k in calls)
        needed = _union(self.before[k] for k in calls)
        inside = {*calls, *(k for k in range(calls[-1]) if needed >> k & 1 and self.before[k] & chosen)}
        asked = {k for k in inside if self.steps[k].eqn.primitive in HOST}
        if any(self.steps[k].is_loop for k in inside) or not asked <= set(self.calls):
            return None
        prices = [self.price_of(k) for k in asked]
        if not any(is_by_differences for _, is_by_differences in prices):
            return None
        wider = self._with_what_leads_there(inside)
        n_in, inside = min(((self._entering(one), one) for one in (inside, wider)), key=lambda found: found[0])
        made = {slot for k in inside for slot in self.steps[k].outputs}
        read = {slot for k, step in enumerate(self.steps) if k not in inside for slot in self._read(step)}
        n_out = sum(self._size(slot) for slot in made & (read | self.results) & self.active)
        now = sum(requests for requests, _ in prices)
        return _Group(frozenset(asked), n_in, n_out, now, (2 * n_in + 1) * len(asked))

    def _with_what_leads_there(self, inside: set[int]) -> set[int]:
        """And the computations before them, back to other calls and to the design."""
        wider, todo = set(inside), list(inside)
        while todo:
            for slot in self._read(self.steps[todo.pop()]):
                k = self.maker.get(slot)
                if k is None or k in wider or self.steps[k].is_call or self.steps[k].is_loop:
                    continue
                wider.add(k)
                todo.append(k)
        return wider

    def _entering(self, inside: set[int]) -> int:
        made = {slot for k in inside for slot in self.steps[k].outputs}
        slots = {slot for k in inside for slot in self._read(self.steps[k])}
        return sum(self._size(slot) for slot in (slots - made) & self.active)

    def _read(self, step: Step) -> list[int]:
        return [ref for ref in step.inputs if isinstance(ref, int)]

    def _size(self, slot: int) -> int:
        return math.prod(self.avals[slot].shape)

    def _is_floating(self, slot: int) -> bool:
        return jnp.issubdtype(getattr(self.avals[slot], "dtype", jnp.int32), jnp.floating)


def _union(bits: Any) -> int:
    found = 0
    for one in bits:
        found |= one
    return found
