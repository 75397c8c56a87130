"""Stop rules: pure functions of the history."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from tesseract_flow.errors import ProblemError
from tesseract_flow.optimize import (
    FirstOrder,
    GradientBelow,
    MaxEvaluations,
    MaxRequests,
    MaxSteps,
    Phase,
    Problem,
    Stagnation,
    Stalled,
    StepRecord,
    TargetValue,
    Until,
    WallTime,
    stop_rules_from,
)
from tesseract_flow.optimize.ends import limits_of, stop_of, tolerance_of
from tesseract_flow.optimize.stopping import Infeasible, Unresponsive, first_reason
from tests.optimize.helpers import rosenbrock_problem


def record(step: int = 0, **fields) -> StepRecord:
    base = StepRecord(
        step=step,
        value=10.0,
        gradient_norm=1.0,
        violation=0.0,
        residual=0.0,
        feasible=True,
        best_value=10.0,
        best_step=0,
        best_feasible=True,
        move=0.1,
        changes=0,
        evaluations=step + 1,
        requests=2 * step + 2,
        seconds=0.5 * step,
        stationarity=0.1,
        complementarity=0.0,
        slope=10.0,
    )
    return dataclasses.replace(base, **fields)


@pytest.mark.parametrize(
    ("rule", "goes_on", "stops", "reason"),
    [
        (MaxSteps(5), record(4), record(5), "maximum number of steps reached (5)"),
        (GradientBelow(0.5), record(gradient_norm=0.6), record(gradient_norm=0.4), "gradient below 0.5 (0.4)"),
        (FirstOrder(0.01), record(stationarity=0.02), record(stationarity=0.009), "optimal to first order"),
        (FirstOrder(0.2), record(complementarity=0.3), record(), "optimal to first order"),
        (FirstOrder(0.2), record(feasible=False), record(), "optimal to first order"),
        (FirstOrder(0.2), record(doubt="a wrong gradient"), record(), "optimal to first order"),
        (FirstOrder(0.2), record(stationarity=None), record(), "optimal to first order"),
        (Unresponsive(), record(doubt="no"), record(doubt="nothing depends on x", gradient_norm=0.0), "nothing dep"),
        (WallTime(2.0), record(3), record(4), "wall time used up (2.0 s of 2 s)"),
        (MaxRequests(10), record(3), record(4), "maximum number of requests reached (10 of 10)"),
        (MaxEvaluations(5), record(3), record(4), "maximum number of evaluations reached (5 of 5)"),
        (TargetValue(3.0), record(best_value=3.1), record(best_value=3.0), "target value reached (3 <= 3)"),
        (TargetValue(3.0), record(best_value=2.0, best_feasible=False), record(best_value=2.0), "target value reached"),
        (Stalled(), record(), record(stalled=True), "even after a restart"),
    ],
)
def test_rules_speak_at_their_limit_and_not_before(rule, goes_on, stops, reason):
    assert rule.reason_to_stop([goes_on]) is None
    assert reason in rule.reason_to_stop([stops])


def test_a_first_order_point_that_is_not_the_best_design_is_no_success():
    rule = FirstOrder(0.01)
    history = [record(0, best_value=1.0), record(1, stationarity=0.001, best_value=1.0, best_step=0)]
    reason = rule.reason_to_stop(history)
    assert reason is not None and "no better than the design of step 0" in reason
    assert not rule.is_met(history)
    both = [record(0, stationarity=0.001, best_value=1.0), history[1]]
    assert rule.is_met(both) and "optimal to first order" in (rule.reason_to_stop(both) or "")


def raised(step: int, violation: float, price: float, slope: float = 0.0) -> StepRecord:
    return record(
        step,
        violation=violation,
        feasible=False,
        best_feasible=False,
        changes=step,
        price=price,
        gradient_norm=slope,
        worst="stress",
    )


def test_infeasible_is_said_where_the_violation_is_stationary_and_does_not_fall():
    prices = [10.0, 100.0, 1e3, 1e4, 1e5, 1e6]
    stuck = [raised(k, 0.5, price) for k, price in enumerate(prices)]
    reason = Infeasible().reason_to_stop(stuck)
    assert reason is not None and "looks infeasible" in reason and "'stress' is violated by 0.5" in reason
    falling = [raised(k, 0.5 * 0.9**k, price) for k, price in enumerate(prices)]
    sloping = [raised(k, 0.5, price, slope=0.01 * price) for k, price in enumerate(prices)]
    cheap = [raised(k, 0.5, 10.0 + k) for k in range(6)]
    was_feasible = [*stuck[:-1], dataclasses.replace(stuck[-1], best_feasible=True)]
    for history in (falling, sloping, cheap, was_feasible, stuck[:4]):
        assert Infeasible().reason_to_stop(history) is None


def test_stagnation_waits_for_patience_and_for_feasible_steps():
    rule = Stagnation(3, rtol=0.01)
    values = [10.0, 9.0, 8.0, 7.99, 7.985, 7.98]
    history = [record(k, best_value=value) for k, value in enumerate(values)]
    verdicts = [rule.reason_to_stop(history[: k + 1]) is not None for k in range(len(history))]
    assert verdicts == [False, False, False, False, False, True]
    on_an_excursion = [*history[:4], record(4, best_value=7.985, feasible=False), history[5]]
    assert rule.reason_to_stop(on_an_excursion) is None


def test_settings_from_a_form():
    rules = stop_rules_from(
        {
            "max_steps": 7,
            "gradient_tolerance": 1e-5,
            "patience": 4,
            "stagnation_tolerance": 1e-3,
            "wall_time": 60,
            "max_requests": 100,
            "max_evaluations": 50,
            "target_value": -3.0,
        }
    )
    assert {type(rule) for rule in rules} == {
        MaxSteps,
        FirstOrder,
        Stagnation,
        WallTime,
        MaxRequests,
        MaxEvaluations,
        TargetValue,
    }
    empty = stop_rules_from(dict.fromkeys(["max_steps", "wall_time", "target_value"]))
    assert empty == ()
    assert stop_rules_from({"gradient_tolerance": 0.0}) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_step": 3}, "(?s)Unknown stop setting 'max_step'.*Did you mean 'max_steps'"),
        ({"max_steps": -1}, "max_steps must be a number, not below 0"),
        ({"wall_time": "long"}, "wall_time must be a number"),
        ({"patience": True}, "patience must be a number"),
        *[
            ({key: 1.5}, rf"{key} must be a whole number, not below 0, received 1\.5")
            for key in ("max_steps", "max_evaluations", "max_requests", "patience")
        ],
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ProblemError, match=message):
        stop_rules_from(settings)


def test_there_is_always_a_rule_that_ends_the_run():
    def budget_of(stop):
        limits = limits_of(rosenbrock_problem(), stop)
        return [*limits.budget, *limits.ends[0].budget]

    for stop in (None, (), GradientBelow(1e-8), {"target_value": 0.0}, [Stagnation(3)]):
        assert all(rule.is_budget for rule in budget_of(stop)) and budget_of(stop)
    assert budget_of(MaxSteps(1000)) == [MaxSteps(1000)]
    # A moment ends a process, and not what goes on in the next one.
    assert len(budget_of(Until(0.0))) == 2 and len(budget_of([Until(0.0), MaxSteps(1000)])) == 2
    with pytest.raises(ProblemError, match="received 'often'"):
        limits_of(rosenbrock_problem(), ["often"])


def test_a_run_ends_before_a_moment_in_time_for_its_longest_step():
    now = [1000.0]
    rule = Until(2000.0, reserve=30.0, clock=lambda: now[0])
    steps = [record(k, seconds=seconds) for k, seconds in enumerate([5.0, 105.0, 110.0, 900.0 - 10.0, 900.0])]
    assert rule.reason_to_stop(steps[:3]) is None
    now[0] = 2000.0 - 1.25 * 100.0 - 30.0 - 1.0  # the longest of these took 100 s
    assert rule.reason_to_stop(steps[:3]) is None
    now[0] += 2.0
    assert "154 s left, the longest step took 100 s" in (rule.reason_to_stop(steps[:3]) or "")
    now[0] = 1100.0
    assert "took 780 s" in (rule.reason_to_stop(steps) or "")
    now[0] = 3000.0
    assert "0 s left" in (rule.reason_to_stop(steps[:1]) or "")
    assert "clock" not in repr(rule)


def test_success_speaks_first():
    rules = (MaxSteps(0), FirstOrder(0.2))
    verdict = first_reason(rules, [record()])
    assert verdict is not None and isinstance(verdict[0], FirstOrder)
    assert first_reason((MaxSteps(3),), [record()]) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaxSteps(-1),
        lambda: GradientBelow(-1.0),
        lambda: FirstOrder(-1.0),
        lambda: FirstOrder(float("inf")),
        lambda: Stagnation(0),
        lambda: MaxSteps(1.5),  # type: ignore[arg-type]
        lambda: MaxEvaluations(1.5),  # type: ignore[arg-type]
        lambda: MaxRequests(-1),
        lambda: Stagnation(1.5),  # type: ignore[arg-type]
    ],
)
def test_rules_refuse_limits_that_make_no_sense(make):
    with pytest.raises(ProblemError):
        make()


@pytest.mark.parametrize(
    ("own", "stop", "tolerance", "steps"),
    [
        (None, None, 1e-6, 200),
        (None, {"max_steps": 30}, 1e-6, 30),
        (None, {"max_steps": 30, "gradient_tolerance": None}, 1e-6, 30),
        (None, {"max_steps": 30, "gradient_tolerance": 0}, None, 30),
        (None, MaxSteps(30), None, 30),
        ({"gradient_tolerance": 1e-9}, None, 1e-9, 200),
        ({"gradient_tolerance": 1e-9}, {"max_steps": 30}, 1e-9, 30),
        ({"max_steps": 7}, {"gradient_tolerance": 1e-3}, 1e-3, 7),
        ({"max_steps": 7}, [FirstOrder(1e-4)], 1e-4, 200),
    ],
)
def test_settings_add_to_what_a_problem_asks_for_and_rules_take_its_place(own, stop, tolerance, steps):
    """`stop={"max_steps": 30}` had ended at the optimum, "not converged"."""
    problem = Problem(jnp.ones(2), lambda x: (x**2).sum(), defaults={"stop": own} if own else None)
    asked = stop_of(problem, stop)
    limits = limits_of(problem, asked)
    assert tolerance_of(problem, Phase(), asked) == tolerance
    found = [rule.n for rule in (*limits.budget, *limits.ends[0].budget) if isinstance(rule, MaxSteps)]
    assert found == [steps]


def test_settings_of_a_phase_leave_the_tolerance_of_the_run():
    phases = [Phase(stop={"max_steps": 3}), Phase(stop={"gradient_tolerance": 1e-3}), Phase(stop=MaxSteps(4))]
    problem = Problem(jnp.ones(2), lambda x: (x**2).sum(), phases=phases)
    assert [tolerance_of(problem, phase, {"gradient_tolerance": 1e-9}) for phase in phases] == [1e-9, 1e-3, None]
    assert [tolerance_of(problem, phase, None) for phase in phases] == [1e-6, 1e-3, None]
