"""What `vmap` makes of a call: one request for the whole batch, one per element, or one Jacobian for all directions.

Here are the batching rules of the four primitives. Not here: how the elements of a batch are run (`Call`). The one
idea: a batch of calls is again one equation, with a `Batch` that says which operands are mapped, so that derivatives of
mapped calls need nothing of their own.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching

from tesseract_flow.autodiff import messages
from tesseract_flow.autodiff.call import Batch, Call
from tesseract_flow.autodiff.layout import Slot
from tesseract_flow.autodiff.primitives import HOST, apply_p, jacobian_p, pullback_p, pushforward_p
from tesseract_flow.autodiff.shapes import has_shapes, output_layout
from tesseract_flow.errors import CallError, EndpointNotFound, InvalidInput

Results: TypeAlias = tuple[Sequence[Any], Sequence[int | None]]  # arrays, and the axis of each that is the batch

# For users who promise that the component takes a leading dimension; `auto` has to find out.
_PROMISED = ("expand_dims", "broadcast_all")


_names: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("names", default=())


@contextlib.contextmanager
def named_elements(names: tuple[str, ...]) -> Iterator[None]:
    """Inside, `vmap` over so many elements calls them this in messages."""
    token = _names.set(names)
    try:
        yield
    finally:
        _names.reset(token)


def _map(primitive: Primitive, operands: Sequence[Any], axes: Sequence[int | None], *, call: Call) -> Results:
    """The batching rule of all four."""
    mapped = tuple(axis is not None for axis in axes)
    operands = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
    size = next(x.shape[0] for x, is_mapped in zip(operands, mapped, strict=True) if is_mapped)
    if primitive in (pushforward_p, pullback_p) and not any(call.split(mapped)[0]) and _has_jacobian(call):
        results = _through_jacobian(primitive, operands, mapped, call)
    elif call.batch is not None:
        results = _nested(primitive, operands, mapped, size, call)
    else:
        results = _together(primitive, operands, mapped, size, call)
        if results is not None:
            return results, _axes(primitive, call, len(results))
        is_concurrent = call.options.vmap_method not in ("sequential", "auto_experimental")
        names = _names.get()
        batch = Batch(size, mapped, is_concurrent, names if len(names) == size else ())
        batched = dataclasses.replace(call, batch=batch)
        results = primitive.bind(*operands, call=batched)
    return results, [0] * len(results)


def _axes(primitive: Primitive, call: Call, n: int) -> list[int | None]:
    """Where the batch is in the results of one request for all. Plain outputs there are of the whole batch."""
    if primitive not in (apply_p, pushforward_p):
        return [0] * n
    outputs = range(n) if primitive is apply_p else call.outputs
    return [0 if call.output.slots[j] is Slot.ARRAY else None for j in outputs]


for _p in HOST:
    batching.primitive_batchers[_p] = functools.partial(_map, _p)


# --- a request per element --------------------------------------------------------------------------------------------


def _nested(primitive: Primitive, operands: Sequence[Any], mapped: Sequence[bool], size: int, call: Call) -> list[Any]:
    """A batch of batches, as one batch of `size` times as many elements."""
    inner = call.batch
    assert inner is not None

    def flat(x: Any, is_outer: bool, is_inner: bool) -> Any:
        if not is_outer and not is_inner:
            return x
        x = x if is_outer else x[None]
        x = x if is_inner else x[:, None]
        return jnp.broadcast_to(x, (size, inner.size, *x.shape[2:])).reshape(size * inner.size, *x.shape[2:])

    whole = Batch(
        size * inner.size,
        tuple(outer or inner for outer, inner in zip(mapped, inner.mapped, strict=True)),
        inner.is_concurrent,
        inner.names,
    )
    results = primitive.bind(*map(flat, operands, mapped, inner.mapped), call=dataclasses.replace(call, batch=whole))
    return [y.reshape(size, inner.size, *y.shape[1:]) for y in results]


# --- one request for all ----------------------------------------------------------------------------------------------


def _together(
    primitive: Primitive, operands: Sequence[Any], mapped: Sequence[bool], size: int, call: Call
) -> list[Any] | None:
    """The batch as one call whose arrays have one dimension more, or None where that is not possible or not wanted."""
    method = call.options.vmap_method
    if method in ("sequential", "concurrent") or primitive is jacobian_p or size == 0:
        return None
    primals, vectors = call.split(operands)
    primals_mapped, vectors_mapped = call.split(mapped)
    # Directions at one point: a component that takes batches of inputs could answer those too, at the price of a
    # primal per direction. tesseract-jax does so for tangents, if told to.
    if not any(primals_mapped) and (primitive is pullback_p or method == "auto"):
        return None
    # Which inputs the batch must reach, even if that takes copies: the tangent of an input has its shape, and the
    # gradients of different elements are different.
    is_full = list(primals_mapped)
    for k, i in enumerate(call.inputs):
        is_full[i] = is_full[i] or primitive is pullback_p or vectors_mapped[k]
    for i, must in enumerate(is_full):
        if must and not call.input.any_rank[i]:
            if primals_mapped[i] and method in _PROMISED:
                raise InvalidInput(
                    messages.no_room_for_batch(call, call.input.paths[i]), tesseract=repr(call.tesseract)
                )
            return None
    ranks = [x.ndim - is_mapped for x, is_mapped in zip(primals, primals_mapped, strict=True)]
    if method not in _PROMISED and not _line_up(ranks, is_full, call.input.any_rank):
        return None
    lead = [
        size if must or method == "broadcast_all" else 1 if call.input.any_rank[i] else None
        for i, must in enumerate(is_full)
    ]
    if method not in _PROMISED and not _takes_batch(call, primals, ranks, is_full):
        return None
    vector_lead = [lead[i] for i in call.inputs] if primitive is pushforward_p else [size] * len(vectors)
    full = [
        x if is_mapped or n is None else jnp.broadcast_to(x, (n, *x.shape))
        for x, is_mapped, n in zip(operands, mapped, [*lead, *vector_lead], strict=True)
    ]
    out_avals = tuple(
        jax.ShapeDtypeStruct((size, *aval.shape), aval.dtype) if slot is Slot.ARRAY else aval
        for slot, aval in zip(call.output.slots, call.out_avals, strict=True)
    )
    return primitive.bind(*full, call=dataclasses.replace(call, out_avals=out_avals))


def _line_up(ranks: Sequence[int], is_full: Sequence[bool], any_rank: Sequence[bool]) -> bool:
    """Whether the batch is the same dimension for all inputs when they are broadcast against each other.

    Arrays are aligned by their last dimensions: beside (n, 3, 4), a batch of vectors (n, 4) is not n of them.
    """
    full = {rank for rank, must in zip(ranks, is_full, strict=True) if must}
    others = [rank for rank, must, open_ in zip(ranks, is_full, any_rank, strict=True) if open_ and not must]
    return len(full) == 1 and max(others, default=0) <= max(full)


def _takes_batch(call: Call, primals: Sequence[Any], ranks: Sequence[int], is_full: Sequence[bool]) -> bool:
    """Whether the component, by its own account, answers such inputs with outputs that all have the batch in front.

    Asked with a length that occurs nowhere else, as a sum over the first of n dimensions would otherwise pass for a
    batch of n; and once for batches of all sizes.
    """
    if not all(call.output.any_rank) or not has_shapes(call.tesseract):
        return False
    elements = [x.shape[x.ndim - rank :] for x, rank in zip(primals, ranks, strict=True)]
    taken = {length for shape in (*elements, *(aval.shape for aval in call.out_avals)) for length in shape}
    probe = next(n for n in itertools.count(2) if n not in taken)
    asked = [
        jax.ShapeDtypeStruct(((probe if must else 1), *shape) if has_room else shape, x.dtype)
        for x, shape, must, has_room in zip(primals, elements, is_full, call.input.any_rank, strict=True)
    ]
    try:
        output, out_avals = output_layout(call.tesseract, call.input, asked)
    except CallError:
        return False
    return output == call.output and all(
        got.shape == (probe, *one.shape) and got.dtype == one.dtype
        for got, one in zip(out_avals, call.out_avals, strict=True)
    )


# --- one Jacobian for all directions ----------------------------------------------------------------------------------


def _has_jacobian(call: Call) -> bool:
    wanted = call.options.materialize_jacobian
    if not any(call.output.differentiable[j] for j in call.outputs):
        return False  # nothing to ask for
    if wanted:
        try:
            call.tesseract.require("jacobian")
        except EndpointNotFound as error:
            error.add_note("It is demanded by materialize_jacobian=True; None does without where it is not there.")
            raise
    return wanted is not False and "jacobian" in call.tesseract.schema.endpoints


def _through_jacobian(primitive: Primitive, operands: Sequence[Any], mapped: Sequence[bool], call: Call) -> list[Any]:
    """Many directions at one point: one request for the Jacobian there, and products with it here."""
    primals, vectors = call.split(operands)
    outputs = [j for j in call.outputs if call.output.differentiable[j]]
    pairs = [(j, i) for j in outputs for i in call.inputs]
    blocks = jacobian_p.bind(*primals, call=call.linear(call.inputs, outputs))
    if primitive is pushforward_p:
        contract = functools.partial(_push, call)
    else:
        contract = functools.partial(_pull, call, [primals[i].dtype for i in call.inputs])
    if call.batch is not None:
        contract = jax.vmap(contract, in_axes=(0, [_axis(is_mapped) for is_mapped in call.mapped[1]]))
    contract = jax.vmap(contract, in_axes=(None, [_axis(is_mapped) for is_mapped in call.split(mapped)[1]]))
    return contract(dict(zip(pairs, blocks, strict=True)), list(vectors))


def _axis(is_mapped: bool) -> int | None:
    return 0 if is_mapped else None


def _push(call: Call, blocks: dict[tuple[int, int], Any], tangents: list[Any]) -> list[Any]:
    """J·t; NaN for outputs that have no derivative, where t is not zero."""
    y_dot = []
    is_moving = functools.reduce(jnp.logical_or, [jnp.any(t != 0) for t in tangents])
    for j in call.outputs:
        aval = call.out_avals[j]
        if call.output.differentiable[j]:
            terms = [_product(blocks[j, i], t, t.ndim) for i, t in zip(call.inputs, tangents, strict=True)]
            y_dot.append(_sum(terms, aval.dtype))
        else:
            y_dot.append(jnp.full(aval.shape, jnp.where(is_moving, jnp.nan, 0.0), aval.dtype))
    return y_dot


def _pull(call: Call, dtypes: list[Any], blocks: dict[tuple[int, int], Any], cotangents: list[Any]) -> list[Any]:
    """Jᵀ·c. Of complex numbers as JAX pairs them: without conjugation, and the real part where the input is real."""
    x_bar = []
    for i, dtype in zip(call.inputs, dtypes, strict=True):
        terms = [_product(c, blocks[j, i], c.ndim) for j, c in zip(call.outputs, cotangents, strict=True)]
        x_bar.append(_sum(terms, dtype))
    return x_bar


def _product(a: Any, b: Any, n_axes: int) -> Any:
    dtype = a.dtype if a.dtype == b.dtype else np.promote_types(a.dtype, b.dtype)  # JAX's own may be set to refuse
    return jnp.tensordot(a.astype(dtype), b.astype(dtype), axes=n_axes)


def _sum(terms: list[Any], dtype: Any) -> Any:
    total = functools.reduce(jnp.add, terms)
    is_real = not jnp.issubdtype(dtype, jnp.complexfloating)
    return (jnp.real(total) if is_real else total).astype(dtype)
