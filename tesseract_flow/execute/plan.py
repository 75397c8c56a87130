"""A traced function → a dataflow plan: Tesseract calls, and compiled segments of pure JAX between them.

The jaxpr is flattened first (bodies of `jit`, `custom_jvp`, `remat` that contain Tesseract calls are inlined), equal
steps are merged and unused ones dropped. Each remaining pure step then joins the segment of all steps that wait for
exactly the same calls: a segment can run as soon as these have answered, and never holds up another one. Control flow
(`scan`, `while_loop`, `cond`) stays a pure step, with its calls inside as host callbacks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Primitive, Var, jaxpr_as_fun

from tesseract_flow.autodiff import AVALS, ENDPOINTS, HOST, Call, only, pullback_p, pushforward_p
from tesseract_flow.autodiff.sow import sow_p
from tesseract_flow.execute.durations import durations

# Primitives that only wrap a body, under the names of several versions of JAX, and the parameters that may hold it.
_WRAPPERS = {
    *("jit", "pjit", "closed_call", "core_call", "eval_jaxpr"),
    *("checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# Whose operands may be swapped without changing a bit: transposition writes equal products in either order.
_COMMUTATIVE = {"add", "add_any", "mul"}
_VERBS = {
    "apply": "apply",
    "jacobian": "jacobian",
    "jacobian_vector_product": "pushforward",
    "vector_jacobian_product": "pullback",
}


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
        lines = [f"{len(self.nodes)} calls in {self.n_waves} waves, {n_segments} segments of pure JAX"]
        for wave in range(1, self.n_waves + 1):
            lines.append(f"  wave {wave}: " + ", ".join(_timed(node) for node in self.nodes if node.wave == wave))
        expected = self.critical_path
        if expected is not None and expected[1]:
            seconds, path = expected
            lines.append(f"  critical path: {_pretty(seconds)}: " + " -> ".join(node.label for node in path))
        return "\n".join(lines)


def _timed(node: Node) -> str:
    return node.label if node.seconds is None else f"{node.label} ({_pretty(node.seconds)})"


def _pretty(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"


@dataclasses.dataclass(frozen=True)
class _Step:
    """One equation, with slots for its variables."""

    eqn: JaxprEqn
    inputs: tuple[Ref, ...]
    outputs: tuple[int, ...]

    @property
    def is_call(self) -> bool:
        return self.eqn.primitive in HOST


def make_plan(closed: ClosedJaxpr, is_speculative: bool = False) -> Plan:
    """The plan of a traced function.

    Args:
        is_speculative: pull back 1 instead of the cotangent of a scalar, and multiply when that is known.

    Raises:
        EndpointNotFound: a call needs an endpoint that its Tesseract does not have. Nothing has run by then.
    """
    flattener = _Flattener()
    arguments = tuple(flattener.new_slot(var.aval) for var in closed.jaxpr.invars)
    results = tuple(flattener.flatten(closed.jaxpr, closed.consts, arguments))
    if is_speculative:
        results = flattener.speculate(results)
    steps = _without_unused(flattener.steps, results)
    for eqn in _calls([step.eqn for step in steps]):
        eqn.params["call"].tesseract.require(ENDPOINTS[eqn.primitive])
    units = _group(steps, results, flattener.avals)
    return Plan(arguments, flattener.constants, tuple(units), results)


class _Flattener:
    """Walks a jaxpr and its inlined bodies, numbering values and merging equal steps."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.constants: dict[int, Any] = {}
        self.avals: list[Any] = []  # per slot
        self._merged: dict[Any, tuple[int, ...]] = {}
        self._slot_of: dict[int, int] = {}  # id of a constant -> its slot; `constants` keeps the object alive

    def new_slot(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def flatten(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Ref]) -> list[Ref]:
        env: dict[Any, Ref] = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self._constant(value, var.aval)

        def read(atom: Any) -> Ref:
            return Constant(atom) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = tuple(read(atom) for atom in eqn.invars)
            body = _body(eqn)
            if eqn.primitive is sow_p:
                # Nobody is listening here, and an identity that takes several values would make each wait for all.
                outputs: Sequence[Ref] = inputs
            elif body is not None:
                outputs = self.flatten(body.jaxpr, body.consts, inputs)
            else:
                outputs = self._add(eqn, inputs)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def speculate(self, results: tuple[Ref, ...]) -> tuple[Ref, ...]:
        """Pullbacks of a single scalar no longer wait for its cotangent: J^T c = c J^T 1, exactly.

        They then need what their apply needs, and can run beside it. (A component that keeps residuals of its apply
        for the pullback loses by it.)
        """
        steps, self.steps = self.steps, []
        moved: dict[int, Ref] = {}  # old results of such pullbacks -> the products

        def now(ref: Ref) -> Ref:
            return moved.get(ref, ref) if isinstance(ref, int) else ref

        for step in steps:
            inputs = tuple(map(now, step.inputs))
            call: Call | None = step.eqn.params.get("call")
            if step.eqn.primitive is not pullback_p or call is None or not _is_of_one_scalar(call, inputs):
                self.steps.append(_Step(step.eqn, inputs, step.outputs))
                continue
            aval = call.out_avals[call.outputs[0]]
            one = self._constant(np.ones((), aval.dtype), step.eqn.invars[-1].aval)
            pulled = tuple(self.new_slot(self.avals[slot]) for slot in step.outputs)
            self.steps.append(_Step(step.eqn, (*inputs[:-1], one), pulled))
            scale = jax.make_jaxpr(lambda c, *parts: [_scaled(c, part) for part in parts])(
                aval, *(self.avals[slot] for slot in pulled)
            )
            moved.update(zip(step.outputs, self.flatten(scale.jaxpr, scale.consts, (inputs[-1], *pulled)), strict=True))
        return tuple(map(now, results))

    def _constant(self, value: Any, aval: Any) -> int:
        """One slot per object, so that steps that differ in nothing else are seen to be equal."""
        if id(value) not in self._slot_of:
            slot = self._slot_of[id(value)] = self.new_slot(aval)
            self.constants[slot] = value
        return self._slot_of[id(value)]

    def _add(self, eqn: Any, inputs: tuple[Ref, ...]) -> tuple[int, ...]:
        key = _merge_key(eqn, inputs)
        if key is not None and key in self._merged:
            return self._merged[key]
        outputs = tuple(self.new_slot(var.aval) for var in eqn.outvars)
        self.steps.append(_Step(eqn, inputs, outputs))
        if key is not None:
            self._merged[key] = outputs
        return outputs


