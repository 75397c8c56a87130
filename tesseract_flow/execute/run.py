"""Running a plan as dataflow: each call leaves the moment its operands exist.

A plan at work is a `Frame`: the values of its slots, and what is still missing for each unit. A loop makes a frame of
its body per iteration (`loops`). All frames share one row of ready units and one row of answers.
"""

from __future__ import annotations

import contextlib
import functools
import queue
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from tesseract_flow.client import charge, current_account
from tesseract_flow.errors import cause, in_brief
from tesseract_flow.execute.host import HostFns
from tesseract_flow.execute.loops import AbstractLoopRun, loop_run
from tesseract_flow.execute.plan import Loop, Plan
from tesseract_flow.execute.submit import AbstractFuture, AbstractSubmitter, on_the_spot
from tesseract_flow.execute.units import Constant, HostStep, Node, Segment
from tesseract_flow.execute.waiting import next_of

OnFailure = Literal["wait", "abandon"]


def run_plan(
    plan: Plan,
    arguments: Sequence[Any],
    submitter: AbstractSubmitter,
    on_failure: OnFailure = "wait",
    host_fns: HostFns | None = None,
) -> list[Any]:
    """The function's results. The order of arrival does not influence them: each slot is written once.

    The first failure stops further submissions. Calls that are on their way are waited for, so that nothing runs on
    unseen, or abandoned: their results, and their own failures, are then dropped when they arrive.

    Args:
        host_fns: what the plan's host steps run; they run one after the other, on this thread.
    """
    return _Run(submitter, host_fns or {}).results(plan, arguments, on_failure)


class _Job:
    """A node that has started: one call, or those of a batch, of which the next leaves as one arrives."""

    def __init__(self, frame: Frame, node: Node, operands: list[np.ndarray]):
        self.frame = frame
        self.node = node
        self.operands = operands
        self.futures: list[AbstractFuture] = []  # of its calls, if the submitter wants them
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


