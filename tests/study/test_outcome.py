"""What runs are together: the best, ranks, optima and fronts, whatever order they came in; and as files."""

from __future__ import annotations

import csv
import importlib
import itertools
import math

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings

import tesseract_flow as tf
from tesseract_flow.errors import EvaluationFailed, OptionError, ProblemError
from tesseract_flow.study import MultiStart, StudyRun, Sweep
from tests.study.helpers import failed, run

KINDS = st.sampled_from(["converged", "stopped", "infeasible", "nan", "failed"])


@st.composite
def some_runs(draw):
    kinds = draw(st.lists(KINDS, min_size=1, max_size=7))
    made = []
    for k, kind in enumerate(kinds):
        value = draw(st.sampled_from([-2.0, -1.0, 0.0, 3.5]))
        at = draw(st.sampled_from([(0.0, 0.0), (1.0, -1.0), (1e-4, 0.0)]))
        match kind:
            case "failed":
                made.append(failed(k))
            case "nan":
                made.append(run(k, math.nan, at))
            case "infeasible":
                made.append(run(k, value - 10.0, at, feasible=False, violation=draw(st.sampled_from([0.1, 2.0]))))
            case _:
                made.append(run(k, value, at, converged=kind == "converged"))
    return made


@settings(max_examples=60, deadline=None)
@given(runs=some_runs(), random=st.randoms())
def test_the_order_of_runs_decides_nothing(runs, random):
    shuffled = list(runs)
    random.shuffle(shuffled)
    a, b = MultiStart("fin", runs), MultiStart("fin", shuffled)
    assert [one.key for one in a.ranked] == [one.key for one in b.ranked]
    assert [[one.key for one in group] for group in a.optima] == [[one.key for one in group] for group in b.optima]
    assert a.table() == b.table()
    feasible = [one for one in runs if one.result and one.result.feasible and math.isfinite(one.result.value)]
    if feasible:
        assert a.best.feasible and a.best.value == min(one.result.value for one in feasible)
    elif any(one.result for one in runs):
        finite = [one for one in runs if one.result and math.isfinite(one.result.value)]
        assert not finite or a.best.violation == min(one.result.violation for one in finite)


def test_a_run_that_diverged_is_never_the_best():
    study = MultiStart("fin", [run(0, math.nan), run(1, -math.inf), run(2, 7.0), failed(3)])
    assert study.best.value == 7.0
    assert [one.index for one in study.ranked] == [2, 0, 1, 3]


def test_without_a_feasible_design_the_least_violation_is_best_and_says_so():
    study = MultiStart("fin", [run(0, -9.0, feasible=False, violation=2.0), run(1, 5.0, feasible=False, violation=0.5)])
    assert (study.best.value, study.best.feasible) == (5.0, False)
    assert "2 converged; no feasible design; 16 requests" in study.table()
    assert study.table().splitlines()[2].split()[:5] == ["1", "1", "5", "no", "0.5"]


def test_of_equal_values_the_converged_one_is_best():
    study = MultiStart("fin", [run(0, 1.0, (0.0, 0.0), converged=False), run(1, 1.0, (2.0, 0.0))])
    assert study.best_run.index == 1


def test_without_any_design_there_is_no_best_and_the_first_error_is_said():
    study = Sweep("fin", [failed(0), failed(1)])
    with pytest.raises(EvaluationFailed, match=r"None of the 2 runs of 'fin' has a design.*mesh has negative volumes"):
        _ = study.best
    assert "2 runs, 2 failed" in study.table()


def test_optima_are_designs_and_begin_with_a_run_that_converged():
    runs = [
        run(0, -1.0, (1.0, 0.0)),
        run(1, -1.0, (-1.0, 0.0)),
        run(2, -1.0 - 1e-12, (1.0 + 1e-3, 0.0), converged=False),
        run(3, -1.0, (1.0 - 5e-3, 0.0)),
        run(4, 4.0, (1.0, 9.0), converged=False),
        run(5, -5.0, (1.0, 0.0), feasible=False, violation=1.0),
    ]
    study = MultiStart("fin", runs)
    assert [[one.index for one in group] for group in study.optima] == [[1], [3, 0, 2]]
    optimum = {row["run"]: row["optimum"] for row in study.rows()}
    assert optimum == {0: 2, 1: 1, 2: 2, 3: 2, 4: None, 5: None}
    assert "2 distinct optima" in study.table()
    assert "optimum" not in Sweep("fin", runs).rows()[0]


def dominated(point, others):
    return any(all(o <= p for o, p in zip(other, point, strict=True)) and other != point for other in others)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_the_front_is_what_nobody_beats(points):
    runs = [
        run(k, float(a), aux={"flow": {"drag": jnp.asarray(float(b))}}, constraints={"area": jnp.asarray([float(c)])})
        for k, (a, b, c) in enumerate(points)
    ]
    front = MultiStart("fin", runs).pareto(["value", "flow.drag", "area"])
    assert sorted(one.index for one in front) == [k for k, p in enumerate(points) if not dominated(p, points)]
    mirrored = [
        run(k, float(a), aux={"lift": -float(b), "area": -c}, constraints={}) for k, (a, b, c) in enumerate(points)
    ]
    same = MultiStart("fin", mirrored).pareto(["value", "lift", "area"], maximize=["lift", "area"])
    assert {one.index for one in same} == {one.index for one in front}


