"""A library that owns its loop, turned round: it runs in a thread of its own, and here it is asked what it wants.

The library calls a `Line`, which waits; the loop calls `Conversation.hear`, finds out, and answers. One of the two
threads always waits for the other, so nothing of theirs happens at the same time, and every evaluation is made on the
loop's thread, where Prefect wants it. What is said depends on the answers alone, so the same answers lead to the same
place again: that is how a library is taken up again whose state nobody can write down.
"""

from __future__ import annotations

import contextvars
import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Literal

import numpy as np

# Values (objective and constraints), their derivatives, or both at once for a library that never wants one alone.
Kind = Literal["values", "derivatives", "both"]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """What a library wants to know, and where."""

    kind: Kind
    x: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Accepted:
    """The library goes on from here: the end of one of its iterations."""

    x: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Ended:
    """The library has come to an end of its own, in these words."""

    x: np.ndarray
    words: str


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """Objective and constraints, the gradient and the rows of the Jacobian, as far as they were asked for."""

    value: float = np.nan
    constraints: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    gradient: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    jacobian: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 0)))


class _HungUp(BaseException):
    """Ends the library's loop from inside one of its questions. No `Exception`, which a library might catch."""


class Line:
    """The library's end: functions of a point. Equal points are asked about once."""

    def __init__(self, say: Callable[[Question | Accepted], Answer | None]):
        self._say = say
        self._known: dict[tuple[str, bytes], Answer] = {}

    def values(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        answer = self._ask("values", x)
        return answer.value, answer.constraints

    def derivatives(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answer = self._ask("derivatives", x)
        return answer.gradient, answer.jacobian

    def both(self, x: np.ndarray) -> Answer:
        return self._ask("both", x)

    def accepted(self, x: np.ndarray) -> None:
        """Tell that the library goes on from this point."""
        self._say(Accepted(np.array(x, np.float64)))

    def _ask(self, kind: Kind, x: np.ndarray) -> Answer:
        x = np.array(x, np.float64)  # libraries change theirs in place
        key = kind, x.tobytes()
        if key not in self._known:
            while len(self._known) >= 4:  # the last two points, values and derivatives
                self._known.pop(next(iter(self._known)))
            answer = self._say(Question(kind, x))
            assert answer is not None
            self._known[key] = answer
        return self._known[key]


class Conversation:
    """The loop's end.

    Args:
        library: runs the library to its end on a line; returns its last point, and its words about why it ended.
        name: of the thread.
    """

    def __init__(self, library: Callable[[Line], tuple[np.ndarray, str]], name: str):
        self._heard: queue.SimpleQueue[Question | Accepted | Ended | BaseException] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer | _HungUp | None] = queue.SimpleQueue()
        self._last: Ended | BaseException | None = None
        self._waits_to_go_on = True
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run, library), name=name, daemon=True)
        self._thread.start()

    def _run(self, library: Callable[[Line], tuple[np.ndarray, str]]) -> None:
        try:
            self._reply()
            # Overflow and division by zero are a library's daily bread, and it knows what to do about them.
            with np.errstate(all="ignore"):
                x, words = library(Line(self._say))
        except _HungUp:
            return
        except BaseException as error:
            self._heard.put(error)
        else:
            self._heard.put(Ended(np.array(x, np.float64), words))

    def _say(self, what: Question | Accepted) -> Answer | None:
        self._heard.put(what)
        return self._reply()

    def _reply(self) -> Answer | None:
        answer = self._answers.get()
        if isinstance(answer, _HungUp):
            raise answer
        return answer

    def hear(self) -> Question | Accepted | Ended:
        """What the library says next. A question has to be answered before that; an end is said again and again.

        Raises:
            Exception: the library raised it.
        """
        if self._last is None:
            if self._waits_to_go_on:
                self._answers.put(None)
            heard = self._heard.get()
            self._waits_to_go_on = isinstance(heard, Accepted)
            if isinstance(heard, Question | Accepted):
                return heard
            self._thread.join()
            self._last = heard
        if isinstance(self._last, BaseException):
            raise self._last
        return self._last

    def answer(self, answer: Answer) -> None:
        """Answer the question that was heard last."""
        self._answers.put(answer)

    def close(self) -> None:
        """End the library's loop, wherever it is."""
        if self._last is None:
            self._answers.put(_HungUp())
            self._thread.join()
            self._last = Ended(np.empty(0), "it was hung up on")
