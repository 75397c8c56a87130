"""What is optimised: a design, a function that evaluates it, and what must hold.

`Problem` is a description; it evaluates nothing on its own. Everything that can be wrong with it is reported before the
first evaluation: values at construction, and what needs the shapes of `evaluate`'s answer in `check_evaluation`, which
only traces. How the search goes is in `loop`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from tesseract_flow.autodiff import as_words
from tesseract_flow.autodiff.carried import Left
from tesseract_flow.errors import ProblemError, did_you_mean
from tesseract_flow.optimize.bounds import Box, box_from
from tesseract_flow.optimize.constraints import Constraint
from tesseract_flow.optimize.partition import Partition, partition_design
from tesseract_flow.optimize.scaling import scaled
from tesseract_flow.optimize.schedule import (
    Phase,
    Schedule,
    Stage,
    as_phases,
    as_schedules,
    stages_of,
    with_values,
)

if TYPE_CHECKING:
    from tesseract_flow.optimize.function import FlatFunction
    from tesseract_flow.pipeline import Pipeline


class Evaluation(eqx.Module):
    """What `evaluate` found out about one design.

    Give an `objective`, or a `misfit`: any tree of floating-point arrays that should all be zero. The objective is then
    half the sum of their squares, for every driver; those for least squares use the misfit itself. A regularisation is
    a part of the misfit, such as `sqrt(weight) * (x - prior)`.

    `constraints` are values, not residuals: `{"volume": 0.0101}`, whose demands are in `Problem.constraints`. `aux` is
    any pytree, handed to pictures and observers untouched.

    `coupled` is filled in by `optimize`: by name of the fixed point, where it lies and how it was reached.
    """

    objective: Float[Array, ""] = None  # type: ignore[assignment]  # filled in where there is a misfit
    constraints: dict[str, Array] = eqx.field(default_factory=dict)
    aux: PyTree = None
    misfit: PyTree = None
    coupled: dict[str, Left] = eqx.field(default_factory=dict)


_DEFAULTS = ("driver", "learning_rate", "driver_settings", "stop", "objective_scale")


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a problem was made: `problem.py`'s or `package.problem`'s `factory` is `problem:factory`, wherever it lies.

    `settings` are all arguments of the factory, defaults included.
    """

    factory: str
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A design to improve, and the function that says how good it is.

    Attributes:
        design: the start; any pytree. Only the leaves that `vary` selects change.
        evaluate: `design -> objective` (a scalar), or `design -> Evaluation`. Must be traceable by JAX. With a
            `schedule` it is called as `evaluate(design, scheduled)`, with
            `scheduled["beta"]` and so on, arrays of no dimension.
        vary: a filter for `equinox.partition`.
        bounds: `(lower, upper)`; numbers, arrays, or prefixes of the design's varying part; `None` is unbounded.
        constraints: demands on the values in `Evaluation.constraints`, by name.
        valid: names of flags in `Evaluation.aux`, such as `"converged"` or `"flow.converged"`: where one of them is
            not true, the evaluation counts as failed, whatever its values are.
        scale: typical magnitude of each varying leaf (a positive number, or a prefix of the varying part), or
            `"bounds"` in its place: the range between the bounds becomes 0 to 1.
        ref, ref0: the other way to say it, OpenMDAO's: what becomes 1 and what becomes 0 of each leaf; 1 and 0 where
            only the other is given.
        schedule: numbers that change while a run goes (a projection's sharpness, a penalty, a tolerance), by name: a
            `Schedule`, or a number that stays.
        phases: parts of a run that have their own driver, bounds, constraints or stop rules, one after the other.
        name: what reports and journals call it.
        settings: what else the problem depends on and its trace does not show, such as the version of a file that a
            component reads, as plain JSON values. Part of a run's identity. The arguments of a factory are in it
            without being named here (`origin`), and so are constants inside of `evaluate`.
        picture: `(design, evaluation) -> matplotlib Figure`, for reports.
        origin: filled in by `load_problem`.
        defaults: what `optimize` is to take where its caller says nothing: `driver`, `learning_rate`,
            `driver_settings`, `stop`, `objective_scale`. What a problem's file says.

    Raises:
        ProblemError: nothing varies, a leaf that cannot vary, a start or a scale that is not usable.
        BoundsError: bounds that do not fit, or that nothing satisfies.
    """

    design: PyTree
    evaluate: Callable[..., Any]
    _: dataclasses.KW_ONLY
    vary: Callable[[Any], bool] | PyTree = eqx.is_inexact_array
    bounds: tuple[PyTree, PyTree] | None = None
    constraints: Mapping[str, Constraint] | None = None
    valid: str | Sequence[str] = ()
    scale: PyTree = None
    ref: PyTree = None
    ref0: PyTree = None
    schedule: Mapping[str, Schedule | float] | None = None
    phases: Sequence[Phase] | None = None
    name: str = "problem"
    settings: Mapping[str, Any] | None = None
    picture: Callable[[PyTree, Evaluation], Any] | None = None
    origin: Origin | None = None
    defaults: Mapping[str, Any] | None = None

    def __post_init__(self):
        if not callable(self.evaluate):
            raise ProblemError(
                f"evaluate of problem {self.name!r} must be a function of the design, received "
                f"{type(self.evaluate).__name__}.\nThe order is Problem(design, evaluate)."
            )
        for name, constraint in (self.constraints or {}).items():
            if not isinstance(name, str):
                raise ProblemError(
                    f"Constraint {name!r} of problem {self.name!r}: a constraint is named by a text, received "
                    f"{type(name).__name__}."
                )
            if not isinstance(constraint, Constraint):
                raise ProblemError(
                    f"Constraint {name!r} of problem {self.name!r}: expected Constraint(equals=..., lower=..., "
                    f"upper=...), received {constraint!r}."
                )
        try:
            json.dumps(self.settings, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ProblemError(
                f"settings of problem {self.name!r} must be plain JSON values (they are written to the journal): "
                f"{error}."
            ) from error
        if unknown := [key for key in self.defaults or {} if key not in _DEFAULTS]:
            raise ProblemError(
                f"defaults of problem {self.name!r}: there is no {unknown[0]!r}."
                f"{did_you_mean(str(unknown[0]), _DEFAULTS)} There are: {', '.join(_DEFAULTS)}."
            )
        # Touched here so that mistakes surface where the problem is written down; both are cached.
        _ = self.partition, self.box, self.stages
        self._check_arguments()

    @classmethod
    def from_pipeline(cls, pipeline: Pipeline, design: Mapping[str, Any], **about: Any) -> Problem:
        """The problem of a pipeline's outputs.

        With `coupling="idf"` the targets of coupled nodes join the design, and that they are met the constraints.

        Args:
            design: the start of each input, by name; of targets where it is not the groups' own.
            about: `objective` (the name of an output) or `misfit` (names); `constraints` by output; `vary` (names of
                inputs), `bounds={name: (lower, upper)}`, `scale`, `ref` and `ref0` by input; `schedule` of inputs that
                are numbers and not in the design; `valid`, `picture`, `name`, `settings`, `defaults` as above. Further
                outputs are in `aux`, by name.

        Raises:
            ProblemError: a name is none of the pipeline's.
        """
        from tesseract_flow.optimize.of_pipeline import problem_of_pipeline  # which needs problems

        return problem_of_pipeline(pipeline, design, **about)

    @classmethod
    def from_yaml(cls, file: str | os.PathLike[str], **settings: Any) -> Problem:
        """The problem that a file describes, as `load_problem(file, settings)`.

        Raises:
            PipelineError: with everything that is wrong in the file, each with line, column and path.
        """
        from tesseract_flow.optimize.loading import load_problem  # which makes problems

        return load_problem(os.fspath(file), settings)

    @property
    def valid_names(self) -> tuple[str, ...]:
        return (self.valid,) if isinstance(self.valid, str) else tuple(self.valid)

    @functools.cached_property
    def partition(self) -> Partition:
        return scaled(self._split, self.box, self.scale, self.ref, self.ref0)

    @functools.cached_property
    def _split(self) -> Partition:
        return partition_design(self.design, self.vary)

    @functools.cached_property
    def box(self) -> Box:
        """The bounds, in the design's own units."""
        return box_from(self.bounds, self._split.varying)

    @property
    def start(self) -> PyTree:
        """The varying part to start from, moved into the bounds if it lies outside."""
        return self.box.project(self.partition.varying)

    @functools.cached_property
    def schedules(self) -> dict[str, Schedule]:
        return as_schedules(self.schedule, f"problem {self.name!r}")

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stretches of a run in which nothing changes: one, where nothing is scheduled."""
        return stages_of(self.schedules, len(as_phases(self.phases, f"problem {self.name!r}")))

    def with_schedule(self, schedule: Mapping[str, Any]) -> Problem:
        """The same problem with other values for numbers that it schedules; a run of it is another run.

        Args:
            schedule: by name a `Schedule`, a list of its values, a number that stays, or `{"values": [1.0, 4.0],
                "every": 40}`, as a form or a file says it. Numbers that are not named keep theirs.

        Raises:
            ProblemError: a name that the problem does not schedule, or no schedule.

        >>> problem = Problem(jnp.ones(2), lambda x, now: now["p"] * (x**2).sum(), schedule={"p": Schedule([1.0, 2.0])})
        >>> problem.with_schedule({"p": [1.0, 3.0, 9.0]}).schedules
        {'p': Schedule(values=(1.0, 3.0, 9.0), every=None)}
        """
        return dataclasses.replace(self, schedule=with_values(self.schedules, schedule, f"problem {self.name!r}"))

    def scheduled(self, stage: Stage | None = None) -> dict[str, Array]:
        """The numbers that `evaluate` receives in a stage, by default the first one."""
        numbers = (stage or self.stages[0]).values
        return {name: jnp.asarray(value, self.partition.dtype) for name, value in numbers.items()}

    def answer(self, design: PyTree, scheduled: Mapping[str, Any] | None = None) -> Any:
        """What `evaluate` returns at a design, with the scheduled numbers it receives, by default those of the
        start."""
        if not self.schedules:
            return self.evaluate(design)
        return self.evaluate(design, self.scheduled() if scheduled is None else dict(scheduled))

    def _check_arguments(self) -> None:
        names = sorted(self.schedules)
        try:
            signature = inspect.signature(self.evaluate)
        except (TypeError, ValueError):  # of some objects Python cannot tell
            return
        try:
            signature.bind(*([None, None] if names else [None]))
        except TypeError as error:
            expected = "evaluate(design, scheduled)" if names else "evaluate(design)"
            why = f"schedule has {', '.join(map(repr, names))}" if names else "it has no schedule"
            raise ProblemError(
                f"evaluate of problem {self.name!r} is called as {expected}, as {why}; but it takes {signature}: "
                f"{error}."
            ) from error

    def function(self, *, transform: Callable[..., Any] | None = None, scaled: bool = False) -> FlatFunction:
        """Value, gradient, constraints and their Jacobian as plain functions of one flat NumPy vector, for any
        optimiser that somebody else wrote. Traces `evaluate`, and runs nothing.

        Args:
            transform: as in `optimize`; default: calls of Tesseracts run as soon as their operands exist.
            scaled: vectors are in units of `scale`, bounds and derivatives too; else everything is in its own units.

        Raises:
            ProblemError: `evaluate` does not return what `constraints` and `valid` name; see `check_evaluation`.
        """
        from tesseract_flow.optimize.function import FlatFunction  # which needs problems, and what runs them

        return FlatFunction(self, transform=transform, scaled=scaled)

    def within(self, box: Box) -> Problem:
        """The same problem within other bounds, in the same scaled units, also where these are the range between the
        bounds."""
        other = dataclasses.replace(self, bounds=(box.lower, box.upper))
        other.__dict__["partition"] = self.partition  # where the cached property keeps it
        return other

    def starting_at(self, varying: PyTree) -> Problem:
        """The same problem with another start.

        Args:
            varying: in place of the varying part, with its structure.
        """
        # What varies is decided as before: a filter may look at values.
        selected = jax.tree.map(lambda leaf: leaf is not None, self.partition.varying, is_leaf=lambda x: x is None)
        return dataclasses.replace(self, design=self.partition.combine(varying), vary=selected)


def as_evaluation(answer: Any) -> Evaluation:
    """What `evaluate` returned, as an `Evaluation`."""
    if isinstance(answer, Evaluation):
        objective, misfit = answer.objective, answer.misfit
        if misfit is not None:
            misfit = jax.tree.map(jnp.asarray, misfit)
            objective = half_the_sum_of_squares(misfit)
        # Texts of components, which JAX carries along, in a form that a journal can write down.
        constraints = {name: jnp.asarray(value) for name, value in (answer.constraints or {}).items()}
        return Evaluation(jnp.asarray(objective), constraints, as_words(answer.aux), misfit)
    return Evaluation(jnp.asarray(answer))


def half_the_sum_of_squares(misfit: PyTree) -> Float[Array, ""]:
    """The objective that a misfit stands for, in the precision of its most precise leaf."""
    leaves = jax.tree.leaves(misfit)
    dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: jnp.finfo(dtype).bits)
    total = sum(((leaf.astype(dtype) ** 2).sum() for leaf in leaves), jnp.zeros((), dtype))
    return jnp.asarray(0.5, dtype) * total
