"""Tesseract equations in what JAX has traced, bodies of control flow and of compiled functions included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

from tesseract_flow.autodiff.primitives import HOST


def bodies_of(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def calls_of(eqns: Iterable[Any]) -> Iterator[Any]:
    """The Tesseract equations among these and in their bodies."""
    for eqn in eqns:
        if eqn.primitive in HOST:
            yield eqn
        for body in bodies_of(eqn.params):
            yield from calls_of(body.eqns)


def has_calls(eqn: Any) -> bool:
    return any(True for _ in calls_of([eqn]))
