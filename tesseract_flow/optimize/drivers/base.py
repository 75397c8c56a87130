"""What a driver is to the loop: a description that runs share, and an engine that is at work in one of them.

The loop has one journal, one history, one set of stop rules and one failure policy for all of them. What differs is in
an engine's verbs: how it begins at a point, how it comes to the next one, and what it needs to be taken up again. Its
state is a tree of arrays, which the journal keeps. An engine whose library keeps more than that in its own frames gives
the journal every answer that the library was given, and is taken up again by giving them once more.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import PyTree

from tesseract_flow.optimize.bounds import Box
from tesseract_flow.optimize.canonical import as_json
from tesseract_flow.optimize.constraints import AugmentedLagrangian, ConstraintSet
from tesseract_flow.optimize.drivers.moves import Move
from tesseract_flow.optimize.evaluator import Evaluator, Sample, Transform
from tesseract_flow.optimize.failures import FailurePolicy
from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.shared import Shared
from tesseract_flow.optimize.state import State

if TYPE_CHECKING:
    from tesseract_flow.optimize.run import Run
    from tesseract_flow.optimize.unmet import Rows

# How a driver comes to its next point: by a step, by a search along a line, or as its library likes.
Manner = Literal["steps", "searches", "library"]
# What the journal has of the answers that a library was given, from the last finished step back to the first.
Answers = Callable[[], Iterator[bytes]]


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What an engine is made for: a problem, in the scaled units in which drivers move.

    Attributes:
        start: the scaled design that the run starts from.
        box: bounds of the scaled design.
        shared: what runs from other starts have in common.
    """

    problem: Problem
    start: PyTree
    box: Box
    constraints: ConstraintSet
    evaluator: Evaluator
    transform: Transform
    policy: FailurePolicy
    shared: Shared


class AbstractDriver(abc.ABC):
    """What a name and settings, or an object, stand for. It holds nothing of a run, so many may share it.

    Attributes:
        asks_for_gradients: false where it asks for values alone; then nothing in the run asks for gradients.
        may_push_forward: pushforwards alone will do, where a component has no pullbacks.
    """

    asks_for_gradients: bool = True
    may_push_forward: bool = False

    @property
    @abc.abstractmethod
    def description(self) -> Mapping[str, Any]:
        """Its `name`, and the settings that were given, as plain JSON."""

    @property
    def name(self) -> str:
        return self.description["name"]

    @abc.abstractmethod
    def identity(self, problem: Problem, template: Evaluation) -> dict[str, Any]:
        """Its part in the identity of a run, under the key `driver` and others. Runs nothing."""

    @abc.abstractmethod
    def engine(self, setting: Setting) -> AbstractEngine:
        """The driver, at work on a problem.

        Raises:
            DriverError: it cannot work on this one; the message says why, and what can.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class NamedDriver(AbstractDriver):
    """A driver of which its name and settings say all."""

    about: Mapping[str, Any]

    @property
    def description(self) -> Mapping[str, Any]:
        return self.about

    def identity(self, problem: Problem, template: Evaluation) -> dict[str, Any]:
        return {"driver": as_json(self.about)}


class AbstractEngine(abc.ABC):
    """A driver at work in one run.

    Attributes:
        manner: how it comes to its next point.
        takes_constraints: it has the constraints for itself; else they are part of what it minimises.
        is_scaled: whether it sees the objective divided by its size where nothing else was asked for.
        slopes: between which the steepest slope of the objective at the start, per unit of the scaled design, is left
            as it is; a smaller one is brought to one, a larger one to the larger of them. None where it is the size of
            the objective that matters.
        method: how multipliers move where nothing else was asked for.
    """

    manner: Manner
    takes_constraints: bool
    is_scaled: bool
    slopes: tuple[float, float] | None
    method: AugmentedLagrangian

    @abc.abstractmethod
    def fresh(self, u: PyTree) -> PyTree:
        """Its state before anything was learned."""

    @abc.abstractmethod
    def first_look(self, run: Run, u: PyTree) -> Sample:
        """The sample of the objective alone at a point that there is no way back from.

        Raises:
            EvaluationFailed: it cannot be evaluated.
        """

    @abc.abstractmethod
    def begin(self, run: Run, state: State, alone: Sample) -> State:
        """The state at the start. In `state` are its point and the scales; `alone` is the first look at it."""

    @abc.abstractmethod
    def begin_again(self, run: Run, state: State, u: PyTree) -> State:
        """The state at a point `u` that no step came to, for a problem that has changed; its best design is to be seen
        to by the caller."""

    def rows(self, run: Run, state: State) -> Rows | None:
        """The constraints at a state, linearised, where they are known row by row."""
        return None

    @abc.abstractmethod
    def step(self, run: Run, state: State) -> Move:
        """From a state to the next one.

        Raises:
            EvaluationFailed: no next point can be evaluated, or the policy is not to look for one.
        """

    @abc.abstractmethod
    def resume(self, state: State, answers: Answers) -> tuple[State, tuple[str, ...]]:
        """Be taken up again at a state that a journal brought back; and what one should know about it."""

    @abc.abstractmethod
    def take_answers(self) -> bytes:
        """What the journal has to keep of the step that was just made, besides the state."""

    @abc.abstractmethod
    def close(self) -> None:
        """The run is over. Harmless when it is over already."""
