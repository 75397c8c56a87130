"""Four JAX primitives, one per endpoint, and their rules.

`apply` is differentiable once: its JVP rule emits a `pushforward`. Pushforward and pullback are linear in their
(co)tangents and each other's transposes, which is all that reverse mode needs: JAX linearises `apply` into pushforwards
and transposes those into pullbacks. `jacobian` comes in where many (co)tangents meet at one point (`batching`). Nothing
here talks to a server; `Call` does, through `jax.pure_callback`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from jax.interpreters import partial_eval as pe

from tesseract_flow.autodiff import messages
from tesseract_flow.autodiff.accounts import on_its_account
from tesseract_flow.autodiff.call import Call
from tesseract_flow.client import Endpoint
from tesseract_flow.errors import NotDifferentiable, SecondDerivative, TesseractFlowError, remember


def _primitive(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True
    return primitive


apply_p = _primitive("tesseract_apply")
pushforward_p = _primitive("tesseract_pushforward")
pullback_p = _primitive("tesseract_pullback")
jacobian_p = _primitive("tesseract_jacobian")

# What each primitive asks of its Call on the host, the shapes of what comes back, and the endpoint that this needs.
HOST: dict[Primitive, Callable[..., list[np.ndarray]]] = {
    apply_p: Call.apply,
    pushforward_p: Call.pushforward,
    pullback_p: Call.pullback,
    jacobian_p: Call.jacobian,
}
AVALS: dict[Primitive, Callable[..., list[jax.ShapeDtypeStruct]]] = {
    apply_p: Call.apply_avals,
    pushforward_p: Call.pushforward_avals,
    pullback_p: Call.pullback_avals,
    jacobian_p: Call.jacobian_avals,
}
ENDPOINTS: dict[Primitive, Endpoint] = {
    apply_p: "apply",
    pushforward_p: "jacobian_vector_product",
    pullback_p: "vector_jacobian_product",
    jacobian_p: "jacobian",
}


# --- evaluation and lowering ------------------------------------------------------------------------------------------


def _on_host(primitive: Primitive, call: Call, *operands: Any) -> list[np.ndarray]:
    return HOST[primitive](call, [np.asarray(x) for x in operands])


def _in_callback(primitive: Primitive, call: Call, *operands: Any) -> list[np.ndarray]:
    try:
        return _on_host(primitive, call, *operands)
    except TesseractFlowError as error:
        remember(error)  # of which XLA keeps the text
        raise


def _evaluate(primitive: Primitive, *operands, call: Call):
    outputs = _on_host(primitive, call, *operands)
    if primitive is apply_p and call.batch is None:
        # Plain numbers have JAX's weak types, as they have outside of JAX.
        return [
            jnp.asarray(out.item() if aval.weak_type else out)
            for out, aval in zip(outputs, call.out_avals, strict=True)
        ]
    return [jnp.asarray(out) for out in outputs]


def _shapes(primitive: Primitive, *operands, call: Call):
    return [ShapedArray(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in AVALS[primitive](call, operands)]


def _as_callback(primitive: Primitive, *operands, call: Call):
    # While lowering: a missing endpoint is an error before anything runs.
    call.tesseract.require(ENDPOINTS[primitive])
    ask = on_its_account(functools.partial(_in_callback, primitive, call))
    return jax.pure_callback(ask, AVALS[primitive](call, operands), *operands)


for _p in HOST:
    _p.def_impl(functools.partial(_evaluate, _p))
    _p.def_abstract_eval(functools.partial(_shapes, _p))
    mlir.register_lowering(_p, mlir.lower_fun(functools.partial(_as_callback, _p), multiple_results=True))


# --- forward mode -----------------------------------------------------------------------------------------------------


def _apply_jvp(primals, tangents, *, call: Call):
    active = [i for i, x_dot in enumerate(tangents) if not _is_zero(x_dot)]
    for i in active:
        if not call.input.differentiable[i]:
            raise NotDifferentiable(messages.constant_input(call, call.input.paths[i]))
    # The tangents of integers are zero, and JAX keeps no numbers for them.
    inexact = [j for j, aval in enumerate(call.out_avals) if jnp.issubdtype(aval.dtype, jnp.inexact)]
    if not active or not inexact:
        y = apply_p.bind(*primals, call=call)
        return y, [_zero(out) for out in y]
    mapped = [call.mapped[0][i] for i in active]
    # The derivative first: in eager forward mode, a missing endpoint is then found before the solve. (Eager reverse
    # mode finds out in the transpose, after the solve: until then the derivative may turn out not to be needed.)
    pushed = pushforward_p.bind(*primals, *(tangents[i] for i in active), call=call.linear(active, inexact, mapped))
    y = apply_p.bind(*primals, call=call)
    y_dot: list[Any] = [_zero(out) for out in y]
    for j, out_dot in zip(inexact, pushed, strict=True):
        y_dot[j] = out_dot
    return y, y_dot


def _pushforward_jvp(operands, operands_dot, *, call: Call):
    _refuse_second_derivative(call, operands_dot, "jacobian_vector_product")
    y_dot = pushforward_p.bind(*operands, call=call)
    primals, _ = call.split(operands)
    _, tangents_dot = call.split(operands_dot)
    active = [k for k, t in enumerate(tangents_dot) if not _is_zero(t)]
    if not active:
        return y_dot, [_zero(out) for out in y_dot]
    linear = call.linear([call.inputs[k] for k in active], call.outputs, [call.mapped[1][k] for k in active])
    return y_dot, pushforward_p.bind(*primals, *(tangents_dot[k] for k in active), call=linear)


def _pullback_jvp(operands, operands_dot, *, call: Call):
    _refuse_second_derivative(call, operands_dot, "vector_jacobian_product")
    x_bar = pullback_p.bind(*operands, call=call)
    primals, _ = call.split(operands)
    _, cotangents_dot = call.split(operands_dot)
    active = [k for k, c in enumerate(cotangents_dot) if not _is_zero(c)]
    if not active:
        return x_bar, [_zero(out) for out in x_bar]
    linear = call.linear(call.inputs, [call.outputs[k] for k in active], [call.mapped[1][k] for k in active])
    return x_bar, pullback_p.bind(*primals, *(cotangents_dot[k] for k in active), call=linear)


# --- reverse mode -----------------------------------------------------------------------------------------------------


def _pushforward_transpose(cotangents, *operands, call: Call):
    """c → Jᵀc is the transpose of t → Jt: one pullback, for the outputs whose cotangent is not zero."""
    primals, tangents = call.split(operands)
    _require_known(primals)
    for j, y_bar in zip(call.outputs, cotangents, strict=True):
        if not _is_zero(y_bar) and not call.output.differentiable[j]:
            raise NotDifferentiable(messages.constant_output(call, call.output.paths[j]))
    wanted = [k for k, t in enumerate(tangents) if ad.is_undefined_primal(t)]
    given = [k for k, y_bar in enumerate(cotangents) if not _is_zero(y_bar)]
    answer: list[Any] = [None] * len(operands)
    if wanted and given:
        linear = call.linear([call.inputs[k] for k in wanted], [call.outputs[k] for k in given], [True] * len(given))
        x_bar = pullback_p.bind(*primals, *(cotangents[k] for k in given), call=linear)
        for k, value in zip(wanted, x_bar, strict=True):
            answer[len(primals) + k] = _summed_unless_mapped(call, k, value)
    return answer


def _pullback_transpose(tangents, *operands, call: Call):
    """c → Jᵀc is linear in c; its transpose is t → Jt, so it costs one pushforward."""
    primals, cotangents = call.split(operands)
    _require_known(primals)
    wanted = [k for k, c in enumerate(cotangents) if ad.is_undefined_primal(c)]
    given = [k for k, x_dot in enumerate(tangents) if not _is_zero(x_dot)]
    answer: list[Any] = [None] * len(operands)
    if wanted and given:
        linear = call.linear([call.inputs[k] for k in given], [call.outputs[k] for k in wanted], [True] * len(given))
        y_dot = pushforward_p.bind(*primals, *(tangents[k] for k in given), call=linear)
        for k, value in zip(wanted, y_dot, strict=True):
            answer[len(primals) + k] = _summed_unless_mapped(call, k, value)
    return answer


def _summed_unless_mapped(call: Call, k: int, value: Any) -> Any:
    """What flows back to a tangent or cotangent that all elements of a batch share is the sum over them."""
    return value if call.batch is None or call.mapped[1][k] else jnp.sum(value, axis=0)


def _jacobian_jvp(primals, tangents, *, call: Call):
    _refuse_second_derivative(call, tangents, "jacobian")
    blocks = jacobian_p.bind(*primals, call=call)
    return blocks, [_zero(block) for block in blocks]


# --- nothing that nobody reads ----------------------------------------------------------------------------------------


def guards(eqn: Any) -> bool:
    """Whether an equation is a call at whose text the traced function has looked: only its answer tells whether what
    was traced still holds, so it is asked even if nobody reads its other outputs."""
    return eqn.primitive is apply_p and bool(eqn.params["call"].output.known)


def only(primitive: Primitive, call: Call, kept: Sequence[int]) -> Call:
    """The call that gives these of a derivative's results, and asks for no more than them."""
    if primitive is pushforward_p:
        return call.linear(call.inputs, [call.outputs[k] for k in kept], call.mapped[1])
    if primitive is pullback_p:
        return call.linear([call.inputs[k] for k in kept], call.outputs, call.mapped[1])
    raise ValueError(f"The results of {primitive} come together.")