class Frame:
    """A plan at work.

    Args:
        run: who executes its units.
        where: which iteration of which loops it is, for labels: `[3]`, or nothing.
        deliver: told each result as it comes: which one, its value, and the calls that it was made of.
    """

    def __init__(self, run: _Run, plan: Plan, where: str, deliver: Deliver):
        self.run = run
        self.plan = plan
        self.where = where
        self.deliver = deliver
        self.values: dict[int, Any] = {}
        self.sources: dict[int, tuple[AbstractFuture, ...]] = {}  # per slot that a call, a loop or an argument filled
        # A value is dropped with its last reader, so that a long chain of large arrays needs room for two of them.
        self.n_readers = plan.n_readers.copy()
        self.n_missing = plan.n_operands.copy()
        self.loops: dict[int, AbstractLoopRun] = {}

    def begin(self) -> None:
        """What needs no argument is ready; what is known is filled in."""
        for k, unit in enumerate(self.plan.units):
            if isinstance(unit, Loop):
                self.loops[k] = loop_run(unit, self)
            elif not self.n_missing[k]:
                self.run.ready.append((self, unit))
        for loop in self.loops.values():
            loop.begin()
            for place, ref in enumerate(loop.loop.operands):
                if isinstance(ref, Constant):
                    loop.supply(place, ref.value, ())
        for slot, value in self.plan.constants.items():
            self.fill(slot, value, ())
        for place, ref in enumerate(self.plan.results):
            if isinstance(ref, Constant):
                self.deliver(place, ref.value, ())

    def inner(self, body: Plan, where: str, deliver: Deliver) -> Frame:
        """A frame of a loop's body."""
        return Frame(self.run, body, where, deliver)

    def fill(self, slot: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        """A value for a slot, at its turn: a long row of loops that only pass a value on must not fill the stack."""
        self.run.post(self, slot, value, sources)

    def store(self, slot: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        readers = self.plan.readers.get(slot, ())
        if readers:
            self.values[slot] = value
        if sources:
            self.sources[slot] = sources
        for k in readers:
            unit = self.plan.units[k]
            if isinstance(unit, Loop):
                for place, ref in enumerate(unit.operands):
                    if isinstance(ref, int) and ref == slot:
                        self.loops[k].supply(place, value, self.reached_by(unit.origins[place]))
                self._release(slot)
                continue
            self.n_missing[k] -= 1
            if not self.n_missing[k]:
                self.run.ready.append((self, unit))
        for place in self.plan.places.get(slot, ()):
            self.deliver(place, value, self.reached_by(self.plan.origins[place]))

    def take(self, unit: Node | Segment | HostStep) -> list[Any]:
        """The operands of a unit that starts."""
        refs = unit.inputs if isinstance(unit, Segment) else unit.operands
        operands = [ref.value if isinstance(ref, Constant) else self.values[ref] for ref in refs]
        for slot in unit.reads:
            self._release(slot)
        return operands

    def reached_by(self, origins: Sequence[int]) -> tuple[AbstractFuture, ...]:
        """The calls behind these slots, each once."""
        if not self.sources:
            return ()
        found = {id(future): future for slot in origins for future in self.sources.get(slot, ())}
        return tuple(found.values())

    def _release(self, slot: int) -> None:
        self.n_readers[slot] -= 1
        if not self.n_readers[slot]:
            del self.values[slot]


Deliver = Callable[[int, Any, tuple[AbstractFuture, ...]], None]


def _computed(segment: Segment, operands: Sequence[Any]) -> list[Any]:
    """What compiled code gives; what of ours is raised in it comes as itself, and not as JAX's error."""
    try:
        return segment.fn(*operands)
    except jax.errors.JaxRuntimeError as error:
        if (ours := cause(error)) is not None:
            raise ours from error
        raise


class _Run:
    def __init__(self, submitter: AbstractSubmitter, host_fns: HostFns):
        self.submitter = submitter
        self.host_fns = host_fns
        self.account = current_account()
        self.in_flight: dict[tuple[int, int], tuple[_Job, AbstractFuture]] = {}  # by job and element
        self.arrived: queue.SimpleQueue[tuple[_Job, int]] = queue.SimpleQueue()
        self.ready: deque[tuple[Frame, Node | Segment | HostStep]] = deque()
        self._posted: deque[tuple[Frame, int, Any, tuple[AbstractFuture, ...]]] = deque()
        self._is_sorting = False

    def results(self, plan: Plan, arguments: Sequence[Any], on_failure: OnFailure) -> list[Any]:
        results: dict[int, Any] = {}
        try:
            root = Frame(self, plan, "", lambda place, value, _: results.update({place: value}))
            root.begin()
            for slot, value in zip(plan.arguments, arguments, strict=True):
                root.fill(slot, value, ())
            while self.ready or self.in_flight:
                # Answers first: a failure among them must stop what is ready, and a result may free a call.
                while self.in_flight and not (self.ready and self.arrived.empty()):
                    self._receive()
                if self.ready:
                    self._start(*self._next_ready())
        except Exception:
            self._stop(on_failure)
            raise
        return [results[place] for place in range(len(plan.results))]

    def post(self, frame: Frame, slot: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        self._posted.append((frame, slot, value, sources))
        if self._is_sorting:
            return
        self._is_sorting = True
        try:
            while self._posted:
                frame, slot, value, sources = self._posted.popleft()
                frame.store(slot, value, sources)
        finally:
            self._is_sorting = False

    def _start(self, frame: Frame, unit: Node | Segment | HostStep) -> None:
        operands = frame.take(unit)
        if not isinstance(unit, Node):
            is_compiled = isinstance(unit, Segment)
            values = (
                _computed(unit, operands) if is_compiled else self.host_fns[unit.primitive](*operands, **unit.params)
            )
            for slot, value in zip(unit.outputs, values, strict=True):
                frame.fill(slot, value, ())
            return
        job = _Job(frame, unit.at_work(frame.where, self.account), [np.asarray(x) for x in operands])
        if job.n_calls == 0:
            self._finish(job)
        for _ in range(min(job.n_calls, unit.n_at_once)):
            self._submit(job)

    def _submit(self, job: _Job) -> None:
        k, node, operands = job.next_call()
        if node.is_answered(operands):  # which takes no thread and no task
            future = on_the_spot(functools.partial(node.answer, operands))
        else:
            future = self.submitter.submit(node, operands, job.frame.reached_by(node.origins))
            if self.submitter.needs_producers:  # futures hold results, which would otherwise all stay to the end
                job.futures.append(future)
        self.in_flight[id(job), k] = job, future
        # Without a reference to the future, which holds this function: large results must not wait for a collector.
        future.add_done_callback(lambda _: self.arrived.put((job, k)))

    def _receive(self) -> None:
        job, k = next_of(self.arrived)
        _, future = self.in_flight.pop((id(job), k))
        try:
            outputs = self._result(future)
        except Exception as error:
            batch = job.node.call.batch
            element = "" if batch is None else f"{batch.name_of(k) if batch.names else f'element {k}'} of "
            which = f", call {job.node.index + 1} of {len(job.frame.plan.calls)}" if not job.frame.where else ""
            error.add_note(f"This was {element}{job.node.label}{which} in the plan.")
            operands = job.operands if job.node.n_elements is None else job.node.call.element(job.operands, k)
            primals, _ = job.node.call.split(operands)
            error.add_note(f"Its inputs: {in_brief(dict(zip(job.node.call.input.paths, primals, strict=True)))}.")
            raise
        job.receive(k, outputs)
        if job.n_submitted < job.n_calls:
            self._submit(job)
        elif job.n_arrived == job.n_calls:
            self._finish(job)

    def _result(self, future: AbstractFuture) -> list[np.ndarray]:
        """Of a call that has ended; what another process has asked for it is counted here."""
        try:
            outputs = future.result()
        except Exception as error:
            charge(self.account, getattr(error, "requests", None))
            raise
        charge(self.account, getattr(outputs, "requests", None))
        return outputs

    def _finish(self, job: _Job) -> None:
        sources = tuple(job.futures)
        for slot, value in zip(job.node.outputs, job.outputs, strict=True):
            job.frame.fill(slot, value, sources)

    def _stop(self, on_failure: OnFailure) -> None:
        for _, future in self.in_flight.values():
            # What waits for a thread has not started. Prefect's futures cannot be taken back.
            getattr(future, "cancel", bool)()
        while self.in_flight and on_failure == "wait":
            job, k = next_of(self.arrived)
            _, future = self.in_flight.pop((id(job), k))
            with contextlib.suppress(Exception):
                self._result(future)

    def _next_ready(self) -> tuple[Frame, Node | Segment | HostStep]:
        # Calls first: a segment must not keep a solver waiting that could be working.
        for k, (_, unit) in enumerate(self.ready):
            if isinstance(unit, Node):
                found = self.ready[k]
                del self.ready[k]
                return found
        return self.ready.popleft()
