"""The benchmarks run and their results can be read. No figure is asserted: those need a quiet machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cutest, results
from benchmarks.curves import Chart, Line, Panel
from benchmarks.measuring import Row, median_seconds
from benchmarks.notes import NOTES
from benchmarks.plots import draw

ROOT = Path(__file__).resolve().parents[1]
MET = Row("fast", "a fast call", "ms", 8.0, 10.0, "a peer", 0.8)
MISSED = Row("slow", "a slow call", "ms", 9.0, 10.0, "a peer", 0.8)
MACHINE = results.Machine("2026-01-01", "a processor", 2, "Linux", "3.11", {"jax": "0.10"}, (0.1, 1.5))
CHART = Chart(
    "calls",
    "Calls",
    [
        Panel("nodes", "ms", [Line("ours", [1, 2, 4], [1.0, 2.0, 4.0]), Line("ideal", [1, 4], [0.5, 0.5], True)]),
        Panel("steps", "ms", [Line("ours", list(range(50)), [1.0] * 50)], log=""),
    ],
)


def test_a_goal_is_the_largest_ratio():
    assert MET.is_met
    assert MISSED.ratio == 0.9
    assert not MISSED.is_met


def test_nothing_is_as_good_as_nothing_and_better_than_something():
    of_nothing = [Row("misses", "misses", "", ours, 0.0, "a peer", 1.0) for ours in (0.0, 3.0)]
    assert [row.ratio for row in of_nothing] == [1.0, math.inf]


def test_table_says_what_is_met_and_why_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(NOTES, "slow", "The server is slow.")
    text = results.markdown([MET, MISSED, MISSED], [CHART], MACHINE, is_quick=False)
    assert "| a fast call | 8 ms | 10 ms | a peer | 0.8 | ≤ 0.8 | yes |" in text
    assert "| a slow call | 9 ms | 10 ms | a peer | 0.9 | ≤ 0.8 | **no** |" in text
    assert "1 of 3 goals are met." in text
    assert text.count("The server is slow.") == 1
    assert "a processor, 2 cores" in text
    assert "![Calls](plots/calls.svg)" in text


def test_a_quick_run_gives_no_verdict():
    text = results.markdown([MET, MISSED], [], MACHINE, is_quick=True)
    assert "no figure here is to be relied on" in text
    assert "yes" not in text
    assert "**no**" not in text


def test_json_has_the_numbers_of_table_and_plots(tmp_path: Path):
    results.write(tmp_path / "results.md", [MET, MISSED], [CHART], MACHINE, is_quick=False)
    document = json.loads((tmp_path / "results.json").read_text())
    assert [row["is_met"] for row in document["rows"]] == [True, False]
    assert document["charts"][0]["panels"][0]["lines"][0]["y"] == [1.0, 2.0, 4.0]
    assert document["machine"]["load"] == [0.1, 1.5]


def test_same_numbers_same_plot(tmp_path: Path):
    first = draw(CHART, tmp_path / "a").read_bytes()
    assert first == draw(CHART, tmp_path / "b").read_bytes()
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert len(first) < 100_000


def test_functions_are_timed_in_turn():
    order: list[str] = []
    seconds = median_seconds([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["a", "b"] * 3  # once unmeasured
    assert all(s >= 0.0 for s in seconds)


@pytest.mark.slow
@pytest.mark.benchmark
def test_quick_run_leaves_table_and_plots(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--no-peers", "--only", "recipe", "--only", "steps"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    document = json.loads((tmp_path / "results.json").read_text())
    assert len(document["rows"]) == 6
    assert all(row["ours"] > 0.0 and row["peer"] > 0.0 for row in document["rows"])
    assert (tmp_path / "plots" / "steps.svg").exists()


def found(problem, driver, value=1.0, evaluations=5, **verdict) -> cutest.Found:
    verdict = {"claims": True, "is_solved": True, "is_false": False, **verdict}
    return cutest.Found(problem, driver, value, 0.0, evaluations, reason="", seconds=0.0, **verdict)


def test_of_standard_problems_evaluations_are_compared_where_both_solve_them():
    one = [
        found("a", "auto", evaluations=7),
        found("a", cutest.BY_HAND),
        found("b", "auto", is_solved=False, is_false=True),
        found("b", cutest.BY_HAND, evaluations=90),
    ]
    unsolved, evaluations, claims = cutest.rows_of(one, "auto")
    assert (unsolved.ours, unsolved.peer) == (1.0, 0.0) and not unsolved.is_met
    assert (evaluations.ours, evaluations.peer) == (7.0, 5.0) and "(1)" in evaluations.work
    assert claims.ours == 1.0 and not claims.is_met
    assert "| auto | 2 | 1 | 7 | 2 | 1 |" in cutest.table(one)


def test_a_false_claim_is_found_by_a_better_design_nearby():
    """The lower edge of a disc, as far down as x + y may go, and a point that is not there yet."""
    disc = cutest.Standard(
        "disc",
        np.array([0.0, 0.0]),
        np.full(2, -np.inf),
        np.full(2, np.inf),
        objective=lambda x: x.sum(),
        equalities=None,
        inequalities=lambda x: jnp.reshape(2.0 - (x**2).sum(), (1,)),
        optimum=-2.0,
    )
    right, early = np.array([-1.0, -1.0]), np.array([-1.2, -0.74])
    judged = [cutest.judged(disc, "a driver", x, 3, True, "", 0.0) for x in (right, early, 1.1 * right)]
    assert [(one.is_solved, one.is_false) for one in judged] == [(True, False), (False, True), (False, True)]


@pytest.mark.slow
def test_a_standard_problem_is_solved_by_the_default_and_by_hand():
    one = cutest.measure(["HS71"], ["auto", cutest.BY_HAND], lambda _: None)
    assert all(each.is_solved and each.claims and not each.is_false for each in one)
    assert one[0].evaluations <= 10


@pytest.mark.slow
def test_what_is_made_for_bounds_is_not_given_constraints():
    drivers = ["l-bfgs-b", cutest.BY_HAND_LBFGSB, cutest.BY_HAND_TRUST]
    found = cutest.measure(["HS71", "HS4"], drivers, lambda _: None)
    assert [(one.problem, one.driver) for one in found] == [
        ("HS71", cutest.BY_HAND_TRUST),
        *(("HS4", driver) for driver in drivers),
    ]
    assert all(one.is_solved and one.claims for one in found)
