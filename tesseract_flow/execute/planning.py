"""A traced function → a plan.

Each pure step joins the segment of all steps that wait for exactly the same calls: a segment can run as soon as these
have answered, and never holds up another one. Bodies of loops are planned alike, with their arguments as something to
wait for: parts of a carry that come at different times let different calls of the next iteration leave.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, Var, jaxpr_as_fun

from tesseract_flow.autodiff import ENDPOINTS, Call, bodies_of, calls_of, has_calls
from tesseract_flow.execute.host import HostPrimitive
from tesseract_flow.execute.plan import Loop, Plan, Scan, Switch, Unit, While
from tesseract_flow.execute.steps import Flattener, Step, signature, without_unused
from tesseract_flow.execute.units import Constant, HostStep, Node, Ref, Segment

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
        NotImplementedError: a `HostPrimitive` in something that can only be compiled.
        EndpointNotFound: a call needs an endpoint that its Tesseract does not have. Nothing has run by then.
    """
    for eqn in calls_of([step.eqn for step in _Flat(closed, is_speculative).steps]):
        eqn.params["call"].tesseract.require(ENDPOINTS[eqn.primitive])
    return _Planner(is_speculative).plan(closed, [None] * len(closed.jaxpr.invars))


class _Flat:
    """A jaxpr in one row of steps, without those whose results nobody reads."""

    def __init__(self, closed: ClosedJaxpr, is_speculative: bool):
        flattener = Flattener(is_merging=any(True for _ in calls_of(closed.jaxpr.eqns)))
        self.arguments = tuple(flattener.new_slot(var.aval) for var in closed.jaxpr.invars)
        results = tuple(flattener.flatten(closed.jaxpr, closed.consts, self.arguments))
        self.results = flattener.speculate(results) if is_speculative else results
        self.steps = without_unused(flattener.steps, self.results)
        self.constants = flattener.constants
        self.avals = flattener.avals

    def masks(self, arrivals: Sequence[Hashable]) -> dict[int, int]:
        """Per slot, what it waits for as a bit mask: a bit per kind of arrival, then one per call, loop or host step.

        Args:
            arrivals: per argument what it waits for, in any terms; None if it is there from the start.
        """
        kinds = list(dict.fromkeys(arrival for arrival in arrivals if arrival is not None))
        masks = {
            slot: 0 if arrival is None else 1 << kinds.index(arrival)
            for slot, arrival in zip(self.arguments, arrivals, strict=True)
        }
        n_bits = len(kinds)
        for step in self.steps:
            mask = 0
            for ref in step.inputs:
                mask |= masks.get(ref, 0) if isinstance(ref, int) else 0
            if not step.is_pure:
                mask |= 1 << n_bits
                n_bits += 1
            masks.update(dict.fromkeys(step.outputs, mask))
        return masks

    def carries(self, n_consts: int, n_carry: int, others: Sequence[Hashable]) -> list[Hashable]:
        """Which parts of a loop's carry come together, as arrivals: those that wait for the same in an iteration.

        Found by splitting: all as one, then apart as far as what they wait for tells them apart, and again.
        """
        together: list[Any] = [0] * n_carry
        while True:
            named: list[Hashable] = [("carry", k) for k in together]
            masks = self.masks([*others[:n_consts], *named, *others[n_consts:]])
            waits = [
                (own, masks.get(ref, 0) if isinstance(ref, int) else 0)
                for own, ref in zip(together, self.results[:n_carry], strict=True)
            ]
            kinds = list(dict.fromkeys(waits))
            if len(kinds) == len(set(together)):
                return named
            together = [kinds.index(wait) for wait in waits]


