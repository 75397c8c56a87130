"""What "converged" means: properties of the figures, and runs that must not claim what is not so."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FileJournal,
    FirstOrder,
    MaxSteps,
    Optimality,
    Problem,
    StepRecord,
    TargetValue,
    optimize,
)
from tesseract_flow.optimize.optimality import is_first_order, unit_of
from tesseract_flow.testing import FunctionTesseract
from tests.optimize.helpers import hs71_problem, rosenbrock
from tests.optimize.standard import HS97, HS102, HS106, STANDARD

QUICK = ("hs5", "hs6", "hs35", "hs43", "hs65")
STOP = {"max_steps": 300, "gradient_tolerance": 1e-6}


def bowl(design):
    return ((design["x"] - 3.0) ** 2).sum()


def bowl_problem(start=(0.0, 1.0), evaluate=bowl, **kwargs) -> Problem:
    return Problem({"x": jnp.array(start)}, evaluate, **kwargs)


# --- the unit of the figures


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0**-40, 1.0, 2.0**40])
@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
def test_the_unit_of_the_objective_does_not_matter(factor, driver):
    """A power of two, so that scaling is exact."""
    result = optimize(bowl_problem(evaluate=lambda d: factor * bowl(d)), driver, stop=STOP, transform=jax.jit)
    # Adam adds 1e-8 to a gradient of 1e-12 and creeps; what must not be is that it calls that the optimum.
    assert result.converged or driver == "adam"
    if result.converged:
        assert result.design["x"].tolist() == pytest.approx([3.0, 3.0], abs=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_a_constant_in_the_objective_makes_nothing_optimal(offset):
    result = optimize(bowl_problem(evaluate=lambda d: bowl(d) + offset), "lbfgs", stop=STOP, transform=jax.jit)
    assert result.converged and result.design["x"].tolist() == pytest.approx([3.0, 3.0], abs=1e-4)


@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
@pytest.mark.slow
def test_a_far_start_excuses_nothing(driver):
    """Relative to the gradient at the start, 4e12, everything below x = 46 would pass."""
    result = optimize(
        bowl_problem([1e4], lambda d: (d["x"] ** 4).sum()), driver, stop={**STOP, "max_steps": 100}, transform=jax.jit
    )
    assert not result.converged or float(jnp.abs(result.design["x"][0])) < 0.1


@pytest.mark.slow
def test_sums_of_squares_converge_though_they_fall_to_zero():
    start = {"x": jnp.asarray(-1.2), "y": jnp.asarray(1.0)}
    result = optimize(Problem(start, rosenbrock), "lbfgs", transform=jax.jit)
    assert result.converged and result.value < 1e-8
    assert result.optimality is not None and result.optimality.stationarity <= 1e-6


@pytest.mark.parametrize("away", [0.0, 1e-9, 1e-7])
@pytest.mark.parametrize("offset", [1.0, 1e3])
def test_a_start_at_the_optimum_is_converged_at_once(away, offset):
    result = optimize(
        bowl_problem([3.0 + away, 3.0], lambda d: bowl(d) + offset), "lbfgs", stop=STOP, transform=jax.jit
    )
    # One evaluation more than the start's own: a gradient that is as good as zero is looked at twice.
    assert result.converged and result.steps <= 1 and result.evaluations <= 4


def test_a_start_at_the_optimum_of_a_sum_of_squares_ends():
    for driver in ("lbfgs", "adam"):
        result = optimize(bowl_problem([3.0 + 1e-9, 3.0]), driver, stop=STOP, transform=jax.jit)
        assert result.value < 1e-12 and result.steps <= 300


def test_figures_of_old_records_are_missing_and_claim_nothing():
    fields = optimize(bowl_problem(), stop=MaxSteps(1), transform=jax.jit).history[-1].to_json()
    new = ("stationarity", "complementarity", "slope", "price", "worst", "doubt", "since")
    old = StepRecord.from_json({key: value for key, value in json.loads(json.dumps(fields)).items() if key not in new})
    assert old.stationarity is None and not is_first_order(old, 1e6)
    assert StepRecord.from_json(json.loads(json.dumps(fields))).to_json() == json.loads(json.dumps(fields)) | {
        "events": ()
    }


def test_the_unit_lies_between_what_was_seen_and_a_part_of_it():
    for value, seen, unit in [(5.0, 10.0, 5.0), (1e6, 10.0, 10.0), (0.0, 0.0, 1.0), (7.0, 0.0, 7.0)]:
        assert unit_of(value, seen, np.dtype(np.float64)) == unit
    # A hundredth where nothing is left of the value; single precision cannot tell.
    assert unit_of(1e-15, 10.0, np.dtype(np.float64)) == 0.1
    assert unit_of(1e-9, 10.0, np.dtype(np.float64)) == pytest.approx(1e-5)
    assert unit_of(1e-9, 10.0, np.dtype(np.float32)) == 0.1


@pytest.mark.parametrize("driver", ["l-bfgs-b", "lbfgs"])
def test_the_floor_of_a_steep_valley_is_not_where_it_ends(driver):
    """Rosenbrock's valley with 1e8: on its floor the slope is a hundred millionth of that of its sides."""

    def valley(x):
        return 1e8 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2

    result = optimize(Problem(np.array([-1.2, 1.0]), valley), driver, stop=MaxSteps(40), transform=jax.jit)
    assert not result.converged and result.value > 1.0


