"""A dataflow plan: Tesseract calls, control flow with calls inside, and compiled segments of pure JAX between them.

Here: loops, plans, how long a plan will take, how it reads. What else it consists of is in `units`, how one is made of
a traced function in `planning`, how it is run in `run` and `loops`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

from tesseract_flow.execute.units import HostStep, Node, Ref, Segment


@dataclasses.dataclass(frozen=True)
class Scan:
    """`lax.scan`, `lax.map`, `fori_loop` with a known number of iterations.

    Operands: constants, the carry, stacked inputs. Results: the carry, stacked outputs.

    Attributes:
        stacked: shape and dtype of each stacked output.
    """

    body: Plan
    length: int
    is_reversed: bool
    n_consts: int
    n_carry: int
    stacked: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class While:
    """`lax.while_loop`. Operands: constants of the condition, constants of the body, the carry. Results: the carry."""

    condition: Plan
    body: Plan
    n_condition_consts: int
    n_body_consts: int


@dataclasses.dataclass(frozen=True)
class Switch:
    """`lax.cond`, `lax.switch`. Operands: the index, and what the branches take."""

    branches: tuple[Plan, ...]


@dataclasses.dataclass(frozen=True)
class Loop:
    """Control flow with work for the host inside; `control` says of which kind. Fields as in `Node`.

    Attributes:
        origins: as in `Node`, per operand.
    """

    index: int
    control: Scan | While | Switch
    operands: tuple[Ref, ...]
    outputs: tuple[int, ...]
    producers: tuple[int, ...]
    wave: int
    origins: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        return frozenset(ref for ref in self.operands if isinstance(ref, int))

    @property
    def bodies(self) -> tuple[Plan, ...]:
        match self.control:
            case Scan(body=body):
                return (body,)
            case While(condition=condition, body=body):
                return condition, body
            case Switch(branches=branches):
                return branches

    @functools.cached_property
    def n_at_once(self) -> int:
        """How many iterations may be under way together: as many as keep the lanes of all calls inside busy."""
        return max(2, min(64, sum(node.call.tesseract.n_lanes for body in self.bodies for node in body.all_nodes)))


Unit = Node | Loop | Segment | HostStep


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run, as a graph over numbered slots.

    Attributes:
        arguments: slots of the function's array arguments.
        constants: slots filled in advance.
        units: nodes, loops, segments and host steps in an order in which they could run one by one.
        results: what the function returns.
        origins: per result, as in `Node`.
    """

    arguments: tuple[int, ...]
    constants: Mapping[int, Any]
    units: tuple[Unit, ...]
    results: tuple[Ref, ...]
    origins: tuple[tuple[int, ...], ...]

    @property
    def calls(self) -> list[Node | Loop]:
        """Nodes and loops, each at its index: in the order in which the function comes to them."""
        return sorted((unit for unit in self.units if isinstance(unit, Node | Loop)), key=lambda unit: unit.index)

    @property
    def nodes(self) -> list[Node]:
        """The calls outside of loops, in the order in which the function makes them."""
        return [unit for unit in self.calls if isinstance(unit, Node)]

    @property
    def loops(self) -> list[Loop]:
        return [unit for unit in self.calls if isinstance(unit, Loop)]

    @property
    def all_nodes(self) -> list[Node]:
        """The calls, those in loops included; each once, however often it will be made."""
        inside = [node for loop in self.loops for body in loop.bodies for node in body.all_nodes]
        return [*self.nodes, *inside]

    @property
    def n_waves(self) -> int:
        """Calls and loops on the longest path: the least number that must wait for each other."""
        return max((unit.wave for unit in self.calls), default=0)

    @property
    def critical_path(self) -> tuple[float, list[Node]] | None:
        """Seconds that a run is expected to take, and the calls that decide it, by how long calls took lately.

        None as long as some component was not called before, or it cannot be told how often a loop runs. Pure JAX is
        left out.
        """
        ends = _ends(self)
        return None if ends is None else max(ends.values(), key=lambda end: end[0], default=(0.0, []))

    @functools.cached_property
    def readers(self) -> dict[int, list[int]]:
        """Per slot, the indices of the units that read it."""
        readers: dict[int, list[int]] = {}
        for k, unit in enumerate(self.units):
            for slot in unit.reads:
                readers.setdefault(slot, []).append(k)
        return readers

    @functools.cached_property
    def n_readers(self) -> dict[int, int]:
        return {slot: len(units) for slot, units in self.readers.items()}

    @functools.cached_property
    def n_operands(self) -> list[int]:
        """Per unit, the slots that it waits for."""
        return [len(unit.reads) for unit in self.units]

    @functools.cached_property
    def places(self) -> dict[int, list[int]]:
        """Per slot, which results it is."""
        places: dict[int, list[int]] = {}
        for k, ref in enumerate(self.results):
            if isinstance(ref, int):
                places.setdefault(ref, []).append(k)
        return places

    def __str__(self) -> str:
        n_segments = sum(isinstance(unit, Segment) for unit in self.units)
        what = _counted(len(self.nodes), "call")
        if self.loops:
            what = (f"{what} and " if self.nodes else "") + _counted(len(self.loops), "loop")
        lines = [f"{what} in {_counted(self.n_waves, 'wave')}, {_counted(n_segments, 'segment')} of pure JAX"]
        lines += [f"  wave {wave}: {text}" for wave, text in enumerate(_waves(self, ", "), start=1)]
        expected = self.critical_path
        if expected is not None and expected[1]:
            seconds, path = expected
            lines.append(f"  critical path: {pretty(seconds)}: " + " -> ".join(node.label for node in path))
        return "\n".join(lines)