def _drop_unused(used: Sequence[bool], *rest: Any):
    *_, eqn = rest  # JAX 0.12 tells before it which mutable references are alive: here are none
    if not any(used):
        return [False] * len(eqn.invars), None
    kept = [k for k, is_used in enumerate(used) if is_used]
    call = only(eqn.primitive, eqn.params["call"], kept)
    return [True] * len(eqn.invars), eqn.replace(outvars=[eqn.outvars[k] for k in kept], params={"call": call})


for _p in (pushforward_p, pullback_p):
    pe.dce_rules[_p] = _drop_unused


# --- registration -----------------------------------------------------------------------------------------------------


ad.primitive_jvps[apply_p] = _apply_jvp
ad.primitive_jvps[pushforward_p] = _pushforward_jvp
ad.primitive_jvps[pullback_p] = _pullback_jvp
ad.primitive_jvps[jacobian_p] = _jacobian_jvp
ad.primitive_transposes[pushforward_p] = _pushforward_transpose
ad.primitive_transposes[pullback_p] = _pullback_transpose


# --- tangents ---------------------------------------------------------------------------------------------------------


def _zero(primal: Any) -> ad.Zero:
    """The symbolic zero that is a tangent of `primal`."""
    return ad.Zero(jax.typeof(primal).to_tangent_aval())


