"""What a journal tells afterwards, of runs that ended in all kinds of ways, and of one that is still going."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow.errors import EvaluationFailed, OtherRun
from tesseract_flow.optimize import (
    Constraint,
    Evaluation,
    FileJournal,
    FirstOrder,
    MaxSteps,
    Observer,
    Problem,
    optimize,
    read_account,
    read_journal,
)

STOP = MaxSteps(6)


def problem(target: float = 3.0) -> Problem:
    def evaluate(design):
        x = design["mesh"]["x"]
        field = jnp.sqrt(x - 0.5) * design["weights"]
        return Evaluation(((x - target) ** 2 * design["weights"]).sum(), {"sum": x.sum()}, aux={"field": field})

    design = {
        "mesh": {"x": jnp.ones(2)},
        "weights": np.array([1.0, 2.0]),
        "n": 3,
        "url": "http://bob:hidden@solver",
        "fn": jnp.tanh,
        "none": None,
    }
    return Problem(
        design,
        evaluate,
        vary=jax.tree_util.tree_map_with_path(lambda path, leaf: path[0].key == "mesh", design),
        constraints={"sum": Constraint(upper=5.0, scale=2.0)},
        name="told",
    )


def ending(at: int, error: BaseException):
    def transform(fn):
        compiled, n = jax.jit(fn), 0

        def call(*args):
            nonlocal n
            n += 1
            if n == at:
                raise error
            return compiled(*args)

        return call

    return transform


def assert_same(told, result):
    names = ("value", "reason", "converged", "steps", "violation", "feasible", "evaluations", "requests", "notes")
    assert [getattr(told, name) for name in names] == [getattr(result, name) for name in names]
    assert told.history == result.history and told.seconds == result.seconds
    assert told.design["mesh.x"].tobytes() == np.asarray(result.design["mesh"]["x"]).tobytes()
    assert told.constraints["sum"] == result.constraints["sum"]
    assert told.multipliers["sum"] == pytest.approx(result.multipliers["sum"])
    assert told.evaluation.aux["field"].tolist() == result.evaluation.aux["field"].tolist()


def test_of_a_finished_run_it_tells_what_the_run_told(tmp_path):
    result = optimize(problem(), learning_rate=0.1, stop=STOP, journal=tmp_path, transform=jax.jit)
    told = read_account(tmp_path)
    assert_same(told.result, result)
    design = told.result.design
    assert list(design) == ["fn", "mesh.x", "n", "none", "url", "weights"]
    assert design["weights"].tolist() == [1.0, 2.0] and design["n"] == 3 and design["none"] is None
    assert "hidden" not in design["url"] and "hidden" not in (tmp_path / "about.json").read_text()
    assert told.problem == "told" and told.start["mesh.x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted (KeyboardInterrupt)"),
        (SystemExit(1), "interrupted (SystemExit)"),
        (RuntimeError("the disk is on fire\nand more"), "ended by an error: the disk is on fire"),
        (ZeroDivisionError(), "ended by an error: ZeroDivisionError"),
    ],
)
def test_of_one_that_ended_early_it_tells_the_finished_steps_and_why(tmp_path, error, reason):
    with pytest.raises(type(error)):
        optimize(problem(), learning_rate=0.1, stop=STOP, journal=tmp_path, transform=ending(4, error))
    told = read_journal(tmp_path)
    shorter = optimize(problem(), learning_rate=0.1, stop=MaxSteps(2), transform=jax.jit)
    assert (told.reason, told.converged, told.steps) == (reason, False, 2)
    assert told.value == shorter.value and told.design["mesh.x"].tolist() == shorter.design["mesh"]["x"].tolist()
    assert [record.value for record in told.history] == [record.value for record in shorter.history]
    # It goes on, and the end that was not the end is forgotten.
    result = optimize(problem(), learning_rate=0.1, stop=STOP, journal=tmp_path, transform=jax.jit)
    assert_same(read_journal(tmp_path), result)


def test_of_one_that_is_interrupted_while_a_step_is_written_it_tells_that_step_and_why(tmp_path):
    class Cut(FileJournal):
        def save(self, checkpoint, record):
            super().save(checkpoint, record)
            if checkpoint.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize(problem(), learning_rate=0.1, stop=STOP, journal=Cut(tmp_path), transform=jax.jit)
    told = read_journal(tmp_path)
    assert (told.steps, told.reason) == (3, "interrupted (KeyboardInterrupt)")


def test_success_is_not_told_of_an_older_design(tmp_path):
    result = optimize(problem(), "lbfgs", journal=tmp_path, transform=jax.jit)
    assert result.converged and read_journal(tmp_path).converged
    newest = sorted(tmp_path.glob("*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    told = read_journal(tmp_path)
    assert told.steps == result.steps - 1 and not told.converged and "not finished" in told.reason


def test_while_it_goes_it_tells_the_steps_so_far(tmp_path):
    told = []
    watch = Observer(on_step=lambda *_: told.append(read_journal(tmp_path)))
    stop = [STOP, FirstOrder(1e-9)]
    optimize(problem(), learning_rate=0.1, stop=stop, journal=tmp_path, transform=jax.jit, observers=[watch])
    assert [(result.steps, result.reason) for result in told] == [
        (k, f"not finished: the last step so far is {k}") for k in range(7)
    ]
    assert not any(result.converged for result in told)
    assert all(result.value == result.history[-1].best_value for result in told)
    assert {result.optimality.tolerance for result in told if result.optimality} == {1e-9}
    again = optimize(problem(), learning_rate=0.1, stop=stop, journal=tmp_path, transform=jax.jit)
    assert again.reason == read_journal(tmp_path).reason


def test_of_a_start_that_fails_it_tells_that_there_was_none(tmp_path):
    with pytest.raises(EvaluationFailed):
        optimize(problem(target=np.nan), journal=tmp_path, transform=jax.jit)
    told = read_journal(tmp_path)
    assert told.history == () and told.steps == 0 and np.isnan(told.value) and not told.feasible
    assert told.reason.startswith("ended by an error: the objective is nan")
    assert told.design["mesh.x"].tolist() == [1.0, 1.0]


def test_a_run_that_is_refused_changes_nothing_of_what_is_told(tmp_path):
    result = optimize(problem(), learning_rate=0.1, stop=STOP, journal=tmp_path, transform=jax.jit)
    for name in ("about.json", "outcome.json"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    with pytest.raises(OtherRun):
        optimize(problem(target=4.0), learning_rate=0.1, stop=STOP, journal=tmp_path, transform=jax.jit)
    assert_same(read_journal(tmp_path), result)


@pytest.mark.parametrize("damage", ["missing", "spoilt"])
def test_without_its_files_it_tells_what_the_checkpoint_knows(tmp_path, damage):
    result = optimize(problem(), learning_rate=0.1, stop=STOP, journal=tmp_path, transform=jax.jit)
    for name in ("about.json", "about.bin", "outcome.json"):
        if damage == "missing":
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(b"{" + bytes(100))
    told = read_account(tmp_path)
    assert told.problem == "told" and told.result.value == result.value and not told.result.converged
    assert list(told.result.design) == ["mesh.x"] and told.result.history == result.history


def test_a_design_that_is_one_array_comes_back_as_one():
    journal = FileJournal("memory://told/one")
    result = optimize(
        Problem(jnp.array([1.0, 2.0]), lambda x: (x**2).sum()), stop=STOP, journal=journal, transform=jax.jit
    )
    told = read_journal(journal)
    assert told.design.tobytes() == np.asarray(result.design).tobytes()
