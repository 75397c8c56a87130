"""What is wrong is an error with a name, from wherever it is found out: also in code that is compiled.

`judged` stands between numbers and whoever uses them. It is an equation in what JAX traces, whose answer the result
depends on, and which raises on the host. What is judged, and the words, are a `Case`: a value, so that a traced
function with one in it can be compared with another.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from tesseract_flow.errors import TesseractFlowError, remember


class AbstractCase(abc.ABC):
    """What is judged; equal cases are equal values."""

    @abc.abstractmethod
    def fault(self, where: tuple[int, ...], is_good: np.ndarray, *facts: np.ndarray) -> TesseractFlowError:
        """What is said of an element that is not good: the first of them, if this is one of many."""

    def raise_unless_all(self, is_good: Any, *facts: Any) -> np.ndarray:
        is_good = np.asarray(is_good)
        if is_good.all():
            return is_good
        where = tuple(int(k) for k in np.argwhere(~is_good)[0])
        error = self.fault(where, is_good, *map(np.asarray, facts))
        remember(error)
        raise error


verdict_p = Primitive("verdict")


def judged(case: AbstractCase, is_good: Any, *facts: Any) -> Any:
    """`is_good`, which is true where this has returned.

    Raises:
        TesseractFlowError: at run time, what the case says.
    """
    return verdict_p.bind(is_good, *facts, case=case)


def _batch(operands: Any, axes: Any, *, case: AbstractCase) -> tuple[Any, int | None]:
    if all(axis is None for axis in axes[1:]):  # many readers of the same facts
        return verdict_p.bind(jnp.all(operands[0], axis=axes[0]), *operands[1:], case=case), None
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    moved = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    return verdict_p.bind(*moved, case=case), 0


def _as_callback(is_good: Any, *facts: Any, case: AbstractCase) -> Any:
    aval = jax.ShapeDtypeStruct(is_good.shape, np.bool_)
    return jax.pure_callback(case.raise_unless_all, aval, is_good, *facts)


def _evaluate(*operands: Any, case: AbstractCase) -> Any:
    return jnp.asarray(case.raise_unless_all(*operands))


verdict_p.def_impl(_evaluate)
verdict_p.def_abstract_eval(lambda is_good, *_, case: ShapedArray(is_good.shape, np.dtype(np.bool_)))
batching.primitive_batchers[verdict_p] = _batch
mlir.register_lowering(verdict_p, mlir.lower_fun(_as_callback, multiple_results=False))