def test_one_direction_that_is_a_million_times_as_steep_hides_no_other():
    def misfit(x):
        return (x[0] - 1e6 - 1.0) ** 2 + (1e6 * x[1] - 3.0) ** 2

    result = optimize(Problem(np.array([5.0, 5.0]), misfit), "l-bfgs-b", transform=jax.jit)
    assert not result.converged or result.value < 1e-3


def test_a_jump_to_where_all_is_steep_does_not_replace_the_best():
    """The square root of |x| has no slope to end at: SciPy jumps away by a million millions."""
    result = optimize(Problem(np.array([3.0]), lambda x: jnp.sqrt(jnp.abs(x)).sum()), "slsqp", transform=jax.jit)
    assert result.value < 1e-6 and not result.converged


# --- first-order points of constrained problems


@pytest.mark.slow
def test_the_figures_are_those_of_the_conditions_written_out():
    """Gradients of objective and constraints by JAX, multipliers from the result: the sum has to vanish as reported."""
    problem = hs71_problem()
    result = optimize(problem, "lbfgs", transform=jax.jit)
    assert result.converged and result.optimality is not None
    x = result.design
    evaluation = jax.jacobian(lambda x: (problem.evaluate(x).objective, problem.evaluate(x).constraints))(x)
    lagrangian = np.asarray(evaluation[0]) + sum(
        float(result.multipliers[name]) * np.asarray(evaluation[1][name]) for name in ("product", "squares")
    )
    free = np.asarray((x > 1.0) & (x < 5.0))
    assert np.abs(lagrangian[free]).max() <= 1e-6 * abs(result.value)
    assert (lagrangian[~free] > 0).all()  # x_1 at its lower bound
    assert result.optimality.feasibility == result.violation <= 1e-6
    assert float(result.multipliers["product"]) < 0
    assert result.optimality.tolerance == 1e-6


