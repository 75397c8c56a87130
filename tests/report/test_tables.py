"""Rows and Markdown: what is shown, what is left out, and that text stays in its cell."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from tesseract_flow import report
from tesseract_flow.report import tables
from tests.report.helpers import Finished, Step, history_of


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 501])
@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3, 4, 7, 200])
def test_rows_are_in_order_within_the_limit_and_show_what_matters(n, limit):
    values = np.cos(np.arange(n))
    history = history_of(values)
    steps = [row["step"] for row in tables.history_rows(history, limit)]
    assert steps == sorted(set(steps))
    assert set(steps) <= set(range(n))
    assert len(steps) <= n if limit is None else len(steps) <= limit
    if limit is None or n <= limit:
        assert len(steps) == n
    elif limit:
        shown = [n - 1, 0, int(np.argmin(values))][:limit]
        assert set(shown) <= set(steps)
        assert len(steps) >= limit - 3  # a grid point may fall onto a step that is in anyway


def test_rows_are_spread_evenly():
    steps = [row["step"] for row in tables.history_rows(history_of(-np.arange(5000.0)), 200)]
    assert np.diff(steps).max() <= 2 * 5000 / 200


def test_rows_hold_plain_numbers_and_none_for_what_is_missing():
    class Sparse:
        step, value = np.int64(3), jnp.asarray(2.0)

    (row,) = tables.history_rows([Sparse()])
    assert tuple(row) == tables.COLUMNS
    assert row["step"] == 3 and type(row["step"]) is int
    assert row["value"] == 2.0 and type(row["value"]) is float
    assert row["violation"] is None


def test_a_run_that_never_was_finite_still_has_rows():
    rows = tables.history_rows(history_of([math.nan] * 50), 5)
    assert 3 <= len(rows) <= 5
    assert math.isnan(rows[0]["value"])


def test_history_markdown_says_what_it_leaves_out():
    short, long = history_of([3.0, 2.0]), history_of(np.ones(100))
    assert tables.history_markdown(short).count("\n") == 3
    assert "Showing" not in tables.history_markdown(short)
    assert "of 100 steps" in tables.history_markdown(long, 10)
    assert tables.history_markdown([]) == "No step was finished."


def test_markdown_cells_cannot_break_out():
    text = tables.markdown_table([{"a|b": "x | y\n<script>", "n": None}])
    assert text.splitlines() == ["| a\\|b | n |", "| --- | --- |", "| x \\| y &lt;script&gt; | - |"]
    assert tables.markdown_table([]) == ""


def test_requests_by_component_and_endpoint():
    counts = {"fem.apply": 3, "fem.vector_jacobian_product": 2, "lib.section.apply": 1}
    assert tables.request_rows(counts) == [
        {"tesseract": "fem", "apply": 3, "vector_jacobian_product": 2, "total": 5},
        {"tesseract": "lib.section", "apply": 1, "vector_jacobian_product": 0, "total": 1},
    ]
    assert tables.total_requests(counts) == 6
    assert tables.request_rows(7) == [] and tables.total_requests(7) == 7


def test_constraints_of_any_size():
    rows = tables.constraint_rows({"volume": 0.5, "stress": jnp.array([[1.0, -2.0]]), "none": np.zeros(0)})
    assert [tuple(row.values()) for row in rows] == [
        ("volume", 1, 0.5, 0.5),
        ("stress", 2, -2, 1),
        ("none", 0, None, None),
    ]


def test_summary_names_the_outcome():
    result = Finished(
        design={},
        value=23762.153678,
        steps=2,
        constraints={"volume": 0.0},
        requests={"fem.apply": 4},
        history=[Step(1, 2.0, 2.0, violation=0.5, seconds=0.25), Step(2, 1.0, 1.0, violation=1e-9, seconds=0.5)],
    )
    assert dict(tables.summary_rows(result)) == {
        "objective": "23762.153678",
        "reason": "gradient below tolerance",
        "converged": "yes",
        "steps": "2",
        "violation": "1e-09",
        "requests": "4",
        "time": "0.5 s",
    }


def test_multipliers_stand_beside_their_constraints():
    constraints = {"volume": 0.5, "stress": np.zeros(3), "free": 1.0}
    rows = tables.constraint_rows(constraints, {"volume": 2.0, "stress": np.array([0.0, -3.0, 1.0])})
    assert [row["multiplier"] for row in rows] == [2.0, -3.0, None]


def test_the_best_step_is_where_the_record_says():
    """With constraints the best value may go up, and then equal values prove nothing."""

    class Told(Step):
        best_step = 37

    steps = [row["step"] for row in tables.history_rows([Told(i, 1.0, 1.0) for i in range(100)], 3)]
    assert steps == [0, 37, 99]


def test_the_results_own_time_comes_first():
    class Timed(Finished):
        seconds = 7325.0

    assert dict(tables.summary_rows(Timed(design={})))["time"] == "2 h 02 min"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01234, "0.0123 s"), (99.4, "99.4 s"), (99.6, "1 min 40 s"), (5999, "99 min 59 s"), (6000, "1 h 40 min")],
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


@pytest.mark.parametrize("seconds", [None, math.nan, math.inf])
def test_unknown_durations(seconds):
    assert tables.duration(seconds) == tables.EMPTY


@pytest.mark.parametrize(
    ("x", "text"),
    [(None, "-"), (True, "yes"), (np.bool_(False), "no"), (12345, "12345"), (0.1, "0.1"), (math.inf, "inf")],
)
def test_numbers(x, text):
    assert tables.number(x) == text


def test_every_public_name_is_there():
    assert all(callable(getattr(report, name)) for name in report.__all__)
    assert set(report.__all__) <= set(dir(report))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = report.nothing
