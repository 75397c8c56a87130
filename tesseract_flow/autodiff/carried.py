"""Values that one evaluation of a function leaves for the next one, such as where a search ended.

A search marks where it begins (`begins`) and where it ends (`ends`): identities that leave an equation in what JAX
traces. `carrying` makes a function of them that takes what was left before, and returns what is left now. So what goes
from one evaluation to the next is an argument and a result, for whoever calls it to keep. Everywhere else the marks are
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive
from jax.interpreters import ad, batching, mlir

from tesseract_flow.autodiff.sow import bodies_of_equation, evaluate_equation, split


class Left(NamedTuple):
    """What a search leaves.

    Attributes:
        x: where it ended, a vector; NaN where it is of no use to the next one.
        yardstick: what its residuals are measured by, if that is what they were where it first began; else empty.
        residual: relative, at the end.
        n_steps, n_rounds: how many. Steps below 0 in what is handed in (`as_it_was`): the search is asked for the same
        once more.
    """

    x: Any
    yardstick: Any
    residual: Any
    n_steps: Any
    n_rounds: Any


def as_it_was(left: Left) -> Left:
    """To be handed to an evaluation that repeats the one that has left this: an end that will do is its end too."""
    return left._replace(n_steps=jnp.full_like(left.n_steps, -1))


def begins(x: Any, beside: Sequence[Any], title: str, is_warm: bool) -> tuple[Any, Any]:
    """Where a search begins: at `x`, a vector, or where the evaluation before left it; and whether it is to go on from
    there even if that will do.

    Args:
        beside: what else the end depends on: where that is mapped over, each element has a beginning of its own.
        title: what the search is called.
        is_warm: False: always at `x`.
    """
    start, goes_on = begins_p.bind(x, jnp.asarray(True), *beside, title=title, is_warm=is_warm)
    return start, goes_on


def measured(yardstick: Any) -> Any:
    """What residuals of the search that has begun are measured by: this, or what the evaluation before left."""
    return measured_p.bind(yardstick)[0]


def ends(left: Left) -> Left:
    """Where the search ends that has begun last."""
    return Left(*ends_p.bind(*left))


class Carried(NamedTuple):
    """A search as its trace shows it: what it is called, and shapes and dtypes of what it leaves."""

    title: str
    left: Left


def searches_of(jaxpr: Jaxpr) -> list[Carried]:
    """The searches whose end can be carried to the next evaluation, in order.

    Those within another one or within a loop have no way out, and begin anew each time.
    """
    found: list[Any] = []
    under_way: list[int] = []
    for eqn in jaxpr.eqns:
        if eqn.primitive is begins_p:
            under_way.append(len(found))
            found.append(eqn.params["title"])
        elif eqn.primitive is ends_p:
            k = under_way.pop()
            avals: list[Any] = [var.aval for var in eqn.outvars]
            found[k] = Carried(found[k], Left(*(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)))
        else:
            for body in _open(eqn):
                found += searches_of(body.jaxpr)
    return found


def carrying(fn: Callable[..., Any]) -> Callable[..., tuple[Any, list[Left]]]:
    """`fn` as a function of what its searches have left before, and its arguments; it returns its result, and what they
    leave now. A search begins anew where what was left is not finite."""

    def carried(before: Sequence[Left], *args: Any) -> tuple[Any, list[Left]]:
        arrays, form = split(args)
        out_form: Any = None

        def flat(*arrays: Any) -> list[Any]:
            nonlocal out_form
            results, out_form = split(fn(*form(arrays)))
            return results

        results, left = _run(jax.make_jaxpr(flat)(*arrays), arrays, before)
        return out_form(results), left

    return carried


# --- the marks --------------------------------------------------------------------------------------------------------

begins_p, measured_p, ends_p = Primitive("search_begins"), Primitive("search_measured"), Primitive("search_ends")
# Identities in their first operands.
MARKS = (begins_p, measured_p, ends_p)


def _batch(primitive: Primitive, n: int | None, operands: Any, axes: Any, **params: Any) -> Any:
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    first = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands[:n], axes[:n], strict=True)
    ]
    outputs = primitive.bind(*first, *([] if n is None else operands[n:]), **params)
    return outputs, [0] * len(outputs)


def _without_derivative(primitive: Primitive, primals: Any, tangents: Any, **params: Any) -> Any:
    outputs = primitive.bind(*primals, **params)
    zero: Any = ad.Zero
    return outputs, [zero.from_primal_value(y) for y in outputs]


for _p, _n in ((begins_p, 2), (measured_p, 1), (ends_p, None)):
    _p.multiple_results = True
    _p.def_impl(lambda *values, _n=_n, **_: list(values[:_n]))
    _p.def_abstract_eval(lambda *avals, _n=_n, **_: list(avals[:_n]))
    mlir.register_lowering(_p, lambda ctx, *values, _n=_n, **_: list(values[:_n]))
    batching.primitive_batchers[_p] = lambda operands, axes, _p=_p, _n=_n, **params: _batch(
        _p, _n, operands, axes, **params
    )
    # They stand where no derivative passes.
    ad.primitive_jvps[_p] = lambda primals, tangents, _p=_p, **params: _without_derivative(
        _p, primals, tangents, **params
    )

# --- carrying ---------------------------------------------------------------------------------------------------------


def _run(body: Any, args: Sequence[Any], before: Sequence[Left]) -> tuple[list[Any], list[Left]]:
    """Outputs of a jaxpr, and what its searches leave, with what they have left before."""
    jaxpr: Jaxpr = getattr(body, "jaxpr", body)
    env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
    env.update(zip(jaxpr.constvars, getattr(body, "consts", ()), strict=True))

    def read(atom: Any) -> Any:
        return jnp.asarray(atom.val, getattr(atom.aval, "dtype", None)) if isinstance(atom, Literal) else env[atom]

    left: list[Any] = []
    under_way: list[tuple[int, bool]] = []
    for eqn in jaxpr.eqns:
        if eqn.primitive is begins_p:
            under_way.append((len(left), eqn.params["is_warm"]))
            left.append(None)
            k, is_warm = under_way[-1]
            x, goes_on = map(read, eqn.invars[:2])
            is_once_more = is_warm and jnp.shape(before[k].n_steps) == jnp.shape(goes_on)
            outputs: Sequence[Any] = [
                _or_else(before[k].x, x, is_warm),
                goes_on & (before[k].n_steps >= 0) if is_once_more else goes_on,
            ]
        elif eqn.primitive is measured_p:
            k, is_warm = under_way[-1]
            outputs = [_or_else(before[k].yardstick, read(eqn.invars[0]), is_warm)]
        elif eqn.primitive is ends_p:
            outputs = [read(atom) for atom in eqn.invars]
            left[under_way.pop()[0]] = Left(*outputs)
        elif n := sum(len(searches_of(body.jaxpr)) for body in _open(eqn)):
            outputs, inner = _opened(eqn, [read(atom) for atom in eqn.invars], before[len(left) : len(left) + n])
            left += inner
        else:
            outputs = evaluate_equation(eqn, env)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], left


def _or_else(known: Any, value: Any, is_warm: bool) -> Any:
    if not is_warm or jnp.shape(known) != jnp.shape(value):
        return value
    # Vectors, perhaps with axes in front along which they are mapped.
    is_there = jnp.isfinite(known).all(axis=-1, keepdims=True)
    return jnp.where(is_there, jax.lax.stop_gradient(known), value)


def _open(eqn: Any) -> Iterator[ClosedJaxpr]:
    """The body of an equation that is walked into: it runs once. A function with a derivative of its own keeps it."""
    if eqn.primitive.name in ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"):
        for body in bodies_of_equation(eqn):
            yield body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())


def _opened(eqn: Any, values: list[Any], before: Sequence[Left]) -> tuple[Sequence[Any], list[Left]]:
    (body,) = _open(eqn)

    def run(values: list[Any], before: Sequence[Left]) -> tuple[list[Any], list[Left]]:
        return _run(body, values, before)

    if eqn.primitive.name in ("checkpoint", "remat", "remat2"):
        run = jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    elif eqn.primitive.name in ("jit", "pjit"):
        run = jax.jit(run)
    return run(values, list(before))
