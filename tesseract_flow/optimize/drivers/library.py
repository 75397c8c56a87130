"""A library that owns its loop, at work: SciPy's and NLopt's methods, each a function that asks on a line.

One step is one iteration of the library: it ends where the library goes on from a new point, whose derivatives are then
known. Trial points before that are evaluations of the step. Objective and constraints come to the library scaled
(`task`); multipliers are found here, by least squares, from the derivatives that are known anyway, so all that the loop
judges by (`optimality`) is the same for each library.

A library is run in *legs*. A leg begins at a point, with nothing learned. Where the library comes to an end of its own
(its tolerances are as small as they go, as the loop's rules decide), or where an evaluation fails and it would not know
what to do, another leg begins where the last one came to. A leg that leads nowhere is the end: the run has stalled.

What a library has learned lies in its own frames. The journal has each answer that it was given, so it is taken up
again by running it from the beginning of its leg against these answers, which costs nothing. It must ask the same
questions then, bit by bit. If not (another version of it), or if an answer is damaged, a new leg begins, and the run
says so.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.metadata
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from tesseract_flow.errors import DriverError
from tesseract_flow.optimize.canonical import as_json
from tesseract_flow.optimize.constraints import AugmentedLagrangian, Duals
from tesseract_flow.optimize.drivers.answered import decoded, encoded
from tesseract_flow.optimize.drivers.base import AbstractEngine, Answers, Manner, NamedDriver, Setting
from tesseract_flow.optimize.drivers.conversation import Accepted, Answer, Conversation, Ended, Line, Question
from tesseract_flow.optimize.drivers.moves import Move, moved
from tesseract_flow.optimize.drivers.suitable import require_suitable
from tesseract_flow.optimize.drivers.task import Flat, Task
from tesseract_flow.optimize.evaluator import Sample
from tesseract_flow.optimize.failures import Failure
from tesseract_flow.optimize.history import Damaged
from tesseract_flow.optimize.multipliers import least_squares_multipliers
from tesseract_flow.optimize.oracle import Derivatives, Oracle
from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.promised import Promised, precision, promised_names
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import PROMISED, State
from tesseract_flow.optimize.unmet import Rows

# Of a method whose first step is as long as the slope. Ipopt scales down only, and to 100: an objective of 1e-9 would
# hardly move the design, and on one of size one, in a box, a step of 100 leads into a corner.
STEP_LONG = (1e-3, 10.0)

_WALL = 1e6  # times the objective's size: what is told of a point that cannot be evaluated
_NOWHERE = 1e-12  # of the design's size, and of the objective: a leg that changed less has led nowhere


class AbstractLibrary(abc.ABC):
    """A method of a library.

    Attributes:
        package: the distribution that it comes from.
        takes_constraints, takes_equalities: what it has of its own.
        withstands_walls: whether it steps back from a value that is far too large, and asks for no derivatives there.
        slopes: as of an engine.
    """

    package: str
    takes_constraints: bool
    takes_equalities: bool
    withstands_walls: bool
    slopes: tuple[float, float] | None

    @abc.abstractmethod
    def run(self, line: Line, task: Task) -> tuple[np.ndarray, str]:
        """Run to the library's own end; its last point, and its words about why it ended."""


@dataclasses.dataclass(frozen=True, eq=False)
class LibraryDriver(NamedDriver):
    """A method of a library with its settings."""

    library: AbstractLibrary

    def identity(self, problem: Problem, template: Evaluation) -> dict[str, Any]:
        # Rows that are kept are not to the bit what they would be if they were asked for again.
        linear = list(promised_names(problem)) if self.library.takes_constraints else []
        return {"driver": as_json({**self.about, "linear": linear} if linear else self.about)}

    def engine(self, setting: Setting) -> AbstractEngine:
        return LibraryEngine(self, setting)


