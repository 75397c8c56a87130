"""`epigraph`: the largest of several objectives, as a smooth problem.

The maximum of several functions has a kink wherever two of them are largest, and the optimum mostly lies in one. There
a gradient is that of one function alone, and drivers that trust gradients give up. The same design solves

    minimise t    subject to f_i(design) <= t for each i

which is smooth, and whose multipliers say by how much each scenario counts (they add up to 1).

Source: S. Boyd and L. Vandenberghe, Convex Optimization (2004), section 4.1.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import ProblemError
from tesseract_flow.execute import concurrent
from tesseract_flow.optimize.constraints import Constraint
from tesseract_flow.optimize.problem import Evaluation, Problem

DESIGN, WORST = "design", "worst"


def epigraph(
    problem: Problem,
    *,
    worst: float | None = None,
    name: str = "scenarios",
    transform: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> Problem:
    """A problem whose objective is an array, one entry for each scenario, as one that makes the largest entry small.

    Its design is `{"design": problem.design, "worst": t}`, its objective t, and the constraint `"scenarios"` demands of
    the entries, less t, not to exceed 0. So `result.design["design"]` is the design, `result.value` the worst case,
    `result.active.constraints["scenarios"]` says which scenarios are the worst, and
    `result.multipliers["scenarios"]` what each counts. Everything else of the problem stays as it is. Any driver with
    constraints will do: `slsqp` and `mma` by themselves, those of Optax by augmented Lagrangian.

    Args:
        problem: its `evaluate` returns an array, or an `Evaluation` with one as objective.
        worst: where t begins; default the largest entry at the start, for which the problem is evaluated once here.
        name: of the constraint.
        transform: how that evaluation runs; default `tesseract_flow.concurrent`.

    Raises:
        ProblemError: the objective is no real array, or not finite at the start, or the name is taken.

    >>> def loads(x):  # two load cases
    ...     return jnp.stack([(x - 1.0) ** 2, (x + 1.0) ** 2 + x])
    >>> optimize(epigraph(Problem(jnp.asarray(3.0), loads)), "slsqp").value
    1.44
    """
    if name in (problem.constraints or {}):
        raise ProblemError(
            f"Problem {problem.name!r} has a constraint {name!r} already.\nCall that of the scenarios something else: "
            "epigraph(problem, name=...)."
        )
    if worst is None:
        values = _values_at_start(problem, transform or concurrent)
        worst, size = float(values.max()), float(np.abs(values).max())
    else:
        size = abs(float(worst))
        if not np.isfinite(size):
            raise ProblemError(f"epigraph: worst={worst!r}; expected a finite number to begin with.")
    size = size or 1.0
    dtype = problem.partition.dtype
    vary = problem.vary if callable(problem.vary) else {DESIGN: problem.vary, WORST: True}
    lower, upper = problem.bounds or (None, None)

    def evaluate(wrapped: Mapping[str, Any], *scheduled: Mapping[str, Any]) -> Evaluation:
        found = _scenarios(problem, problem.answer(wrapped[DESIGN], *scheduled), name)
        t = wrapped[WORST].astype(found.objective.dtype)
        return Evaluation(t, {**found.constraints, name: found.objective - t}, found.aux)

    picture = problem.picture
    return dataclasses.replace(
        problem,
        design={DESIGN: problem.design, WORST: jnp.asarray(worst, dtype)},
        evaluate=evaluate,
        vary=vary,
        bounds=({DESIGN: lower}, {DESIGN: upper}),
        constraints={**(problem.constraints or {}), name: Constraint(upper=0.0, scale=size)},
        # With refs its own unit is said in them: a leaf has one or the other.
        scale={DESIGN: problem.scale, WORST: size},
        ref=None if problem.ref is None else {DESIGN: problem.ref},
        ref0=None if problem.ref0 is None else {DESIGN: problem.ref0},
        picture=None if picture is None else lambda wrapped, found: picture(wrapped[DESIGN], found),
    )


def _values_at_start(problem: Problem, transform: Callable[[Callable[..., Any]], Callable[..., Any]]) -> np.ndarray:
    def objectives(varying: Any) -> Any:
        return _scenarios(problem, problem.answer(problem.partition.combine(varying)), "scenarios").objective

    values = np.asarray(transform(objectives)(problem.start), np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = ", ".join(str(index.tolist()) for index in bad[:6])
        raise ProblemError(
            f"The scenarios of problem {problem.name!r} are not finite at the start: {len(bad)} of {values.size} "
            f"entries, at {where}.\nStart from a design that all of them can be evaluated at."
        )
    return values


def _scenarios(problem: Problem, answer: Any, name: str) -> Evaluation:
    """What `evaluate` returned, with its array."""
    found = answer if isinstance(answer, Evaluation) else Evaluation(answer)
    try:
        values = jnp.asarray(found.objective)
    except TypeError:
        raise ProblemError(
            f"epigraph: evaluate of problem {problem.name!r} returned {type(found.objective).__name__} as objective; "
            "expected an array with one entry for each scenario.\nStack them: jnp.stack([...])."
        ) from None
    if not values.ndim or not values.size or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ProblemError(
            f"epigraph: the objective of problem {problem.name!r} has dtype {values.dtype} and shape {values.shape}; "
            "expected a real array with one entry for each scenario.\n"
            "Return the objectives of all scenarios, without taking their maximum."
        )
    if name in (found.constraints or {}):
        raise ProblemError(
            f"epigraph: evaluate of problem {problem.name!r} returns a constraint {name!r} itself.\n"
            "Call that of the scenarios something else: epigraph(problem, name=...)."
        )
    return Evaluation(values, dict(found.constraints or {}), found.aux)
