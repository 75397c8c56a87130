"""A problem made of a pipeline: which of its outputs is the objective, and what is demanded of others.

With `coupling="idf"` the targets of coupled nodes join the design, and that they are met joins the constraints: the
same description gives both forms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import ProblemError, did_you_mean
from tesseract_flow.optimize.constraints import Constraint
from tesseract_flow.optimize.problem import Evaluation, Problem
from tesseract_flow.optimize.schedule import as_schedules

if TYPE_CHECKING:
    from tesseract_flow.pipeline import Pipeline


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluate:
    """`design -> Evaluation`, by a pipeline; numbers that are scheduled are inputs of it as well.

    Attributes:
        aux: names of outputs that are carried along for flags and pictures.
    """

    pipeline: Pipeline
    objective: str | None
    misfit: tuple[str, ...]
    constraints: tuple[str, ...]
    aux: tuple[str, ...]

    def __call__(self, design: Mapping[str, Any], scheduled: Mapping[str, Any] | None = None) -> Evaluation:
        found = self.pipeline({**design, **(scheduled or {})})
        gaps = self.pipeline.targets.values()
        return Evaluation(
            objective=None if self.objective is None else found[self.objective],  # type: ignore[arg-type]
            constraints={name: jnp.asarray(found[name]) for name in (*self.constraints, *gaps)},
            aux={name: found[name] for name in self.aux},
            misfit={name: found[name] for name in self.misfit} or None,
        )


def problem_of_pipeline(
    pipeline: Pipeline,
    design: Mapping[str, Any],
    *,
    objective: str | None = None,
    misfit: Sequence[str] = (),
    constraints: Mapping[str, Constraint] | None = None,
    vary: Sequence[str] | None = None,
    bounds: Mapping[str, Any] | None = None,
    scale: Any = None,
    ref: Mapping[str, Any] | None = None,
    ref0: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    valid: Sequence[str] = (),
    picture: Callable[[Any, Evaluation], Any] | None = None,
    name: str = "pipeline",
    settings: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Problem:
    """See `Problem.from_pipeline`."""
    outputs = pipeline.outputs
    _known("objective", [objective] if objective is not None else [], outputs)
    _known("misfit", misfit, outputs)
    _known("constraints", constraints or {}, outputs)
    _known("valid", valid, outputs)
    changing = as_schedules(schedule, f"problem {name!r}")
    _known("schedule", changing, pipeline.inputs)
    if both := [name for name in changing if name in design]:
        raise ProblemError(f"{both[0]!r} is in the design and in the schedule: an input is either, and never both.")
    if missing := [name for name in pipeline.inputs if name not in design and name not in changing]:
        raise ProblemError(
            f"design: it has no start for {', '.join(map(repr, missing))}. "
            f"The inputs are: {', '.join(pipeline.inputs)}."
        )
    _known("vary", vary or [], [*pipeline.inputs, *pipeline.targets])
    if (objective is None) == (not misfit):
        raise ProblemError(
            "A problem of a pipeline takes either objective=..., the name of an output, or misfit=[...], names of "
            f"those that should all be zero. The outputs are: {', '.join(outputs)}."
        )
    start = {key: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x for key, x in design.items()}
    own = {key: x for key, x in start.items() if key in pipeline.inputs}
    own |= {key: jnp.asarray(one.values[0], float) for key, one in changing.items()}
    _known("design", design, [*pipeline.inputs, *pipeline.targets])
    if wrong := pipeline.misfits(own):
        said = "; ".join(f"start of {name!r}: {message}" for name, message in wrong.items())
        raise ProblemError(f"design: {said}.\nGive the start as the pipeline declares it, or correct its inputs.")
    targets = pipeline.starts(own)
    start = {**targets, **start}
    chosen = (lambda key, x: eqx.is_inexact_array(x)) if vary is None else lambda key, x: key in (*vary, *targets)
    demands = dict(constraints or {})
    for target, gap in pipeline.targets.items():
        # A gap of zero has no size of its own: that of what it is a gap of.
        size = float(np.max(np.abs(start[target]), initial=0.0))
        demands[gap] = Constraint(equals=0.0, scale=size if size > 0.0 else 1.0)
    taken = {*(constraints or {}), *misfit, *([objective] if objective is not None else [])}
    carried = tuple(output for output in outputs if output not in taken or output in valid)
    varying = {key for key, x in start.items() if chosen(key, x)}
    limits = bounds or {}
    _known("bounds", limits, varying)
    return Problem(
        design=start,
        evaluate=Evaluate(pipeline, objective, tuple(misfit), tuple(constraints or {}), carried),
        vary={key: key in varying for key in start},
        bounds=(
            {key: limits[key][0] if key in limits else None for key in start},
            {key: limits[key][1] if key in limits else None for key in start},
        )
        if limits
        else None,
        constraints=demands or None,
        schedule=changing or None,
        valid=tuple(valid),
        scale=_per_input("scale", scale, start, varying),
        ref=_per_input("ref", ref, start, varying),
        ref0=_per_input("ref0", ref0, start, varying),
        name=name,
        settings=settings,
        picture=picture,
        defaults=defaults,
    )


def _per_input(what: str, given: Any, start: Mapping[str, Any], varying: Iterable[str]) -> Any:
    if not isinstance(given, Mapping):
        return given
    _known(what, given, varying)
    return {key: given.get(key) for key in start}


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            kind = "input that varies" if what in ("bounds", "scale", "ref", "ref0") else "input"
            kind = "output" if what in ("objective", "misfit", "constraints", "valid") else kind
            raise ProblemError(
                f"{what}: the pipeline has no {kind} {name!r}.{did_you_mean(str(name), known)} "
                f"It has: {', '.join(sorted(known))}."
            )
