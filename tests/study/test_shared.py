"""What the runs of a multi-start trace and compile in common: once, whatever their number; and never of another run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize import Evaluation, MaxSteps, Phase, Problem, Shared
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import same_bits
from tests.study.helpers import camel, camel_problem, found

TWO = MaxSteps(2)


def counted(evaluate):
    """The function, which JAX calls when it traces, and how often it has."""
    calls = []

    def fn(*args):
        calls.append(args)
        return evaluate(*args)

    return fn, calls


def misfit(design):
    return Evaluation(misfit=jnp.stack([design["x"] - 1.0, 10.0 * (design["y"] - design["x"] ** 2)]))


def limited(design):
    return Evaluation(camel(design), constraints={"sum": design["x"] + design["y"]})


CASES = {
    "adam": (camel, {}),
    "lbfgs": (camel, {}),
    "slsqp": (limited, {"constraints": {"sum": tf.Constraint(upper=1.0)}}),
    "auto": (limited, {"constraints": {"sum": tf.Constraint(upper=1.0)}}),
    "levenberg-marquardt": (misfit, {}),
}


@pytest.mark.parametrize(
    "driver", [pytest.param(one, marks=() if one in ("lbfgs", "slsqp") else pytest.mark.slow) for one in CASES]
)
def test_many_runs_trace_as_often_as_one(driver, tmp_path):
    evaluate, about = CASES[driver]
    n_traces = []
    for n in (1, 4):
        fn, calls = counted(evaluate)
        study = tf.multi_start(
            camel_problem(fn, **about), n, driver, stop=TWO, max_workers=2, journal=tmp_path / str(n)
        )
        assert not any(run.error for run in study.runs)
        n_traces.append(len(calls))
    assert n_traces[0] == n_traces[1]
    alone = tf.optimize(study.runs[-1].problem, driver, stop=TWO)
    assert same_bits(found(study.runs[-1]), alone)


@pytest.mark.slow
def test_phases_share_each_their_own():
    phases = (Phase(bounds=({"x": -1.0, "y": -1.0}, {"x": 1.0, "y": 1.0}), stop={"max_steps": 1}), Phase())
    n_traces = []
    for n in (1, 3):
        fn, calls = counted(camel)
        study = tf.multi_start(camel_problem(fn, phases=phases), n, "adam", stop=TWO)
        n_traces.append(len(calls))
    assert n_traces[0] == n_traces[1]
    for run in study.runs:
        assert same_bits(found(run), tf.optimize(run.problem, "adam", stop=TWO))


def test_what_a_start_has_told_is_not_believed_of_another_one():
    """At each start the component says another word, and what is computed depends on it."""
    example = {"x": np.float64(0.0)}
    component = FunctionTesseract(
        lambda i: {"y": i["x"] ** 2, "side": "left" if i["x"] < 0 else "right"}, example, derivatives={}
    )

    def evaluate(design):
        out = tf.apply_tesseract(component, {"x": design["x"]})
        return out["y"] + (1.0 if out["side"] == "left" else 2.0)

    problem = Problem({"x": jnp.asarray(0.5)}, evaluate, bounds=(-1.0, 1.0))
    starts = [{"x": 0.5}, {"x": -0.5}]
    study = tf.multi_start(problem, None, "cma-es", starts=starts, stop=MaxSteps(0), max_workers=1)
    assert [found(run).history[0].value for run in study.runs] == [2.25, 1.25]


def test_another_problem_is_refused():
    shared = Shared()
    problem = camel_problem()
    tf.optimize(problem, "adam", stop=TWO, shared=shared)
    start = jax.tree.map(lambda leaf: 0.5 * leaf, problem.start)
    tf.optimize(problem.starting_at(start), "adam", stop=TWO, shared=shared)
    for other in (camel_problem(), camel_problem(lambda design: 2.0 * camel(design))):
        with pytest.raises(ProblemError, match="another problem"):
            tf.optimize(other, "adam", stop=TWO, shared=shared)
