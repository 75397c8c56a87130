"""What pydantic models say about a component's inputs.

Here: the leaves of `abstract_eval`, which leaves a schema marks `Differentiable`. NumPy and pydantic only. Not here:
models → dicts (`tesseract_flow.derivatives.trees`), splitting trees into what JAX traces and what it does not
(`jax_recipe`).
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, RootModel

from tesseract_flow.derivatives import as_tree

# Keys from the root of a dumped tree to a leaf; None stands for every key of a dict and every index of a list.
Pattern: TypeAlias = tuple[str | None, ...]


def as_abstract_tree(value: Any, aval: Callable[[tuple[int, ...], Any], Any]) -> Any:
    """`as_tree` for `abstract_eval`: `aval(shape, dtype)` in place of each array and each description of one.

    A description is tesseract-core's `ShapeDType`, or in a plain dict what it is dumped to.
    """
    return _abstract(as_tree(value), value, aval)


def _abstract(dumped: Any, original: Any, aval: Callable[[tuple[int, ...], Any], Any]) -> Any:
    if hasattr(dumped, "shape") and hasattr(dumped, "dtype"):
        return aval(tuple(dumped.shape), dumped.dtype)
    if _is_description(dumped, original):
        return aval(tuple(dumped["shape"]), np.dtype(dumped["dtype"]))
    if isinstance(dumped, dict):
        return {key: _abstract(item, _peek(original, key), aval) for key, item in dumped.items()}
    if isinstance(dumped, list | tuple) and not hasattr(dumped, "_fields"):
        return type(dumped)(_abstract(item, _peek(original, i), aval) for i, item in enumerate(dumped))
    return dumped


def _is_description(dumped: Any, original: Any) -> bool:
    if not isinstance(dumped, dict) or dumped.keys() != {"shape", "dtype"}:
        return False
    if isinstance(original, BaseModel):
        # A model of the author's own may have these two fields as well, say of a grid.
        return any(cls.__name__ == "ShapeDType" for cls in type(original).__mro__)
    return isinstance(dumped["shape"], list | tuple)


def _peek(original: Any, key: Any) -> Any:
    """The child that was dumped to the entry `key`; None if it cannot be told."""
    if isinstance(original, RootModel):
        original = original.root
    if isinstance(original, BaseModel):
        return getattr(original, str(key), None)
    if isinstance(original, Mapping):
        return original.get(key)
    if isinstance(original, Sequence) and not isinstance(original, str | bytes):
        return original[key]
    return None


@functools.lru_cache(maxsize=64)
def differentiable_patterns(model: type) -> frozenset[Pattern] | None:
    """Where a model has `Differentiable[...]` arrays; None if it does not tell: any array may be meant.

    It does not tell if nothing is marked, as in a plain dict of arrays, or if a model contains itself.
    """
    try:
        return frozenset(_patterns(model, ())) or None
    except RecursionError:
        return None


def matches(keys: Sequence[Any], patterns: frozenset[Pattern] | None) -> bool:
    """Whether a leaf, by the keys that lead to it, is one of the patterns'."""
    if patterns is None:
        return True
    return any(
        len(pattern) == len(keys) and all(p is None or p == key for p, key in zip(pattern, keys, strict=True))
        for pattern in patterns
    )


def _patterns(annotation: Any, above: tuple[type, ...]) -> Iterator[Pattern]:
    # Read off the flags and not through tesseract-core's own helper, which recipes do without.
    if any(getattr(flag, "name", None) == "DIFFERENTIABLE" for flag in getattr(annotation, "flags", ())):
        yield ()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in above:
            raise RecursionError(f"{annotation.__name__} contains itself")
        for name, field in annotation.model_fields.items():
            for rest in _patterns(field.annotation, (*above, annotation)):
                yield rest if issubclass(annotation, RootModel) else (name, *rest)
    else:
        origin = typing.get_origin(annotation)
        arguments = typing.get_args(annotation)
        if origin is typing.Annotated:
            yield from _patterns(arguments[0], above)
        elif origin in (typing.Union, types.UnionType):
            for option in arguments:
                yield from _patterns(option, above)
        elif isinstance(origin, type) and issubclass(origin, Mapping | Sequence):
            for item in arguments[1:] if issubclass(origin, Mapping) else arguments:
                yield from ((None, *rest) for rest in _patterns(item, above))
