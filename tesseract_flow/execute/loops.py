"""Control flow at work: frames of a loop's bodies, fed value by value.

Nothing waits for an iteration as a whole. What an iteration takes over from the one before arrives part by part, and
each call leaves when its own operands are there; a few iterations are under way at once, so that memory is bounded by
what the loop itself keeps and by that few.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.execute.plan import Loop, Plan, Scan, Switch, While

if TYPE_CHECKING:
    from tesseract_flow.execute.run import Frame
    from tesseract_flow.execute.submit import AbstractFuture

_Value = tuple[Any, tuple["AbstractFuture", ...]]  # with the calls that it was made of


class AbstractLoopRun(abc.ABC):
    """One loop of one frame, at work."""

    loop: Loop

    @abc.abstractmethod
    def begin(self) -> None:
        """Do what needs no operand. All other units of the frame can take values by now."""

    @abc.abstractmethod
    def supply(self, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        """Operand `place` is there. `sources`: the calls that it was made of."""


def loop_run(loop: Loop, frame: Frame) -> AbstractLoopRun:
    match loop.control:
        case Scan() as control:
            return _ScanRun(loop, control, frame)
        case While() as control:
            return _WhileRun(loop, control, frame)
        case Switch() as control:
            return _SwitchRun(loop, control, frame)


class _Iteration:
    """A body's frame that takes its arguments in any order, also before it begins."""

    def __init__(self, parent: Frame, body: Plan, where: str, deliver: Any):
        self._parent, self._body, self._where, self._deliver = parent, body, where, deliver
        self._early: dict[int, _Value] = {}
        self._frame: Frame | None = None
        self.n_open = len(body.results)  # results to come

    def supply(self, argument: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        if self._frame is None:
            self._early[argument] = value, sources
        else:
            self._frame.fill(self._body.arguments[argument], value, sources)

    def begin(self) -> None:
        frame = self._frame = self._parent.inner(self._body, self._where, self._arrived)
        frame.begin()
        early, self._early = self._early, {}
        for argument, (value, sources) in early.items():
            frame.fill(self._body.arguments[argument], value, sources)

    def _arrived(self, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        self.n_open -= 1
        self._deliver(place, value, sources)


class _ScanRun(AbstractLoopRun):
    def __init__(self, loop: Loop, scan: Scan, frame: Frame):
        self.loop, self.scan, self.frame = loop, scan, frame
        self.consts: dict[int, _Value] = {}
        self.stacked: dict[int, _Value] = {}  # inputs, by argument of the body
        self.iterations: dict[int, _Iteration] = {}  # those that take arguments already
        self.n_begun = self.n_ended = 0
        self.outputs: list[_Stack] = [_Stack(aval, scan.length) for aval in scan.stacked]

    def begin(self) -> None:
        if self.scan.length == 0:
            for slot, stack in zip(self.loop.outputs[self.scan.n_carry :], self.outputs, strict=True):
                self.frame.fill(slot, stack.value, ())
        self._begin_more()

    def supply(self, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        n_consts, n_carry = self.scan.n_consts, self.scan.n_carry
        if n_consts <= place < n_consts + n_carry:
            self._carry(0, place - n_consts, value, sources)
            return
        if place < n_consts:
            self.consts[place] = value, sources
        else:
            value = _indexable(value)
            self.stacked[place] = value, sources
        for k, iteration in self.iterations.items():
            if k < self.n_begun:
                iteration.supply(place, value if place < n_consts else value[self._index(k)], sources)

    def _carry(self, k: int, part: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        """A part of what iteration k begins with, or of what is left after the last one."""
        if k == self.scan.length:
            self.frame.fill(self.loop.outputs[part], value, sources)
        elif k >= self.n_begun or k in self.iterations:  # one that has ended did without
            self._iteration(k).supply(self.scan.n_consts + part, value, sources)

    def _iteration(self, k: int) -> _Iteration:
        if k not in self.iterations:
            where = f"{self.frame.where}[{self._index(k)}]"
            self.iterations[k] = _Iteration(
                self.frame, self.scan.body, where, lambda place, value, sources: self._receive(k, place, value, sources)
            )
        return self.iterations[k]

    def _begin_more(self) -> None:
        while self.n_begun < self.scan.length and self.n_begun - self.n_ended < self.loop.n_at_once:
            k = self.n_begun
            self.n_begun += 1
            iteration = self._iteration(k)
            for place, (value, sources) in self.consts.items():
                iteration.supply(place, value, sources)
            for place, (value, sources) in self.stacked.items():
                iteration.supply(place, value[self._index(k)], sources)
            iteration.begin()
            if not self.scan.body.results:
                self._end(k)

    def _receive(self, k: int, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        n_carry = self.scan.n_carry
        if place < n_carry:
            self._carry(k + 1, place, value, sources)
        else:
            stack = self.outputs[place - n_carry]
            if stack.put(self._index(k), value, sources):
                self.frame.fill(self.loop.outputs[place], stack.value, stack.sources)
        if not self.iterations[k].n_open:
            self._end(k)

    def _end(self, k: int) -> None:
        del self.iterations[k]
        self.n_ended += 1
        self._begin_more()

    def _index(self, k: int) -> int:
        return self.scan.length - 1 - k if self.scan.is_reversed else k


class _WhileRun(AbstractLoopRun):
    def __init__(self, loop: Loop, control: While, frame: Frame):
        self.loop, self.control, self.frame = loop, control, frame
        self.consts: dict[int, _Value] = {}  # by operand of the loop
        self.carries: dict[int, dict[int, _Value]] = {}  # per iteration, what it begins with, as far as it is there
        self.conditions: dict[int, _Iteration] = {}
        self.bodies: dict[int, _Iteration] = {}
        self.is_true: dict[int, bool] = {}
        self.n_begun = self.n_ended = 0

    def begin(self) -> None:
        self._ask(0)

    def supply(self, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        n_condition, n_body = self.control.n_condition_consts, self.control.n_body_consts
        if place >= n_condition + n_body:
            self._carry(0, place - n_condition - n_body, value, sources)
            return
        self.consts[place] = value, sources
        if place < n_condition:
            for condition in list(self.conditions.values()):
                condition.supply(place, value, sources)
        else:
            for body in list(self.bodies.values()):
                body.supply(place - n_condition, value, sources)

    def _carry(self, k: int, part: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        if k < self.n_begun and k not in self.bodies:
            return  # a body that has ended did without
        self.carries.setdefault(k, {})[part] = value, sources
        if k in self.conditions:
            self.conditions[k].supply(self.control.n_condition_consts + part, value, sources)
        if k in self.is_true:
            self._pass_on(k, part, value, sources)

    def _pass_on(self, k: int, part: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        if not self.is_true[k]:
            self.frame.fill(self.loop.outputs[part], value, sources)
        elif k in self.bodies:
            self.bodies[k].supply(self.control.n_body_consts + part, value, sources)

    def _ask(self, k: int) -> None:
        """Begin with the condition of iteration k."""
        condition = self.conditions[k] = _Iteration(
            self.frame,
            self.control.condition,
            f"{self.frame.where}[{k}]",
            lambda place, value, sources: self._decide(k, value),
        )
        for place in range(self.control.n_condition_consts):
            if place in self.consts:
                condition.supply(place, *self.consts[place])
        for part, (value, sources) in self.carries.get(k, {}).items():
            condition.supply(self.control.n_condition_consts + part, value, sources)
        condition.begin()

    def _decide(self, k: int, value: Any) -> None:
        del self.conditions[k]
        self.is_true[k] = bool(np.asarray(value))
        if not self.is_true[k]:
            for part, (kept, sources) in self.carries.get(k, {}).items():
                self._pass_on(k, part, kept, sources)
        else:
            self._begin_more()

    def _begin_more(self) -> None:
        """Begin with the next body, if its condition holds and not too many are under way."""
        k = self.n_begun
        if not self.is_true.get(k) or k - self.n_ended >= self.loop.n_at_once:
            return
        self.n_begun += 1
        n_condition, n_body = self.control.n_condition_consts, self.control.n_body_consts
        body = self.bodies[k] = _Iteration(
            self.frame,
            self.control.body,
            f"{self.frame.where}[{k}]",
            lambda place, value, sources: self._receive(k, place, value, sources),
        )
        for place in range(n_body):
            if n_condition + place in self.consts:
                body.supply(place, *self.consts[n_condition + place])
        for part, (value, sources) in self.carries.get(k, {}).items():
            body.supply(n_body + part, value, sources)
        body.begin()
        self._ask(k + 1)

    def _receive(self, k: int, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        self._carry(k + 1, place, value, sources)
        if not self.bodies[k].n_open:
            del self.bodies[k], self.carries[k], self.is_true[k]
            self.n_ended += 1
            self._begin_more()


class _SwitchRun(AbstractLoopRun):
    def __init__(self, loop: Loop, control: Switch, frame: Frame):
        self.loop, self.control, self.frame = loop, control, frame
        self.early: dict[int, _Value] = {}
        self.branch: _Iteration | None = None

    def begin(self) -> None:
        return None  # which branch is not known yet

    def supply(self, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        if place:
            if self.branch is None:
                self.early[place - 1] = value, sources
            else:
                self.branch.supply(place - 1, value, sources)
            return
        index = min(max(int(np.asarray(value)), 0), len(self.control.branches) - 1)
        self.branch = _Iteration(self.frame, self.control.branches[index], self.frame.where, self._receive)
        for argument, (early, early_sources) in self.early.items():
            self.branch.supply(argument, early, early_sources)
        self.early = {}
        self.branch.begin()

    def _receive(self, place: int, value: Any, sources: tuple[AbstractFuture, ...]) -> None:
        self.frame.fill(self.loop.outputs[place], value, sources)


class _Stack:
    """A stacked output, filled in any order."""

    def __init__(self, aval: Any, length: int):
        self._n_missing = length
        self._sources: dict[int, AbstractFuture] = {}
        self._is_plain = not _is_extended(aval)
        self._items: Any = np.empty(aval.shape, aval.dtype) if self._is_plain else [None] * length
        self._aval = aval

    def put(self, k: int, item: Any, sources: tuple[AbstractFuture, ...]) -> bool:
        """Whether it is complete now."""
        self._items[k] = np.asarray(item) if self._is_plain else item
        self._sources.update((id(future), future) for future in sources)
        self._n_missing -= 1
        return not self._n_missing

    @property
    def value(self) -> Any:
        if self._is_plain:
            return self._items
        return jnp.stack(self._items) if self._items else jnp.empty(self._aval.shape, self._aval.dtype)

    @property
    def sources(self) -> tuple[AbstractFuture, ...]:
        return tuple(self._sources.values())


def _indexable(stacked: Any) -> Any:
    """Items of a NumPy array cost nothing; those of a JAX array a kernel each."""
    return stacked if _is_extended(stacked) else np.asarray(stacked)


def _is_extended(array: Any) -> bool:
    """Random keys and their kin, which NumPy does not know."""
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.extended))
