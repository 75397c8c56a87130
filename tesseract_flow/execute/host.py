"""Equations that are run on the host: never compiled, and dataflow like everything else in a plan.

A Tesseract call is the most important kind, see `units.Node`: it goes through a submitter, and beside others. The other
kind is that of a `HostPrimitive`: who runs the plan says what it means, and it is run there and then, by the thread
that runs the plan. It is no call: nobody submits, counts or repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jax.extend.core import Primitive

from tesseract_flow.autodiff import HOST, bodies_of


class HostPrimitive(Primitive):
    """A pure function from arrays to a list of arrays, which no compiler knows."""

    multiple_results = True


HostFns = Mapping[HostPrimitive, Callable[..., list[Any]]]  # operands, and an equation's parameters by name -> results


def is_on_host(eqn: Any) -> bool:
    return eqn.primitive in HOST or isinstance(eqn.primitive, HostPrimitive)


def on_host(eqns: Iterable[Any]) -> Iterator[Any]:
    """Those among these equations and in their bodies that are run on the host."""
    for eqn in eqns:
        if is_on_host(eqn):
            yield eqn
        for body in bodies_of(eqn.params):
            yield from on_host(body.eqns)


def has_host_work(eqn: Any) -> bool:
    return any(True for _ in on_host([eqn]))
