"""A real optimisation, watched and written down: the names that the report reads are the names that there are."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console

from tesseract_flow.optimize import Constraint, Evaluation, MaxSteps, Problem, optimize
from tesseract_flow.report import TerminalProgress, write_result


def test_watched_and_written(tmp_path):
    problem = Problem(
        {"x": jnp.array([3.0, -2.0]), "name": "bowl"},
        lambda design: Evaluation(jnp.sum(design["x"] ** 2), {"sum": jnp.sum(design["x"])}),
        constraints={"sum": Constraint(equals=1.0)},
        name="bowl with a rim",
    )
    out = io.StringIO()
    terminal = TerminalProgress(Console(file=out, width=200), max_steps=7)
    result = optimize(problem, optax.sgd(0.1), stop=MaxSteps(7), observers=[terminal])
    shown = out.getvalue()
    assert "optimising bowl with a rim" in shown
    assert "step 0/7" in shown and "step 7/7" in shown
    assert result.reason in shown and "constraint sum" in shown

    figure = Figure()
    figure.subplots().plot(np.asarray(result.design["x"]))
    files = write_result(tmp_path, result, problem, {"driver": "sgd"}, figures={"Picture": figure})
    told = json.loads(files["result.json"].read_text())
    assert told["value"] == result.value
    assert told["steps"] == result.steps == 7
    assert told["constraints"]["sum"] == result.constraints["sum"].tolist()
    assert told["multipliers"]["sum"] == result.multipliers["sum"].tolist()
    assert (told["violation"], told["feasible"]) == (result.violation, result.feasible)
    assert told["seconds"] == result.seconds
    with np.load(files["design.npz"], allow_pickle=False) as arrays:
        assert np.array_equal(arrays["x"], result.design["x"])
    with open(files["history.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [record.value for record in result.history]
    fields = {field.name for field in dataclasses.fields(result.history[0])}
    assert set(rows[0]) == fields - {"stage", "phase", "scheduled", "coupled"}
    page = files["report.html"].read_text()
    for word in ("bowl with a rim", result.reason, "multiplier", "Picture", "Design variables", "sgd"):
        assert word in page, word
