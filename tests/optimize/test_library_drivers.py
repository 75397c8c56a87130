"""Libraries that own their loop: SciPy's methods under our loop, with its journal, rules, failures and figures."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.errors import ComponentFailed, DriverError, EvaluationFailed, OtherRun
from tesseract_flow.execute import concurrent
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FirstOrder,
    MaxEvaluations,
    MaxSteps,
    Problem,
    build_driver,
    driver_settings,
    optimize,
)
from tesseract_flow.optimize.drivers.conversation import Accepted, Answer, Conversation, Ended, Question
from tesseract_flow.optimize.drivers.library import AbstractLibrary, LibraryDriver
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import (
    BEAM_OPTIMUM,
    Counted,
    beam_problem,
    beam_thickness,
    hs71_problem,
    rosenbrock_problem,
    same_bits,
)
from tests.optimize.standard import STANDARD

NATIVE = ("slsqp", "trust-constr")
ALL = ("l-bfgs-b", *NATIVE)
NLOPT = ("mma", "ccsaq", "ld_slsqp")
STOP = {"max_steps": 400, "gradient_tolerance": 1e-6}
QUICK, SMALL = ("hs1", "hs71"), ("hs1", "hs6", "hs35", "hs43", "hs71", "hs76", "hs100")


# --- right answers, and honest ones


@pytest.mark.parametrize("driver", ALL)
def test_rosenbrocks_valley(driver):
    result = optimize(rosenbrock_problem(), driver, stop=STOP, transform=jax.jit)
    assert result.converged and abs(float(result.design["x"]) - 1) < 1e-5


@pytest.mark.parametrize("driver", ALL)
def test_a_bound_that_is_active_at_the_optimum(driver):
    result = optimize(rosenbrock_problem(bounds=(None, {"x": 0.5})), driver, stop=STOP, transform=jax.jit)
    assert result.converged and abs(result.value - 0.25) < 1e-6
    assert float(result.design["x"]) <= 0.5


@pytest.mark.parametrize(
    "standard",
    [
        pytest.param(problem, id=problem.name, marks=() if problem.name in QUICK else pytest.mark.slow)
        for problem in STANDARD
        if problem.name in SMALL
    ],
)
def test_slsqp_finds_published_optima(standard):
    result = optimize(standard.problem(), "slsqp", stop=STOP, transform=jax.jit)
    assert result.converged, result.reason
    assert result.value == pytest.approx(standard.optimum, rel=1e-6, abs=1e-6)


def test_the_multipliers_of_hs71_are_those_of_the_book():
    """Wächter & Biegler print them with Ipopt: -0.552294 and 0.161469, of the values as they stand here."""
    result = optimize(hs71_problem(), "slsqp", stop=STOP, transform=jax.jit)
    assert float(result.multipliers["product"]) == pytest.approx(-0.5522937, rel=1e-4)
    assert float(result.multipliers["squares"]) == pytest.approx(0.1614686, rel=1e-4)
    assert result.evaluations <= 10


@pytest.mark.parametrize("constraint", [Constraint(equals=0.01), Constraint(upper=0.01)], ids=["equals", "upper"])
@pytest.mark.slow
def test_the_beam_by_slsqp(constraint):
    result = optimize(beam_problem(constraint), "slsqp", stop=STOP, transform=jax.jit)
    assert result.value == pytest.approx(BEAM_OPTIMUM, rel=1e-6) and result.feasible
    assert np.abs(np.asarray(result.design["thickness"]) / beam_thickness() - 1).max() < 1e-3


@pytest.mark.slow
def test_the_beam_by_trust_constr():
    result = optimize(beam_problem(), "trust-constr", stop=STOP, transform=jax.jit)
    assert result.value == pytest.approx(BEAM_OPTIMUM, rel=1e-6) and result.feasible


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_the_size_of_the_objective_changes_nothing(factor):
    """Unscaled, SLSQP's absolute thresholds make two other problems of it."""

    def evaluate(x):
        return factor * ((x[0] - 2) ** 2 + (x[1] - 1) ** 2 + 3.0)

    result = optimize(Problem(jnp.zeros(2), evaluate, bounds=(-1.0, 5.0)), "slsqp", stop=STOP, transform=jax.jit)
    assert result.converged and np.allclose(result.design, [2.0, 1.0], atol=1e-5) and result.evaluations < 10


