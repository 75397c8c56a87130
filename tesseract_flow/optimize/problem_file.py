"""`problem.yaml`: a whole problem in one file: pipeline, design, what must hold, driver and when to stop.

Nothing in it is executed but functions that it names, from beside the file or from installed modules. What the file
says is in a run's identity as far as it decides anything: its settings, design, bounds and constraints as such, its
pipeline as the objective that is traced from it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, ValidationError, model_validator

from tesseract_flow.errors import BoundsError, PipelineError, ProblemError, did_you_mean
from tesseract_flow.named import named_function
from tesseract_flow.optimize.constraints import Constraint
from tesseract_flow.optimize.of_pipeline import problem_of_pipeline
from tesseract_flow.optimize.problem import Problem
from tesseract_flow.optimize.schedule import as_schedule
from tesseract_flow.pipeline import Description, Pipeline
from tesseract_flow.pipeline.description import Filled, Part
from tesseract_flow.pipeline.document import Document, Place, declared_settings
from tesseract_flow.pipeline.validation import faults_of
from tesseract_flow.storage import require_allowed

_FUNCTION = "Name a function as file.py:function (beside the problem's file) or package.module:function."


class Demand(Part):
    """As `tf.Constraint`."""

    equals: Any = None
    lower: Any = None
    upper: Any = None
    scale: Any = None
    ref: Any = None
    ref0: Any = None
    linear: bool = False


class Driver(Part):
    """What `optimize` takes: the name of a driver, and its settings."""

    name: str
    learning_rate: float | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class ProblemDescription(Part):
    """What a problem's file has.

    Attributes:
        name: what reports and journals call it; default the file's, or the folder's of a `problem.yaml`.
        settings: names with defaults, for `--set` and forms; null: has to be given. `$name` stands for the value.
        precision: 64 turns JAX's 64-bit mode on.
        pipeline: the arguments of `tf.Pipeline`.
        design: the start of each input: a number, a list, `{fill: 0.1, shape: [50]}`, a text.
        vary: the inputs that vary; default all numbers.
        bounds: by input `[lower, upper]`, numbers or lists; null where there is none.
        scale, ref, ref0: by input, as in `tf.Problem`; `scale: bounds` for all.
        schedule: numbers that change while a run goes, by input (which is then not in the design): `[1, 4, 16]`, a
            value for each phase; `{values: [1, 4, 16], every: 40}`, for 40 steps each; or a number that stays.
        objective: the output to be made small; or misfit: outputs that should all be zero.
        constraints: by output.
        valid: outputs that are flags.
        picture: a function `(design, evaluation) -> Figure`.
        driver, stop, objective_scale: as in `tf.optimize`, where its caller says nothing.
    """

    name: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    precision: Literal[32, 64] = 64
    pipeline: Description
    design: dict[str, Any]
    vary: list[str] | None = None
    bounds: dict[str, list[Any]] = Field(default_factory=dict)
    scale: Literal["bounds"] | dict[str, Any] | None = None
    ref: dict[str, Any] | None = None
    ref0: dict[str, Any] | None = None
    schedule: dict[str, Any] = Field(default_factory=dict)
    objective: str | None = None
    misfit: list[str] = Field(default_factory=list)
    constraints: dict[str, Demand] = Field(default_factory=dict)
    valid: list[str] = Field(default_factory=list)
    picture: str | None = None
    driver: str | Driver | None = None
    stop: dict[str, Any] | None = None
    objective_scale: Literal["start"] | float | None = None

    @model_validator(mode="after")
    def _one_aim(self) -> ProblemDescription:
        if (self.objective is None) == (not self.misfit):
            raise ValueError("takes either objective (the name of an output) or misfit (names of outputs)")
        return self


def is_problem_file(path: str) -> bool:
    return Path(path).suffix.lower() in (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class ProblemFile:
    """A file, read; and the factory of the problems that it describes, one per settings."""

    document: Document
    declared: Mapping[str, Any]

    @property
    def factory(self) -> Callable[..., Problem]:
        """`settings -> Problem`, with the declared settings as its signature."""

        def factory(**settings: Any) -> Problem:
            return self.problem(settings)

        factory.__name__ = factory.__qualname__ = self.document.file.name
        factory.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
                for name, default in self.declared.items()
            ]
        )
        return factory

    def problem(self, given: Mapping[str, Any]) -> Problem:
        document = self.document
        data = document.filled(declared_settings(document, given), keep=["settings"])
        try:
            about = ProblemDescription.model_validate(data)
        except ValidationError as error:
            raise document.error(faults_of(error, ProblemDescription)) from None
        if about.precision == 64:
            jax.config.update("jax_enable_x64", True)  # as factories do whose components work in float64
        pipeline = Pipeline.described(data["pipeline"], document, ("pipeline",))
        _Names(about, pipeline, document).check()
        varying = about.vary
        design = {
            name: _start(value, ("design", name), document, is_fixed=varying is not None and name not in varying)
            for name, value in about.design.items()
        }
        if wrong := pipeline.misfits(design):
            raise document.error([(("design", name), message) for name, message in wrong.items()])
        try:
            return problem_of_pipeline(
                pipeline,
                design,
                objective=about.objective,
                misfit=about.misfit,
                constraints={
                    name: Constraint(**demand.model_dump(exclude_none=True))
                    for name, demand in about.constraints.items()
                },
                vary=varying,
                bounds={name: tuple(_limit(side) for side in sides) for name, sides in about.bounds.items()},
                scale=_arrays(about.scale),
                ref=_arrays(about.ref),
                ref0=_arrays(about.ref0),
                schedule=about.schedule,
                valid=about.valid,
                picture=None if about.picture is None else self._picture(about.picture),
                name=about.name or _name_of(document.file),
                defaults=_defaults(about),
            )
        except PipelineError:
            raise
        except (ProblemError, BoundsError) as error:
            raise type(error)(f"{document.file}: {error}") from error

    def _picture(self, name: str) -> Callable[..., Any]:
        try:
            return named_function(name, _FUNCTION, folder=self.document.file.parent)[0]
        except ProblemError as error:
            raise self.document.error([(("picture",), str(error))]) from error


def problem_file(path: str | Path) -> ProblemFile:
    """A problem's file, as it is now.

    Raises:
        PipelineError: it is not there, no YAML, or declares no settings where it should.
        NotAllowed: it lies outside of `TESSERACT_FLOW_ROOTS`.
    """
    require_allowed(path)
    document = Document(path)
    return ProblemFile(document, declared_settings(document, {}))


class _Names:
    """Names in a file that have to be those of inputs and outputs; all that are not, at once."""

    def __init__(self, about: ProblemDescription, pipeline: Pipeline, document: Document):
        self.about = about
        self.pipeline = pipeline
        self.document = document
        self.faults: list[tuple[Place, str]] = []

    def check(self) -> None:
        about, pipeline = self.about, self.pipeline
        inputs, outputs = [*pipeline.inputs, *pipeline.targets], pipeline.outputs
        self._each("design", about.design, inputs, "input")
        self._each("schedule", about.schedule, pipeline.inputs, "input")
        for name, one in about.schedule.items():
            try:
                as_schedule(one, "it")
            except ProblemError as error:
                self.faults.append((("schedule", name), str(error)))
            if name in about.design:
                self.faults.append((("schedule", name), "it is in the design as well; an input is either"))
        missing = [name for name in pipeline.inputs if name not in about.design and name not in about.schedule]
        self.faults += [(("design",), f"input {name!r} of the pipeline has no start here") for name in missing]
        for key in ("bounds", "scale", "ref", "ref0"):
            names = getattr(about, key)
            self._each(key, names if isinstance(names, Mapping) else (), inputs, "input")
        self._each("constraints", about.constraints, outputs, "output")
        for key, known, kind in (
            ("vary", inputs, "input"),
            ("misfit", outputs, "output"),
            ("valid", outputs, "output"),
        ):
            for k, name in enumerate(getattr(about, key) or ()):
                self._one((key, k), name, known, kind)
        if about.objective is not None:
            self._one(("objective",), about.objective, outputs, "output")
        self.faults += [
            (("bounds", name), f"expected [lower, upper], received {len(sides)} values")
            for name, sides in about.bounds.items()
            if len(sides) != 2
        ]
        for name, demand in about.constraints.items():
            try:
                Constraint(**demand.model_dump(exclude_none=True))
            except ProblemError as error:
                self.faults.append((("constraints", name), str(error)))
        if self.faults:
            raise self.document.error(self.faults)

    def _each(self, key: str, names: Any, known: Any, kind: str) -> None:
        for name in names:
            self._one((key, name), name, known, kind)

    def _one(self, place: Place, name: str, known: Any, kind: str) -> None:
        if name not in known:
            self.faults.append(
                (place, f"the pipeline has no {kind} {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}")
            )


def _start(value: Any, place: Place, document: Document, *, is_fixed: bool) -> Any:
    """A start as the design has it: what varies is an array of floating-point numbers."""
    if isinstance(value, Mapping):
        try:
            filled = Filled.model_validate(value)
        except ValidationError as error:
            faults = [((*place, *at), message) for at, message in faults_of(error, Filled)]
            raise document.error(faults) from None
        return jnp.full(filled.shape, filled.fill)
    if isinstance(value, bool | str) or value is None or (is_fixed and not isinstance(value, list)):
        return value
    if is_fixed:
        return np.asarray(value)
    try:
        return jnp.asarray(np.asarray(value, np.float64), float)
    except (ValueError, TypeError):
        raise document.error([(place, f"expected a number or (nested) lists of numbers, received {value!r}")]) from None


def _limit(side: Any) -> Any:
    if isinstance(side, list):
        infinite = (
            [None if x is None else float(x) for x in side] if all(not isinstance(x, list) for x in side) else side
        )
        return np.asarray(infinite, np.float64) if None not in infinite else side
    return side


def _arrays(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    return {name: np.asarray(value, np.float64) if isinstance(value, list) else value for name, value in given.items()}


def _defaults(about: ProblemDescription) -> dict[str, Any]:
    found: dict[str, Any] = {"stop": about.stop, "objective_scale": about.objective_scale}
    if isinstance(about.driver, Driver):
        found |= {
            "driver": about.driver.name,
            "learning_rate": about.driver.learning_rate,
            "driver_settings": about.driver.settings or None,
        }
    else:
        found["driver"] = about.driver
    return {key: value for key, value in found.items() if value is not None}


def _name_of(file: Path) -> str:
    return file.resolve().parent.name if file.stem == "problem" else file.stem
