"""What stands for the outputs of a component that could not be asked, so that the rest of a problem can be looked at.

Here: a primitive that only depends on things, a value of unknown shape that goes along with everything, and outputs
that do not mind being asked for what is not there. None of it is ever evaluated. The one idea: after a fault the trace
goes on with a guess, and remembers that it is one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from tesseract_flow.schema import ArrayField, Field, LeafField, ListField, ModelField, UnionField

stand_in_p = Primitive("tesseract_stand_in")
stand_in_p.multiple_results = True
_numbers = itertools.count()


@stand_in_p.def_abstract_eval
def _avals(*operands: Any, avals: tuple[Any, ...], **_: Any) -> list[Any]:
    return [ShapedArray(shape, np.dtype(dtype)) for shape, dtype in avals]


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[list[Any], list[Any]]:
    known = [ad.instantiate_zeros(t) for t in tangents]
    floats = [t for t in known if jnp.issubdtype(t.dtype, jnp.inexact)]
    outputs = stand_in_p.bind(*primals, **params)
    return outputs, stand_in_p.bind(*floats, **params)


def _batch(
    operands: Any, axes: Any, *, avals: tuple[Any, ...], n_calls: int, **params: Any
) -> tuple[list[Any], list[int]]:
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    batched = tuple(((size, *shape), dtype) for shape, dtype in avals)
    return stand_in_p.bind(*operands, avals=batched, n_calls=n_calls * size, **params), [0] * len(avals)


ad.primitive_jvps[stand_in_p] = _jvp
batching.primitive_batchers[stand_in_p] = _batch


def stand_in(
    operands: Sequence[Any], avals: Sequence[tuple[tuple[int, ...], Any]], *, is_guess: bool
) -> tuple[list[Any], int]:
    """Traced values of these shapes and dtypes that depend on the operands, and the number by which they are known."""
    number = next(_numbers)
    canonical = tuple((shape, jax.dtypes.canonicalize_dtype(dtype)) for shape, dtype in avals)
    return stand_in_p.bind(*operands, avals=canonical, number=number, is_guess=is_guess, n_calls=1), number


class Unknown:
    """A value of which nothing is known: a scalar where JAX asks, itself under arithmetic and indexing."""

    def __init__(self, scalar: Any):
        self.scalar = scalar

    def __jax_array__(self) -> Any:
        return self.scalar

    def __getitem__(self, _: Any) -> Unknown:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.scalar, name)

    def __iter__(self) -> Any:
        raise TypeError("the length of this output is not known, as its component could not be asked")


def _binary(op: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def of(value: Any) -> Any:
        return value.scalar if isinstance(value, Unknown) else value

    def forward(self: Unknown, other: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return Unknown(jnp.ravel(op(self.scalar, of(other)))[0])

    def reflected(self: Unknown, other: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return Unknown(jnp.ravel(op(of(other), self.scalar))[0])

    return forward, reflected


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    _op = operator.mul if _name == "matmul" else getattr(operator, _name)
    _forward, _reflected = _binary(_op)
    setattr(Unknown, f"__{_name}__", _forward)
    setattr(Unknown, f"__r{_name}__", _reflected)
Unknown.__neg__ = lambda self: Unknown(-self.scalar)  # type: ignore[attr-defined]
Unknown.__abs__ = lambda self: Unknown(abs(self.scalar))  # type: ignore[attr-defined]


class Outputs(dict[str, Any]):
    """A component's outputs. What is not among them is told to `missing`, and is then an unknown."""

    def __init__(self, entries: Mapping[str, Any], missing: Callable[[str], Any]):
        super().__init__(entries)
        self.missing = missing

    def __missing__(self, key: str) -> Any:
        return self.missing(key)


jax.tree_util.register_pytree_with_keys(
    Outputs,
    lambda d: ([(jax.tree_util.DictKey(key), d[key]) for key in sorted(d)], (tuple(sorted(d)), d.missing)),
    lambda aux, values: Outputs(dict(zip(aux[0], values, strict=True)), aux[1]),
)


def array_fields(field: Field) -> list[ArrayField]:
    """The arrays of a schema that have a place of their own, in the order of `filled`."""
    match field:
        case ArrayField():
            return [field]
        case ModelField(fields=fields):
            return [array for part in fields.values() for array in array_fields(part)]
        case ListField(prefix=prefix) if prefix:
            return [array for part in prefix for array in array_fields(part)]
        case UnionField(options=options):
            return array_fields(next((o for o in options if array_fields(o)), options[0]))
        case _:
            return []


def filled(field: Field, arrays: Any, unknown: Any) -> Any:
    """A tree of this form, with the arrays in their places, and something plausible where there is no array."""
    match field:
        case ArrayField():
            return next(arrays)
        case ModelField(is_root=True, fields=fields):
            return filled(fields["root"], arrays, unknown)
        case ModelField(fields=fields):
            return {name: filled(part, arrays, unknown) for name, part in fields.items()}
        case ListField(prefix=prefix) if prefix:
            return [filled(part, arrays, unknown) for part in prefix]
        case UnionField(options=options):
            return filled(next((o for o in options if array_fields(o)), options[0]), arrays, unknown)
        case LeafField(kind="enum", choices=choices):
            return choices[0]
        case LeafField(kind=kind) if kind in _PLAIN:
            return _PLAIN[kind]
        case _:
            return unknown


_PLAIN = {"str": "", "path": "", "int": 0, "float": 0.0, "bool": False, "null": None}


def guessed_shape(field: ArrayField, length: int) -> tuple[tuple[int, ...], bool]:
    """A shape that fits a field, with `length` where any will do; and whether something had to be guessed."""
    if field.shape is None:
        return (length,), True
    return tuple(length if n is None else n for n in field.shape), None in field.shape