@pytest.mark.parametrize(
    "factor",
    [4000.0, *(pytest.param(factor, marks=pytest.mark.slow) for factor in (1e-12, 1e-3, 1.0, 1e6, 1e12))],
)
def test_an_objective_of_any_size_takes_as_many_evaluations(factor):
    """Divided by its size it took 9 of them, and SciPy by hand 7, with one as published."""
    hs35 = next(problem for problem in STANDARD if problem.name == "hs35")
    result = optimize(hs35.problem(factor), "slsqp", stop=STOP, transform=jax.jit)
    assert result.converged and result.value == pytest.approx(factor * hs35.optimum, rel=1e-5)
    # With a slope of 4e-3, which is left as it is, the first steps are short.
    assert result.evaluations <= {1.0: 8, 1e-3: 20}.get(factor, 10)


def test_beyond_the_slopes_that_suit_slsqp_the_way_is_the_same_to_the_bit():
    """By powers of two, so that scaling is exact."""

    def of_size(factor):
        return optimize(Problem(jnp.zeros(2), lambda x: factor * ((x - 2.0) ** 4).sum()), "slsqp", stop=MaxSteps(5))

    large, larger = of_size(2.0**20), of_size(2.0**50)
    assert large.design.tolist() == larger.design.tolist() and large.evaluations == larger.evaluations


def test_what_nothing_satisfies_is_no_success():
    def evaluate(x):
        return Evaluation((x**2).sum(), {"square": (x**2).sum()})

    problem = Problem(jnp.ones(2), evaluate, constraints={"square": Constraint(upper=-1.0)})
    for driver in NATIVE:
        result = optimize(problem, driver, stop={**STOP, "max_steps": 30}, transform=jax.jit)
        assert not result.converged and not result.feasible
    assert optimize(problem, "slsqp", stop=STOP, transform=jax.jit).reason.startswith("the problem looks infeasible")


def test_an_entry_whose_bounds_are_equal_stays():
    result = optimize(
        Problem(jnp.array([3.0, 1.0]), lambda x: (x**2).sum(), bounds=(jnp.array([-5.0, 1.0]), jnp.array([5.0, 1.0]))),
        "slsqp",
        stop=STOP,
        transform=jax.jit,
    )
    assert result.converged and np.allclose(result.design, [0.0, 1.0], atol=1e-6)


@pytest.mark.slow
def test_single_precision():
    with jax.enable_x64(False):
        problem = Problem(jnp.array([-1.2, 1.0]), lambda x: (1 - x[0]) ** 2 + 10 * (x[1] - x[0] ** 2) ** 2)
        result = optimize(problem, "l-bfgs-b", stop=STOP, transform=jax.jit)
        assert result.design.dtype == jnp.float32 and np.allclose(result.design, 1.0, atol=1e-2)


# --- what is asked, and of whom


def two_components():
    """An objective and a constraint, each behind a component of its own that has pullbacks and no Jacobian."""
    endpoints = ("apply", "abstract_eval", "vector_jacobian_product")
    example = {"x": np.ones(3)}
    rosen = FunctionTesseract(
        lambda i: {"y": (100 * (i["x"][1:] - i["x"][:-1] ** 2) ** 2 + (1 - i["x"][:-1]) ** 2).sum()},
        example,
        name="rosen",
        endpoints=endpoints,
    )
    ball = FunctionTesseract(lambda i: {"r": (i["x"] ** 2).sum()}, example, name="ball", endpoints=endpoints)

    def evaluate(x):
        values = {"ball": apply_tesseract(ball, {"x": x})["r"], "sum": x.sum()}
        return Evaluation(apply_tesseract(rosen, {"x": x})["y"], values)

    demands = {"ball": Constraint(upper=2.0), "sum": Constraint(lower=-3.0)}
    return Problem(jnp.array([-1.0, 0.5, 0.5]), evaluate, bounds=(-2.0, 2.0), constraints=demands)


@pytest.mark.slow
def test_derivatives_are_asked_for_where_the_library_goes_on_and_each_constraints_row_of_its_component_alone():
    asked: Counter[str] = Counter()
    from tesseract_flow.client import own_requests

    with own_requests() as requests:
        result = optimize(two_components(), "slsqp", stop=STOP)
        asked.update(requests)
    assert result.converged
    n_applies, n_pullbacks = result.evaluations, result.steps + 1
    assert n_applies > n_pullbacks  # there were trials that it did not go on from
    for name in ("rosen", "ball"):  # the row of the sum is known without asking, the others of one component each
        assert asked[f"{name}.apply"] == n_applies
        assert asked[f"{name}.vector_jacobian_product"] == n_pullbacks
    assert result.requests == 2 * (n_applies + n_pullbacks)


