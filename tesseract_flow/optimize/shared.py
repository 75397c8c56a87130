"""What runs of one problem have traced and compiled in common, so that the first one does it for all of them.

A run alone keeps what it makes for itself. Runs of a study are given one `Shared`: they differ in their start alone,
which is an argument of everything that is in here. What had to be asked of a component in order to trace (a text at
which `evaluate` looks, the shapes of a component that does not tell them) was asked at one run's start, and is that
run's alone.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

import jax

from tesseract_flow.autodiff import rehearsal
from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize.problem import Problem

T = TypeVar("T")
_OF_A_START = ("design", "vary")  # the filter becomes what it selects


class Shared:
    """Things by name, each made by the first run that needs it while others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.RLock] = {}
        self._made: dict[Hashable, object] = {}
        self._parts: dict[Hashable, Shared] = {}
        self._is_of_a_start = False
        self._problem: Problem | None = None

    def require(self, problem: Problem) -> None:
        """Refuse what is not the same problem as before, but for the start.

        Raises:
            ProblemError: it is another one.
        """
        with self._lock:
            known, self._problem = self._problem, self._problem or problem
        if known is not None and not _differ_in_start_alone(known, problem):
            raise ProblemError(
                f"shared is about another problem than {problem.name!r}, or about one that was written down anew.\n"
                "Make the problems of several runs from one, by its starting_at(...), or leave shared out."
            )

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, or gave when it was asked for first."""
        if self._is_of_a_start:
            return make()
        with self._lock:
            making = self._making.setdefault(what, threading.RLock())
        with making:
            if what in self._made:
                return self._made[what]  # type: ignore[return-value]
            with rehearsal() as current:
                before = current.n_asked
                made = make()
            if current.n_asked == before:
                self._made[what] = made
            else:
                self._is_of_a_start = True
            return made

    def of(self, part: Hashable) -> Shared:
        """The same for a part of the problem, such as a phase with bounds of its own."""
        with self._lock:
            return self._parts.setdefault(part, Shared())


def _differ_in_start_alone(a: Problem, b: Problem) -> bool:
    """By identity: equal functions may be closed over different things."""
    fields = [field.name for field in dataclasses.fields(Problem) if field.name not in _OF_A_START]
    leaves = [jax.tree.flatten(one.partition.fixed) for one in (a, b)]
    return (
        all(getattr(a, name) is getattr(b, name) for name in fields)
        and leaves[0][1] == leaves[1][1]
        and all(one is other for one, other in zip(leaves[0][0], leaves[1][0], strict=True))
    )
