"""Problems with several optima, and results that were never computed."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tesseract_flow.optimize import Constraint, Evaluation, Problem, Result
from tesseract_flow.study import StudyRun
from tesseract_flow.testing import FunctionTesseract

CAMEL_OPTIMUM = -1.0316284534898774


def camel(design: dict[str, Any]) -> Any:
    """The six-hump camel: six minima, two of which are the lowest, at ±(0.0898, -0.7126)."""
    x, y = design["x"], design["y"]
    return (4.0 - 2.1 * x**2 + x**4 / 3.0) * x**2 + x * y + (-4.0 + 4.0 * y**2) * y**2


def camel_problem(evaluate: Any = camel, **options: Any) -> Problem:
    design = {"label": "camel", "n": 3, "x": jnp.asarray(2.5), "y": jnp.asarray(1.5)}
    bounds = ({"x": -3.0, "y": -2.0}, {"x": 3.0, "y": 2.0})
    return Problem(design, evaluate, **{"bounds": bounds, "name": "camel", **options})


def camel_component(before: Any = None, version: str | None = "1.0") -> FunctionTesseract:
    example = {"x": np.float64(0.0), "y": np.float64(0.0)}
    more = {} if before is None else {"before": before}
    return FunctionTesseract(lambda i: {"value": camel(i)}, example, name="camel", version=version, **more)


def run(
    index: int,
    value: float = 0.0,
    at: Any = (0.0, 0.0),
    *,
    converged: bool = True,
    feasible: bool = True,
    violation: float = 0.0,
    aux: Any = None,
    constraints: Any = None,
) -> StudyRun:
    """A run that ended so."""
    design = {"label": "fin", "x": jnp.asarray(at, jnp.float64)}
    problem = Problem(
        design, lambda d: jnp.sum(d["x"]), bounds=(-10.0, 10.0), constraints={"area": Constraint(lower=0)}
    )
    result = Result(
        design=design,
        value=value,
        reason="optimal to first order" if converged else "maximum number of steps reached (3)",
        converged=converged,
        steps=3,
        constraints=constraints or {},
        multipliers={},
        violation=violation,
        feasible=feasible,
        history=(),
        evaluations=4,
        requests=8,
        seconds=0.5,
        evaluation=Evaluation(jnp.asarray(value), constraints or {}, aux),
    )
    return StudyRun(
        index=index, key=f"run-{index}", start=design, result=result, requests=8, seconds=0.5, problem=problem
    )


def found(run: StudyRun) -> Result:
    """What a run that did not fail found."""
    assert run.result is not None, run.error
    return run.result


def failed(index: int, error: str = "mesh has negative volumes\nthere") -> StudyRun:
    return StudyRun(index=index, key=f"run-{index}", error=error, requests=1)