@pytest.mark.parametrize("factor", [1e-9, 1e9])
@pytest.mark.slow
def test_the_unit_does_not_matter_with_constraints(factor):
    standard = next(s for s in STANDARD if s.name == "hs43")
    result = optimize(standard.problem(factor), "lbfgs", stop=STOP, transform=jax.jit)
    assert result.converged and result.value == pytest.approx(-44.0 * factor, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
@pytest.mark.parametrize("standard", [HS106, HS102, HS97], ids=lambda s: s.name)
def test_an_infeasible_start_does_not_make_a_design_converged(standard, driver):
    """Ended as converged at 15000, 3000 and 4.07, after 4 evaluations: the penalty was in the tolerance."""
    result = optimize(standard.problem(), driver, stop={**STOP, "max_steps": 60}, transform=jax.jit)
    known = [standard.optimum, *standard.local]
    assert not result.converged or any(result.value == pytest.approx(value, rel=1e-4) for value in known)


# --- large multipliers excuse nothing


def hs13_problem(row: float = 1.0) -> Problem:
    """A cusp: at the optimum, 1 at (1, 0), the limits touch, and there are no multipliers."""
    return Problem(
        jnp.array([-2.0, -2.0]),
        lambda x: Evaluation((x[0] - 2.0) ** 2 + x[1] ** 2, {"cusp": row * ((1.0 - x[0]) ** 3 - x[1])}),
        bounds=(0.0, None),
        constraints={"cusp": Constraint(lower=0.0)},
    )


@pytest.mark.parametrize("row", [1.0, pytest.param(1e4, marks=pytest.mark.slow)])
def test_multipliers_that_grow_without_bound_make_nothing_optimal(row):
    """Called converged at 1.00368, as multipliers of 2e5 excused a gap of 1e-3."""
    result = optimize(hs13_problem(row), "slsqp", stop=STOP, transform=jax.jit)
    assert not result.converged or result.value == pytest.approx(1.0, abs=1e-5)
    assert any("'cusp' has a multiplier of" in note and "no multipliers" in note for note in result.notes)


def hs106_problem(objective=1.0, rows=(1.0,) * 6, entry=1.0) -> Problem:
    """Rows from 0.1 to 1e5 in one array; `entry` is the unit of x_4, one of the design's entries."""
    assert HS106.inequalities is not None
    units, inequalities = np.array([1.0, 1.0, 1.0, entry, 1.0, 1.0, 1.0, 1.0]), HS106.inequalities

    def evaluate(y):
        x = y * units
        values = jnp.stack([row * jnp.asarray(c) for row, c in zip(rows, inequalities(x), strict=True)])
        return Evaluation(objective * HS106.objective(x), {"at least": values})

    return Problem(
        jnp.asarray(HS106.start) / units,
        evaluate,
        bounds=(HS106.lower / units, HS106.upper / units),
        constraints={"at least": Constraint(lower=0.0)},
    )


@pytest.mark.parametrize(
    "units",
    [
        pytest.param({}, id="as published"),
        pytest.param({"objective": 1e-6}, id="a small objective", marks=pytest.mark.slow),
        pytest.param({"objective": 1e6}, id="a large objective", marks=pytest.mark.slow),
        pytest.param({"rows": (1e3, 1.0, 1e-3, 1.0, 1e-5, 1e4)}, id="other rows", marks=pytest.mark.slow),
        pytest.param({"entry": 1e2}, id="a small entry", marks=pytest.mark.slow),
        pytest.param({"entry": 1e-2}, id="a large entry", marks=pytest.mark.slow),
    ],
)
def test_what_is_called_converged_is_so_in_whatever_units(units):
    """Called converged at 10260.8: in units of its largest row a multiplier was 1e9, which excused the gradient."""
    result = optimize(hs106_problem(**units), "slsqp", stop={**STOP, "max_steps": 200}, transform=jax.jit)
    value = result.value / units.get("objective", 1.0)
    assert not result.converged or value == pytest.approx(HS106.optimum, rel=1e-4)
    assert result.converged or units


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["slsqp", "trust-constr", "lbfgs"])
def test_an_objective_is_not_bought_by_a_violation_within_the_tolerance(driver):
    """From a start at 1000 the measure of x >= 1, written with a limit of zero, is 999: a thousandth was allowed."""
    problem = Problem(
        jnp.asarray(1000.0),
        lambda x: Evaluation(x, {"c": x - 1.0}),
        bounds=(0.0, None),
        constraints={"c": Constraint(lower=0.0)},
    )
    result = optimize(problem, driver, stop=STOP, transform=jax.jit)
    assert not result.converged or result.value == pytest.approx(1.0, rel=1e-5)
    lenient = optimize(problem, driver, stop=STOP, transform=jax.jit, feasibility_tol=1e-3)
    assert lenient.feasible


@pytest.mark.slow
@pytest.mark.parametrize("standard", [s for s in STANDARD if s.name in QUICK], ids=lambda s: s.name)
def test_standard_problems_are_solved_and_said_to_be(standard):
    _solve(standard, "lbfgs", must_converge=True)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
@pytest.mark.parametrize("standard", STANDARD, ids=lambda s: s.name)
def test_no_standard_problem_is_said_to_be_solved_that_is_not(standard, driver):
    _solve(standard, driver, must_converge=False)


def _solve(standard, driver, must_converge):
    result = optimize(standard.problem(), driver, stop=STOP, transform=jax.jit)
    assert "infeasible" not in result.reason
    assert result.converged or not must_converge, (result.reason, result.optimality)
    if result.converged:
        known = [standard.optimum, *standard.local]
        assert any(result.value == pytest.approx(value, rel=1e-4, abs=1e-4) for value in known)


