"""Running a plan as dataflow: each call leaves the moment its operands exist."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tesseract_flow.execute.plan import Constant, Node, Plan, Segment
from tesseract_flow.execute.submit import AbstractFuture, AbstractSubmitter

OnFailure = Literal["wait", "abandon"]


def run_plan(
    plan: Plan, arguments: Sequence[Any], submitter: AbstractSubmitter, on_failure: OnFailure = "wait"
) -> list[Any]:
    """The function's results. The order of arrival does not influence them: each slot is written once.

    The first failure stops further submissions. Calls that are on their way are waited for, so that nothing runs on
    unseen, or abandoned: their results, and their own failures, are then dropped when they arrive.
    """
    return _Run(plan, submitter).results(arguments, on_failure)


class _Job:
    """A node that has started: one call, or those of a batch, of which the next leaves as one arrives."""

    def __init__(self, node: Node, operands: list[np.ndarray]):
        self.node = node
        self.operands = operands
        self.n_calls = 1 if node.n_elements is None else node.n_elements
        self.n_submitted = 0
        self.n_arrived = 0
        self.outputs: list[np.ndarray] = []
        if node.n_elements is not None:
            self.outputs = [np.empty(aval.shape, aval.dtype) for aval in node.avals(operands)]

    def next_call(self) -> tuple[int, Node, list[np.ndarray]]:
        k = self.n_submitted
        self.n_submitted += 1
        if self.node.n_elements is None:
            return k, self.node, self.operands
        return k, self.node.element(k), self.node.call.element(self.operands, k)

    def receive(self, k: int, outputs: list[np.ndarray]) -> None:
        self.n_arrived += 1
        if self.node.n_elements is None:
            self.outputs = outputs
            return
        for whole, part in zip(self.outputs, outputs, strict=True):
            whole[k] = part


class _Run:
    def __init__(self, plan: Plan, submitter: AbstractSubmitter):
        self.plan = plan
        self.submitter = submitter
        self.values: dict[int, Any] = dict(plan.constants)
        self.futures: dict[int, list[AbstractFuture]] = {}  # per node, those of its calls, if the submitter wants them
        self.in_flight: dict[tuple[int, int], AbstractFuture] = {}  # by node and element
        self.arrived: queue.SimpleQueue[tuple[_Job, int]] = queue.SimpleQueue()
        self.ready: deque[Node | Segment] = deque()
        self.missing: list[int] = []
        # A value is dropped with its last reader, so that a long chain of large arrays needs room for two of them.
        self.n_readers = {slot: len(units) for slot, units in plan.readers.items()}
        self.kept = {ref for ref in plan.results if isinstance(ref, int)}

    def results(self, arguments: Sequence[Any], on_failure: OnFailure) -> list[Any]:
        self.values.update(zip(self.plan.arguments, arguments, strict=True))
        self._find_ready()
        try:
            while self.ready or self.in_flight:
                # Answers first: a failure among them must stop what is ready, and a result may free a call.
                while self.in_flight and not (self.ready and self.arrived.empty()):
                    self._receive()
                if self.ready:
                    self._start(self._next_ready())
        except Exception:
            self._stop(on_failure)
            raise
        return [ref.value if isinstance(ref, Constant) else self.values[ref] for ref in self.plan.results]

    def _start(self, unit: Node | Segment) -> None:
        if isinstance(unit, Segment):
            outputs = unit.fn(*(self.values[slot] for slot in unit.inputs))
            self._release(unit)
            self._store(unit.outputs, outputs)
            return
        operands = [np.asarray(ref.value if isinstance(ref, Constant) else self.values[ref]) for ref in unit.operands]
        self._release(unit)
        self.futures[unit.index] = []
        job = _Job(unit, operands)
        if job.n_calls == 0:
            self._store(unit.outputs, job.outputs)
        for _ in range(min(job.n_calls, unit.n_at_once)):
            self._submit(job)

    def _submit(self, job: _Job) -> None:
        k, node, operands = job.next_call()
        producers = [future for index in node.producers for future in self.futures[index]]
        future = self.submitter.submit(node, operands, producers)
        if self.submitter.needs_producers:  # futures hold results, which would otherwise all stay to the end
            self.futures[node.index].append(future)
        self.in_flight[node.index, k] = future
        # Without a reference to the future, which holds this function: large results must not wait for a collector.
        future.add_done_callback(lambda _: self.arrived.put((job, k)))

    def _receive(self) -> None:
        job, k = self.arrived.get()
        node = job.node
        future = self.in_flight.pop((node.index, k))
        try:
            outputs = future.result()
        except Exception as error:
            element = "" if node.n_elements is None else f"element {k} of "
            error.add_note(
                f"This was {element}{node.label}, call {node.index + 1} of {len(self.plan.nodes)} in the plan."
            )
            raise
        job.receive(k, outputs)
        if job.n_submitted < job.n_calls:
            self._submit(job)
        elif job.n_arrived == job.n_calls:
            self._store(node.outputs, job.outputs)

    def _stop(self, on_failure: OnFailure) -> None:
        for future in self.in_flight.values():
            # What waits for a thread has not started. Prefect's futures cannot be taken back.
            getattr(future, "cancel", bool)()
        while self.in_flight and on_failure == "wait":
            job, k = self.arrived.get()
            del self.in_flight[job.node.index, k]

    def _find_ready(self) -> None:
        for unit in self.plan.units:
            n_missing = sum(slot not in self.values for slot in unit.reads)
            self.missing.append(n_missing)
            if not n_missing:
                self.ready.append(unit)

    def _next_ready(self) -> Node | Segment:
        # Calls first: a segment must not keep a solver waiting that could be working.
        for k, unit in enumerate(self.ready):
            if isinstance(unit, Node):
                del self.ready[k]
                return unit
        return self.ready.popleft()

    def _store(self, slots: Sequence[int], values: Sequence[Any]) -> None:
        for slot, value in zip(slots, values, strict=True):
            readers = self.plan.readers.get(slot, ())
            if readers or slot in self.kept:
                self.values[slot] = value
            for k in readers:
                self.missing[k] -= 1
                if self.missing[k] == 0:
                    self.ready.append(self.plan.units[k])

    def _release(self, unit: Node | Segment) -> None:
        for slot in unit.reads:
            self.n_readers[slot] -= 1
            if not self.n_readers[slot] and slot not in self.kept:
                del self.values[slot]
