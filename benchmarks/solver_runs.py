"""How often an optimiser makes the solvers run, with answers kept and without.

The optimiser is SciPy's SLSQP, called by hand on both sides, so that the difference is what keeps the answers; and
then ours, with the coupling as `tf.fixed_point`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import tesseract_flow as tf
from benchmarks.measuring import ROOT, Bench, Row, serve
from benchmarks.sellar.problem import BEST_Z1, OPTIMUM, sellar
from tesseract_flow.client import AbstractTesseract, ServedTesseract
from tesseract_flow.optimize import load_problem

# As many as are distinct among the 634 applies of the plain run that the design compares with. Ours is like it if plain
# sweeps take the place of secant steps: 602, of which 158 are distinct.
MOST_RUNS = 199


@dataclasses.dataclass(frozen=True)
class Runs:
    """Requests that reached the components on the way to the optimum."""

    applies: int
    pullbacks: int


def sellar_rows(bench: Bench) -> list[Row]:
    """Sellar's problem with SLSQP, every answer kept, against the same without; and as its example has it."""
    served = [ServedTesseract(ROOT / f"examples/sellar/{name}/tesseract_api.py", label=name) for name in ("y1", "y2")]
    serve(served)
    plain = runs_to_optimum(*served)
    cache = tf.MemoryCache()
    ours = runs_to_optimum(*(tf.open_tesseract(tesseract, cache=cache) for tesseract in served))
    solved = _solved_by_fixed_point(*served)
    for tesseract in served:
        tesseract.stop()
    work = f"Sellar with SLSQP, solver runs to the optimum (besides {ours.pullbacks} pullbacks)"
    peer = f"the same without cache (besides {plain.pullbacks} pullbacks)"
    # The goal is a number of runs, whatever the peer needs.
    rows = [Row("sellar", work, "", ours.applies, plain.applies, peer, MOST_RUNS / plain.applies)]
    work = f"Sellar by `slsqp` with `tf.fixed_point`, solver runs to the optimum (besides {solved.pullbacks} pullbacks)"
    return [*rows, Row("sellar", work, "", solved.applies, ours.applies, "SLSQP and the coupling by hand", 1.0)]


def _solved_by_fixed_point(y1: AbstractTesseract, y2: AbstractTesseract) -> Runs:
    cache = tf.MemoryCache()
    settings = {name: tf.open_tesseract(one, cache=cache) for name, one in (("y1", y1), ("y2", y2))}
    with tf.count_requests() as requests:
        result = tf.optimize(load_problem(str(ROOT / "examples/sellar/problem.yaml"), {"coupling": "mdf", **settings}))
    if not (result.converged and abs(result.value - OPTIMUM) < 1e-7):
        raise RuntimeError(f"{result}\nExpected {OPTIMUM}.")
    return Runs(requests.n_of("apply"), requests.n_of("vector_jacobian_product"))


def runs_to_optimum(y1: AbstractTesseract, y2: AbstractTesseract) -> Runs:
    """What an optimisation of Sellar's problem asks of its disciplines.

    Raises:
        RuntimeError: it ended somewhere else than at the known optimum.
    """
    problem = sellar(y1, y2)
    with tf.count_requests() as requests:
        design, value = slsqp(problem)
    expected = {"z": np.array([BEST_Z1, 0.0]), "x": np.array(0.0)}
    misses = [float(abs(value - OPTIMUM)), *(float(abs(design[key] - best).max()) for key, best in expected.items())]
    if not max(misses) < 1e-6:
        raise RuntimeError(
            f"SLSQP ended at {design} with the objective {value:.9g}, expected {expected} with {OPTIMUM}."
        )
    return Runs(requests.n_of("apply"), requests.n_of("vector_jacobian_product"))


def slsqp(problem: tf.Problem) -> tuple[Any, float]:
    """The design that SciPy's SLSQP finds for a problem with scalar constraints, and its objective.

    SciPy wants four functions, objective and constraints and the derivatives of both, that know nothing of each other.
    So each solves for the states on its own, at the same designs: this is where a cache pays.
    """
    start, unravel = ravel_pytree(problem.design)
    lower, upper = (ravel_pytree(side)[0] for side in (problem.box.lower, problem.box.upper))
    intervals = {name: constraint.interval for name, constraint in (problem.constraints or {}).items()}

    def objective(flat: Any) -> Any:
        return problem.evaluate(unravel(flat)).objective

    def margins(flat: Any) -> Any:
        values = problem.evaluate(unravel(flat)).constraints
        above = [values[name] - low for name, (low, _) in intervals.items() if np.isfinite(low)]
        below = [high - values[name] for name, (_, high) in intervals.items() if np.isfinite(high)]
        return jnp.stack([*above, *below])

    answer = minimize(
        _called(objective),
        np.asarray(start),
        jac=_called(jax.grad(objective)),
        bounds=list(zip(np.asarray(lower), np.asarray(upper), strict=True)),
        constraints={"type": "ineq", "fun": _called(margins), "jac": _called(jax.jacrev(margins))},
        method="SLSQP",
        options={"ftol": 1e-10},
    )
    return unravel(jnp.asarray(answer.x)), float(answer.fun)


def _called(fn: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    run = tf.concurrent(fn)
    return lambda flat: np.asarray(run(jnp.asarray(flat)))