def _is_of_one_scalar(call: Call, inputs: Sequence[Ref]) -> bool:
    is_scalar = len(call.outputs) == 1 and call.out_avals[call.outputs[0]].shape == ()
    return is_scalar and call.batch is None and isinstance(inputs[-1], int)  # a constant is there already


def _scaled(c: Any, part: Any) -> Any:
    product = c.astype(np.promote_types(c.dtype, part.dtype)) * part.astype(np.promote_types(c.dtype, part.dtype))
    is_real = not np.issubdtype(part.dtype, np.complexfloating)
    return (jax.numpy.real(product) if is_real else product).astype(part.dtype)


def _body(eqn: Any) -> ClosedJaxpr | None:
    """The body to inline: that of a wrapper with a Tesseract call inside."""
    if eqn.primitive.name not in _WRAPPERS or not any(True for _ in _calls([eqn])):
        return None
    body = next(eqn.params[name] for name in _BODIES if name in eqn.params)
    return body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())


def _bodies(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _calls(eqns: Iterable[Any]) -> Iterator[Any]:
    """The Tesseract equations among these and in their bodies."""
    for eqn in eqns:
        if eqn.primitive in HOST:
            yield eqn
        for body in _bodies(eqn.params):
            yield from _calls(body.eqns)


def _merge_key(eqn: Any, inputs: tuple[Ref, ...]) -> Any:
    """Equal keys mean equal results; None if that cannot be told."""
    if eqn.effects:
        return None
    try:
        parts = tuple(
            (str(x.literal.aval), x.value.tobytes()) if isinstance(x, Constant) else x  # the aval tells weak types
            for x in inputs
        )
        if eqn.primitive.name in _COMMUTATIVE:
            parts = tuple(sorted(parts, key=repr))
        key = (eqn.primitive, parts, tuple(sorted(eqn.params.items())), tuple(str(v.aval) for v in eqn.outvars))
        hash(key)
    except TypeError:
        return None
    return key


def _without_unused(steps: Sequence[_Step], results: Sequence[Ref]) -> list[_Step]:
    needed = {ref for ref in results if isinstance(ref, int)}
    kept = []
    for step in reversed(steps):
        if step.eqn.effects or needed.intersection(step.outputs):
            kept.append(_with_what_is_used(step, needed))
            needed.update(ref for ref in step.inputs if isinstance(ref, int))
    return kept[::-1]


def _with_what_is_used(step: _Step, needed: set[int]) -> _Step:
    """A derivative of which only some results are used asks for those. After merging: equal ones may want different."""
    used = [k for k, slot in enumerate(step.outputs) if slot in needed]
    if step.eqn.primitive not in (pushforward_p, pullback_p) or len(used) == len(step.outputs):
        return step
    call = only(step.eqn.primitive, step.eqn.params["call"], used)
    eqn = step.eqn.replace(outvars=[step.eqn.outvars[k] for k in used], params={"call": call})
    return _Step(eqn, step.inputs, tuple(step.outputs[k] for k in used))


def _group(steps: Sequence[_Step], results: Sequence[Ref], avals: Sequence[Any]) -> list[Node | Segment]:
    """Nodes, and one segment per set of calls that steps wait for."""
    ancestors: dict[int, int] = {}  # slot -> bit mask of the nodes it waits for
    direct: dict[int, frozenset[int]] = {}  # slot -> nodes whose results reach it through pure steps alone
    nodes: list[Node] = []
    grouped: dict[int, list[_Step]] = {}
    waits_for: list[int] = []  # per node, the mask of its operands
    for step in steps:
        refs = [ref for ref in step.inputs if isinstance(ref, int)]
        mask = 0
        for ref in refs:
            mask |= ancestors.get(ref, 0)
        sources = frozenset().union(*(direct.get(ref, frozenset()) for ref in refs))
        if step.is_call:
            node = _node(step, len(nodes), sources, nodes)
            nodes.append(node)
            waits_for.append(mask)
            mask |= 1 << node.index
            sources = frozenset([node.index])
        else:
            grouped.setdefault(mask, []).append(step)
        for slot in step.outputs:
            ancestors[slot], direct[slot] = mask, sources
    used = _uses(nodes, grouped, results)
    # Whatever waits for more calls comes later, and a call after the segment that waits for the same ones.
    ranked: list[tuple[int, bool, Node | Segment]] = [
        *((mask.bit_count(), False, _segment(mask, group, used, avals)) for mask, group in grouped.items()),
        *((mask.bit_count(), True, node) for mask, node in zip(waits_for, nodes, strict=True)),
    ]
    return [unit for *_, unit in sorted(ranked, key=lambda entry: entry[:2])]


def _node(step: _Step, index: int, sources: frozenset[int], nodes: Sequence[Node]) -> Node:
    call: Call = step.eqn.params["call"]
    primitive = step.eqn.primitive
    label = f"{call.tesseract.name}.{_VERBS[ENDPOINTS[primitive]]}"
    if call.batch is not None:
        label += f" x {call.batch.size}"
    wave = 1 + max((nodes[k].wave for k in sources), default=0)
    return Node(index, label, call, primitive, step.inputs, step.outputs, tuple(sorted(sources)), wave)


def _uses(nodes: Sequence[Node], grouped: Mapping[int, Sequence[_Step]], results: Sequence[Ref]) -> dict[int, set[Any]]:
    """Per slot, who reads it: masks of segments, or "out" for nodes and the result."""
    used: dict[int, set[Any]] = {}
    for node in nodes:
        for ref in node.operands:
            if isinstance(ref, int):
                used.setdefault(ref, set()).add("out")
    for mask, group in grouped.items():
        for step in group:
            for ref in step.inputs:
                if isinstance(ref, int):
                    used.setdefault(ref, set()).add(mask)
    for ref in results:
        if isinstance(ref, int):
            used.setdefault(ref, set()).add("out")
    return used


def _segment(mask: int, steps: Sequence[_Step], used: Mapping[int, set[Any]], avals: Sequence[Any]) -> Segment:
    made = [slot for step in steps for slot in step.outputs]
    own = set(made)
    inputs = tuple(
        dict.fromkeys(ref for step in steps for ref in step.inputs if isinstance(ref, int) and ref not in own)
    )
    outputs = tuple(slot for slot in made if used.get(slot, set()) - {mask})
    # A jaxpr of its own and not a loop over `bind`: how an equation is evaluated (its context, its sub-functions) is
    # JAX's business and changes between versions.
    variables = {slot: Var(avals[slot]) for slot in (*inputs, *made)}
    eqns = [
        step.eqn.replace(
            invars=[ref.literal if isinstance(ref, Constant) else variables[ref] for ref in step.inputs],
            outvars=[variables[slot] for slot in step.outputs],
        )
        for step in steps
    ]
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    jaxpr = Jaxpr(
        (),
        [variables[slot] for slot in inputs],
        [variables[slot] for slot in outputs],
        eqns,
        set(effects),
        debug_info=_debug_info(len(inputs), len(outputs)),
    )
    return Segment(inputs, outputs, jax.jit(jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))), len(steps))


def _debug_info(n_inputs: int, n_outputs: int) -> DebugInfo:
    return DebugInfo(
        "segment",
        "tesseract_flow",
        tuple(f"in{k}" for k in range(n_inputs)),
        tuple(f"out{k}" for k in range(n_outputs)),
    )
