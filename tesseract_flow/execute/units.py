"""What a plan is made of besides loops: Tesseract calls, compiled segments of pure JAX, and steps of the host."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal, Primitive

from tesseract_flow.autodiff import AVALS, ENDPOINTS, HOST, Call, current_rehearsal
from tesseract_flow.client import Account, Endpoint, RequestCounts, charged_to, own_requests
from tesseract_flow.execute.durations import durations
from tesseract_flow.execute.host import HostPrimitive

_PRIMITIVES = {endpoint: primitive for primitive, endpoint in ENDPOINTS.items()}


@dataclasses.dataclass(frozen=True)
class Constant:
    """A scalar known while planning."""

    literal: Literal

    @property
    def value(self) -> np.ndarray:
        # A literal may be a Python number, and only its aval knows the dtype.
        return np.asarray(self.literal.val, self.literal.aval.dtype)  # type: ignore[attr-defined]


Ref = int | Constant  # where a value comes from: the number of a slot, or a constant


class Answer(list[np.ndarray]):
    """The arrays of a call.

    A list that weak references can point to: Prefect remembers by address which task returned what, and notices that an
    address has a new owner by a weak reference alone, which a plain list refuses. The graph would show edges from
    results that are long gone, see https://github.com/PrefectHQ/prefect/issues/20558.

    Attributes:
        requests: what it took, if it comes from another process; what is asked for in this one is counted as it leaves.
    """

    requests: Mapping[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Node:
    """One Tesseract call in the plan.

    Attributes:
        index: its bit in the ancestor masks.
        label: such as `fem.pullback`, or `fem.pullback x 8` for a batch.
        call, primitive: what to ask.
        operands, outputs: slots.
        producers: indices of the nodes and loops whose results reach it, directly or through segments.
        wave: 1 + the largest wave among its producers; what is of one wave may run at once.
        origins: the slots behind `producers`, and those arguments of a loop's body that reach it.
        account: at work: whose its requests are, whatever thread they are sent from.
        spent: of a node that has left its process: the requests that it has sent since, those of failed attempts too.
    """

    index: int
    label: str
    call: Call
    primitive: Primitive
    operands: tuple[Ref, ...]
    outputs: tuple[int, ...]
    producers: tuple[int, ...]
    wave: int
    origins: tuple[int, ...] = ()
    account: Account | None = dataclasses.field(default=None, compare=False)
    spent: RequestCounts | None = dataclasses.field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """To leave this process, a call needs a component that can be reached from elsewhere. The primitive is looked
        up by its endpoint there, and the account stays here: who has the answer counts what it cost."""
        call = dataclasses.replace(self.call, tesseract=self.call.tesseract.elsewhere())
        return {**vars(self), "call": call, "primitive": self.endpoint, "account": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, primitive=_PRIMITIVES[state["primitive"]], spent=RequestCounts())

    @property
    def endpoint(self) -> Endpoint:
        return ENDPOINTS[self.primitive]

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        return frozenset(ref for ref in self.operands if isinstance(ref, int))

    @property
    def n_elements(self) -> int | None:
        """Into how many calls it falls, if it stands for a batch."""
        return None if self.call.batch is None else self.call.batch.size

    @property
    def n_at_once(self) -> int:
        """How many of them may be in flight together."""
        batch = self.call.batch
        return self.call.tesseract.n_lanes if batch is not None and batch.is_concurrent else 1

    def element(self, k: int) -> Node:
        """The call for one element of the batch, as a node of its own."""
        return dataclasses.replace(self, label=f"{self.label.rpartition(' x ')[0]} [{k}]", call=self.call.one)

    def at_work(self, where: str, account: Account | None) -> Node:
        """The node in a run, and there in one iteration of a loop: `stepper.apply [3]`."""
        name, x, n = self.label.partition(" x ")
        label = f"{name} {where}{x}{n}" if where else self.label
        return dataclasses.replace(self, label=label, account=account)

    def avals(self, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the results."""
        return AVALS[self.primitive](self.call, operands)

    def is_answered(self, operands: Sequence[np.ndarray]) -> bool:
        """Whether the answer is known already: zero, as a derivative along zeros is, or kept by a rehearsal."""
        if self.call.is_along_zeros(operands):
            return True
        known = current_rehearsal()
        return known is not None and known.has_answers and self.call.is_answered(known, self.endpoint, operands)

    def answer(self, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The answer that is known. That it takes no time says nothing about how long the component takes."""
        return HOST[self.primitive](self.call, operands, None)

    def run(self, operands: Sequence[np.ndarray], run_id: str | None = None) -> Answer:
        """Ask the Tesseract, on the calling thread; one request, unless it stands for a batch."""
        if self.spent is not None:
            return self._run_abroad(operands, run_id)
        start = time.perf_counter()
        with contextlib.nullcontext() if self.account is None else charged_to(self.account):
            answer = Answer(HOST[self.primitive](self.call, operands, run_id))
        if self.call.batch is None:
            durations.record(self._duration_key, time.perf_counter() - start)
        return answer

    def _run_abroad(self, operands: Sequence[np.ndarray], run_id: str | None) -> Answer:
        """The same in a process where nobody counts for the run: the bill comes with the answer, or with the error."""
        assert self.spent is not None
        with charged_to(None), own_requests() as counts:
            try:
                answer = Answer(HOST[self.primitive](self.call, operands, run_id))
            except Exception as error:
                self.spent.update(counts)
                error.requests = dict(self.spent)  # type: ignore[attr-defined]
                raise
        self.spent.update(counts)
        answer.requests = dict(self.spent)
        return answer

    @property
    def _duration_key(self) -> tuple[int, str]:
        return hash(self.call.tesseract), self.endpoint  # not the handle: to remember it would keep its server alive

    @property
    def seconds(self) -> float | None:
        """How long it took lately, if it was called before."""
        one = durations.of(self._duration_key)
        if one is None or self.n_elements is None:
            return one
        return one * math.ceil(self.n_elements / self.n_at_once)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Pure JAX between calls, compiled as one function of `inputs`.

    Attributes:
        needs: per output the inputs that it is made of.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fn: Callable[..., list[Any]]
    n_steps: int
    needs: tuple[frozenset[int], ...]

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        return frozenset(self.inputs)


@dataclasses.dataclass(frozen=True)
class HostStep:
    """One equation that the thread which runs the plan runs itself, see `host`. Otherwise it is like a segment."""

    primitive: HostPrimitive
    params: Mapping[str, Any]
    operands: tuple[Ref, ...]
    outputs: tuple[int, ...]

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        return frozenset(ref for ref in self.operands if isinstance(ref, int))

    @property
    def needs(self) -> tuple[frozenset[int], ...]:
        return (self.reads,) * len(self.outputs)
