"""The pages of the Prefect UI in a real browser, V2: the form, the run page and the cards; with screenshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ui.helpers import Browser, Prefect, Run, wait_for


@pytest.fixture(scope="module")
def submitted(api: Prefect, browser: Browser) -> dict[str, Any]:
    """What the form looked like, and the run that came of submitting it."""
    return browser.visit("form", deployment=api.deployment("beam")["id"], name="first-look", runKey="from-the-form")


def test_form_is_the_problems_own(submitted: dict[str, Any]) -> None:
    assert submitted["labels"][:5] == ["n_elements", "volume", "section", "fem", "compliance"]
    assert {"driver", "stop", "on_failure", "run_key", "run"} <= set(submitted["labels"])
    assert "equal elements along the unit length." in submitted["text"]
    # Of the driver that is chosen, and of no other one.
    assert {"Learning Rate", "B1", "Schedule"} <= set(submitted["labels"])
    assert submitted["tabs"][:3] == ["Auto", "Optax", "Adam"]


def test_run_submitted_by_the_form_completes_and_shows_its_calls(
    api: Prefect, browser: Browser, submitted: dict[str, Any], checkout: Path
) -> None:
    assert submitted["parameters"]["driver"]["name"] == "adam"
    run = api.completed(submitted["run"], checkout)
    assert api.get(f"flow_runs/{run.id}")["name"] == "first-look"
    assert run.folder.name == "from-the-form"
    assert run.result["steps"] == 8
    # The server writes down what it is told of tasks after the run is over, too, if it is slow.
    wait_for(
        "the last calls in the graph of the run",
        lambda: {"fem.apply #8", "fem.pullback #8"} <= {*api.parents(run.id)},
    )
    page = browser.visit("run", run=run.id)
    # It has not converged, and does not look as if it had.
    assert "NotConverged" in page["text"]
    assert "maximum number of steps reached (8)" in page["text"]
    assert {key for key in api.artifacts(run.id) if key in page["cards"]} == set(api.artifacts(run.id))


def test_cards_show_pictures_and_none_of_their_bytes(api: Prefect, browser: Browser, optimised: Run) -> None:
    cards = api.artifacts(optimised.id)
    for what in ("convergence", "design"):
        page = browser.visit("card", artifact=cards[f"cantilever-optimised-{what}"]["id"], what=what)
        assert page["width"] > 300  # an image that the browser cannot draw has no width
        assert "base64" not in page["text"]
