"""A driver that asks for values alone: CMA-ES, for components without derivatives. The extra `cmaes`.

One step is one generation: all of its designs are evaluated at once, and only their order counts. Where one cannot be
evaluated it comes last in that order. No gradient is known anywhere, so no record has one, and no run of this driver
claims to have converged; it comes to rest where its spread has shrunk to nothing.

The library draws with a generator of its own, whose seed is part of what a run is. It is taken up again by telling it
the values of each generation once more, which the journal has; it must ask for the same designs then, bit by bit.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from tesseract_flow.autodiff import compiled_apart
from tesseract_flow.errors import DriverError, TransientError
from tesseract_flow.optimize.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from tesseract_flow.optimize.constraints import AugmentedLagrangian
from tesseract_flow.optimize.drivers.base import AbstractEngine, Answers, Manner, NamedDriver, Setting
from tesseract_flow.optimize.drivers.moves import Move
from tesseract_flow.optimize.drivers.task import Flat
from tesseract_flow.optimize.evaluator import (
    Evaluator,
    Sample,
    Scheduled,
    Transform,
    Weights,
    check_finite,
    check_valid,
)
from tesseract_flow.optimize.failures import Failure, is_of_the_design
from tesseract_flow.optimize.history import Damaged
from tesseract_flow.optimize.problem import Problem, as_evaluation
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State

SETTINGS: dict[str, dict[str, Any]] = {"cma-es": {"seed": 0, "spread": 0.3, "population": 0}}
_ROOM = 0.25  # of the way between its bounds: the widest spread of an entry at the start


@dataclasses.dataclass(frozen=True, eq=False)
class EvolutionDriver(NamedDriver):
    """CMA-ES with its settings."""

    options: Mapping[str, Any]
    asks_for_gradients = False

    @classmethod
    def from_settings(cls, given: Mapping[str, Any]) -> EvolutionDriver:
        options = SETTINGS["cma-es"] | dict(given)
        try:
            importlib.import_module("cmaes")
        except ImportError as error:
            raise DriverError(
                "Driver 'cma-es' is that of the library cmaes, which is not installed: "
                "pip install 'tesseract-flow[cmaes]'"
            ) from error
        if not (0 <= options["seed"] < 2**31 and 0.0 < options["spread"] < np.inf):
            raise DriverError(
                "Settings of driver 'cma-es': expected a seed from 0 to 2**31 - 1 and a positive spread, received "
                f"seed {options['seed']!r} and spread {options['spread']!r}."
            )
        if options["population"] != 0 and options["population"] < 4:
            raise DriverError(
                "Setting 'population' of driver 'cma-es' must be 4 or more, or 0 for the library's choice, received "
                f"{options['population']!r}."
            )
        about = {"name": "cma-es", **{key: given[key] for key in sorted(given)}}
        return cls({**about, "seed": int(options["seed"])}, options)

    def engine(self, setting: Setting) -> AbstractEngine:
        return EvolutionEngine(self, setting)


class EvolutionEngine(AbstractEngine):
    """CMA-ES at work."""

    manner: Manner = "library"
    takes_constraints = True  # there are none
    is_scaled = True
    slopes = None
    method = dataclasses.replace(AugmentedLagrangian.for_searches(), penalty=0.0)

    def __init__(self, driver: EvolutionDriver, setting: Setting):
        self._options = driver.options
        self._flat = Flat(setting.start, setting.box, setting.constraints, setting.problem.partition)
        _refuse(setting, self._flat)
        generations = setting.shared.once(
            "generations", lambda: _Generations(setting.problem, setting.evaluator, setting.transform)
        )
        self._generations = generations.of_another_run(setting.evaluator)
        self._cma: Any = None
        self._position = -1, 0  # leg, and generations in it
        self._given: tuple[int, np.ndarray, np.ndarray] | None = None
        self._to_say = ""

    def fresh(self, u: PyTree) -> PyTree:
        return self._leg(u, 0)

    def first_look(self, run: Run, u: PyTree) -> Sample:
        return run.sample(u, Weights(jnp.ones((), run.evaluator.dtype), run.constraints.silent()))

    def begin(self, run: Run, state: State, alone: Sample) -> State:
        return self._at(run, state, state.u, alone.leaves)

    def begin_again(self, run: Run, state: State, u: PyTree) -> State:
        sample = run.sample(u, state.weights)
        there = self._at(run, state, u, sample.leaves)
        return dataclasses.replace(there, driver=self._leg(u, int(state.driver["leg"]) + 1))

    def step(self, run: Run, state: State) -> Move:
        if self._to_say:
            run.attempts.note(self._to_say)
            self._to_say = ""
        leg, generation = int(state.driver["leg"]), int(state.driver["generation"])
        cma = self._cma_at(leg, generation, state)
        points = np.array([cma.ask() for _ in range(cma.population_size)])
        designs = [run.varying_at(self._flat.design(point)) for point in points]
        found = self._generations(run, designs)
        scale = float(state.objective_scale)
        values = np.array([np.inf if leaves is None else self._value(run, leaves) / scale for leaves in found])
        cma.tell([(point, float(value)) for point, value in zip(points, values, strict=True)])
        self._position = leg, generation + 1
        self._given = leg, points, values
        best = int(np.argmin(values))
        leaves = found[best]
        new = state if leaves is None else self._at(run, state, self._flat.design(points[best]), leaves)
        new = dataclasses.replace(new, driver=new.driver | {"generation": jnp.asarray(generation + 1, jnp.int32)})
        if cma.should_stop():
            return Move(new, stalled=True, ending="the spread of a generation, or of its values, is down to rounding")
        return Move(new)

    def resume(self, state: State, answers: Answers) -> tuple[State, tuple[str, ...]]:
        leg, generation = int(state.driver["leg"]), int(state.driver["generation"])
        try:
            self._replay(leg, generation, state, answers)
        except (Damaged, OSError) as error:
            self._cma = None
            self._to_say = (
                f"cma-es could not be taken up where it was ({error}); it began anew from the last finished step, with "
                "the spread of the start"
            )
            return dataclasses.replace(state, driver=self._leg(state.u, leg + 1)), (self._to_say,)
        return state, ()

    def take_answers(self) -> bytes:
        if self._given is None:
            return b""
        leg, points, values = self._given
        self._given = None
        return encode_checkpoint(Checkpoint(leg, {"points": points, "values": values}))

    def close(self) -> None:
        self._cma = None

    def _cma_at(self, leg: int, generation: int, state: State) -> Any:
        if self._cma is None or self._position != (leg, generation):
            assert generation == 0, f"a generator that was at {self._position} cannot be at {(leg, generation)}"
            self._cma = self._new(leg, np.asarray(state.driver["origin"], np.float64))
            self._position = leg, 0
        return self._cma

    def _new(self, leg: int, origin: np.ndarray) -> Any:
        import cmaes

        task = self._flat.task(origin)
        spread = float(self._options["spread"])
        widths = np.minimum(spread, _ROOM * (task.upper - task.lower))
        return cmaes.CMA(
            mean=np.array(origin),
            sigma=spread,
            bounds=np.stack([task.lower, task.upper], axis=1) if task.has_bounds else None,
            seed=(int(self._options["seed"]) + leg) % 2**31,
            population_size=int(self._options["population"]) or None,
            cov=np.diag((widths / spread) ** 2),
        )

    def _replay(self, leg: int, generation: int, state: State, answers: Answers) -> None:
        """Tell the library of this leg the values that it was told.

        Raises:
            Damaged: they are not whole, or it asks for other designs now.
        """
        parts = []
        for data in answers():
            kept = decode_checkpoint(data).checkpoint
            if kept.step != leg or len(parts) == generation:
                break
            parts.append(kept.arrays)
        if len(parts) < generation:
            raise Damaged("the journal has fewer generations than steps")
        cma = self._cma_at(leg, 0, state)
        for arrays in reversed(parts):
            points = np.array([cma.ask() for _ in range(cma.population_size)])
            if points.tobytes() != arrays["points"].tobytes():
                version = importlib.metadata.version("cmaes")
                raise Damaged(f"told the same values, it asks for other designs now; this is cmaes {version}")
            cma.tell([(point, float(value)) for point, value in zip(points, arrays["values"], strict=True)])
        self._position = leg, generation

    def _at(self, run: Run, state: State, u: PyTree, leaves: list[Array]) -> State:
        objective = run.evaluator.evaluation(leaves).objective
        here = Sample(objective / state.objective_scale, jax.tree.map(jnp.zeros_like, u), leaves)
        return dataclasses.replace(state, u=u, here=here)

    def _value(self, run: Run, leaves: list[Array]) -> float:
        return float(run.evaluator.evaluation(leaves).objective)

    def _leg(self, u: PyTree, leg: int) -> dict[str, Any]:
        return {
            "leg": jnp.asarray(leg, jnp.int32),
            "generation": jnp.asarray(0, jnp.int32),
            "origin": jnp.asarray(self._flat.unknowns(u)),
        }


class _Generations:
    """Evaluates many designs at once: one loop without a carry, whose calls go out as lanes become free."""

    def __init__(self, problem: Problem, evaluator: Evaluator, transform: Transform):
        self._evaluator, self._valid = evaluator, problem.valid_names

        def one(varying: PyTree, scheduled: Scheduled) -> list[Any]:
            return evaluator.arrays_of(as_evaluation(problem.answer(problem.partition.combine(varying), scheduled)))

        def all_of(stacked: PyTree, scheduled: Scheduled) -> list[Any]:
            return jax.lax.map(lambda varying: one(varying, scheduled), stacked)

        self._one, self._all = transform(one), transform(all_of)

    def of_another_run(self, evaluator: Evaluator) -> _Generations:
        other = copy.copy(self)
        other._evaluator = evaluator
        return other

    def __call__(self, run: Run, designs: list[PyTree]) -> list[list[Array] | None]:
        """The arrays of each design's evaluation; `None` where it failed."""
        together = self._together(run, designs)
        found: list[list[Array] | None] = []
        for k, varying in enumerate(designs):
            leaves = run.attempts.attempt(varying, (), lambda k=k, varying=varying: self._of(run, together, k, varying))
            found.append(None if isinstance(leaves, Failure) else leaves)
        return found

    def _together(self, run: Run, designs: list[PyTree]) -> list[list[Array]]:
        """Of all; of none where one of them fails in a way that leaves no answer for the others."""
        self._evaluator.n_evaluations += len(designs)
        try:
            with compiled_apart():
                stacked = self._all(jax.tree.map(lambda *leaves: jnp.stack(leaves), *designs), run.scheduled)
        except Exception as error:
            if not is_of_the_design(error) and not isinstance(error, TransientError):
                raise
            return []
        return [[jnp.asarray(leaf[k]) for leaf in stacked] for k in range(len(designs))]

    def _of(self, run: Run, together: list[list[Array]], k: int, varying: PyTree) -> list[Array]:
        if together:
            leaves, together[k] = together[k], []  # a second attempt is one
        else:
            leaves = []
        if not leaves:
            self._evaluator.n_evaluations += 1
            with compiled_apart():
                leaves = [jnp.asarray(leaf) for leaf in self._one(varying, run.scheduled)]
        evaluation = self._evaluator.evaluation(leaves)
        check_valid(evaluation, self._valid)
        check_finite(evaluation)
        return leaves


def _refuse(setting: Setting, flat: Flat) -> None:
    """Refuse what CMA-ES cannot do, before anything is evaluated."""
    if names := sorted(setting.problem.constraints or {}):
        raise DriverError(
            f"Driver 'cma-es' takes bounds, and no constraints; problem {setting.problem.name!r} has "
            f"{', '.join(map(repr, names))}.\n"
            "Add to the objective what their violation costs, or use 'slsqp', with derivatives by differences where a "
            "component has none (docs/derive.md)."
        )
    if not flat.is_free.any():
        raise DriverError("Driver 'cma-es': nothing is left to vary, as all lower bounds equal the upper ones.")