def test_a_front_has_feasible_numbers_only():
    runs = [
        run(0, 1.0, aux={"drag": 1.0}),
        run(1, 0.0, aux={"drag": 0.0}, feasible=False, violation=1.0),
        run(2, 0.5, aux={"drag": math.nan}),
        failed(3),
    ]
    assert [one.index for one in MultiStart("fin", runs).pareto(["value", "drag"])] == [0]


@pytest.mark.parametrize(
    ("objectives", "maximize", "says"),
    [
        (["value", "darg"], (), "Did you mean 'drag'"),
        (["value", "field"], (), "'field' is not one number"),
        (["value", "kind"], (), "'kind' is not one number"),
        ("value", (), "a list of names"),
        ([], (), "a list of names"),
        (["value"], ["drag"], "none of the objectives"),
    ],
)
def test_what_is_no_objective_is_refused(objectives, maximize, says):
    study = MultiStart("fin", [run(0, aux={"drag": jnp.asarray(1.0), "field": jnp.ones(3), "kind": "fin"})])
    with pytest.raises(ProblemError, match=says):
        study.pareto(objectives, maximize=maximize)


def study_with_everything():
    swept = StudyRun(
        index=3, key="b", settings={"load": 1.5, "mesh": [1, 2], "token": "abc", "url": "http://bob:pw@solver"}
    )
    return Sweep("fin", [run(0, 0.1 + 0.2, (1 / 3, -2.0)), failed(1, 'bad "mesh", sorry\nline 2'), swept], ["a note"])


def test_csv_reads_back_as_the_same_numbers(tmp_path):
    study_with_everything().to_csv(tmp_path / "new" / "runs.csv")
    text = (tmp_path / "new" / "runs.csv").read_text()
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["value"]) == 0.1 + 0.2 and float(rows[0]["design.x[0]"]) == 1 / 3
    assert rows[0]["setting.load"] == "" and rows[1]["setting.mesh"] == "[1, 2]"
    assert rows[2]["error"] == 'bad "mesh", sorry\nline 2'
    assert "abc" not in text and "pw@" not in text


def test_parquet_reads_back_as_the_same_numbers(tmp_path):
    study_with_everything().to_parquet(tmp_path / "runs.parquet")
    found = parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert [row["value"] for row in found] == [0.1 + 0.2, None, None]
    assert found[0]["design.x[0]"] == 1 / 3 and found[0]["requests"] == 8
    assert found[1]["setting.url"] == "http://***@solver"


def test_without_pyarrow_the_remedy_is_said(tmp_path, monkeypatch):
    def import_module(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(OptionError, match=r"pip install 'tesseract-flow\[parquet\]'"):
        study_with_everything().to_parquet(tmp_path / "runs.parquet")
    assert not list(tmp_path.iterdir())


def test_large_designs_leave_the_table_readable(tmp_path):
    big = run(0, 1.0, np.arange(101.0))
    assert not any(name.startswith(("design", "start")) for name in Sweep("fin", [big]).rows()[0])
    wide = Sweep("fin", [run(0, 1.0, np.arange(5.0))])
    assert "design.x[4]" in wide.rows()[0] and "x[4]" not in wide.table()


def test_the_table_is_for_a_terminal():
    study = study_with_everything()
    lines = study.table().splitlines()
    assert lines[0] == "sweep of 'fin': 3 runs, 1 converged, 2 failed; 9 requests"
    assert lines[1].split()[:3] == ["rank", "run", "load"]
    assert lines[-1] == "note: a note"
    assert 'bad "mesh", sorry' in lines[4] and "line 2" not in study.table()
    assert "***" in study.table() and "abc" not in study.table() and "abc" not in repr(study.runs[2])
    assert "... 2 more" in study.table(limit=1)
    assert all(line.isascii() for line in lines)
    assert len({len(line) for line in itertools.islice(study.table().splitlines(), 1, 3)}) <= 2


def test_a_run_that_ended_in_an_earlier_stage_is_not_the_best_for_it():
    def evaluate(x, scheduled):
        return scheduled["weight"] * ((x - 1.0) ** 2 + 1.0)

    problem = tf.Problem(jnp.asarray(9.0), evaluate, schedule={"weight": tf.Schedule([1.0, 1000.0])})
    starts = [jnp.asarray(9.0), jnp.asarray(1.0)]
    study = tf.multi_start(
        problem, 2, "adam", starts=starts, stop=[tf.optimize.FirstOrder(1e-6), tf.optimize.MaxSteps(2)]
    )
    late, early = study.ranked
    assert (late.stages_left, early.stages_left) == (0, 1)
    assert late.result.value == 1000.0 > early.result.value
    assert "before 1 of its 2 stages" in early.why
    assert study.pareto(["value"]) == [late]
