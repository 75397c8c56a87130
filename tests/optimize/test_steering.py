"""A run that is under way does what it is asked, and a run that is taken up again does the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import stat
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import pytest

from tesseract_flow.errors import JournalError, ProblemError, SteeringError
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FileJournal,
    MaxSteps,
    Observer,
    Phase,
    Problem,
    Schedule,
    optimize,
    read_contents,
    read_journal,
    steer,
)
from tesseract_flow.optimize.commands import Command
from tests.optimize.helpers import same_bits


def evaluate(design, numbers):
    x = design["x"]
    value = ((x - jnp.array([1.0, -1.0])) ** 2).sum() + numbers["weight"] * (x[0] * x[1]) ** 2
    return Evaluation(value, {"sum": x.sum()})


def problem(*, constrained=False, phases=None) -> Problem:
    return Problem(
        {"x": jnp.array([2.0, 3.0]), "about": {"name": "steered", "chord": 0.2}},  # a branch in which nothing varies
        evaluate,
        bounds=(0.0, 5.0),
        scale="bounds",
        constraints={"sum": Constraint(upper=2.5)} if constrained else {},
        schedule={"weight": Schedule([0.1])},
        phases=phases,
    )


def put(journal, command: Command) -> None:
    """A request as `steer` writes it, but with a time and a name that are always the same."""
    store = FileJournal(journal).store
    store.make()
    store.write(command.name, dataclasses.replace(command, at="noon", id=f"{command}".ljust(32)).encoded())


def run(journal, asked=None, *, driver="adam", die_after=None, max_steps=16, of=problem, **options):
    """A run that is asked for things after some steps, and may die after one."""

    def on_step(record, design, evaluation):
        for command in (asked or {}).get(record.step, ()):
            put(journal, command)
        if record.step == die_after:
            raise KeyboardInterrupt

    observers = [Observer(on_step=on_step)]
    kwargs = {"stop": MaxSteps(max_steps), "observers": observers, "transform": eqx.filter_jit, **options}
    with pytest.raises(KeyboardInterrupt) if die_after is not None else contextlib.nullcontext():
        return optimize(of(), driver, journal=journal, **kwargs)


CHANGES = {
    "learning rate": Command(changes={"learning_rate": 0.2}),
    "stop": Command(changes={"stop": {"max_steps": 11}}),
    "bounds": Command(changes={"bounds": {"x": [-2.0, [2.5, 5.0]]}}),
    "number": Command(changes={"schedule": {"weight": 3.0}}),
}
SLOWER = ("learning rate", "stop", "bounds")
PAUSE, GO_ON, STOP, RELEASE = (Command(do=do) for do in ("pause", "go-on", "stop", "release"))


@pytest.mark.parametrize("what", ["number", *(pytest.param(one, marks=pytest.mark.slow) for one in SLOWER)])
def test_killed_after_it_was_changed_it_comes_to_the_same_bits(tmp_path, what):
    asked = {4: [CHANGES[what]]}
    whole = run(tmp_path / "whole", asked)
    (event,) = whole.history[5].events
    assert event == f"by hand (Python, noon), after step 4: changed: {CHANGES[what]}"
    assert read_journal(tmp_path / "whole").history == whole.history
    # Dead when it was asked and had not looked, and later.
    for die_after in (4, 7):
        journal = tmp_path / f"killed-{die_after}"
        run(journal, asked, die_after=die_after)
        assert same_bits(run(journal), whole)
    # The checkpoints after the change are gone: it is made once more.
    run(tmp_path / "lost", asked, die_after=6)
    for step in (5, 6):
        (tmp_path / "lost" / f"step-{step:08d}.ckpt").unlink()
    assert same_bits(run(tmp_path / "lost"), whole)


@pytest.mark.parametrize(
    "driver", ["slsqp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lbfgs", "mma"))]
)
def test_drivers_that_search_or_own_their_loop_begin_anew_within_other_bounds(tmp_path, driver):
    of = functools.partial(problem, constrained=True)
    asked = {2: [CHANGES["bounds"]], 3: [CHANGES["number"]]}
    options = {"driver": driver, "of": of, "max_steps": 9}
    whole = run(tmp_path / "whole", asked, **options)
    assert [record.step for record in whole.history if record.since == record.step] == [0, 3, 4]
    assert float(whole.design["x"][1]) < 0.0  # where it could not go before
    run(tmp_path / "killed", asked, die_after=5, **options)
    assert same_bits(run(tmp_path / "killed", **options), whole)


def test_changes_have_the_effect_of_what_was_asked_for_from_the_beginning(tmp_path):
    """With plain gradient steps a run has no memory, so a changed one goes on like one that began there."""
    changed = run(tmp_path / "a", {3: [CHANGES["learning rate"]]}, driver="sgd", max_steps=9)
    run(tmp_path / "b", driver="sgd", max_steps=3)
    options = {"start_from": (tmp_path / "b", "last"), "learning_rate": 0.2, "max_steps": 6}
    after = run(tmp_path / "c", driver="sgd", **options)
    assert [r.value for r in changed.history[4:]] == pytest.approx([r.value for r in after.history[1:]], rel=1e-12)


def test_a_newer_word_about_when_to_stop_holds(tmp_path):
    assert run(tmp_path, {4: [CHANGES["stop"]]}).steps == 11
    assert run(tmp_path).steps == 11  # said before the request was made
    assert run(tmp_path, max_steps=20).steps == 20


def test_it_stops_with_the_best_so_far_and_goes_on_when_told_to(tmp_path):
    whole = run(tmp_path / "whole")
    stopped = run(tmp_path / "run", {5: [STOP]})
    assert stopped.steps == 5 and stopped.reason.startswith("stopped by hand after step 5") and not stopped.converged
    assert run(tmp_path / "run").steps == 5
    steer(tmp_path / "run", "go-on")
    again = run(tmp_path / "run")
    assert again.steps == 16 and again.value == whole.value
    assert [event.partition(": ")[2] for event in again.history[6].events] == ["stopped", "went on"]


def test_it_waits_while_it_is_paused_and_that_costs_no_time(tmp_path):
    ticks = iter(range(10**6))
    waits = []

    def asleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            put(tmp_path, GO_ON)

    result = run(tmp_path, {5: [PAUSE]}, sleep=asleep, clock=lambda: float(next(ticks)))
    assert result.steps == 16 and len(waits) == 3
    assert [event.partition(": ")[2] for event in result.history[6].events] == ["paused", "went on"]
    # Killed while it was paused: it is paused still.
    run(tmp_path / "b", {5: [PAUSE]}, die_after=5)

    def killed(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", sleep=killed)
    assert read_journal(tmp_path / "b").reason == "interrupted (KeyboardInterrupt)"
    put(tmp_path / "b", GO_ON)
    assert same_bits(run(tmp_path / "b"), result)


def test_a_phase_may_wait_for_approval(tmp_path):
    phases = [Phase(stop={"max_steps": 4}), Phase(approve=True, name="sharp")]
    waits = []

    def asleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            steer(tmp_path, "go-on")

    of = functools.partial(problem, phases=phases)
    result = run(tmp_path, of=of, sleep=asleep)
    assert len(waits) == 2 and {record.phase for record in result.history} == {0, 1}
    assert any("went on, which approves of phase 2 of 2, 'sharp'" in event for event in result.history[5].events)
    assert same_bits(run(tmp_path, of=of), result)
    with pytest.raises(ProblemError, match="needs a journal"):
        run(None, of=of)


def test_what_cannot_be_done_is_refused_and_harms_nobody(tmp_path):
    run(tmp_path, max_steps=3)
    wrong: Any
    for wrong, says in (
        ({"learning_rate": 0.0}, "positive"),
        ({"learning_rate": float("nan")}, "positive"),
        ({"stop": {"max_step": 3}}, "Did you mean 'max_steps'"),
        ({"stop": {"max_steps": -1}}, "not below 0"),
        ({"bounds": {"y": [0, 1]}}, "What varies: x"),
        ({"bounds": {"x": [0, 1]}}, "lies outside"),
        ({"bounds": {"x": [1, 0]}}, "above its upper"),
        ({"bounds": {"x": [[1, 2, 3], None]}}, "do not fit"),
        ({"schedule": {"wait": 1.0}}, "Did you mean 'weight'"),
        ({"schedule": {"weight": [1, 2]}}, "the one number"),
        ({}, "Nothing is asked for"),
        ({"do": "stp"}, "Did you mean 'stop'"),
        ({"do": "stop", "learning_rate": 1.0}, "one thing at a time"),
    ):
        with pytest.raises(SteeringError, match=says):
            steer(tmp_path, **wrong)
    with pytest.raises(JournalError, match="no journal"):
        steer(tmp_path / "nowhere", "stop")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("steer-")]
    # What has got there all the same.
    whole = run(tmp_path / "whole")
    bad = [Command(changes={"bounds": {"x": [0.0, 0.5]}}), Command(changes={"schedule": {"wait": 1.0}}), RELEASE]
    result = run(tmp_path / "bad", {4: bad})
    assert [record.value for record in result.history] == [record.value for record in whole.history]
    assert [event.split(", ")[2].split(":")[0] for event in result.history[5].events] == ["refused after step 4"] * 3
    (tmp_path / "bad" / "steer-00000000000000000000-00000000.json").write_bytes(b'{"do": "stop"')
    assert run(tmp_path / "bad", max_steps=17).steps == 17
    assert (tmp_path / "bad" / "steer-00000000000000000000-00000000.json.refused").exists()


@pytest.mark.parametrize("driver", ["slsqp", "cma-es", "adadelta"])
def test_only_a_learning_rate_that_there_is_can_be_changed(tmp_path, driver):
    result = run(tmp_path, {1: [CHANGES["learning rate"]]}, driver=driver, max_steps=3)
    (event,) = result.history[2].events
    assert ("refused" in event) == (driver != "adadelta")


def test_a_request_is_for_its_owner_alone_and_says_when_it_was_met(tmp_path):
    run(tmp_path, max_steps=2)
    asked = steer(tmp_path, stop={"max_steps": 4}, by="me")
    (path,) = (path for path in tmp_path.iterdir() if path.name.startswith("steer-"))
    assert asked.step is None and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run(tmp_path, max_steps=2).steps == 4
    (action,) = read_contents(tmp_path).actions
    assert action["step"] == 2 and action["by"] == "me" and action["id"] == asked.command.id and not path.exists()


def test_a_journal_whose_identity_is_gone_does_not_go_on_as_if_nobody_had_steered(tmp_path):
    run(tmp_path, {2: [CHANGES["learning rate"]]}, max_steps=5)
    for path in tmp_path.glob("identity*.json"):
        path.unlink()
    with pytest.raises(JournalError, match="nobody can tell whose"):
        run(tmp_path)