def test_everything_is_evaluated_on_the_thread_that_called():
    threads = set()

    def transform(fn):
        compiled = jax.jit(fn)

        def call(*args):
            threads.add(threading.get_ident())
            return compiled(*args)

        return call

    optimize(hs71_problem(), "slsqp", stop=MaxSteps(3), transform=transform)
    assert threads == {threading.get_ident()}


def test_however_a_run_ends_its_library_ends_with_it(tmp_path):
    def alive():
        return [thread for thread in threading.enumerate() if thread.name.startswith("tesseract-flow slsqp")]

    optimize(hs71_problem(), "slsqp", stop=MaxSteps(2), transform=jax.jit)
    assert not alive()
    with pytest.raises(KeyboardInterrupt):
        optimize(hs71_problem(), "slsqp", transform=Counted(before=_interrupt_at(5)))
    assert not alive()


def _interrupt_at(n):
    def before(k):
        if k == n:
            raise KeyboardInterrupt

    return before


def test_stop_rules_count_evaluations_of_the_library():
    result = optimize(rosenbrock_problem(), "slsqp", stop=MaxEvaluations(12), transform=jax.jit)
    assert "maximum number of evaluations" in result.reason and 12 <= result.evaluations <= 24


def test_gradients_that_contradict_the_values_are_found_out():
    @jax.custom_jvp
    def bowl(x):
        return (x**2).sum()

    bowl.defjvp(lambda primals, tangents: (bowl(*primals), -2 * (primals[0] * tangents[0]).sum()))
    problem = Problem(jnp.ones(3), lambda x: Evaluation(bowl(x), {"sum": x.sum()}), constraints=SUM)
    result = optimize(problem, "slsqp", stop=STOP, transform=jax.jit, verify_gradients="start")
    assert "the gradient predicts" in result.reason and not result.converged


SUM = {"sum": Constraint(lower=-10.0)}


# --- going on


@pytest.mark.parametrize("driver", [*ALL, *NLOPT])
def test_going_on_gives_the_same_bits_and_asks_nothing_twice(tmp_path, driver):
    takes_it = driver in (*NATIVE, "ld_slsqp")
    problem = hs71_problem() if takes_it else rosenbrock_problem(bounds=(-2.0, 2.0))
    whole, parts = Counted(), Counted()
    undisturbed = optimize(problem, driver, stop=MaxSteps(7), transform=whole)
    for n in (0, 1, 2, 5, 7):
        result = optimize(problem, driver, stop=MaxSteps(n), journal=tmp_path / "J", transform=parts)
    assert same_bits(undisturbed, result)
    assert parts.n_calls == whole.n_calls


def test_going_on_after_a_restart_of_the_library(tmp_path):
    """Loose tolerances make SLSQP end early and begin anew; the journal knows which answers belong to which leg."""
    settings = {"ftol": 1e-2}
    problem = rosenbrock_problem()
    undisturbed = optimize(problem, "slsqp", driver_settings=settings, stop=STOP, transform=jax.jit)
    for n in range(1, undisturbed.steps, 4):
        stop = {**STOP, "max_steps": n}
        optimize(problem, "slsqp", driver_settings=settings, stop=stop, journal=tmp_path / "J", transform=jax.jit)
    result = optimize(problem, "slsqp", driver_settings=settings, stop=STOP, journal=tmp_path / "J", transform=jax.jit)
    assert same_bits(undisturbed, result)


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_damaged_answer_costs_what_the_library_had_learned_and_no_step(tmp_path, how):
    optimize(hs71_problem(), "slsqp", stop=MaxSteps(4), journal=tmp_path / "J", transform=jax.jit)
    part = sorted((tmp_path / "J").glob("answers-*.part"))[2]
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data) if how == "flipped" else part.unlink()
    result = optimize(hs71_problem(), "slsqp", stop=STOP, journal=tmp_path / "J", transform=jax.jit)
    assert result.converged and result.value == pytest.approx(17.0140173, rel=1e-6)
    assert any(f"{part.name} is" in note and "began anew" in note for note in result.notes)
    assert any("began anew" in event for event in result.history[5].events)


def test_another_version_that_asks_for_other_points_is_not_mixed_in(tmp_path, monkeypatch):
    optimize(hs71_problem(), "slsqp", stop=MaxSteps(4), journal=tmp_path / "J", transform=jax.jit)
    minimize = scipy.optimize.minimize

    def otherwise(fun, x0, jac, **keywords):
        return minimize(fun, x0, jac=lambda x: jac(x) * (1 + 1e-12), **keywords)

    monkeypatch.setattr(scipy.optimize, "minimize", otherwise)
    result = optimize(hs71_problem(), "slsqp", stop=STOP, journal=tmp_path / "J", transform=jax.jit)
    assert result.converged
    assert any("asks for another point now than it did" in note for note in result.notes)


