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

import jax
import jax.numpy as jnp
import numpy as np

from tesseract_flow.errors import EndpointNotFound, ProblemError
from tesseract_flow.execute import concurrent
from tesseract_flow.optimize.constraints import Constraint
from tesseract_flow.optimize.problem import Evaluation, Problem

DESIGN, WORST = "design", "worst"


def epigraph(
    problem: Problem,
    *,
    worst: float | None = None,
    unit: float | None = None,
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
        worst: where t begins; default the largest entry at the start.
        unit: what changes of t are measured in, as tolerances of optimality and of the constraint are; default by how
            much the largest entry at the start changes, to first order, if one entry of the design moves by its own
            size. Not the largest entry itself: with a constant added to all scenarios, every design would be optimal.
            What is not given is found out here, with one evaluation at the start and its gradient.
        name: of the constraint.
        transform: how that evaluation runs; default `tesseract_flow.concurrent`.

    Raises:
        ProblemError: the objective is no real array, or not finite at the start, the name is taken, or `worst` or
            `unit` cannot be used.

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
    if worst is not None and not np.isfinite(worst):
        raise ProblemError(f"epigraph: worst={worst!r}; expected a finite number to begin with.")
    if unit is not None and not (np.isfinite(unit) and unit > 0):
        raise ProblemError(f"epigraph: unit={unit!r}; expected a positive number.")
    if worst is None or unit is None:
        values, slope = _at_start(problem, transform or concurrent)
        worst = float(values.max()) if worst is None else worst
        # Without a slope there, or a derivative, what tells scenarios apart is the next best unit.
        unit = unit or slope or float(values.max() - values.min()) or float(np.abs(values).max()) or 1.0
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
        constraints={**(problem.constraints or {}), name: Constraint(upper=0.0, scale=unit)},
        scale=None if problem.scale is None else {DESIGN: problem.scale},
        # t is measured from where it begins.
        ref={DESIGN: problem.ref, WORST: worst + unit},
        ref0={DESIGN: problem.ref0, WORST: worst},
        picture=None if picture is None else lambda wrapped, found: picture(wrapped[DESIGN], found),
    )


def _at_start(
    problem: Problem, transform: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> tuple[np.ndarray, float]:
    """The scenarios at the start, and the slope of the largest one; 0 where there is no derivative."""

    def largest(varying: Any) -> tuple[Any, Any]:
        values = _scenarios(problem, problem.answer(problem.partition.combine(varying)), "scenarios").objective
        return values.max(), values

    slope = 0.0
    try:
        (_, values), gradient = transform(jax.value_and_grad(largest, has_aux=True))(problem.start)
    except EndpointNotFound:
        _, values = transform(largest)(problem.start)
    else:
        leaves = zip(
            jax.tree.leaves(problem.partition.scale_gradient(gradient)),
            jax.tree.leaves(problem.partition.to_scaled(problem.start)),
            strict=True,
        )
        slope = max(
            (float(jnp.max(jnp.abs(g) * jnp.maximum(jnp.abs(u), 1.0), initial=0.0)) for g, u in leaves), default=0.0
        )
    values = np.asarray(values, np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = ", ".join(str(index.tolist()) for index in bad[:6])
        raise ProblemError(
            f"The scenarios of problem {problem.name!r} are not finite at the start: {len(bad)} of {values.size} "
            f"entries, at {where}.\nStart from a design that all of them can be evaluated at."
        )
    return values, slope if np.isfinite(slope) else 0.0


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
