"""A jaxpr → its equations as steps in one row, each once.

Bodies of `jit`, `custom_jvp`, `remat` with work for the host inside (Tesseract calls, mostly) are inlined, equal steps
are merged, unused ones dropped. Control flow (`scan`, `while_loop`, `cond`) with such work inside is one step, whose
bodies get plans of their own (`planning`); without, it is a pure step like any other.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.interpreters import partial_eval as pe

from tesseract_flow.autodiff import HOST, Call, guards, only, pullback_p, pushforward_p
from tesseract_flow.autodiff.carried import MARKS
from tesseract_flow.autodiff.sow import sow_p
from tesseract_flow.exact import InputKey, is_array
from tesseract_flow.execute.host import HostPrimitive, has_host_work, is_on_host, on_host
from tesseract_flow.execute.units import Constant, Ref

# Primitives that only wrap a body, under the names of several versions of JAX, and the parameters that may hold it.
_WRAPPERS = {
    *("jit", "pjit", "closed_call", "core_call", "eval_jaxpr"),
    *("checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    *("custom_vmap_call", "linear_map"),
}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
_LOOPS = {"scan", "while", "cond"}
# Whose operands may be swapped without changing a bit: transposition writes equal products in either order.
_COMMUTATIVE = {"add", "add_any", "mul"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation, with slots for its variables."""

    eqn: JaxprEqn
    inputs: tuple[Ref, ...]
    outputs: tuple[int, ...]

    @property
    def is_call(self) -> bool:
        return self.eqn.primitive in HOST

    @property
    def is_loop(self) -> bool:
        """Whether it is control flow with work for the host inside."""
        return self.eqn.primitive.name in _LOOPS and has_host_work(self.eqn)

    @property
    def is_pure(self) -> bool:
        """Whether it can be compiled."""
        return not (is_on_host(self.eqn) or self.is_loop)