def test_the_other_optimum_of_problem_97_is_one():
    """By the conditions themselves: the gradient is a sum of active ones, each with the right sign."""
    inequalities = HS97.inequalities
    assert inequalities is not None
    x = np.zeros(6)
    x[5] = 0.0134  # at its upper bound, as the others are at their lower ones
    x[2] = (32.97 - 1495.5 * x[5]) / 204.2  # the first constraint is active
    values = jax.jacfwd(lambda x: jnp.stack([HS97.objective(x), *inequalities(x)]))(jnp.asarray(x))
    constraints = np.array([float(c) for c in inequalities(x)])
    assert abs(constraints[0]) < 1e-12 and (constraints[1:] > 0).all()
    multiplier = float(values[0, 2] / values[1, 2])
    rest = np.asarray(values[0] - multiplier * values[1])
    assert multiplier > 0 and (rest[[0, 1, 3, 4]] > 0).all() and rest[5] < 0
    assert float(HS97.objective(x)) == pytest.approx(HS97.local[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constraint", "optimum"),
    [
        (Constraint(lower=4.0, upper=1e30), 16.0),
        (Constraint(lower=4.0, upper=1e9), 16.0),
        (Constraint(lower=1.0, upper=1e5), 1.0),
        (Constraint(lower=4.0), 16.0),
        (Constraint(lower=4.0, upper=4.1), 16.0),
        (Constraint(equals=4.0), 16.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
def test_a_large_upper_limit_does_not_loosen_the_lower_one(constraint, optimum, driver):
    """min x² from x = 1 with c = x: with 1e30 or 1e9 above, c = 1 was feasible and converged."""
    problem = Problem(jnp.asarray(0.5), lambda x: Evaluation(x**2, {"c": x}), constraints={"c": constraint})
    result = optimize(problem, driver, learning_rate=0.1 if driver == "adam" else None, stop=STOP, transform=jax.jit)
    assert result.violation < 1e-4
    assert result.value == pytest.approx(optimum, rel=1e-3)
    if driver == "lbfgs":
        assert result.converged and result.value == pytest.approx(optimum, rel=1e-5)
        assert float(result.multipliers["c"]) == pytest.approx(-2 * np.sqrt(optimum), rel=1e-3)


@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
def test_an_infeasible_problem_is_said_to_be_one(driver):
    """4212 requests and "maximum number of steps", before."""
    problem = Problem(
        jnp.asarray(0.5), lambda x: Evaluation(x, {"square": x * x}), constraints={"square": Constraint(upper=-1.0)}
    )
    result = optimize(problem, driver, stop={"max_steps": 400}, transform=jax.jit)
    assert "looks infeasible: constraint 'square' is violated by 1 of its limit" in result.reason
    assert not result.converged and not result.feasible
    assert result.evaluations < 100


# --- gradients that are not to be believed


def with_pullback(pullback):
    """A bowl whose gradient is replaced by `pullback(x, its true gradient)`."""

    @jax.custom_vjp
    def fn(x):
        return ((x - 3.0) ** 2).sum()

    fn.defvjp(lambda x: (fn(x), x), lambda x, bar: (bar * pullback(x, 2 * (x - 3.0)),))
    return lambda design: fn(design["x"])


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["lbfgs", "adam", "sgd"])
@pytest.mark.parametrize("bounds", [None, (-1.0, 5.0), (0.0, 1.0)], ids=["free", "wide", "from a corner"])
def test_a_wrong_sign_never_converges(driver, bounds):
    problem = bowl_problem(evaluate=with_pullback(lambda x, g: -g), bounds=bounds)
    result = optimize(problem, driver, stop={**STOP, "max_steps": 40}, transform=jax.jit)
    # With the sign of everything turned round, a search can still run into the one point where the gradient is zero.
    assert not result.converged or result.value < 1e-12
    if driver != "lbfgs":
        assert result.design["x"].tolist() == [0.0, 1.0]
        assert any("check the gradients" in note.lower() for note in result.notes)


@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
def test_a_pullback_of_zero_is_found_out_at_the_start(driver):
    problem = bowl_problem(evaluate=with_pullback(lambda x, g: 0.0 * g))
    result = optimize(problem, driver, stop=STOP, transform=jax.jit)
    # The start, next to it, and a millionth of that way, to tell a cut path from what is flat at two places.
    assert not result.converged and result.steps == 0 and result.evaluations == 3
    assert (
        "gradient with respect to 'x' is exactly zero" in result.reason
        and "check the gradients" in result.reason.lower()
    )
    assert result.history[0].events == (result.reason,)


def test_a_component_that_answers_zero_for_its_pullback():
    class Zero(FunctionTesseract):
        def request(self, endpoint, payload, *, run_id=None):
            answer = super().request(endpoint, payload, run_id=run_id)
            is_pullback = endpoint == "vector_jacobian_product"
            return {path: np.zeros_like(value) for path, value in answer.items()} if is_pullback else answer

    square = Zero(lambda i: {"y": jnp.sum((i["x"] - 3) ** 2)}, {"x": jnp.ones(2)}, name="square")
    problem = Problem({"x": jnp.ones(2)}, lambda design: apply_tesseract(square, {"x": design["x"]})["y"])
    result = optimize(problem, stop=STOP)
    assert not result.converged and result.steps == 0 and "exactly zero" in result.reason


def test_a_pullback_of_zero_for_one_leaf_of_two():
    wrong = with_pullback(lambda x, g: 0.0 * g)
    problem = Problem(
        {"x": jnp.zeros(2), "z": jnp.ones(2)}, lambda d: wrong({"x": d["x"]}) + ((d["z"] - 2.0) ** 2).sum()
    )
    result = optimize(problem, "lbfgs", stop=STOP, transform=jax.jit)
    assert not result.converged
    assert any("gradient with respect to 'x' is exactly zero" in note for note in result.notes)


def test_an_objective_that_does_not_depend_on_the_design_is_not_converged():
    result = optimize(bowl_problem(evaluate=lambda d: jnp.asarray(4.0)), stop=STOP, transform=jax.jit)
    assert not result.converged and result.steps == 0
    assert "nothing depends on 'x'" in result.reason
    flat = optimize(bowl_problem(evaluate=lambda d: jnp.round(d["x"]).sum()), stop=STOP, transform=jax.jit)
    assert not flat.converged and "nothing depends on 'x'" in flat.reason


def test_a_best_design_at_the_start_is_not_blamed_on_gradients_where_the_others_are_outside():
    problem = Problem(
        np.array([0.7, 0.3]),
        lambda x: Evaluation((x**2).sum(), {"sum": x.sum()}),
        constraints={"sum": Constraint(lower=1.0)},
    )
    (note,) = optimize(problem, "adam", stop=MaxSteps(12), transform=jax.jit).notes
    assert note.startswith("of the 12 designs since the best one, that of step 0, 12 are lower and infeasible")


@pytest.mark.slow
def test_a_leaf_without_effect_is_noted_and_does_not_keep_others_from_converging():
    problem = Problem({"x": jnp.zeros(2), "idle": jnp.ones(3)}, lambda d: bowl(d) + 1.0)
    result = optimize(problem, "lbfgs", stop=STOP, transform=jax.jit)
    assert result.converged
    assert any("nothing depends on 'idle'" in note for note in result.notes)
    assert not any("'x'" in note and "nothing" in note for note in result.notes)


def test_a_start_on_a_maximum_is_not_converged():
    result = optimize(bowl_problem([0.0], lambda d: jnp.cos(d["x"]).sum()), "lbfgs", stop=STOP, transform=jax.jit)
    assert not result.converged and "another start is needed" in result.reason


@pytest.mark.parametrize("driver", ["lbfgs", "adam"])
@pytest.mark.parametrize(
    ("n", "saddle"),
    [
        (2, lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4),
        (3, lambda x: 9 * x[0] ** 2 + x[1] ** 2 - 0.2 * x[1] * x[2] - x[2] ** 2),
    ],
)
def test_a_start_on_a_saddle_is_not_converged(n, saddle, driver):
    """Called converged without a word: the one look next to it happened to lead up."""
    result = optimize(Problem(jnp.zeros(n), saddle), driver, stop=STOP, transform=jax.jit)
    assert not result.converged and result.steps == 0 and result.evaluations <= 4
    assert "saddle" in result.reason and "another start is needed" in result.reason


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_start_where_the_objective_falls_on_one_side_only_is_not_converged(sign):
    """Only the other side was looked at."""
    result = optimize(Problem(jnp.zeros(()), lambda x: sign * x**3), "slsqp", stop=STOP, transform=jax.jit)
    assert not result.converged and result.evaluations <= 4 and "another start is needed" in result.reason


def test_a_start_with_a_gradient_of_zero_says_what_cannot_be_told():
    result = optimize(Problem(jnp.zeros(2), lambda x: x[0] ** 2 + 3 * x[1] ** 2), "lbfgs", stop=STOP, transform=jax.jit)
    assert result.converged and result.steps == 0 and result.evaluations <= 4
    assert any("the gradient is zero at the start" in note and "cannot be told" in note for note in result.notes)


def test_an_unbounded_objective_is_said_to_look_so():
    """Ended with "maximum number of steps" after 200 of them."""
    result = optimize(Problem(jnp.zeros(2), lambda x: -x.sum()), "lbfgs", transform=jax.jit)
    assert "looks unbounded below" in result.reason and not result.converged and result.steps == 3
    stepped = optimize(Problem(jnp.zeros(2), lambda x: -x.sum()), "adam", stop=MaxSteps(30), transform=jax.jit)
    assert any("or it is unbounded below" in note for note in stepped.notes)


@pytest.mark.parametrize("driver", ["slsqp", "l-bfgs-b", "trust-constr", "mma"])
@pytest.mark.parametrize("objective", [lambda x: x.sum(), lambda x: -((x - 0.1) ** 2).sum()], ids=["line", "bowl"])
def test_a_driver_of_a_library_says_that_it_ran_away(driver, objective):
    """Came to rest at -9e15, "terminated successfully"; or was optimal at -5e223, in units of infinity."""
    result = optimize(Problem(jnp.zeros(3), objective), driver, stop={"max_steps": 40}, transform=jax.jit)
    assert not result.converged and any("unbounded below" in note for note in result.notes), result.notes


@pytest.mark.parametrize("driver", ["slsqp", "l-bfgs-b", "mma", "adam", "lbfgs"])
def test_what_runs_away_in_single_precision_is_not_optimal(driver):
    problem = Problem(jnp.full(3, 0.1, jnp.float32), lambda x: -(x**2).sum() - (x**4).sum())
    assert not optimize(problem, driver, learning_rate=1e9 if driver == "adam" else None, transform=jax.jit).converged


def test_a_slope_beyond_what_can_be_written_is_no_unit():
    assert unit_of(-2.0, float("inf"), np.dtype(float)) == 2.0
    assert unit_of(-2.0, float("nan"), np.dtype(float)) == 2.0


def test_nothing_is_unbounded_in_a_box():
    problem = Problem(np.array([0.5, 0.5]), lambda x: x[0] + 1e-7 * x[1], bounds=(0.0, 1.0))
    result = optimize(problem, "lbfgs", transform=jax.jit)
    assert "unbounded" not in result.reason and result.value < 1e-7


@pytest.mark.parametrize(
    "fn",
    [lambda x: ((x - 1e9) ** 2).sum(), lambda x: jnp.sqrt(1 + (x - 1e4) ** 2).sum(), lambda x: jnp.exp(-x).sum()],
    ids=["a far optimum", "nearly a kink", "an asymptote"],
)
def test_a_long_way_down_is_not_called_unbounded(fn):
    result = optimize(Problem(jnp.zeros(2), fn), "lbfgs", stop=STOP, transform=jax.jit)
    assert "unbounded" not in result.reason, result.reason


def test_a_constant_objective_with_constraints_is_a_question_of_feasibility():
    problem = Problem(
        jnp.array([2.0, 1.0]),
        lambda x: Evaluation(jnp.asarray(-1.0), {"sum": (x**2).sum(), "product": x[0] * x[1]}),
        constraints={"sum": Constraint(equals=25.0), "product": Constraint(equals=9.0)},
    )
    result = optimize(problem, "lbfgs", stop=STOP, transform=jax.jit)
    assert result.converged and result.violation < 1e-6


# --- what is returned is what the claim is about


def test_the_claim_is_about_the_design_that_is_returned():
    result = optimize(hs71_problem(), "lbfgs", transform=jax.jit)
    best = result.history[result.history[-1].best_step]
    assert best.value == result.value and best.stationarity is not None and best.complementarity is not None
    assert result.optimality == Optimality(
        stationarity=best.stationarity,
        feasibility=best.violation,
        complementarity=best.complementarity,
        tolerance=1e-6,
    )


def test_a_run_that_ends_at_a_worse_first_order_point_is_not_converged():
    """Steps over a deep minimum into a shallow one: what is returned was never measured as optimal."""

    def two_valleys(d):
        x = d["x"]
        return (0.5 * (x - 2.0) ** 2 - 3.0 * jnp.exp(-50.0 * (x - 0.55) ** 2)).sum()

    result = optimize(bowl_problem([0.3], two_valleys), optax.sgd(0.03, momentum=0.9), stop=STOP, transform=jax.jit)
    last = result.history[-1]
    if last.best_step != last.step:
        assert not result.converged
    assert result.value == min(record.value for record in result.history)


def test_other_reasons_claim_nothing_but_show_the_figures(tmp_path):
    result = optimize(bowl_problem([2.9999999, 3.0]), stop=TargetValue(1.0), transform=jax.jit)
    assert "target value" in result.reason and not result.converged
    assert result.optimality is not None and result.optimality.tolerance is None


@pytest.mark.slow
def test_figures_survive_a_journal_bit_for_bit(tmp_path):
    whole = optimize(hs71_problem(), "lbfgs", stop=[FirstOrder(1e-6), MaxSteps(100)], transform=jax.jit)
    for n in (5, 100):
        again = optimize(
            hs71_problem(),
            "lbfgs",
            stop=[FirstOrder(1e-6), MaxSteps(n)],
            transform=jax.jit,
            journal=FileJournal(tmp_path),
        )
    assert again.optimality == whole.optimality and again.converged == whole.converged
    assert [r.stationarity for r in again.history] == [r.stationarity for r in whole.history]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "optimum"),
    [
        (lambda x: 10.0 + (jnp.log(x[0]) - 15.0) ** 2, 10.0),
        (lambda x: (jnp.log(x[0]) - 15.0) ** 2, 0.0),
        (lambda x: -jnp.log(x[0]), -np.inf),
        (lambda x: 1.0 + 1.0 / x[0] + 1e-8 * x[0], 1.0002),
    ],
)
def test_a_large_design_is_not_optimal_for_being_large(objective, optimum):
    """A slope of 1e-5 is steep where the design is a million."""
    result = optimize(Problem(jnp.array([1.0]), objective), "lbfgs", transform=jax.jit)
    assert not result.converged or result.value == pytest.approx(optimum, rel=1e-5, abs=1e-6)


def _stiffness(design):
    """500 t + E / 7e10 subject to E t^3 >= 560, in Pa and m: 1.75477 at E = 3.0708e10, t = 2.6321e-3 in closed form."""
    cost = 500 * design["t"] + design["E"] / 7e10
    return Evaluation(cost, {"stiff": design["E"] * design["t"] ** 3 / 560.0})


@pytest.mark.parametrize("driver", ["slsqp", "lbfgs", "trust-constr"])
def test_a_large_leaf_does_not_lend_its_size_to_a_small_one(driver):
    problem = Problem(
        {"E": jnp.asarray(2.1e11), "t": jnp.asarray(4e-3)},
        _stiffness,
        bounds=({"E": 1e9, "t": 1e-4}, {"E": 1e12, "t": 1e-1}),
        constraints={"stiff": Constraint(lower=1.0)},
    )
    result = optimize(problem, driver, stop={"max_steps": 12, "gradient_tolerance": 1e-6}, transform=jax.jit)
    assert not result.converged
    assert any("scale='bounds'" in note for note in result.notes)
    if driver == "slsqp":
        result = optimize(dataclasses.replace(problem, scale="bounds"), driver, transform=jax.jit)
        assert result.converged and result.value == pytest.approx(1.7547653748, rel=1e-7)


@pytest.mark.parametrize("driver", ["slsqp", "l-bfgs-b", "lbfgs"])
def test_a_large_entry_does_not_lend_its_size_to_a_small_one(driver):
    def squares(x):
        return (x[0] * 1e6 - 3.0) ** 2 + (x[1] * 1e-6 - 2.0) ** 2

    result = optimize(Problem(jnp.array([1e-6, 1e6]), squares), driver, transform=jax.jit)
    assert result.value < 1e-9 or not result.converged