class _Planner:
    """Plans of a function and of the bodies of its loops. What is compiled is compiled once for all of them."""

    def __init__(self, is_speculative: bool):
        self.is_speculative = is_speculative
        self.compiled: dict[Any, Callable[..., list[Any]]] = {}

    def plan(self, closed: ClosedJaxpr, arrivals: Sequence[Hashable]) -> Plan:
        return self._plan(_Flat(closed, self.is_speculative), arrivals)

    def _plan(self, flat: _Flat, arrivals: Sequence[Hashable]) -> Plan:
        """Nodes, loops, and one segment per set of these (and of arrivals) that steps wait for."""
        masks = flat.masks(arrivals)
        # Slots that calls and loops write, and late arguments, as far as they reach a slot through pure steps alone.
        direct: dict[int, frozenset[int]] = {
            slot: frozenset([slot])
            for slot, arrival in zip(flat.arguments, arrivals, strict=True)
            if arrival is not None
        }
        maker: dict[int, Node | Loop] = {}  # of such a slot
        calls: list[tuple[int, Node | Loop]] = []
        host_steps: list[tuple[int, HostStep]] = []
        grouped: dict[int, list[Step]] = {}
        for step in flat.steps:
            reaching = [direct.get(ref, frozenset()) if isinstance(ref, int) else frozenset() for ref in step.inputs]
            origins = frozenset().union(*reaching)
            mask = functools.reduce(operator.or_, (masks.get(ref, 0) for ref in step.inputs if isinstance(ref, int)), 0)
            primitive = step.eqn.primitive
            if isinstance(primitive, HostPrimitive):
                host_steps.append((mask, HostStep(primitive, step.eqn.params, step.inputs, step.outputs)))
            elif step.is_pure:
                grouped.setdefault(mask, []).append(step)
            if not (step.is_call or step.is_loop):
                direct.update(dict.fromkeys(step.outputs, origins))
                continue
            producers = tuple(sorted({maker[slot].index for slot in origins if slot in maker}))
            wave = 1 + max((calls[k][1].wave for k in producers), default=0)
            if step.is_call:
                unit: Node | Loop = _node(step, len(calls), producers, wave, tuple(sorted(origins)))
                # All results of a call come together, so one slot stands for them.
                direct.update(dict.fromkeys(step.outputs, frozenset(step.outputs[:1])))
            else:
                operand_arrivals = [masks.get(ref, 0) or None if isinstance(ref, int) else None for ref in step.inputs]
                unit = Loop(
                    len(calls),
                    self._control(step.eqn, operand_arrivals),
                    step.inputs,
                    step.outputs,
                    producers,
                    wave,
                    tuple(tuple(sorted(slots)) for slots in reaching),
                )
                direct.update({slot: frozenset([slot]) for slot in step.outputs})
            maker.update(dict.fromkeys(step.outputs, unit))
            calls.append((mask, unit))
        whole = [*calls, *host_steps]
        used = _uses([unit for _, unit in whole], grouped, flat.results)
        # Whatever waits for more comes later, and a call after the segment that waits for the same.
        segments = ((mask, _segment(mask, group, used, flat.avals, self.compiled)) for mask, group in grouped.items())
        ranked: list[tuple[int, bool, Unit]] = [
            *((mask.bit_count(), False, segment) for mask, segment in segments),
            *((mask.bit_count(), True, unit) for mask, unit in whole),
        ]
        units = tuple(unit for *_, unit in sorted(ranked, key=lambda entry: entry[:2]))
        origins = tuple(tuple(sorted(direct.get(ref, ()))) if isinstance(ref, int) else () for ref in flat.results)
        return Plan(flat.arguments, flat.constants, units, flat.results, origins)

    def _control(self, eqn: Any, arrivals: Sequence[Hashable]) -> Scan | While | Switch:
        """Bodies as plans. What arrives at different times stays apart in them, too."""
        params = eqn.params
        match eqn.primitive.name:
            case "scan":
                n_consts, n_carry = params["num_consts"], params["num_carry"]
                flat = _Flat(params["jaxpr"], self.is_speculative)
                others = [*arrivals[:n_consts], *arrivals[n_consts + n_carry :]]
                carries = flat.carries(n_consts, n_carry, others)
                named = [*_named(others[:n_consts]), *carries, *_named(others[n_consts:])]
                body = self._plan(flat, _told_apart(eqn, named))
                stacked = tuple(var.aval for var in eqn.outvars[n_carry:])
                return Scan(body, params["length"], params["reverse"], n_consts, n_carry, stacked)
            case "while":
                n_condition, n_body = params["cond_nconsts"], params["body_nconsts"]
                flat = _Flat(params["body_jaxpr"], self.is_speculative)
                consts = arrivals[n_condition : n_condition + n_body]
                carries = flat.carries(n_body, len(arrivals) - n_condition - n_body, consts)
                asked = _told_apart(eqn, [*_named(arrivals[:n_condition]), *carries])
                body = self._plan(flat, _told_apart(eqn, [*_named(consts), *carries]))
                return While(self.plan(params["cond_jaxpr"], asked), body, n_condition, n_body)
            case _:
                named = _told_apart(eqn, _named(arrivals[1:]))
                return Switch(tuple(self.plan(branch, named) for branch in params["branches"]))


def _named(arrivals: Sequence[Hashable]) -> list[Hashable]:
    """Arrivals from outside of a loop, told apart from those of its carry."""
    return [None if arrival is None else ("outside", arrival) for arrival in arrivals]


def _told_apart(eqn: Any, arrivals: list[Hashable]) -> list[Hashable]:
    """What a loop's body is planned for: where no call could leave early, it waits for all and has fewer segments."""
    return arrivals if has_calls(eqn) else ["all"] * len(arrivals)


def _node(step: Step, index: int, producers: tuple[int, ...], wave: int, origins: tuple[int, ...]) -> Node:
    call: Call = step.eqn.params["call"]
    primitive = step.eqn.primitive
    label = f"{call.options.label or call.tesseract.name}.{_VERBS[ENDPOINTS[primitive]]}"
    if call.batch is not None:
        label += f" x {call.batch.size}"
    return Node(index, label, call, primitive, step.inputs, step.outputs, producers, wave, origins)


def _uses(
    whole: Sequence[Node | Loop | HostStep], grouped: Mapping[int, Sequence[Step]], results: Sequence[Ref]
) -> dict[int, set[Any]]:
    """Per slot, who reads it: masks of segments, or "out" for all other units and the result."""
    used: dict[int, set[Any]] = {}
    for unit in whole:
        for ref in unit.operands:
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
    return Segment(inputs, outputs, fn, len(steps), _needs(steps, inputs, outputs))


def _needs(steps: Sequence[Step], inputs: Sequence[int], outputs: Sequence[int]) -> tuple[frozenset[int], ...]:
    """Per output the inputs behind it."""
    behind = {slot: frozenset([slot]) for slot in inputs}
    for step in steps:
        found = frozenset().union(*(behind[ref] for ref in step.inputs if isinstance(ref, int)))
        behind.update(dict.fromkeys(step.outputs, found))
    return tuple(behind[slot] for slot in outputs)


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
