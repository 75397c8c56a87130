"""Running a plan as dataflow: each call leaves the moment its operands exist."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from tesseract_flow.execute.plan import Constant, Node, Plan, Segment
from tesseract_flow.execute.submit import AbstractFuture, AbstractSubmitter


def run_plan(plan: Plan, arguments: Sequence[Any], submitter: AbstractSubmitter) -> list[Any]:
    """The function's results. The order of arrival does not influence them: each slot is written once.

    The first failure stops further submissions; calls that are on their way are waited for, so that nothing runs on
    unseen. Their own failures are dropped.
    """
    return _Run(plan, submitter).results(arguments)


class _Run:
    def __init__(self, plan: Plan, submitter: AbstractSubmitter):
        self.plan = plan
        self.submitter = submitter
        self.values: dict[int, Any] = dict(plan.constants)
        self.futures: dict[int, AbstractFuture] = {}
        self.arrived: queue.SimpleQueue[Node] = queue.SimpleQueue()
        self.ready: deque[Node | Segment] = deque()
        self.n_in_flight = 0
        self.missing: list[int] = []
        self.readers: dict[int, list[int]] = {}

    def results(self, arguments: Sequence[Any]) -> list[Any]:
        self.values.update(zip(self.plan.arguments, arguments, strict=True))
        self._count_missing()
        try:
            while self.ready or self.n_in_flight:
                # Answers first: a failure among them must stop what is ready, and a result may free a call.
                while self.n_in_flight and not (self.ready and self.arrived.empty()):
                    self._receive()
                if self.ready:
                    self._start(self._next_ready())
        except Exception:
            while self.n_in_flight:
                self.arrived.get()
                self.n_in_flight -= 1
            raise
        return [ref.value if isinstance(ref, Constant) else self.values[ref] for ref in self.plan.results]

    def _start(self, unit: Node | Segment) -> None:
        if isinstance(unit, Segment):
            self._store(unit.outputs, unit.fn(*(self.values[slot] for slot in unit.inputs)))
            return
        operands = [np.asarray(ref.value if isinstance(ref, Constant) else self.values[ref]) for ref in unit.operands]
        future = self.submitter.submit(unit, operands, [self.futures[k] for k in unit.producers])
        self.futures[unit.index] = future
        self.n_in_flight += 1
        future.add_done_callback(lambda _: self.arrived.put(unit))

    def _receive(self) -> None:
        node = self.arrived.get()
        self.n_in_flight -= 1
        try:
            outputs = self.futures[node.index].result()
        except Exception as error:
            error.add_note(f"This was {node.label}, call {node.index + 1} of {len(self.plan.nodes)} in the plan.")
            raise
        self._store(node.outputs, outputs)

    def _count_missing(self) -> None:
        for k, unit in enumerate(self.plan.units):
            refs = unit.operands if isinstance(unit, Node) else unit.inputs
            wanted = {ref for ref in refs if isinstance(ref, int) and ref not in self.values}
            self.missing.append(len(wanted))
            for slot in wanted:
                self.readers.setdefault(slot, []).append(k)
            if not wanted:
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
            self.values[slot] = value
            for k in self.readers.get(slot, ()):
                self.missing[k] -= 1
                if self.missing[k] == 0:
                    self.ready.append(self.plan.units[k])
