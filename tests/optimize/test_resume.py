"""Interrupted runs go on, and end as if nothing had happened, to the bit."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import optax
import pytest

from tesseract_flow.errors import EvaluationFailed, JournalError, NonFiniteError
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FileJournal,
    MaxEvaluations,
    MaxSteps,
    Observer,
    Problem,
    WallTime,
    optimize,
)
from tests.optimize.helpers import Counted, same_bits

_compiled: dict[str, object] = {}


def compiled_once(fn):
    """All runs below are of one problem, so the function that the first one compiles serves all."""
    return _compiled.setdefault("fn", eqx.filter_jit(fn))


def evaluate(design):
    x = design["x"]
    return Evaluation((jnp.cosh(x) * jnp.arange(1.0, 4.0)).sum(), {"sum": x.sum()}, aux={"square": x**2, "unit": "m"})


def problem(**kwargs) -> Problem:
    design = {"x": jnp.array([1.0, 0.5, -0.5]), "label": "resume"}
    return Problem(design, evaluate, **{"constraints": {"sum": Constraint(equals=2.0)}, **kwargs})


class Interrupting:
    """A transform whose n-th call is interrupted."""

    def __init__(self, at: int | None):
        self.at, self.n_calls = at, 0

    def __call__(self, fn):
        inner = compiled_once(fn)

        def call(*args):
            self.n_calls += 1
            if self.n_calls == self.at:
                raise KeyboardInterrupt
            return inner(*args)

        return call


DRIVERS = {
    "adam": ("adam", 40),
    "lbfgs": ("lbfgs", 10),
    "object with random numbers": (optax.noisy_sgd(0.02, key=3), 10),
    "object with schedule and clipping": (
        optax.chain(optax.clip(0.5), optax.adam(optax.linear_schedule(0.1, 0.0, 9))),
        20,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
def test_interrupted_evaluations_change_nothing(tmp_path, name):
    driver, n_steps = DRIVERS[name]
    undisturbed = optimize(problem(), driver, stop=MaxSteps(n_steps), transform=Interrupting(None))
    for at in (1, 2, 5, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            optimize(problem(), driver, stop=MaxSteps(n_steps), journal=tmp_path, transform=Interrupting(at))
    resumed = optimize(problem(), driver, stop=MaxSteps(n_steps), journal=tmp_path, transform=Interrupting(None))
    assert same_bits(undisturbed, resumed)
    assert resumed.evaluation.aux["square"].tolist() == undisturbed.evaluation.aux["square"].tolist()


def test_a_finished_run_comes_back_without_an_evaluation_and_goes_on_if_allowed(tmp_path):
    first = optimize(problem(), "adam", stop=MaxSteps(20), journal=tmp_path, transform=compiled_once)
    idle = Interrupting(1)
    again = optimize(problem(), "adam", stop=MaxSteps(20), journal=tmp_path, transform=idle)
    assert idle.n_calls == 0 and same_bits(first, again)
    assert (again.reason, again.seconds) == (first.reason, first.seconds)
    assert again.evaluation.aux["unit"] == "m"
    assert again.evaluation.aux["square"].tolist() == first.evaluation.aux["square"].tolist()
    # Fewer steps than there are already is a reason to stop as well.
    assert optimize(problem(), "adam", stop=MaxSteps(5), journal=tmp_path, transform=idle).steps == 20
    longer = Interrupting(None)
    more = optimize(problem(), "adam", stop=MaxSteps(35), journal=tmp_path, transform=longer)
    assert longer.n_calls == 15
    assert same_bits(more, optimize(problem(), "adam", stop=MaxSteps(35), transform=compiled_once))


def test_totals_and_stop_rules_count_over_all_runs(tmp_path):
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    def run(stop, at=None):
        transform = Interrupting(at)
        count = lambda: 3 * transform.n_calls  # noqa: E731
        return optimize(problem(), "adam", stop=stop, journal=tmp_path, transform=transform, count=count, clock=clock)

    with pytest.raises(KeyboardInterrupt):
        run(MaxSteps(50), at=6)
    with pytest.raises(KeyboardInterrupt):
        run(MaxSteps(50), at=4)
    result = run(MaxEvaluations(12))
    # Two evaluations at the infeasible start, then one per step; those of unfinished steps are not in the totals.
    assert result.evaluations == 12 and result.steps == 10 and result.requests == 36
    assert [record.requests for record in result.history] == [3 * (k + 2) for k in range(11)]
    seconds = [record.seconds for record in result.history]
    assert seconds == sorted(seconds) and seconds[-1] >= 11
    late = run(WallTime(seconds[-1] + 3.5))
    assert 10 < late.steps <= 14 and "wall time" in late.reason


def test_a_changed_problem_is_refused_with_the_change(tmp_path):
    optimize(problem(), "adam", learning_rate=0.01, stop=MaxSteps(2), journal=tmp_path, transform=compiled_once)
    for change, line in [
        ({"learning_rate": 0.02}, "driver.learning_rate: 0.01 -> 0.02"),
        ({"driver": "nadam", "learning_rate": 0.01}, 'driver.name: "adam" -> "nadam"'),
        ({"learning_rate": 0.01, "feasibility_tol": 1e-3}, "constraint_method.feasibility_tol"),
    ]:
        with pytest.raises(JournalError, match=line):
            optimize(problem(), journal=tmp_path, transform=compiled_once, **change)
    with pytest.raises(JournalError, match=r"settings.n: \(absent\) -> 3"):
        optimize(problem(settings={"n": 3}), learning_rate=0.01, journal=tmp_path, transform=compiled_once)


def test_what_evaluate_returns_is_part_of_what_is_kept(tmp_path):
    optimize(problem(), "adam", stop=MaxSteps(2), journal=tmp_path, transform=compiled_once)

    def richer(design):
        found = evaluate(design)
        return Evaluation(found.objective, found.constraints, {**found.aux, "more": design["x"]})

    other = Problem(problem().design, richer, constraints=problem().constraints)
    with pytest.raises(JournalError, match="has another structure now"):
        optimize(other, "adam", stop=MaxSteps(4), journal=tmp_path, transform=eqx.filter_jit)


def test_a_damaged_checkpoint_is_noted_and_its_step_done_again(tmp_path):
    first = optimize(problem(), "adam", stop=MaxSteps(10), journal=tmp_path, transform=compiled_once)
    newest = tmp_path / "step-00000010.ckpt"
    newest.write_bytes(newest.read_bytes()[:-3])
    transform = Interrupting(None)
    again = optimize(problem(), "adam", stop=MaxSteps(10), journal=tmp_path, transform=transform)
    assert transform.n_calls == 1 and same_bits(first, again)
    assert "step-00000010.ckpt was damaged" in again.notes[0]


def test_observers_hear_of_the_steps_before(tmp_path):
    heard = []
    watch = Observer(
        on_start=lambda problem, history: heard.append([record.step for record in history]),
        on_step=lambda record, design, evaluation: heard.append(record.step),
    )
    for n in (2, 4):
        optimize(problem(), "adam", stop=MaxSteps(n), journal=tmp_path, transform=compiled_once, observers=[watch])
    assert heard == [[], 0, 1, 2, [0, 1, 2], 3, 4]


def test_an_error_in_a_step_leaves_the_steps_before_it_and_frees_the_journal(tmp_path):
    def log(design):
        return jnp.log(design["x"]).sum()

    falling = Problem({"x": jnp.array([0.25])}, log)
    for _ in range(2):
        # Deterministic, so it fails again in the same step; and the folder is not left locked.
        with pytest.raises(EvaluationFailed, match="in step 3") as caught:
            optimize(falling, optax.sign_sgd(0.1), journal=tmp_path, transform=Counted(), on_failure="raise")
        assert isinstance(caught.value.__cause__, NonFiniteError)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt"))[-1] == "step-00000002.ckpt"
    stopped = optimize(falling, optax.sign_sgd(0.1), journal=tmp_path, transform=Counted(), on_failure="stop")
    assert stopped.steps == 2
    # The policy is not what a run is about: another one goes on where this one stopped.
    further = optimize(falling, optax.sign_sgd(0.1), stop=MaxSteps(3), journal=tmp_path, transform=Counted())
    assert further.steps == 3 and float(further.design["x"][0]) == pytest.approx(0.025)


def test_a_journal_object_can_be_passed(tmp_path):
    journal = FileJournal(tmp_path / "kept", keep=1)
    optimize(problem(), "adam", stop=MaxSteps(3), journal=journal, transform=compiled_once)
    assert [path.name for path in (tmp_path / "kept").glob("*.ckpt")] == ["step-00000003.ckpt"]
