"""What changes while a run goes: schedules and phases."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tesseract_flow.errors import BoundsError, DriverError, OtherRun, ProblemError
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FailurePolicy,
    FileJournal,
    MaxSteps,
    Observer,
    Phase,
    Problem,
    Schedule,
    epigraph,
    optimize,
    read_journal,
)
from tesseract_flow.optimize.schedule import stages_of
from tests.optimize.helpers import Counted, same_bits

# Of x + y subject to x² + y² <= 1, by a penalty: the optimum is -s (1, 1) with s = 1/√2 in the limit.
WEIGHTS = [1.0, 10.0, 100.0, 1e3, 1e4]


def penalised(x, scheduled):
    return x.sum() + scheduled["weight"] * jnp.maximum((x**2).sum() - 1.0, 0.0) ** 2


def by_penalty(weights=WEIGHTS, every=None, start=(0.3, -0.2), **kwargs) -> Problem:
    return Problem(jnp.array(start), penalised, schedule={"weight": Schedule(weights, every)}, **kwargs)


def exact(weight: float) -> float:
    """The optimum is at x = y = -r with 1 = 4 w r (2 r² - 1)."""
    roots = np.roots([8.0 * weight, 0.0, -4.0 * weight, -1.0])
    r = float(roots[np.isreal(roots)].real.max())
    return -2.0 * r + weight * (2 * r**2 - 1.0) ** 2


@pytest.mark.parametrize("driver", ["lbfgs", "slsqp", "l-bfgs-b"])
def test_a_penalty_continued_phase_by_phase_ends_at_the_optimum_of_the_last_one(driver):
    result = optimize(by_penalty(), driver, transform=eqx.filter_jit)
    assert result.converged and result.value == pytest.approx(exact(1e4), rel=1e-9)
    assert [record.scheduled["weight"] for record in result.history if record.step == record.since] == WEIGHTS
    assert {record.phase for record in result.history} == set(range(5))
    assert any("those of the last stage (weight 10000)" in note for note in result.notes)
    borders = [event for record in result.history for event in record.events if "begins with" in event]
    assert len(borders) == 4 and all(f"the memory of {driver} begins anew" in event for event in borders)


@pytest.mark.parametrize(("driver", "n"), [("adam", 1), ("slsqp", 3), ("lbfgs", 1), ("cma-es", 2)])
def test_nothing_is_compiled_again_when_a_number_changes(driver, n):
    counted = Counted()
    result = optimize(by_penalty(every=2), driver, transform=counted, stop=MaxSteps(16))
    assert result.history[-1].scheduled == {"weight": 1e4}
    assert counted.n_traces == n


def test_adam_makes_so_many_steps_with_each_value_and_no_evaluation_more():
    counted = Counted()
    problem = by_penalty([1.0, 2.0, 4.0], every=3)
    result = optimize(problem, "adam", transform=counted, stop=MaxSteps(10))
    assert [record.scheduled["weight"] for record in result.history] == [1.0] * 3 + [2.0] * 3 + [4.0] * 5
    assert [record.since for record in result.history] == [0] * 3 + [3] * 3 + [6] * 5
    assert counted.n_calls == 11
    for record in result.history:  # of present values alone
        assert record.best_step >= record.since

    # The same by hand: Adam's moments go on over the borders.
    adam = optax.adam(0.03)
    x, state = problem.design, adam.init(problem.design)
    with jax.numpy_dtype_promotion("standard"):
        for record in result.history:
            value, gradient = jax.value_and_grad(penalised)(x, record.scheduled)
            assert record.value == pytest.approx(float(value), rel=1e-12)
            update, state = adam.update(gradient, state)
            x = optax.apply_updates(x, update)


def test_a_driver_that_searches_makes_so_many_moves_between_borders_that_do_not_move():
    result = optimize(by_penalty([1.0, 2.0, 4.0], every=2), "lbfgs", transform=eqx.filter_jit)
    weights = [record.scheduled["weight"] for record in result.history]
    assert weights[:6] == [1.0] * 3 + [2.0] * 3
    moves = [record.move for record in result.history]
    assert moves[3] == moves[6] == 0.0 and min(moves[1:3] + moves[4:6]) > 0.0
    assert result.converged and result.value == pytest.approx(exact(4.0), rel=1e-9)


def test_where_there_is_no_more_to_do_the_next_value_comes_sooner():
    result = optimize(by_penalty([1.0, 1e4], every=1000), "slsqp", transform=eqx.filter_jit)
    assert result.converged and result.steps < 60 and result.value == pytest.approx(exact(1e4), rel=1e-9)


def test_schedules_and_phases_make_stages():
    by_phase, by_step = Schedule([1.0, 2.0, 3.0]), Schedule([10.0, 20.0, 30.0], every=5)
    stages = stages_of({"a": by_phase, "b": by_step, "c": Schedule([7.0], every=2)}, 2)
    found = [(stage.phase, *stage.values.values(), stage.n_steps) for stage in stages]
    assert found == [
        (0, 1.0, 10.0, 7.0, 5),
        (0, 1.0, 20.0, 7.0, 5),
        (0, 1.0, 30.0, 7.0, None),
        (1, 2.0, 30.0, 7.0, None),
        (2, 3.0, 30.0, 7.0, None),
    ]


def test_phases_have_drivers_limits_and_ends_of_their_own():
    def evaluate(x):
        return Evaluation(((x - 3.0) ** 2).sum(), {"sum": x.sum()})

    problem = Problem(
        jnp.zeros(2),
        evaluate,
        bounds=(-5.0, 5.0),
        constraints={"sum": Constraint(upper=2.0)},
        phases=[
            Phase(driver="adam", learning_rate=0.1, constraints={}, bounds=(0.0, 0.5), stop=MaxSteps(30)),
            Phase(driver="slsqp", constraints={"sum": Constraint(upper=4.0)}),
            Phase(name="polish"),
        ],
    )
    result = optimize(problem, "lbfgs", transform=eqx.filter_jit)
    by_phase = [[record for record in result.history if record.phase == k] for k in range(3)]
    assert by_phase[0][-1].step == 30
    assert by_phase[0][-1].value == pytest.approx(2 * 2.5**2)
    assert by_phase[1][-1].value == pytest.approx(2.0, rel=1e-6)
    assert result.converged and result.value == pytest.approx(8.0, rel=1e-6)
    assert float(result.multipliers["sum"]) == pytest.approx(4.0, rel=1e-4)
    events = [event for record in result.history for event in record.events]
    assert any("phase 3 of 3, 'polish' begins" in event and "multipliers are kept (sum)" in event for event in events)


def test_the_best_of_another_driver_on_the_same_function_is_where_the_next_one_begins():
    problem = Problem(
        jnp.asarray(1.0),
        lambda x: x**2,
        phases=[Phase(driver="sgd", learning_rate=1.1, stop={"max_steps": 5}), Phase(driver="lbfgs")],
    )
    result = optimize(problem, transform=jax.jit)  # the first one runs away from the optimum
    border = next(record for record in result.history if record.phase == 1)
    assert border.value == 1.0 < result.history[border.step - 1].value
    assert result.converged


def test_a_run_that_ends_early_says_in_which_phase_and_claims_nothing():
    result = optimize(by_penalty(), "lbfgs", stop={"max_steps": 12, "gradient_tolerance": 1e-6}, transform=jax.jit)
    assert not result.converged and result.steps == 12
    assert any("the run ended in phase 3 of 5 (weight 100)" in note and "weight 10000" in note for note in result.notes)


@pytest.mark.parametrize("driver", ["adam", "lbfgs", "slsqp", "cma-es"])
def test_interrupted_at_each_step_it_ends_with_the_same_bits(tmp_path, driver):
    problem, stop = by_penalty([1.0, 10.0, 100.0], every=2, start=(0.4, 0.1)), MaxSteps(8)
    compiled: dict[str, object] = {}

    def transform(fn):
        return compiled.setdefault(fn.__name__, eqx.filter_jit(fn))

    transform = eqx.filter_jit if driver != "lbfgs" else transform
    whole = optimize(problem, driver, stop=stop, transform=transform)
    n_begun = 0

    def run_step(step, fn):
        nonlocal n_begun
        n_begun += 1
        made = fn()
        if n_begun % 2 == 0:  # made, and lost before the journal has it
            raise KeyboardInterrupt
        return made

    for _ in range(30):
        try:
            found = optimize(
                problem, driver, stop=stop, transform=transform, journal=FileJournal(tmp_path), run_step=run_step
            )
        except KeyboardInterrupt:
            continue
        break
    assert same_bits(found, whole)
    assert read_journal(tmp_path).history[-1].scheduled == {"weight": 100.0}


def test_another_schedule_is_another_run(tmp_path):
    optimize(by_penalty([1.0, 2.0]), "lbfgs", transform=jax.jit, journal=tmp_path)
    with pytest.raises(OtherRun, match=r"schedule\.weight\.values"):
        optimize(by_penalty([1.0, 3.0]), "lbfgs", transform=jax.jit, journal=tmp_path)
    longer = optimize(by_penalty([1.0, 2.0, 4.0]), "lbfgs", transform=jax.jit, journal=tmp_path, accept_changes=True)
    assert longer.converged and longer.value == pytest.approx(exact(4.0), rel=1e-9)


def test_other_values_from_outside_are_those_that_one_would_have_written(tmp_path):
    others = by_penalty().with_schedule({"weight": {"values": [1.0, 8.0], "every": 2}})
    written = by_penalty([1.0, 8.0], every=2)
    runs = [optimize(one, "adam", stop={"max_steps": 4}, transform=jax.jit) for one in (others, written)]
    assert same_bits(*runs)
    assert {record.scheduled["weight"] for record in runs[0].history} == {1.0, 8.0}
    optimize(written, "adam", stop={"max_steps": 1}, transform=jax.jit, journal=tmp_path)
    optimize(others, "adam", stop={"max_steps": 2}, transform=jax.jit, journal=tmp_path)
    with pytest.raises(OtherRun, match=r"schedule\.weight"):
        optimize(others.with_schedule({"weight": 8.0}), "adam", transform=jax.jit, journal=tmp_path)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"wieght": 1.0}, r"does not schedule 'wieght'\. Did you mean 'weight'\? It schedules 'weight'\."),
        ({"weight": "much"}, "expected a number, a list of values or a Schedule"),
        ({"weight": {"values": [1.0], "evry": 2}}, "Did you mean 'every'"),
    ],
)
def test_other_values_are_of_numbers_that_are_scheduled(schedule, message):
    with pytest.raises(ProblemError, match=message):
        by_penalty().with_schedule(schedule)


def test_a_schedule_is_the_problems():
    with pytest.raises(TypeError, match=r"problem\.with_schedule"):
        optimize(by_penalty(), schedule={"weight": 1.0})  # type: ignore[call-arg]
    with pytest.raises(ProblemError, match="It schedules nothing"):
        Problem(jnp.ones(2), jnp.sum).with_schedule({"weight": 1.0})


def test_what_would_end_a_phase_elsewhere_is_another_run(tmp_path):
    def problem(n: int) -> Problem:
        return by_penalty([1.0, 2.0], phases=[Phase(stop={"max_steps": n}), Phase()])

    optimize(problem(3), "adam", transform=jax.jit, journal=tmp_path, stop=MaxSteps(5))
    optimize(problem(3), "adam", transform=jax.jit, journal=tmp_path, stop=MaxSteps(7))
    with pytest.raises(OtherRun, match=r"phases\.0\.stop"):
        optimize(problem(4), "adam", transform=jax.jit, journal=tmp_path, stop=MaxSteps(9))


@pytest.mark.parametrize("action", ["shrink", "skip"])
def test_a_step_across_a_border_that_cannot_be_evaluated_is_dealt_with_as_any_other(action):
    def evaluate(x, scheduled):
        # Beyond the wall there is nothing, once the number has changed.
        wall = jnp.where((scheduled["beta"] > 1.0) & (x[0] > 0.25), jnp.nan, 0.0)
        return ((x - 1.0) ** 2).sum() * scheduled["beta"] + wall

    problem = Problem(jnp.zeros(1), evaluate, schedule={"beta": Schedule([1.0, 2.0], every=3)})
    result = optimize(
        problem,
        "sgd",
        learning_rate=0.05,
        stop=MaxSteps(6),
        on_failure=FailurePolicy(action=action),
        transform=eqx.filter_jit,
    )
    assert result.history[3].failures >= 1 and result.history[3].scheduled == {"beta": 2.0}
    for record in result.history[3:]:
        assert record.value >= 2 * 0.75**2 - 1e-12
    assert float(result.design[0]) <= 0.25


def test_a_design_that_no_phase_can_begin_with_ends_the_run_with_what_there_is():
    def evaluate(x, scheduled):
        return jnp.where(scheduled["beta"] > 1.0, jnp.nan, (x**2).sum())

    problem = Problem(jnp.ones(1), evaluate, schedule={"beta": Schedule([1.0, 2.0])})
    result = optimize(problem, "lbfgs", transform=eqx.filter_jit)
    assert not result.converged and "the objective is nan" in result.reason
    assert result.value == pytest.approx(0.0, abs=1e-12)
    assert any("the run ended in phase 1 of 2" in note for note in result.notes)


def test_observers_see_the_design_and_limits_of_the_present_phase():
    seen = []
    problem = Problem(
        jnp.ones(1),
        lambda x: (x**2).sum(),
        scale="bounds",
        bounds=(-2.0, 2.0),
        phases=[Phase(stop={"max_steps": 1}), Phase(bounds=(0.5, 4.0))],
    )
    watch = Observer(on_step=lambda record, design, evaluation: seen.append((record.phase, float(design[0]))))
    optimize(problem, "slsqp", observers=[watch], transform=eqx.filter_jit)
    assert min(x for phase, x in seen if phase == 1) == 0.5


def test_the_epigraph_of_a_scheduled_problem():
    problem = Problem(
        jnp.asarray(3.0),
        lambda x, scheduled: jnp.stack([(x - 1.0) ** 2, scheduled["a"] * (x + 1.0) ** 2]),
        schedule={"a": Schedule([4.0, 1.0])},
    )
    result = optimize(epigraph(problem), "slsqp")
    assert result.converged and result.value == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Schedule(lambda step: 2.0**step), ProblemError, "(?s)function.*from_function"),
        (lambda: Schedule([]), ProblemError, "at least one"),
        (lambda: Schedule([1.0, float("nan")]), ProblemError, "finite"),
        (lambda: Schedule([1.0], every=0), ProblemError, "every"),
        (lambda: Schedule.geometric(0.0, 1.0, 3), ProblemError, "positive"),
        (lambda: by_penalty(phases=[{"driver": "adam"}]), ProblemError, "list of Phase"),
        (lambda: Problem(jnp.ones(1), penalised, schedule={"weight": "fast"}), ProblemError, "received 'fast'"),
        (lambda: Problem(jnp.ones(1), penalised), ProblemError, "it has no schedule"),
        (lambda: Problem(jnp.ones(1), jnp.sum, schedule={"a b": 1.0}), ProblemError, "no name"),
        (lambda: Problem(jnp.ones(1), penalised, schedule={"learning_rate": 0.1}), ProblemError, "the driver's"),
        (
            lambda: Problem(jnp.ones(1), lambda x: x.sum(), schedule={"weight": 1.0}),
            ProblemError,
            "called as evaluate.design, scheduled",
        ),
        (lambda: optimize(by_penalty(phases=[Phase(driver="adamm")])), DriverError, "adamm"),
        (lambda: optimize(by_penalty(phases=[Phase(bounds=(1.0, 0.0))])), BoundsError, "lower"),
    ],
)
def test_mistakes_are_said_before_anything_runs(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_function_of_the_step_is_kept_as_its_values():
    assert Schedule.from_function(lambda k: 2.0**k, 4) == Schedule([1.0, 2.0, 4.0, 8.0], every=1)
    assert Schedule.linear(0.0, 1.0, 3, every=2) == Schedule([0.0, 0.5, 1.0], every=2)


def test_in_single_precision_a_driver_that_leads_nowhere_comes_to_its_end():
    """What a leg was worth is kept in single precision: compared in double, it never ended here."""
    with jax.enable_x64(False):
        weight = Schedule.geometric(1.0, 1e4, 5)
        problem = Problem(
            jnp.array([-1.8858751, -0.6326743]), penalised, schedule={"weight": weight}, bounds=(-2.0, 2.0)
        )
        result = optimize(problem, "slsqp", transform=eqx.filter_jit, stop=MaxSteps(80))
    assert result.value == pytest.approx(exact(1e4), rel=1e-6) and result.history[-1].stalled