class LibraryEngine(AbstractEngine):
    """A library at work."""

    manner: Manner = "library"
    takes_constraints = True
    is_scaled = True
    # There is no penalty, and no schedule by which multipliers change.
    method = dataclasses.replace(AugmentedLagrangian.for_searches(), penalty=0.0)

    def __init__(self, driver: LibraryDriver, setting: Setting):
        self._name, self._library, self.slopes = driver.name, driver.library, driver.library.slopes
        self._flat = Flat(setting.start, setting.box, setting.constraints, setting.problem.partition)
        library = driver.library
        require_suitable(
            driver.name,
            setting,
            self._flat,
            takes_constraints=library.takes_constraints,
            takes_equalities=library.takes_equalities,
        )
        names = sorted(setting.problem.constraints or {})
        linear = promised_names(setting.problem)
        self._is_linear = np.array([name in linear for name in self._flat.names], bool)
        self._precision = precision(setting.problem, setting.evaluator.template)
        oracle = setting.shared.once(
            "oracle", lambda: Oracle(setting.problem, setting.evaluator, names, setting.transform)
        )
        self._oracle = oracle.of_another_run(setting.evaluator)
        self._talk: Conversation | None = None
        self._position = -1, 0  # leg, and how much was heard in it
        self._given: list[tuple[Question, Answer]] = []  # in this step
        self._leg_of_given = 0
        self._to_say = ""

    # -- the verbs of an engine

    def fresh(self, u: PyTree) -> PyTree:
        n = self._flat.n
        known: dict[str, PyTree] = {"gradient": jnp.zeros(n), "jacobian": jnp.zeros((self._flat.n_constraints, n))}
        if self._is_linear.any():
            known[PROMISED] = {"at": jnp.zeros(n), "values": jnp.zeros(self._flat.n_constraints)}
        return known | self._leg(u, 0, (0.0, 0.0))

    def first_look(self, run: Run, u: PyTree) -> Sample:
        varying = run.varying_at(u)
        found = run.attempts.attempt(varying, (), lambda: self._oracle.derivatives(varying, run.scheduled))
        assert isinstance(found, Derivatives), "a decisive evaluation that fails is raised"
        leaves = self._oracle.values(varying, run.scheduled)
        objective = run.evaluator.evaluation(leaves).objective
        return Sample(objective, run.problem.partition.scale_gradient(found.gradient), leaves)

    def begin(self, run: Run, state: State, alone: Sample) -> State:
        return self._begun(run, state, state.u, alone, 0)

    def begin_again(self, run: Run, state: State, u: PyTree) -> State:
        return self._begun(run, state, u, self.first_look(run, u), int(state.driver["leg"]) + 1)

    def _begun(self, run: Run, state: State, u: PyTree, alone: Sample, leg: int) -> State:
        varying, flat = run.varying_at(u), self._flat
        leaves, found = self._oracle.values(varying, run.scheduled), self._oracle.derivatives(varying, run.scheduled)
        there = self._state_at(run, state, u, leaves, flat.gradient(found), flat.jacobian(found, state.duals))
        if self._is_linear.any():
            values = flat.values(run.evaluator.evaluation(leaves).constraints, state.duals)
            promised = {"at": jnp.asarray(flat.vector(u)), "values": jnp.asarray(values)}
            there = dataclasses.replace(there, driver=there.driver | {PROMISED: promised})
        return self._on_a_new_leg(run, there, leg)

    def step(self, run: Run, state: State) -> Move:
        self._oracle.forget()
        if self._to_say:
            run.attempts.note(self._to_say)
            self._to_say = ""
        leg, heard = int(state.driver["leg"]), int(state.driver["heard"])
        while True:
            talk = self._talk_at(leg, heard, state)
            said = self._hear(talk)
            heard += 1
            self._position = leg, heard
            match said:
                case Question():
                    answer = self._found_out(run, state, said)
                    if isinstance(answer, Failure):
                        if said.kind != "values" or not self._library.withstands_walls:
                            return self._retreat(run, state, said.x)
                        run.attempts.note(f"{self._name} stepped back")
                        answer = self._wall(run, state)
                    self._given.append((said, answer))
                    talk.answer(answer)
                case Accepted():
                    new = self._arrived(run, state, said.x)
                    if isinstance(new, Failure):
                        return self._retreat(run, state, said.x)
                    if new is not state:
                        return Move(_heard_so_far(new, leg, heard))
                case Ended():
                    new = self._arrived(run, state, said.x)
                    if isinstance(new, State) and new is not state and self._is_progress(run, state, new):
                        return Move(_heard_so_far(new, leg, heard))
                    if not self._has_led_somewhere(run, state):
                        return Move(_heard_so_far(state, leg, heard), stalled=True, ending=said.words)
                    leg, heard = leg + 1, 0
                    state = self._on_a_new_leg(run, state, leg)

    def rows(self, run: Run, state: State) -> Rows | None:
        flat, found = self._flat, run.evaluator.evaluation(state.here.leaves)
        return Rows(
            flat.names,
            flat.values(found.constraints, state.duals),
            *flat.limits,
            np.asarray(state.driver["jacobian"], np.float64),
            flat.vector(state.u),
            (flat.lower, flat.upper),
        )

    def resume(self, state: State, answers: Answers) -> tuple[State, tuple[str, ...]]:
        leg, heard = int(state.driver["leg"]), int(state.driver["heard"])
        if not heard:
            return state, ()
        try:
            self._replay(leg, heard, state, answers)
        except (Damaged, OSError) as error:
            if self._talk is not None:
                self._talk.close()
                self._talk = None
            self._to_say = (
                f"{self._name} could not be taken up where it was ({error}); it began anew from the last finished "
                "step, without what it had learned"
            )
            worth = np.inf, np.inf  # whatever comes of it is better than to end here
            return dataclasses.replace(state, driver=state.driver | self._leg(state.u, leg + 1, worth)), (self._to_say,)
        return state, ()

    def take_answers(self) -> bytes:
        given, self._given = self._given, []
        return encoded(self._position[0], given) if given else b""

    def close(self) -> None:
        if self._talk is not None:
            self._talk.close()
            self._talk = None

    # -- talking

    def _talk_at(self, leg: int, heard: int, state: State) -> Conversation:
        if self._talk is None or self._position != (leg, heard):
            assert heard == 0, f"a conversation that was at {self._position} cannot be at {(leg, heard)}"
            self.close()
            self._given = []
            self._position = leg, 0
            task = self._flat.task(np.asarray(state.driver["origin"], np.float64), self._promised(state))
            self._talk = Conversation(lambda line: self._library.run(line, task), f"tesseract-flow {self._name}")
        return self._talk

    def _hear(self, talk: Conversation) -> Question | Accepted | Ended:
        try:
            return talk.hear()
        except Exception as error:
            raise DriverError(
                f"Driver {self._name!r} failed in its library ({self._library.package}): {type(error).__name__}: "
                f"{error}\nSteps that are finished are safe. Another driver can go on from them: start_from=...."
            ) from error

    def _replay(self, leg: int, heard: int, state: State, answers: Answers) -> None:
        """Give the library of this leg the answers that it was given.

        Raises:
            Damaged: they are not whole, or the library asks for something else.
        """
        given = decoded(leg, answers)
        talk = self._talk_at(leg, 0, state)
        for k in range(heard):
            said = self._hear(talk)
            self._position = leg, k + 1
            if not isinstance(said, Question):
                continue
            known, answer = next(given, (None, None))
            if known is None or answer is None:
                raise Damaged("the journal has fewer answers than it asks questions now")
            if known.kind != said.kind or known.x.tobytes() != said.x.tobytes():
                version = importlib.metadata.version(self._library.package)
                raise Damaged(
                    "given the same answers, it asks for another point now than it did; this is "
                    f"{self._library.package} {version}"
                )
            talk.answer(answer)

    # -- finding out

    def _found_out(self, run: Run, state: State, question: Question) -> Answer | Failure:
        u = self._flat.design(question.x)
        if not moved(state.u, u):
            return self._known_here(run, state)
        seen = self._seen(run, state, u, with_derivatives=question.kind != "values")
        if isinstance(seen, Failure):
            return seen
        found = run.evaluator.evaluation(seen.leaves)
        scale = float(state.objective_scale)
        value, constraints = float(found.objective) / scale, self._flat.values(found.constraints, state.duals)
        if question.kind == "values":
            return Answer(value, constraints)
        return self._answer(value, constraints, seen.gradient / scale, seen.jacobian)

    def _seen(self, run: Run, state: State, u: PyTree, *, with_derivatives: bool) -> _Seen | Failure:
        """What an evaluation finds at a point where the library is not.

        Raises:
            ProblemError: a constraint is not linear there, and was promised to be.
        """
        flat, varying, promised = self._flat, run.varying_at(u), self._promised(state)
        gradient, jacobian = np.empty(0), np.empty((0, 0))
        if with_derivatives:
            found = run.attempts.attempt(
                varying, (), lambda: self._oracle.derivatives(varying, run.scheduled, but_linear=True)
            )
            if isinstance(found, Failure):
                return found
            gradient, jacobian = flat.gradient(found), promised.filled_in(flat.jacobian(found, state.duals))
        leaves = run.attempts.attempt(varying, (), lambda: self._oracle.values(varying, run.scheduled))
        if isinstance(leaves, Failure):
            return leaves
        if promised.is_linear.any():
            values = flat.values(run.evaluator.evaluation(leaves).constraints, state.duals)
            promised.require(flat.vector(u), values, flat.sizes(state.duals))
        return _Seen(leaves, gradient, jacobian)

    def _promised(self, state: State) -> Promised:
        """What is known of constraints that are linear, where their derivatives were asked for."""
        rows = np.asarray(state.driver["jacobian"], np.float64)
        known = state.driver.get(PROMISED) or {"at": np.zeros(self._flat.n), "values": np.zeros(len(rows))}
        at, values = (np.asarray(known[key], np.float64) for key in ("at", "values"))
        return Promised(self._flat.names, self._is_linear, self._precision, at, values, rows)

    def _known_here(self, run: Run, state: State) -> Answer:
        found, scale = run.evaluator.evaluation(state.here.leaves), float(state.objective_scale)
        return self._answer(
            float(found.objective) / scale,
            self._flat.values(found.constraints, state.duals),
            np.asarray(state.driver["gradient"], np.float64) / scale,
            np.asarray(state.driver["jacobian"], np.float64),
        )

    def _answer(self, value: float, constraints: np.ndarray, gradient: np.ndarray, jacobian: np.ndarray) -> Answer:
        is_free = self._flat.is_free
        return Answer(value, constraints, gradient[is_free], jacobian[:, is_free])

    def _wall(self, run: Run, state: State) -> Answer:
        here = self._known_here(run, state)
        return Answer(here.value + _WALL * max(1.0, abs(here.value)), here.constraints)

    # -- states

    def _arrived(self, run: Run, state: State, x: np.ndarray) -> State | Failure:
        """The state at a point that the library goes on from; the same one if that is where it is."""
        u = self._flat.design(x)
        if not moved(state.u, u):
            return state
        seen = self._seen(run, state, u, with_derivatives=True)
        if isinstance(seen, Failure):
            return seen
        return self._state_at(run, state, u, seen.leaves, seen.gradient, seen.jacobian)

    def _state_at(
        self, run: Run, state: State, u: PyTree, leaves: list[Any], gradient: np.ndarray, jacobian: np.ndarray
    ) -> State:
        flat, found, scale = self._flat, run.evaluator.evaluation(leaves), float(state.objective_scale)
        values = flat.values(found.constraints, state.duals)
        multipliers = least_squares_multipliers(
            gradient / scale, jacobian, values, flat.limits, flat.vector(u), (flat.lower, flat.upper)
        )
        silent = run.constraints.silent()
        duals = Duals(flat.by_demand(multipliers), silent.penalty, state.duals.unit)
        augmentation = run.constraints.augmentation(found.constraints, duals, run.evaluator.dtype)
        here = Sample(
            found.objective / state.objective_scale + augmentation,
            flat.tree(gradient / scale + multipliers @ jacobian),
            leaves,
        )
        driver = state.driver | {"gradient": jnp.asarray(gradient), "jacobian": jnp.asarray(jacobian)}
        return dataclasses.replace(state, u=u, driver=driver, duals=duals, here=here)

    def _on_a_new_leg(self, run: Run, state: State, leg: int) -> State:
        return dataclasses.replace(state, driver=state.driver | self._leg(state.u, leg, self._worth(run, state)))

    def _leg(self, u: PyTree, leg: int, worth: tuple[float, float]) -> dict[str, Any]:
        """What the state has of a leg: its number, how much was heard in it, where it began and what that is worth."""
        return {
            "leg": jnp.asarray(leg, jnp.int32),
            "heard": jnp.asarray(0, jnp.int32),
            "origin": jnp.asarray(self._flat.unknowns(u)),
            "worth": jnp.asarray(worth),
        }

    def _retreat(self, run: Run, state: State, x: np.ndarray) -> Move:
        """Where a step ends that could not be evaluated at its end: back along it to where it is better than here, and
        on a new leg.

        Raises:
            EvaluationFailed: there is no point on the way that can be evaluated.
        """
        policy, here, leg = run.attempts.policy, self._flat.unknowns(state.u), int(state.driver["leg"]) + 1
        was_evaluated = False
        for k in range(1, policy.shrinks + 1):
            new = self._arrived(run, state, here + policy.factor**k * (x - here))
            if new is state:
                break
            was_evaluated |= isinstance(new, State)
            if isinstance(new, State) and self._is_progress(run, state, new):
                run.attempts.note(
                    f"the step was shortened to {policy.factor**k:.3g} of its length, and {self._name} began anew there"
                )
                return Move(self._on_a_new_leg(run, new, leg))
        if not was_evaluated:
            raise run.attempts.given_up()
        if self._has_led_somewhere(run, state):
            run.attempts.note(f"{self._name} began anew")
            return Move(self._on_a_new_leg(run, state, leg))
        return Move(state, stalled=True, ending="no design on the way to one that cannot be evaluated is better")

    def _worth(self, run: Run, state: State) -> tuple[float, float]:
        """The objective, over its size, and the violation."""
        found = run.evaluator.evaluation(state.here.leaves)
        violation = run.constraints.violation(found.constraints, state.duals)
        # As the state keeps it: compared with more digits, a leg without an effect would seem to have led somewhere,
        # and the next one too, without an end.
        worth = np.asarray(jnp.asarray((float(found.objective) / float(state.objective_scale), float(violation))))
        return float(worth[0]), float(worth[1])

    def _is_progress(self, run: Run, state: State, new: State) -> bool:
        """Whether the last point of a library is worth going to."""
        return _is_better(self._worth(run, new), self._worth(run, state), run.feasibility_tol)

    def _has_led_somewhere(self, run: Run, state: State) -> bool:
        """Whether this leg has found anything better than where it began."""
        origin = np.asarray(state.driver["worth"], np.float64)
        return _is_better(self._worth(run, state), (float(origin[0]), float(origin[1])), run.feasibility_tol)


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
    """What an evaluation has found: its arrays, and the derivatives as flat arrays of all entries, if they were asked
    for."""

    leaves: list[Any]
    gradient: np.ndarray
    jacobian: np.ndarray


def _is_better(worth: tuple[float, float], before: tuple[float, float], tolerance: float) -> bool:
    if worth[1] <= tolerance and before[1] <= tolerance:
        return worth[0] < before[0] - _NOWHERE * max(1.0, abs(before[0]))
    return worth[1] < before[1] * (1.0 - 1e-6)


def _heard_so_far(state: State, leg: int, heard: int) -> State:
    driver = {**state.driver, "leg": jnp.asarray(leg, jnp.int32), "heard": jnp.asarray(heard, jnp.int32)}
    return dataclasses.replace(state, driver=driver)