Path = tuple[float, list[Node]]  # seconds, and the calls that take them


def _ends(plan: Plan, since: Collection[int] | None = None) -> dict[int, Path] | None:
    """When each call and loop will have ended, and the calls that decide it; None if that cannot be told.

    Args:
        since: arguments. Only what waits for one of these then has an end, counted from their arrival.
    """
    ends: dict[int, Path] = {}
    for unit in plan.calls:
        origins = unit.origins if isinstance(unit, Node) else [slot for slots in unit.origins for slot in slots]
        own = _duration(unit)
        if own is None:
            return None
        before = [ends[k] for k in unit.producers if k in ends]
        if since is None or not set(since).isdisjoint(origins):
            before.append((0.0, []))
        if before:
            seconds, path = max(before, key=lambda end: end[0])
            ends[unit.index] = (seconds + own[0], [*path, *own[1]])
    return ends


def _duration(unit: Node | Loop) -> Path | None:
    if isinstance(unit, Node):
        return None if unit.seconds is None else (unit.seconds, [unit])
    match unit.control:
        case Switch(branches=branches):
            paths = [branch.critical_path for branch in branches]
            known = [path for path in paths if path is not None]
            return max(known, key=lambda path: path[0]) if len(known) == len(paths) else None
        case Scan(body=body, length=length, n_consts=n_consts, n_carry=n_carry):
            through, ends = body.critical_path, _ends(body, body.arguments[n_consts : n_consts + n_carry])
            if through is None or ends is None:
                return None
            # From one iteration to the next: what a carry waits for behind a carry.
            carried = [k for k in range(n_carry) if isinstance(body.results[k], int)]
            last = {index for k in carried for index in _makers(body, body.origins[k])}
            chain = max((ends[index][0] for index in last if index in ends), default=0.0)
            busiest = max(_seconds_per_lane(body), chain)
            return (through[0] + (length - 1) * busiest, through[1]) if length else (0.0, [])
        case While():
            return None  # nobody knows how often


def _makers(plan: Plan, origins: Collection[int]) -> list[int]:
    return [unit.index for unit in plan.calls if not set(origins).isdisjoint(unit.outputs)]


def _seconds_per_lane(plan: Plan) -> float:
    """What one iteration adds where nothing waits for anything: the work of the busiest component over its lanes."""
    work: dict[Any, float] = {}
    for node in plan.all_nodes:
        tesseract = node.call.tesseract
        work[tesseract] = work.get(tesseract, 0.0) + (node.seconds or 0.0) / tesseract.n_lanes
    return max(work.values(), default=0.0)


def _waves(plan: Plan, separator: str) -> list[str]:
    """Per wave what is in it, equal calls once."""
    texts = []
    for wave in range(1, plan.n_waves + 1):
        n_of = collections.Counter(described(unit) for unit in plan.calls if unit.wave == wave)
        texts.append(separator.join(f"{n} \u00d7 {what}" if n > 1 else what for what, n in n_of.items()))
    return texts


def described(unit: Node | Loop) -> str:
    """A call or a loop in words, with how long it took lately."""
    if isinstance(unit, Node):
        return unit.label if unit.seconds is None else f"{unit.label} ({pretty(unit.seconds)})"
    match unit.control:
        case Scan(body=body, length=length):
            return f"scan of {length}: {_inside(body)}"
        case While(condition=condition, body=body):
            return f"while{f' {_inside(condition)}' if condition.calls else ''}: {_inside(body)}"
        case Switch(branches=branches):
            return "one of: " + " or ".join(map(_inside, branches))


def _inside(body: Plan) -> str:
    text = ", then ".join(_waves(body, " | ")) or "nothing"
    return f"({text})" if body.loops else text


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def pretty(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"
