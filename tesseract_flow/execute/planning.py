"""A traced function → a plan.

Each pure step joins the segment of all steps that wait for exactly the same calls: a segment can run as soon as these
have answered, and never holds up another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Var, jaxpr_as_fun

from tesseract_flow.autodiff import ENDPOINTS, Call
from tesseract_flow.execute.plan import Constant, Node, Plan, Ref, Segment
from tesseract_flow.execute.steps import Flattener, Step, bodies_of, calls_of, signature, without_unused

_VERBS = {
    "apply": "apply",
    "jacobian": "jacobian",
    "jacobian_vector_product": "pushforward",
    "vector_jacobian_product": "pullback",
}


def make_plan(closed: ClosedJaxpr, is_speculative: bool = False) -> Plan:
    """The plan of a traced function.

    Args:
        is_speculative: pull back 1 instead of the cotangent of a scalar, and multiply when that is known.

    Raises:
        EndpointNotFound: a call needs an endpoint that its Tesseract does not have. Nothing has run by then.
    """
    flattener = Flattener()
    arguments = tuple(flattener.new_slot(var.aval) for var in closed.jaxpr.invars)
    results = tuple(flattener.flatten(closed.jaxpr, closed.consts, arguments))
    if is_speculative:
        results = flattener.speculate(results)
    steps = without_unused(flattener.steps, results)
    for eqn in calls_of([step.eqn for step in steps]):
        eqn.params["call"].tesseract.require(ENDPOINTS[eqn.primitive])
    units = _group(steps, results, flattener.avals)
    return Plan(arguments, flattener.constants, tuple(units), results)


def _group(steps: Sequence[Step], results: Sequence[Ref], avals: Sequence[Any]) -> list[Node | Segment]:
    """Nodes, and one segment per set of calls that steps wait for."""
    ancestors: dict[int, int] = {}  # slot -> bit mask of the nodes it waits for
    direct: dict[int, frozenset[int]] = {}  # slot -> nodes whose results reach it through pure steps alone
    nodes: list[Node] = []
    grouped: dict[int, list[Step]] = {}
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
    compiled: dict[Any, Callable[..., list[Any]]] = {}
    # Whatever waits for more calls comes later, and a call after the segment that waits for the same ones.
    ranked: list[tuple[int, bool, Node | Segment]] = [
        *((mask.bit_count(), False, _segment(mask, group, used, avals, compiled)) for mask, group in grouped.items()),
        *((mask.bit_count(), True, node) for mask, node in zip(waits_for, nodes, strict=True)),
    ]
    return [unit for *_, unit in sorted(ranked, key=lambda entry: entry[:2])]


def _node(step: Step, index: int, sources: frozenset[int], nodes: Sequence[Node]) -> Node:
    call: Call = step.eqn.params["call"]
    primitive = step.eqn.primitive
    label = f"{call.tesseract.name}.{_VERBS[ENDPOINTS[primitive]]}"
    if call.batch is not None:
        label += f" x {call.batch.size}"
    wave = 1 + max((nodes[k].wave for k in sources), default=0)
    return Node(index, label, call, primitive, step.inputs, step.outputs, tuple(sorted(sources)), wave)


def _uses(nodes: Sequence[Node], grouped: Mapping[int, Sequence[Step]], results: Sequence[Ref]) -> dict[int, set[Any]]:
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


def _segment(
    mask: int,
    steps: Sequence[Step],
    used: Mapping[int, set[Any]],
    avals: Sequence[Any],
    compiled: dict[Any, Callable[..., list[Any]]],
) -> Segment:
    made = [slot for step in steps for slot in step.outputs]
    own = set(made)
    inputs = tuple(
        dict.fromkeys(ref for step in steps for ref in step.inputs if isinstance(ref, int) and ref not in own)
    )
    outputs = tuple(slot for slot in made if used.get(slot, set()) - {mask})
    # What is done with each of a hundred answers alike is compiled once: that takes 30 ms, however little it does.
    key = _structure(steps, inputs, outputs, avals)
    fn = compiled.get(key)
    if fn is None:
        fn = compiled[key] = _function(steps, inputs, outputs, avals)
    return Segment(inputs, outputs, fn, len(steps))


def _structure(
    steps: Sequence[Step], inputs: Sequence[int], outputs: Sequence[int], avals: Sequence[Any]
) -> tuple[Any, ...] | object:
    """Equal structures compute the same of inputs that are alike; what cannot be compared equals nothing."""
    number = {slot: k for k, slot in enumerate([*inputs, *(slot for step in steps for slot in step.outputs)])}
    signatures = [
        signature(step.eqn, [number[ref] if isinstance(ref, int) else ref for ref in step.inputs]) for step in steps
    ]
    if None in signatures:
        return object()
    return (*signatures, tuple(str(avals[slot]) for slot in inputs), tuple(number[slot] for slot in outputs))


def _function(
    steps: Sequence[Step], inputs: Sequence[int], outputs: Sequence[int], avals: Sequence[Any]
) -> Callable[..., list[Any]]:
    # A jaxpr of its own and not a loop over `bind`: how an equation is evaluated (its context, its sub-functions) is
    # JAX's business and changes between versions.
    made = [slot for step in steps for slot in step.outputs]
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
    fn = jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))
    # JAX keeps what it has compiled of a primitive, for any scalar in it and for all plans.
    is_primitive = len(eqns) == 1 and not any(True for _ in bodies_of(eqns[0].params))
    return fn if is_primitive else jax.jit(fn)


def _debug_info(n_inputs: int, n_outputs: int) -> DebugInfo:
    return DebugInfo(
        "segment",
        "tesseract_flow",
        tuple(f"in{k}" for k in range(n_inputs)),
        tuple(f"out{k}" for k in range(n_outputs)),
    )
