"""The pages of the Prefect UI in a real browser: the form, the run page and the artifacts; with screenshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from tesseract_flow.flows.optimize import OptimizerName
from tests.ui.helpers import Browser, Prefect, Run


@pytest.fixture(scope="module")
def submitted(api: Prefect, browser: Browser) -> dict[str, Any]:
    """What the form looked like, and the run that came of submitting it."""
    return browser.visit(
        "form",
        deployment=api.deployment("beam")["id"],
        name="first-look",
        maxSteps=8,
        observe="calls",
        runKey="from-the-form",
    )


def test_form_has_fields_and_menus_and_json_only_where_anything_goes(submitted: dict[str, Any]) -> None:
    assert submitted["fields"] == {
        "problem": "text",
        "settings": "json",
        "optimizer": "group",
        "optimizer.Name": "menu",
        "optimizer.Learning Rate": "float or None",
        "optimizer.Settings": "json",
        "stop": "group",
        "stop.Max Steps": "number",
        "stop.Gradient Tolerance": "float or None",
        "stop.Patience": "int or None",
        "stop.Stagnation Tolerance": "number",
        "stop.Wall Time": "float or None",
        "stop.Max Requests": "int or None",
        "run_key": "str or None",
        "observe": "menu",
        "folder": "text",
    }
    assert submitted["optimizers"] == list(get_args(OptimizerName))


def test_run_submitted_by_the_form_completes_and_shows_its_calls(
    api: Prefect, browser: Browser, submitted: dict[str, Any], checkout: Path
) -> None:
    run = api.completed(submitted["run"], checkout)
    assert api.get(f"flow_runs/{run.id}")["name"] == "first-look"
    assert run.folder.name == "from-the-form"
    assert run.result["steps"] == 8
    assert {"fem.apply #8", "fem.pullback #8"} <= set(api.parents(run.id))
    visit = browser.visit("run", run=run.id, nArtifacts=5)
    assert {card["key"] for card in visit["artifacts"]} == set(api.artifacts(run.id))
    assert visit["greenShare"] > 0.05  # bars of completed task runs, large enough to read


def test_artifacts_of_a_long_run_are_shown_with_their_pictures(browser: Browser, optimised: Run) -> None:
    visit = browser.visit("artifacts", run=optimised.id, nArtifacts=5)
    assert {card["kind"] for card in visit["artifacts"]} == {"progress", "image", "table", "markdown"}
    # An image that the browser cannot draw has no width.
    assert {key: width > 300 for key, width in visit["widths"].items()} == {
        "cantilever-convergence": True,
        "cantilever-design": True,
    }