def test_another_setting_is_another_run(tmp_path):
    optimize(hs71_problem(), "slsqp", stop=MaxSteps(2), journal=tmp_path / "J", transform=jax.jit)
    for driver, settings in (("slsqp", {"ftol": 1e-3}), ("trust-constr", {})):
        with pytest.raises(OtherRun, match=r"driver\."):
            optimize(hs71_problem(), driver, driver_settings=settings, journal=tmp_path / "J", transform=jax.jit)


@pytest.mark.slow
def test_changes_that_are_accepted_begin_a_leg_of_their_own(tmp_path):
    known = hs71_problem()
    optimize(known, "slsqp", stop=MaxSteps(3), journal=tmp_path / "J", transform=jax.jit)
    changed = optimize(
        Problem(
            jnp.array([1.0, 5.0, 5.0, 1.0]),
            lambda x: Evaluation(2 * known.evaluate(x).objective, known.evaluate(x).constraints),
            bounds=(1.0, 5.0),
            constraints=known.constraints,
        ),
        "slsqp",
        stop=STOP,
        journal=tmp_path / "J",
        transform=jax.jit,
        accept_changes=True,
    )
    assert changed.converged and changed.value == pytest.approx(2 * 17.0140173, rel=1e-6)


# --- failures


@pytest.mark.parametrize("driver", [*ALL, *NLOPT])
@pytest.mark.parametrize("how", ["error", "nan"])
def test_beyond_a_wall_it_steps_back(driver, how):
    """-log(2 - x) - 5 x has its minimum at 1.8, and nothing can be evaluated from 2 on."""

    def refuse(endpoint, inputs):
        if how == "error" and endpoint == "apply" and np.asarray(inputs["x"]) >= 2:
            raise ComponentFailed("the mesh has negative volumes")

    wall = FunctionTesseract(lambda i: {"y": -jnp.log(2 - i["x"]) - 5 * i["x"]}, {"x": np.asarray(0.0)}, before=refuse)
    problem = Problem(jnp.asarray(0.0), lambda x: apply_tesseract(wall, {"x": x})["y"])
    result = optimize(problem, driver, stop=STOP)
    assert float(result.design) == pytest.approx(1.8, abs=1e-4), result.reason
    assert result.converged and any("failed" in event for record in result.history for event in record.events)
    assert all(np.isfinite(record.value) for record in result.history)


def test_where_nothing_on_the_way_can_be_evaluated_the_run_ends_with_the_best_so_far():
    def evaluate(x):
        return jnp.where(x == 0.0, 1.0 - x, jnp.nan)

    for driver in (*ALL, *NLOPT):
        result = optimize(Problem(jnp.asarray(0.0), evaluate), driver, stop=STOP, transform=jax.jit)
        assert not result.converged and float(result.design) == 0.0 and "failed" in result.reason


def test_policies_for_failures():
    def evaluate(x):
        return jnp.where(x > 1.0, jnp.nan, (x - 3.0) ** 2)

    problem = Problem(jnp.asarray(0.0), evaluate)
    with pytest.raises(DriverError, match="owns its loop"):
        optimize(problem, "slsqp", on_failure="skip", transform=jax.jit)
    with pytest.raises(EvaluationFailed):
        optimize(problem, "slsqp", on_failure="raise", transform=jax.jit)
    result = optimize(problem, "slsqp", on_failure="stop", transform=jax.jit)
    assert result.reason.startswith("an evaluation failed in step ") and "the objective is nan" in result.reason


