"""A dataflow plan: Tesseract calls, and compiled segments of pure JAX between them.

Here: what a plan consists of, and how long it will take. How one is made of a traced function is `planning`'s, how it
is run `run`'s.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal, Primitive

from tesseract_flow.autodiff import AVALS, ENDPOINTS, HOST, Call
from tesseract_flow.execute.durations import durations


@dataclasses.dataclass(frozen=True)
class Constant:
    """A scalar known while planning."""

    literal: Literal

    @property
    def value(self) -> np.ndarray:
        # A literal may be a Python number, and only its aval knows the dtype.
        return np.asarray(self.literal.val, self.literal.aval.dtype)  # type: ignore[attr-defined]


Ref = int | Constant  # where a value comes from: the number of a slot, or a constant


@dataclasses.dataclass(frozen=True)
class Node:
    """One Tesseract call in the plan.

    Attributes:
        index: its bit in the ancestor masks.
        label: such as `fem.pullback`, or `fem.pullback x 8` for a batch.
        call, primitive: what to ask.
        operands, outputs: slots.
        producers: indices of the nodes whose results reach it, directly or through segments.
        wave: 1 + the largest wave among its producers; nodes of one wave may run at once.
    """

    index: int
    label: str
    call: Call
    primitive: Primitive
    operands: tuple[Ref, ...]
    outputs: tuple[int, ...]
    producers: tuple[int, ...]
    wave: int

    @property
    def endpoint(self) -> str:
        return ENDPOINTS[self.primitive]

    @property
    def reads(self) -> set[int]:
        return {ref for ref in self.operands if isinstance(ref, int)}

    @property
    def n_elements(self) -> int | None:
        """Into how many calls it falls, if it stands for a batch."""
        return None if self.call.batch is None else self.call.batch.size

    @property
    def n_at_once(self) -> int:
        """How many of them may be in flight together."""
        batch = self.call.batch
        return self.call.tesseract.n_lanes if batch is not None and batch.is_concurrent else 1

    def element(self, k: int) -> Node:
        """The call for one element of the batch, as a node of its own."""
        return dataclasses.replace(self, label=f"{self.label.rpartition(' x ')[0]} [{k}]", call=self.call.one)

    def avals(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the results."""
        return AVALS[self.primitive](self.call, operands)

    def run(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> list[np.ndarray]:
        """Ask the Tesseract, on the calling thread; one request, unless it stands for a batch."""
        start = time.perf_counter()
        answer = HOST[self.primitive](self.call, operands, run_id)
        if self.call.batch is None:
            durations.record(self._duration_key, time.perf_counter() - start)
        return answer

    @property
    def _duration_key(self) -> tuple[int, str]:
        return hash(self.call.tesseract), self.endpoint  # not the handle: to remember it would keep its server alive

    @property
    def seconds(self) -> float | None:
        """How long it took lately, if it was called before."""
        one = durations.of(self._duration_key)
        if one is None or self.n_elements is None:
            return one
        return one * math.ceil(self.n_elements / self.n_at_once)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Pure JAX between calls, compiled as one function of `inputs`."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fn: Callable[..., list[Any]]
    n_steps: int

    @property
    def reads(self) -> set[int]:
        return set(self.inputs)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run, as a graph over numbered slots.

    Attributes:
        arguments: slots of the function's array arguments.
        constants: slots filled in advance.
        units: nodes and segments in an order in which they could run one by one.
        results: what the function returns.
    """

    arguments: tuple[int, ...]
    constants: Mapping[int, Any]
    units: tuple[Node | Segment, ...]
    results: tuple[Ref, ...]

    @property
    def nodes(self) -> list[Node]:
        """The calls, each at its index: in the order in which the function makes them."""
        return sorted((unit for unit in self.units if isinstance(unit, Node)), key=lambda node: node.index)

    @property
    def n_waves(self) -> int:
        """Calls on the longest path: the least number of calls that must wait for each other."""
        return max((node.wave for node in self.nodes), default=0)

    @property
    def critical_path(self) -> tuple[float, list[Node]] | None:
        """Seconds that a run is expected to take, and the calls that decide it, by how long calls took lately.

        None as long as some component was not called before. Pure JAX is left out.
        """
        ends: dict[int, tuple[float, list[Node]]] = {}
        for node in self.nodes:
            seconds = node.seconds
            if seconds is None:
                return None
            before, path = max((ends[k] for k in node.producers), key=lambda end: end[0], default=(0.0, []))
            ends[node.index] = (before + seconds, [*path, node])
        return max(ends.values(), key=lambda end: end[0], default=(0.0, []))

    @functools.cached_property
    def readers(self) -> dict[int, list[int]]:
        """Per slot, the indices of the units that read it."""
        readers: dict[int, list[int]] = {}
        for k, unit in enumerate(self.units):
            for slot in unit.reads:
                readers.setdefault(slot, []).append(k)
        return readers

    def __str__(self) -> str:
        n_segments = sum(isinstance(unit, Segment) for unit in self.units)
        parts = _counted(len(self.nodes), "call"), _counted(self.n_waves, "wave"), _counted(n_segments, "segment")
        lines = ["{} in {}, {} of pure JAX".format(*parts)]
        for wave in range(1, self.n_waves + 1):
            n_of = collections.Counter(_timed(node) for node in self.nodes if node.wave == wave)
            lines.append(
                f"  wave {wave}: " + ", ".join(f"{n} \u00d7 {what}" if n > 1 else what for what, n in n_of.items())
            )
        expected = self.critical_path
        if expected is not None and expected[1]:
            seconds, path = expected
            lines.append(f"  critical path: {_pretty(seconds)}: " + " -> ".join(node.label for node in path))
        return "\n".join(lines)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _timed(node: Node) -> str:
    return node.label if node.seconds is None else f"{node.label} ({_pretty(node.seconds)})"


def _pretty(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"
