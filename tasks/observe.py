"""How much of a run becomes task runs: every call, every step, or nothing but the flow run.

A task run costs 3 to 4 ms here and Prefect's server takes in a few dozen a second, so what is right for solvers of a
second would bury solvers of a millisecond. `auto` looks at the calls of the first steps and decides.
"""

import abc
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tesseract_flow.execute import AbstractFuture, AbstractSubmitter, Node
from tesseract_flow.tasks.call import PrefectSubmitter

ObserveLevel = Literal["auto", "calls", "steps", "run"]

# From `auto`'s point of view a call is long when a task run around it costs less than a twentieth of it.
_LONG_CALL = 0.1  # seconds
_FIRST_STEPS = 20  # shown call by call
_FIRST_CALLS = 1000  # after so many no further one of the first steps is: of a step there may be hundreds
_MOST_MADE = 1000  # calls of a step whose followers are looked for
_MANY_STEPS = 200  # beyond, a run is long and fewer steps stand for the rest


class AbstractObservation(abc.ABC):
    """Decides which steps show their calls."""

    @abc.abstractmethod
    def shows_calls(self, step: int) -> bool:
        """Whether the calls of this step are task runs of their own."""

    @abc.abstractmethod
    def shows_step(self, step: int) -> bool:
        """Whether this step appears at all: as a task run of its own, or as its checkpoint."""

    @abc.abstractmethod
    def note_call(self, seconds: float) -> None:
        """Told how long each call took."""


class FixedObservation(AbstractObservation):
    """The same for every step."""

    def __init__(self, level: Literal["calls", "steps", "run"]):
        self.level = level

    def shows_calls(self, step: int) -> bool:
        return self.level == "calls"

    def shows_step(self, step: int) -> bool:
        return self.level != "run"

    def note_call(self, seconds: float) -> None:
        return None


class AutoObservation(AbstractObservation):
    """Every call while solvers are slow; else the first 20 steps, of 1000 calls together, then every tenth, then every
    hundredth."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_calls = 0
        self._seconds = 0.0

    def shows_calls(self, step: int) -> bool:
        with self._lock:
            is_slow = self._n_calls > 0 and self._seconds / self._n_calls >= _LONG_CALL
            are_first = step < _FIRST_STEPS and self._n_calls < _FIRST_CALLS
        if is_slow or are_first:
            return True
        return step % (10 if step < _MANY_STEPS else 100) == 0

    def shows_step(self, step: int) -> bool:
        return self.shows_calls(step)

    def note_call(self, seconds: float) -> None:
        with self._lock:
            self._n_calls += 1
            self._seconds += seconds


def observation_of(level: ObserveLevel) -> AbstractObservation:
    """The observation that a form's choice stands for."""
    return AutoObservation() if level == "auto" else FixedObservation(level)


class CallGraph:
    """Which call waits for which, how often each was made, and how long it took; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._after: dict[str, set[str]] = {}
        self._n_calls: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._made: list[tuple[AbstractFuture, str]] = []

    def begin_step(self, step: int) -> None:
        with self._lock:
            self._made.clear()  # they hold results, which may be large

    def note_call(self, label: str, future: AbstractFuture, producers: Sequence[AbstractFuture]) -> None:
        with self._lock:
            if label not in self._after:
                self._after[label] = {name for made, name in self._made if any(made is one for one in producers)}
            if len(self._made) < _MOST_MADE:
                self._made.append((future, label))

    def note_end(self, label: str, seconds: float) -> None:
        with self._lock:
            self._n_calls[label] += 1
            self._seconds[label] += seconds  # type: ignore[assignment]  # of floats

    def rows(self) -> list[dict[str, Any]]:
        """One per call, in the order of the first step."""
        with self._lock:
            return [
                {
                    "call": label,
                    "waits for": ", ".join(sorted(after)),
                    "calls": self._n_calls[label],
                    "seconds each": self._seconds[label] / max(self._n_calls[label], 1),
                }
                for label, after in self._after.items()
            ]


class ObservedSubmitter(AbstractSubmitter):
    """Sends the calls of shown steps one way and those of the others another way, and times them all.

    Args:
        shown: for steps that show their calls.
        hidden: for the others; threads.
        observation: who decides.
    """

    def __init__(
        self,
        shown: PrefectSubmitter,
        hidden: AbstractSubmitter,
        observation: AbstractObservation,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.shown = shown
        self.hidden = hidden
        self.observation = observation
        self.graph = CallGraph()
        self._clock = clock
        self._shows_calls = observation.shows_calls(0)

    def begin_step(self, step: int) -> None:
        """Told the number of each step before its first call."""
        self.shown.step = step
        self.graph.begin_step(step)
        # Decided once per step, so that the graph of a shown step is complete.
        self._shows_calls = self.observation.shows_calls(step)

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        submitter = self.shown if self._shows_calls else self.hidden
        start = self._clock()
        future = submitter.submit(node, operands, producers)
        self.graph.note_call(node.label, future, producers)
        future.add_done_callback(lambda _: self._note_end(node, self._clock() - start))
        return future

    def _note_end(self, node: Node, seconds: float) -> None:
        self.graph.note_end(node.label, seconds)
        # What a task costs is in `seconds`, and where there are many at once also what they wait for each other: they
        # would look long because they are shown. In another process nobody has measured the call alone.
        self.observation.note_call(seconds if node.seconds is None else min(seconds, node.seconds))