@pytest.mark.parametrize("driver", ["slsqp", "trust-constr"])
def test_a_constraint_without_entries_asks_for_nothing(driver):
    constraints = {"none": Constraint(lower=0.0), "one": Constraint(lower=1.0)}
    problem = Problem(
        jnp.asarray([2.0]),
        lambda x: Evaluation((x**2).sum(), {"none": jnp.zeros((0, 2)), "one": x[0]}),
        constraints=constraints,
    )
    assert optimize(problem, driver, transform=jax.jit).value == pytest.approx(1.0, rel=1e-4)
    alone = dataclasses.replace(problem, constraints={"none": constraints["none"]})
    assert optimize(alone, driver, transform=jax.jit).value == pytest.approx(0.0, abs=1e-9)


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("slsqp", 0.1), "does not take a learning_rate"),
        (("slsqp", None, {"maxcor": 3}), "does not take the setting 'maxcor'"),
        (("l-bfgs-b", None, {"maxcor": "many"}), "expected something like 10"),
        (("slsqpp",), "Did you mean 'slsqp'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, match):
    with pytest.raises(DriverError, match=match):
        build_driver(*arguments)


def test_a_method_without_constraints_refuses_them_and_says_what_takes_them():
    with pytest.raises(DriverError, match=r"(?s)takes bounds, and no constraints.*Use 'slsqp'"):
        optimize(hs71_problem(), "l-bfgs-b")
    assert driver_settings("l-bfgs-b")["maxcor"] == 10


def test_nothing_to_vary_is_refused():
    with pytest.raises(DriverError, match="nothing is left to vary"):
        optimize(Problem(jnp.ones(2), lambda x: x.sum(), bounds=(1.0, 1.0)), "slsqp", transform=jax.jit)


class Broken(AbstractLibrary):
    package, takes_constraints, takes_equalities, withstands_walls, slopes = "scipy", True, True, False, None

    def run(self, line, task):
        line.values(task.start)
        raise ValueError("no such thing")


def test_an_error_of_the_library_is_told_as_one():
    with pytest.raises(DriverError, match=r"(?s)failed in its library \(scipy\): ValueError: no such thing"):
        optimize(rosenbrock_problem(), LibraryDriver({"name": "broken"}, Broken()), transform=jax.jit)


# --- a conversation


def test_a_conversation_is_decided_by_its_answers():
    def library(line):
        x = np.array([3.0])
        while (value := line.values(x)[0]) > 1e-3:
            assert line.values(x)[0] == value  # known by now
            line.accepted(x)
            x *= 0.5
        return x, "small enough"

    talk, heard = Conversation(library, "test"), []
    while not isinstance(said := talk.hear(), Ended):
        heard.append(said)
        if isinstance(said, Question):
            talk.answer(Answer(float(said.x[0]) ** 2))
    assert said.words == "small enough" and talk.hear() is said
    questions = [float(what.x[0]) for what in heard if isinstance(what, Question)]
    assert questions == [3.0 * 0.5**k for k in range(len(questions))]
    assert [float(what.x[0]) for what in heard if isinstance(what, Accepted)] == questions[:-1]
    talk.close()


def test_a_conversation_can_be_ended_at_any_point():
    def library(line):
        while True:
            line.values(np.zeros(1))
            line.accepted(np.zeros(1))

    for n in range(4):
        talk = Conversation(library, f"ended after {n}")
        for _ in range(n):
            if isinstance(talk.hear(), Question):
                talk.answer(Answer(0.0))
        talk.close()
        assert not [thread for thread in threading.enumerate() if thread.name == f"ended after {n}"]


def test_rows_pulled_back_at_once_are_the_jacobian(key):
    """Against plain JAX, with constraints of several shapes and a design of several leaves."""
    from tesseract_flow.optimize import check_evaluation
    from tesseract_flow.optimize.constraints import ConstraintSet
    from tesseract_flow.optimize.evaluator import Evaluator
    from tesseract_flow.optimize.oracle import Oracle

    def evaluate(design):
        a, b = design["a"], design["b"]
        return Evaluation((a**3).sum() * b, {"m": jnp.outer(a, a) * b, "s": jnp.sin(b)}, aux=a)

    start = {"a": jax.random.normal(key, (3,)), "b": jnp.asarray(0.7)}
    problem = Problem(start, evaluate, constraints={"m": Constraint(upper=1.0), "s": Constraint(upper=1.0)})
    template = check_evaluation(problem)
    demands = ConstraintSet.build(problem.constraints or {}, template.constraints, template.objective.dtype)
    for transform in (jax.jit, concurrent):
        oracle = Oracle(problem, Evaluator(problem, template, demands, transform), ("m", "s"), transform)
        for first in (oracle.values, oracle.derivatives):  # values first, or both at once
            oracle.forget()
            first(start)
            found = oracle.derivatives(start)
            expected = jax.jacrev(lambda x: evaluate(x).constraints)(start)
            same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), found.jacobians, expected)
            assert all(jax.tree.leaves(same))
            gradient = jax.grad(lambda x: evaluate(x).objective)(start)
            assert all(jax.tree.leaves(jax.tree.map(jnp.allclose, found.gradient, gradient)))


def test_default_rules_hold_for_libraries():
    result = optimize(hs71_problem(), "slsqp", stop=FirstOrder(1e-6), transform=jax.jit)
    assert result.converged and result.optimality is not None and result.optimality.tolerance == 1e-6