class Flattener:
    """Walks a jaxpr and its inlined bodies, numbering values and merging equal steps.

    Args:
        is_merging: equal steps have to be one where equal calls come of them. Elsewhere XLA sees to that, and rounds as
            it would without us.
    """

    def __init__(self, is_merging: bool = True) -> None:
        self._is_merging = is_merging
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self.avals: list[Any] = []  # per slot
        self._merged: dict[Any, tuple[int, ...]] = {}
        self._slot_of: dict[Hashable, int] = {}  # constant -> its slot; `constants` keeps those known by id alive

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
            env.update(zip(eqn.outvars, self._outputs(eqn, inputs), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _outputs(self, eqn: Any, inputs: tuple[Ref, ...]) -> Sequence[Ref]:
        if eqn.primitive is sow_p:
            # Nobody is listening here, and an identity that takes several values would make each wait for all.
            return inputs
        if eqn.primitive in MARKS:
            return inputs[: len(eqn.outvars)]
        if is_on_host(eqn) or not has_host_work(eqn):
            return self._add(eqn, inputs)
        if eqn.primitive.name == "custom_linear_solve":
            # Its operands are the constants of four bodies, and the right-hand side. Solving needs one of the bodies.
            n_before = sum(eqn.params["const_lengths"][:2])
            n_own, n_all = eqn.params["const_lengths"].solve, sum(eqn.params["const_lengths"])
            solve = eqn.params["jaxprs"].solve
            return self.flatten(solve.jaxpr, solve.consts, (*inputs[n_before:][:n_own], *inputs[n_all:]))
        if eqn.primitive.name == "while" and eqn.params["cond_jaxpr"].out_avals[0].shape:
            closed = with_one_condition(eqn)
            return self.flatten(closed.jaxpr, closed.consts, inputs)
        if eqn.primitive.name == "scan":
            moved = without_invariant_calls(eqn)
            if moved is not None:
                before, eqn = moved
                inputs = (*self.flatten(before, (), inputs[: len(before.invars)]), *inputs)
        body = _body(eqn)
        if body is not None:
            return self.flatten(body.jaxpr, body.consts, inputs)
        ours = [inner.primitive for inner in on_host([eqn]) if isinstance(inner.primitive, HostPrimitive)]
        if ours and eqn.primitive.name not in _LOOPS:
            raise NotImplementedError(
                f"{ours[0].name!r} is run on the host, which is out of reach in {eqn.primitive.name!r}"
            )
        return self._add(eqn, inputs)

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
                self.steps.append(Step(step.eqn, inputs, step.outputs))
                continue
            aval = call.out_avals[call.outputs[0]]
            one = self._constant(np.ones((), aval.dtype), step.eqn.invars[-1].aval)
            pulled = tuple(self.new_slot(self.avals[slot]) for slot in step.outputs)
            self.steps.append(Step(step.eqn, (*inputs[:-1], one), pulled))
            scale = jax.make_jaxpr(lambda c, *parts: [_scaled(c, part) for part in parts])(
                aval, *(self.avals[slot] for slot in pulled)
            )
            moved.update(zip(step.outputs, self.flatten(scale.jaxpr, scale.consts, (inputs[-1], *pulled)), strict=True))
        return tuple(map(now, results))

    def _constant(self, value: Any, aval: Any) -> int:
        """One slot per value, so that steps that differ in nothing else are seen to be equal."""
        # What was NumPy's by content, as each call has copies of its own; JAX's by identity, as they cannot change.
        is_foreign = not isinstance(value, jax.Array) and is_array(value)
        key = (str(aval), InputKey(np.asarray(value))) if is_foreign else id(value)
        if key not in self._slot_of:
            slot = self._slot_of[key] = self.new_slot(aval)
            self.constants[slot] = value
        return self._slot_of[key]

    def _add(self, eqn: Any, inputs: tuple[Ref, ...]) -> tuple[int, ...]:
        key = signature(eqn, inputs) if self._is_merging else None
        if key is not None and key in self._merged:
            return self._merged[key]
        outputs = tuple(self.new_slot(var.aval) for var in eqn.outvars)
        self.steps.append(Step(eqn, inputs, outputs))
        if key is not None:
            self._merged[key] = outputs
        return outputs


def _is_of_one_scalar(call: Call, inputs: Sequence[Ref]) -> bool:
    is_scalar = len(call.outputs) == 1 and call.out_avals[call.outputs[0]].shape == ()
    return is_scalar and call.batch is None and isinstance(inputs[-1], int)  # a constant is there already


def _scaled(c: Any, part: Any) -> Any:
    product = c.astype(np.promote_types(c.dtype, part.dtype)) * part.astype(np.promote_types(c.dtype, part.dtype))
    is_real = not np.issubdtype(part.dtype, np.complexfloating)
    product = (jax.numpy.real(product) if is_real else product).astype(part.dtype)
    # Where the gradient of 1 is NaN or infinite, that of 0 is zero all the same, as it is on every other way.
    return jax.numpy.where(c == 0, jax.numpy.zeros_like(product), product)


def _body(eqn: Any) -> ClosedJaxpr | None:
    """The body to inline: that of a wrapper."""
    if eqn.primitive.name not in _WRAPPERS:
        return None
    body = next(eqn.params[name] for name in _BODIES if name in eqn.params)
    return body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())


def without_invariant_calls(eqn: Any) -> tuple[Jaxpr, Any] | None:
    """A scan whose every iteration would ask the same, taken apart; None if there is no such call in it.

    Returns:
        What to compute once from the scan's constants, and the scan that takes its results as further, leading ones.
    """
    closed, n_consts = eqn.params["jaxpr"], eqn.params["num_consts"]
    body = closed.jaxpr
    if not eqn.params["length"] or body.constvars:
        return None
    known = set(body.invars[:n_consts])
    before, after = [], []
    for inner in body.eqns:
        is_same = not inner.effects and all(isinstance(atom, Literal) or atom in known for atom in inner.invars)
        (before if is_same else after).append(inner)
        known.update(inner.outvars if is_same else ())
    if not any(map(has_host_work, before)):
        return None
    read = {atom for inner in after for atom in inner.invars if not isinstance(atom, Literal)}
    read |= {atom for atom in body.outvars if not isinstance(atom, Literal)}
    results = [var for inner in before for var in inner.outvars if var in read]
    once = Jaxpr((), body.invars[:n_consts], results, before, set(), debug_info=_names(n_consts, len(results)))
    rest = body.replace(
        invars=[*results, *body.invars],
        eqns=after,
        debug_info=_names(len(results) + len(body.invars), len(body.outvars)),
    )
    params = {**eqn.params, "jaxpr": ClosedJaxpr(rest, ()), "num_consts": len(results) + n_consts}
    return once, eqn.replace(invars=[*results, *eqn.invars], params=params)


def with_one_condition(eqn: Any) -> ClosedJaxpr:
    """A while loop under vmap whose elements end at different times, as one that goes on while any element does.

    What has ended keeps its value, as in JAX's own lowering of such a loop; its calls are made on all the same.
    """
    condition, body = (jaxpr_as_fun(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    n_condition, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]

    def loop(*operands: Any) -> list[Any]:
        consts, inner = operands[:n_condition], operands[n_condition : n_condition + n_body]

        def goes_on(carry: Sequence[Any]) -> Any:
            return condition(*consts, *carry)[0]

        def step(carry: Sequence[Any]) -> list[Any]:
            is_on = goes_on(carry)
            new = body(*inner, *carry)
            # The elements come first in whatever has them.
            masks = [jax.lax.expand_dims(is_on, range(is_on.ndim, x.ndim)) for x in new]
            return [
                jax.lax.select(jax.lax.broadcast_in_dim(mask, x.shape, range(mask.ndim)), x, old)
                for mask, x, old in zip(masks, new, carry, strict=True)
            ]

        return jax.lax.while_loop(lambda carry: goes_on(carry).any(), step, list(operands[n_condition + n_body :]))

    return jax.make_jaxpr(loop)(*(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars))


def _names(n_inputs: int, n_outputs: int) -> DebugInfo:
    names = tuple(f"in{k}" for k in range(n_inputs)), tuple(f"out{k}" for k in range(n_outputs))
    return DebugInfo("loop", "tesseract_flow", *names)


def signature(eqn: Any, inputs: Sequence[int | Constant]) -> Any:
    """Equal signatures mean equal results; None if that cannot be told."""
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


def without_unused(steps: Sequence[Step], results: Sequence[Ref]) -> list[Step]:
    needed = {ref for ref in results if isinstance(ref, int)}
    kept = []
    for step in reversed(steps):
        # A call that guards a branch taken while tracing is used, whether or not anybody reads what else it answers.
        if step.eqn.effects or guards(step.eqn) or needed.intersection(step.outputs):
            kept.append(_with_what_is_used(step, needed))
            needed.update(ref for ref in step.inputs if isinstance(ref, int))
    return kept[::-1]


def _with_what_is_used(step: Step, needed: set[int]) -> Step:
    """A derivative of which only some results are used asks for those, and a loop makes no others. After merging: equal
    ones may want different."""
    used = [slot in needed for slot in step.outputs]
    if all(used):
        return step
    outputs = tuple(slot for slot, is_used in zip(step.outputs, used, strict=True) if is_used)
    if step.is_loop:
        rule: Any = pe.dce_rules.get(step.eqn.primitive)
        if rule is None or step.eqn.effects:
            return step
        before = (None,) * (len(inspect.signature(rule).parameters) - 2)  # JAX 0.12 has another argument there
        whole = step.eqn.replace(outvars=[Var(var.aval) for var in step.eqn.outvars])
        is_read, eqn = rule(*before, used, whole)
        inputs = tuple(ref for ref, is_kept in zip(step.inputs, is_read, strict=True) if is_kept)
        slot_of = dict(zip(whole.outvars, step.outputs, strict=True))
        # A carry that only the loop itself reads is still one of its results.
        return Step(eqn, inputs, tuple(slot_of[var] for var in eqn.outvars))
    if step.eqn.primitive not in (pushforward_p, pullback_p):
        return step
    kept = [k for k, is_used in enumerate(used) if is_used]
    call = only(step.eqn.primitive, step.eqn.params["call"], kept)
    eqn = step.eqn.replace(outvars=[step.eqn.outvars[k] for k in kept], params={"call": call})
    return Step(eqn, step.inputs, outputs)
