"""Looks aside: at designs that no step went to. That one of them cannot be evaluated is no failure of the run."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from tesseract_flow.errors import EvaluationFailed
from tesseract_flow.optimize.evaluator import Sample, Weights
from tesseract_flow.optimize.failures import evaluated, is_of_the_design
from tesseract_flow.optimize.run import Run
from tesseract_flow.optimize.state import State
from tesseract_flow.optimize.vicinity import Vicinity


def sample_aside(run: Run, u: PyTree, weights: Weights) -> Sample | None:
    """The sample at a scaled design, with the gradient in scaled units; None where it cannot be evaluated.

    Raises:
        TesseractFlowError: it failed for another reason than the design.
    """
    try:
        sample = evaluated(lambda: run.evaluator(run.varying_at(u), weights, run.scheduled))
    except Exception as error:
        if isinstance(error, EvaluationFailed) or not is_of_the_design(error):
            raise
        return None
    gradient = run.problem.partition.scale_gradient(sample.gradient)
    is_finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((sample.lagrangian, gradient)))
    return Sample(sample.lagrangian, gradient, sample.leaves) if is_finite else None


def around(run: Run, state: State) -> Vicinity:
    """What lies around the design that a run is at, for looks aside."""
    look = functools.partial(sample_aside, run, weights=state.weights)
    return Vicinity(state.u, run.box, state.here, look, run.evaluator.dtype)
