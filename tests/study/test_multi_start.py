"""Runs from several starts: each as it would be alone, all resumable as one, and no request for nothing."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tesseract_flow as tf
from tesseract_flow.errors import (
    BoundsError,
    ComponentFailed,
    DriverError,
    EvaluationFailed,
    JournalError,
    OtherRun,
    ProblemError,
    UnknownArgument,
)
from tesseract_flow.optimize import MaxSteps, Observer, read_journal
from tesseract_flow.study import StudyObserver
from tests.optimize.helpers import same_bits
from tests.study.helpers import CAMEL_OPTIMUM, camel, camel_component, camel_problem, found

THREE = MaxSteps(3)


def served(tesseract=None, **options):
    """The camel, asked of a component."""
    component = tesseract or camel_component()

    def evaluate(design):
        return tf.apply_tesseract(component, {"x": design["x"], "y": design["y"]})["value"]

    return camel_problem(evaluate, **options)


def same_study(a, b):
    return [one.key for one in a.runs] == [one.key for one in b.runs] and all(
        same_bits(found(one), found(other)) for one, other in zip(a.runs, b.runs, strict=True)
    )


def test_the_lowest_of_six_humps_is_found_though_the_start_leads_to_another():
    alone = tf.optimize(camel_problem(), "l-bfgs-b")
    study = tf.multi_start(camel_problem(), 6, "l-bfgs-b", seed=3)
    assert alone.value > 2.0 and alone.converged
    assert study.best.value == pytest.approx(CAMEL_OPTIMUM, abs=1e-12)
    assert study.best.converged and study.best.design["label"] == "camel"
    assert same_bits(found(study.runs[0]), alone)
    assert len(study.optima) >= 2
    for group in study.optima:
        assert np.ptp([found(run).value for run in group]) < 1e-9


@pytest.mark.parametrize("driver", ["adam", pytest.param("slsqp", marks=pytest.mark.slow)])
def test_each_run_has_the_bits_and_requests_that_it_has_alone(driver):
    component = camel_component()
    options = {"stop": THREE, **({"learning_rate": 0.05} if driver == "adam" else {})}
    with tf.count_requests() as sent:
        study = tf.multi_start(served(component), 3, driver, max_workers=3, **options)
    assert study.requests == study.sent == sent.n_solves == sum(run.requests for run in study.runs)
    for run in study.runs:
        with tf.count_requests() as alone:
            assert run.problem is not None
            result = tf.optimize(run.problem, driver, **options)
        assert same_bits(found(run), result)
        assert run.requests == found(run).requests == result.requests == alone.n_solves > 0


def test_finished_runs_are_not_repeated_and_an_interrupted_study_is_an_undisturbed_one(tmp_path):
    options = {"stop": MaxSteps(4), "learning_rate": 0.05, "max_workers": 2}
    whole = tf.multi_start(served(), 4, "adam", **options)

    class Enough(Exception):
        pass

    def after(index, record):
        if (index, record.step) == (2, 2):
            raise Enough

    with pytest.raises(Enough):
        tf.multi_start(served(), 4, "adam", journal=tmp_path, observers=[StudyObserver(on_step=after)], **options)
    with tf.count_requests() as rest:
        resumed = tf.multi_start(served(), 4, "adam", journal=tmp_path, **options)
    assert same_study(resumed, whole)
    assert 0 < rest.n_solves < whole.requests == resumed.requests
    assert rest.n_solves == resumed.sent
    with tf.count_requests() as nothing:
        again = tf.multi_start(served(), 4, "adam", journal=tmp_path, **options)
    assert nothing.n_solves == again.sent == 0
    assert same_study(again, whole) and again.requests == whole.requests
    assert not again.notes
    assert read_journal(str(again.best_run.journal)).value == again.best.value


def test_what_a_text_cannot_tell_of_finished_runs_is_compared_at_their_last_points(tmp_path):
    options = {"driver": "adam", "journal": tmp_path, "stop": THREE}
    first = tf.multi_start(served(camel_component(version=None)), 2, **options)
    with tf.count_requests() as sent:
        again = tf.multi_start(served(camel_component(version=None)), 2, **options)
    assert sent.n_solves == again.sent == 4 and again.requests == first.requests and not again.notes
    assert same_study(again, first)
    with tf.count_requests() as sent:
        believed = tf.multi_start(served(camel_component(version=None)), 2, recheck=False, **options)
    assert sent.n_solves == 0
    assert "2 finished runs were taken from the journal as they are" in believed.notes[0]
    assert "recheck=False" in believed.table()
    # What goes on is compared, as a run alone is.
    longer = tf.multi_start(served(camel_component(version=None)), 2, driver="adam", journal=tmp_path, stop=MaxSteps(5))
    assert not longer.notes and [found(run).steps for run in longer.runs] == [5, 5]


def test_finished_runs_of_a_component_that_is_another_one_by_now_are_refused(tmp_path):
    def redeployed(version):
        component = camel_component(version=version)
        component.fn = lambda inputs: {"value": 1.5 * camel(inputs)}
        return served(component)

    options = {"driver": "adam", "journal": tmp_path, "stop": THREE}
    first = tf.multi_start(served(camel_component(version=None)), 2, **options)
    with pytest.raises(OtherRun, match="objective at step 3"):
        tf.multi_start(redeployed(None), 2, **options)
    with tf.count_requests() as sent:
        accepted = tf.multi_start(redeployed(None), 2, accept_changes=True, **options)
    assert sent.n_solves > 0
    for before, after in zip(first.runs, accepted.runs, strict=True):
        # The design is judged anew, in a step of its own.
        assert found(after).steps == found(before).steps + 1
        assert found(after).value == pytest.approx(1.5 * found(before).history[-1].value)


def test_other_starts_join_those_that_are_there(tmp_path):
    options = {"driver": "adam", "stop": THREE, "journal": tmp_path, "starts": "sobol"}
    first = tf.multi_start(served(), 2, **options)
    with tf.count_requests() as sent:
        more = tf.multi_start(served(), 3, **options)
    assert sent.n_solves == more.runs[2].requests
    assert [run.key for run in more.runs[:2]] == [run.key for run in first.runs]
    assert len(more) == 3 and not more.notes
    with tf.count_requests() as sent:
        other = tf.multi_start(served(), 2, seed=9, **options)
    assert sent.n_solves == other.runs[1].requests
    assert len(list(Path(tmp_path).glob("start-*"))) == 4
    assert "2 other runs are in" in other.notes[0]


def test_a_changed_problem_is_refused_before_anything_is_asked(tmp_path):
    options = {"driver": "adam", "stop": THREE, "journal": tmp_path}
    tf.multi_start(served(), 2, **options)
    for changed in (served(scale=2.0), served(bounds=(-2.0, 2.0)), served(camel_component(version="2.0"))):
        with tf.count_requests() as sent, pytest.raises(OtherRun, match="->") as refused:
            tf.multi_start(
                changed, 2, seed=5, starts=[{"x": 1.0, "y": 1.0}, {"x": 1.5, "y": 1.0}][:2] and "sobol", **options
            )
        assert sent.n_solves == 0 and refused.value.changes
    with pytest.raises(OtherRun, match="driver"):
        tf.multi_start(served(), 2, **{**options, "driver": "sgd"})
    accepted = tf.multi_start(served(scale=2.0), 2, accept_changes=True, **options)
    assert len(accepted) == 2
    with pytest.raises(OtherRun, match="kind: 'multi-start' -> 'sweep'"):
        tf.sweep(lambda: served(), [{}], "adam", journal=tmp_path)


def test_failures_are_rows_and_end_nothing():
    def before(endpoint, inputs):
        if endpoint == "apply" and inputs["x"] > 0:
            raise ComponentFailed("mesh has negative volumes")

    starts = [{"x": x, "y": 0.5} for x in (-1.0, 1.0, -2.0, 2.0)]
    study = tf.multi_start(served(camel_component(before)), driver="sgd", learning_rate=1e-3, starts=starts, stop=THREE)
    assert [run.status for run in study.runs] == ["stopped", "failed", "stopped", "failed"]
    assert str(study.runs[1].error).startswith("mesh has negative volumes") and study.runs[1].result is None
    assert study.runs[1].requests >= 1
    assert study.best.value == min(run.result.value for run in study.runs if run.result)
    assert "mesh has negative volumes" in study.table()
    with pytest.raises(EvaluationFailed, match="mesh has negative volumes") as raised:
        tf.multi_start(served(camel_component(before)), driver="sgd", starts=starts, stop=THREE, on_failure="raise")
    assert any("of the study" in note for note in raised.value.__notes__)


def test_failed_runs_are_tried_again(tmp_path):
    broken = True

    def before(endpoint, inputs):
        if broken and endpoint == "apply" and inputs["x"] > 0:
            raise ComponentFailed("out of licences")

    options = {"driver": "adam", "starts": [{"x": -1.0, "y": 0.5}, {"x": 1.0, "y": 0.5}], "stop": THREE}
    first = tf.multi_start(served(camel_component(before)), journal=tmp_path, **options)
    broken = False
    with tf.count_requests() as sent:
        second = tf.multi_start(served(camel_component(before)), journal=tmp_path, **options)
    assert [run.status for run in first.runs] == ["stopped", "failed"]
    assert [run.status for run in second.runs] == ["stopped", "stopped"]
    assert sent.n_solves == second.runs[1].requests
    assert same_study(second, tf.multi_start(served(), **options))


def test_an_error_in_the_problem_is_raised_as_it_is():
    with pytest.raises(ProblemError, match="must be a scalar"):
        tf.multi_start(camel_problem(lambda design: jnp.stack([design["x"], design["y"]])), 3)
    with pytest.raises(DriverError, match="Did you mean 'lbfgs'"):
        tf.multi_start(camel_problem(), 3, "lbfgz")
    with pytest.raises(BoundsError, match="spread="):
        tf.multi_start(camel_problem(bounds=None), 3)
    with pytest.raises(ProblemError, match="takes a Problem, received str"):
        tf.multi_start("folder/problem.py:factory")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_step": 3}, "Did you mean 'max_steps'"),
        ({"max_steps": 3}, r"stop=\{'max_steps': 3\}"),
        ({"bounds": (0, 1)}, "belongs to the problem"),
        ({"max_worker": 3}, "Did you mean 'max_workers'"),
        ({"start_from": "runs/a"}, "starts="),
        ({"run_step": None}, "no steps of its own"),
        ({"count": None}, "counts its own"),
    ],
)
def test_keywords_that_belong_elsewhere(options, says):
    with pytest.raises(UnknownArgument, match=says):
        tf.multi_start(camel_problem(), 3, **options)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "4"])
def test_workers_are_a_number(workers):
    with pytest.raises(ProblemError, match="max_workers"):
        tf.multi_start(camel_problem(), 3, max_workers=workers)


def test_folders_of_others_are_left_alone(tmp_path):
    tf.optimize(camel_problem(), "adam", stop=THREE, journal=tmp_path / "single")
    before = sorted(path.name for path in (tmp_path / "single").iterdir())
    with pytest.raises(JournalError, match="the journal of a single run"):
        tf.multi_start(camel_problem(), 2, "adam", journal=tmp_path / "single")
    assert sorted(path.name for path in (tmp_path / "single").iterdir()) == before
    with pytest.raises(ProblemError, match="a folder or a URL"):
        tf.multi_start(camel_problem(), 2, "adam", journal=tf.optimize)  # type: ignore[arg-type]


def test_one_study_at_a_time_has_a_folder(tmp_path):
    def meanwhile(index, record):
        with pytest.raises(JournalError, match=r"in use|another"):
            tf.multi_start(camel_problem(), 2, "adam", journal=tmp_path)

    tf.multi_start(
        camel_problem(), 1, "adam", stop=MaxSteps(1), journal=tmp_path, observers=[StudyObserver(on_step=meanwhile)]
    )


@pytest.mark.parametrize("content", [b"{", b'{"identity": 3}'])
def test_a_damaged_file_of_the_study_costs_nothing(tmp_path, content):
    options = {"driver": "adam", "stop": THREE, "journal": tmp_path}
    whole = tf.multi_start(camel_problem(), 2, **options)
    (tmp_path / "study.json").write_bytes(content)
    assert same_study(tf.multi_start(camel_problem(), 2, **options), whole)
    assert json.loads((tmp_path / "study.json").read_text())["kind"] == "multi-start"


def test_a_journal_that_is_damaged_beyond_repair_is_a_row(tmp_path):
    options = {"driver": "adam", "stop": THREE, "journal": tmp_path}
    whole = tf.multi_start(camel_problem(), 2, **options)
    for file in Path(str(whole.runs[1].journal)).glob("*.ckpt"):
        file.write_bytes(b"nothing")
    again = tf.multi_start(camel_problem(), 2, **options)
    assert [run.status for run in again.runs] == ["stopped", "failed"]
    assert "no intact checkpoint" in str(again.runs[1].error)


def test_a_study_at_a_url(tmp_path):
    url = f"memory://studies/{tmp_path.name}"
    options = {"driver": "adam", "stop": THREE, "journal": url}
    first = tf.multi_start(served(), 2, **options)
    again = tf.multi_start(served(), 2, **options)
    assert same_study(first, again) and again.sent == 0
    assert str(again.runs[0].journal).startswith(url)


def test_an_interrupt_takes_effect_while_a_solver_works_and_finished_runs_are_kept(tmp_path):
    """As Ctrl-C does: the main thread waits, one run is over, and two are in calls that do not come back."""
    release, stuck, waited = threading.Event(), threading.Semaphore(0), []

    def before(endpoint, inputs):
        if endpoint == "apply" and inputs["x"] > 0:
            stuck.release()
            waited.append(release.wait(60.0))

    starts = [{"x": x, "y": 0.5} for x in (-1.0, 1.0, 2.0)]
    options = {"driver": "adam", "starts": starts, "stop": THREE, "journal": tmp_path}
    over, main = threading.Event(), threading.get_ident()

    def interrupt():
        assert over.wait(60.0)
        assert all(stuck.acquire(timeout=60.0) for _ in range(2))
        signal.pthread_kill(main, signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        with pytest.raises(KeyboardInterrupt) as interrupted:
            tf.multi_start(
                served(camel_component(before)),
                observers=[StudyObserver(on_run=lambda run: over.set())],
                max_workers=3,
                **options,
            )
        assert not waited  # for the solvers, by anybody
    finally:
        release.set()
        watcher.join()
    assert "1 of 3 runs were over" in interrupted.value.__notes__[0]
    with tf.count_requests() as sent:
        resumed = tf.multi_start(served(), **options)
    assert sent.n_solves == sum(run.requests for run in resumed.runs[1:])
    assert same_study(resumed, tf.multi_start(served(), **{**options, "journal": None}))


def test_observers_are_told_on_the_calling_thread():
    seen, thread = [], threading.get_ident()

    def note(*what):
        assert threading.get_ident() == thread
        seen.append(what)

    tf.multi_start(
        camel_problem(),
        2,
        "adam",
        stop=MaxSteps(1),
        observers=[
            StudyObserver(
                on_start=lambda name, n: note("start", name, n),
                on_step=lambda index, record: note("step", index, record.step),
                on_run=lambda run: note("run", run.index),
                on_finish=lambda study: note("finish", len(study)),
            )
        ],
    )
    assert seen[0] == ("start", "camel", 2) and seen[-1] == ("finish", 2)
    assert sorted(seen[1:-1]) == [("run", 0), ("run", 1), *(("step", k, step) for k in (0, 1) for step in (0, 1))]


def test_precision_is_that_of_the_caller():
    design = {"x": np.ones(2, np.float64)}
    with jax.enable_x64(False):
        problem = tf.Problem({"x": jnp.ones(2)}, lambda d: jnp.sum(d["x"] ** 2), bounds=(-1.0, 2.0))
        study = tf.multi_start(problem, 2, "adam", stop=MaxSteps(1))
        assert [found(run).design["x"].dtype for run in study.runs] == [jnp.float32] * 2
    assert design["x"].dtype == np.float64


def test_equal_calls_of_several_runs_are_one_where_answers_are_kept():
    component = tf.open_tesseract(camel_component(), cache=True)
    starts = [{"x": 0.5, "y": 0.5}]
    first = tf.multi_start(served(component), driver="adam", starts=starts, stop=THREE)
    with tf.count_requests() as sent:
        second = tf.multi_start(served(component), driver="adam", starts=[*starts, {"x": 1.0, "y": 0.5}], stop=THREE)
    assert first.runs[0].requests > 0 == second.runs[0].requests
    assert sent.n_solves == second.requests == second.runs[1].requests


def test_watchers_of_single_runs_are_not_taken():
    with pytest.raises(UnknownArgument, match="StudyObserver"):
        tf.multi_start(camel_problem(), 2, observers=[Observer()])  # type: ignore[list-item]