def _is_zero(tangent: Any) -> bool:
    """A symbolic zero, or the tangent of an integer."""
    return isinstance(tangent, ad.Zero) or jax.dtypes.result_type(tangent) == jax.dtypes.float0


def _refuse_second_derivative(call: Call, operands_dot: Sequence[Any], endpoint: Endpoint) -> None:
    primals_dot, _ = call.split(operands_dot)
    if any(not _is_zero(x_dot) for x_dot in primals_dot):
        raise SecondDerivative(messages.second_derivative(call, endpoint))


def _require_known(primals: Sequence[Any]) -> None:
    if any(ad.is_undefined_primal(x) for x in primals):
        raise ValueError(messages.UNKNOWN_PRIMALS)


# --- is somebody tracing? ---------------------------------------------------------------------------------------------

_probe_p = Primitive("tesseract_trace_probe")
_probe_p.def_impl(lambda: np.zeros((), np.bool_))
_probe_p.def_abstract_eval(lambda: ShapedArray((), np.dtype(np.bool_)))
# Nobody reads its result, so JAX drops it from what it compiles; where it does not, it is a constant.
mlir.register_lowering(_probe_p, mlir.lower_fun(lambda: jnp.zeros((), jnp.bool_), multiple_results=False))


def is_staging() -> bool:
    """Whether what happens now is being recorded (by `jit`, `make_jaxpr`, `scan`, ...), even on constant operands.

    Asked by binding a primitive without operands, as JAX has no public name for the current trace.
    """
    return isinstance(_probe_p.bind(), Tracer)
