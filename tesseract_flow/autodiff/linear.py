"""A linear map that is told in both directions, for JAX to use whichever it needs.

`jax.jvp` goes forward and `jax.vjp` through the transpose, each by code of its own: the implicit derivative of a fixed
point solves with pushforwards one way and with pullbacks the other, and a component that has one of them is enough.
(JAX's own `custom_linear_solve` traces one direction from the other, and its `linear_call` knows no `vmap`.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from tesseract_flow.errors import SecondDerivative, cause

# (what it is linearised at, vectors) -> vectors
Direction = Callable[[list[Any], list[Any]], list[Any]]


def linear_map(
    forward: Direction, transpose: Direction, at: Sequence[Any], vectors: Sequence[Any], what: str = "this"
) -> list[Any]:
    """`forward(at, vectors)`, whose transpose is `transpose(at, covectors)`.

    Neither may close over traced arrays: those belong into `at`. Whether one is the transpose of the other is the
    caller's word. `transpose` is not traced unless somebody transposes.

    Args:
        what: of which derivative it is, for the refusal of a second one.
    """
    return _bind(_Ways(forward, transpose, what), list(at), list(vectors))


@dataclasses.dataclass(frozen=True, eq=False)
class _Ways:
    forward: Direction
    transpose: Direction
    what: str

    @property
    def turned(self) -> _Ways:
        return _Ways(self.transpose, self.forward, self.what)

    def mapped(self, axes: Sequence[int | None]) -> _Ways:
        """Of many, as `vmap` makes them, with the axes of what they are linearised at; vectors have it in front."""

        def over(direction: Direction) -> Direction:
            return jax.vmap(direction, in_axes=(list(axes), 0), out_axes=0)

        return _Ways(over(self.forward), over(self.transpose), self.what)


linear_map_p = Primitive("linear_map")
linear_map_p.multiple_results = True


def _bind(ways: _Ways, at: list[Any], vectors: list[Any]) -> list[Any]:
    closed = jax.make_jaxpr(ways.forward)(at, vectors)
    return linear_map_p.bind(*at, *vectors, jaxpr=closed, ways=ways, n_at=len(at))


def _evaluate(*operands: Any, jaxpr: ClosedJaxpr, **_: Any) -> list[Any]:
    try:
        return jax.block_until_ready(jax.jit(jaxpr_as_fun(jaxpr))(*operands))
    except Exception as error:
        if (ours := cause(error)) is not None and ours is not error:
            raise ours from error
        raise


def _jvp(operands: Sequence[Any], operands_dot: Sequence[Any], *, jaxpr: ClosedJaxpr, ways: _Ways, n_at: int):
    if any(not _is_zero(dot) for dot in operands_dot[:n_at]):
        raise SecondDerivative(
            f"The derivative of {ways.what} was differentiated once more, with respect to where it is taken.\n"
            "First derivatives are exact, second ones are not offered; tesseract_flow.hvp has Hessian-vector products "
            "by differences of gradients."
        )
    vectors_dot = [ad.instantiate_zeros(dot) for dot in operands_dot[n_at:]]
    params = {"jaxpr": jaxpr, "ways": ways, "n_at": n_at}
    return (
        linear_map_p.bind(*operands, **params),
        linear_map_p.bind(*operands[:n_at], *vectors_dot, **params),
    )


def _transpose(covectors: Sequence[Any], *operands: Any, jaxpr: ClosedJaxpr, ways: _Ways, n_at: int) -> list[Any]:
    at, vectors = list(operands[:n_at]), operands[n_at:]
    pulled = _bind(ways.turned, at, [ad.instantiate_zeros(c) for c in covectors])
    return [None] * n_at + [c if ad.is_undefined_primal(x) else None for c, x in zip(pulled, vectors, strict=True)]


def _batch(operands: Sequence[Any], axes: Sequence[int | None], *, jaxpr: ClosedJaxpr, ways: _Ways, n_at: int):
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    vectors = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands[n_at:], axes[n_at:], strict=True)
    ]
    results = _bind(ways.mapped(axes[:n_at]), list(operands[:n_at]), vectors)
    return results, [0] * len(results)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero) or np.result_type(tangent) == jax.dtypes.float0


linear_map_p.def_impl(_evaluate)
linear_map_p.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
ad.primitive_jvps[linear_map_p] = _jvp
ad.primitive_transposes[linear_map_p] = _transpose
batching.primitive_batchers[linear_map_p] = _batch
mlir.register_lowering(
    linear_map_p, mlir.lower_fun(lambda *operands, jaxpr, **_: jaxpr_as_fun(jaxpr)(*operands), multiple_results=True)
)
