"""The files of a run from its journal: of any run, at any time."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import tesseract_flow as tf
from tesseract_flow.errors import JournalError, OtherRun
from tesseract_flow.optimize import MaxSteps, Problem, optimize
from tesseract_flow.report import Reporting, report, write_result
from tesseract_flow.storage import open_store
from tests.optimize.test_failures import wall

FILES = {"result.json", "design.npz", "design.json", "history.csv", "report.html"}


def bowl(target: float = 3.0, **kwargs) -> Problem:
    def evaluate(design):
        return ((design["x"] - target) ** 2).sum()

    return Problem({"x": jnp.array([0.0, 1.0]), "label": "b"}, evaluate, name="Bowl", **kwargs)


def test_made_again_it_is_the_same(tmp_path):
    problem = bowl()
    result = optimize(problem, stop=MaxSteps(5), journal=tmp_path / "run" / "journal", transform=jax.jit)
    write_result(tmp_path / "own", result, problem)
    written = tf.report(tmp_path / "run")  # the folder of a run, which has its journal in it
    assert written == {name: str(tmp_path / "run" / name) for name in FILES}
    for name in ("result.json", "design.json", "history.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "own" / name).read_text(), name
    pages = [re.sub(r"(?s)<svg.*?</svg>", "", (tmp_path / k / "report.html").read_text()) for k in ("run", "own")]
    assert pages[0] == pages[1]  # names inside of pictures are random
    with np.load(written["design.npz"]) as again, np.load(tmp_path / "own" / "design.npz") as own:
        assert again["x"].tobytes() == own["x"].tobytes()
    assert tf.read_journal(tmp_path / "run" / "journal").value == result.value


def test_events_are_in_history_result_and_page(tmp_path):
    optimize(wall("raises"), "lbfgs", journal=tmp_path / "journal")
    report(tmp_path / "journal", tmp_path / "out")
    events = json.loads((tmp_path / "out" / "result.json").read_text())["events"]
    assert [event["step"] for event in events] == [2, 2, 3, 3]
    assert "mesh has negative volumes" in events[0]["event"]
    assert "4 evaluations failed, the first at x = 9" in (tmp_path / "out" / "history.csv").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Events</h2>" in page and "the line search stepped back" in page


class Stop(BaseException):
    pass


def interrupting(at: int, error: BaseException):
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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stop(), RuntimeError("no space left")])
def test_a_run_that_ends_early_leaves_what_it_has(tmp_path, error):
    with pytest.raises(type(error)), Reporting(tmp_path / "journal", tmp_path) as reporting:
        optimize(bowl(), journal=tmp_path / "journal", transform=interrupting(4, error), observers=[reporting])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 2 and result["converged"] is False
    assert type(error).__name__ in result["reason"] or "no space left" in result["reason"]
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    assert (tmp_path / "history.csv").read_text().count("\n") == 4


def test_a_run_that_never_began_leaves_the_results_of_others_alone(tmp_path):
    optimize(bowl(), stop=MaxSteps(3), journal=tmp_path / "journal", transform=jax.jit)
    with pytest.raises(OtherRun), Reporting(tmp_path / "journal", tmp_path / "out") as reporting:
        optimize(bowl(4.0), stop=MaxSteps(3), journal=tmp_path / "journal", observers=[reporting])
    assert not (tmp_path / "out").exists()


def test_the_problems_own_picture_is_on_the_page(tmp_path):
    def picture(design, evaluation):
        figure = Figure()
        figure.text(0.5, 0.5, f"drawn at {evaluation.objective:.3f}")
        return figure

    with Reporting(tmp_path / "journal", tmp_path) as reporting:
        optimize(
            bowl(picture=picture),
            stop=MaxSteps(2),
            journal=tmp_path / "journal",
            transform=jax.jit,
            observers=[reporting],
        )
    assert set(reporting.written) == FILES
    assert "<h2>Design</h2>" in (tmp_path / "report.html").read_text()


def test_an_error_of_the_run_is_not_hidden_by_one_of_writing(tmp_path, caplog):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(KeyboardInterrupt), Reporting(tmp_path / "journal", tmp_path / "out") as reporting:
        optimize(
            bowl(), journal=tmp_path / "journal", transform=interrupting(3, KeyboardInterrupt()), observers=[reporting]
        )
    assert "could not be written" in caplog.text


def test_what_cannot_be_told_is_said(tmp_path):
    with pytest.raises(JournalError, match="There is no journal"):
        report(tmp_path / "nowhere")
    with pytest.raises(JournalError, match="There is no journal"):
        report("memory://account/nowhere")


def test_journal_and_report_at_a_url():
    optimize(bowl(), stop=MaxSteps(2), journal="memory://account/run/journal", transform=jax.jit)
    assert report("memory://account/run")["report.html"] == "memory://account/run/report.html"
    assert {*FILES, "journal"} <= set(open_store("memory://account/run").names())
