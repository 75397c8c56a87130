"""Running a traced function with its Tesseracts watched: what each is asked, and what it answers."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from tesseract_flow.autodiff import Call, calls_of, informed
from tesseract_flow.checks.budget import Price
from tesseract_flow.client import AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.execute import Plan, default_submitter, make_plan, run_plan


@dataclasses.dataclass(frozen=True)
class Seen:
    """One request that passed, and its answer."""

    handle: AbstractTesseract
    endpoint: str
    payload: Mapping[str, Any]
    answer: Tree


@dataclasses.dataclass(frozen=True)
class Recorder(AbstractWrapper):
    """A handle that notes what passes. Equal if the handles are."""

    tesseract: AbstractTesseract
    log: list[Seen] = dataclasses.field(default_factory=list, compare=False, repr=False)

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        answer = self.tesseract.request(endpoint, payload, run_id=run_id)
        self.log.append(Seen(self.tesseract, endpoint, payload, answer))
        return answer


class Traced:
    """A function of arrays, traced once; runs as a plan, watched or not.

    Args:
        swap: puts another handle in the place of one, before anything is planned.

    >>> traced = Traced(fn, *examples)
    >>> results = traced(*arrays)
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *examples: Any,
        swap: Callable[[AbstractTesseract], AbstractTesseract] | None = None,
    ):
        out_tree: Any = None

        def flat(*leaves: Any) -> list[Any]:
            nonlocal out_tree
            results, out_tree = jax.tree.flatten(fn(*self._in_tree.unflatten(leaves)))
            return results

        leaves, self._in_tree = jax.tree.flatten(examples)
        self.closed = informed(lambda: jax.make_jaxpr(flat)(*leaves), lambda: flat(*leaves))
        if swap is not None:
            self.closed = _rewired(self.closed, swap)
        self._out_tree = out_tree
        self._plan: Plan | None = None
        self._lock = threading.Lock()

    @property
    def plan(self) -> Plan:
        with self._lock:
            if self._plan is None:
                self._plan = make_plan(self.closed)
            return self._plan

    @functools.cached_property
    def price(self) -> Price:
        """Requests of a run, elements of batches included; those inside of loops count once until there was a run."""
        return Price(sum(node.n_elements or 1 for node in self.plan.all_nodes))

    @property
    def has_loops(self) -> bool:
        """Whether calls are made in loops, so that only a run tells how many."""
        return bool(self.plan.loops)

    def __call__(self, *args: Any) -> Any:
        return self._run(self.plan, args)

    def watched(self, *args: Any) -> tuple[Any, list[Seen]]:
        """The results, and every request on the way."""
        log: list[Seen] = []
        return self.through(lambda handle: Recorder(handle, log), *args), log

    def through(self, swap: Callable[[AbstractTesseract], AbstractTesseract], *args: Any) -> Any:
        """The results, with other handles in place of its own."""
        return self._run(make_plan(_rewired(self.closed, swap)), args)

    def _run(self, plan: Plan, args: Sequence[Any]) -> Any:
        results = run_plan(plan, jax.tree.leaves(args), default_submitter())
        return self._out_tree.unflatten([jax.numpy.asarray(result) for result in results])


def _rewired(closed: ClosedJaxpr, swap: Callable[[AbstractTesseract], AbstractTesseract]) -> ClosedJaxpr:
    return ClosedJaxpr(_rewired_jaxpr(closed.jaxpr, swap), closed.consts)


def _rewired_jaxpr(jaxpr: Jaxpr, swap: Callable[[AbstractTesseract], AbstractTesseract]) -> Jaxpr:
    """With other handles in its calls, those in bodies of loops and branches included."""

    def parameter(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return _rewired(value, swap)
        if isinstance(value, Jaxpr):
            return _rewired_jaxpr(value, swap)
        if isinstance(value, tuple) and any(isinstance(item, ClosedJaxpr | Jaxpr) for item in value):
            return tuple(parameter(item) for item in value)
        if isinstance(value, Call):
            return dataclasses.replace(value, tesseract=swap(value.tesseract))
        return value

    def rewired(eqn: Any) -> Any:
        # Others are left alone: how their parameters are made is JAX's own affair.
        if not any(True for _ in calls_of([eqn])):
            return eqn
        return eqn.replace(params={name: parameter(value) for name, value in eqn.params.items()})

    return jaxpr.replace(eqns=[rewired(eqn) for eqn in jaxpr.eqns])
