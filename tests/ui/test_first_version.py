"""The first version of Prefect's UI in a real browser: its forms, the run page, Suspend and Resume, and the cards."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from tests.ui.helpers import Browser, Prefect, Run, n_steps, wait_for

# As the form makes up a name for each run; its own is another one every time.
MADE_UP = "kappa3-ursae-majoris-ring"


@pytest.fixture(scope="module")
def submitted(api: Prefect, first_version: Browser) -> dict[str, Any]:
    """What the form looked like, and the run that came of submitting it."""
    filled = {"name": MADE_UP, "learningRate": "0.03", "maxSteps": "8", "runKey": "first-version"}
    return first_version.visit("form", deployment=api.deployment("beam")["id"], **filled)


def test_form_is_the_problems_own(submitted: dict[str, Any]) -> None:
    assert submitted["labels"][:5] == ["n_elements", "volume", "section", "fem", "compliance"]
    assert {"driver", "stop", "on_failure", "run_key", "run"} <= set(submitted["labels"])
    assert "equal elements along the unit length." in submitted["text"]
    assert submitted["groups"][:3] == ["Auto", "Optax", "Adam"]
    # Of the driver that is chosen, and of no other one.
    assert {"Learning Rate", "B1", "Schedule"} <= set(submitted["labels"])
    assert "Ftol" not in submitted["labels"]


def test_run_has_what_was_typed_into_the_form(api: Prefect, submitted: dict[str, Any], checkout: Path) -> None:
    given = submitted["parameters"]
    assert (given["driver"]["name"], given["driver"]["learning_rate"]) == ("adam", 0.03)
    assert (given["stop"]["max_steps"], given["run_key"]) == (8, "first-version")
    run = api.completed(submitted["run"], checkout)
    assert run.folder.name == "first-version"
    assert run.result["steps"] == 8
    assert re.fullmatch(r"[a-z]+\d*(-[a-z]*)*", submitted["madeUp"])
    assert api.get(f"flow_runs/{run.id}")["name"] == "cantilever first-version"


def test_every_group_of_drivers_is_sent_whole_by_the_form(api: Prefect, first_version: Browser) -> None:
    """The page asks the server about the groups by their schemas, which say more than its own fields know."""
    deployment = api.deployment("beam")
    kinds = deployment["parameter_openapi_schema"]["definitions"]
    sent = first_version.visit("groups", deployment=deployment["id"])
    assert {"Auto", "Adam", "SLSQP", "CMAES"} <= set(sent)
    for group, driver in sent.items():
        assert driver["name"] == kinds[group]["properties"]["name"]["default"]
        assert set(driver) == set(kinds[group]["properties"])


def test_study_has_what_was_typed_into_its_form(api: Prefect, first_version: Browser, checkout: Path) -> None:
    deployment = api.deployment("beam", "multi-start")["id"]
    submitted = first_version.visit("study", deployment=deployment, name="two-starts", runKey="two")
    given = submitted["parameters"]
    assert (given["n_elements"], given["stop"]["max_steps"], given["run_key"]) == (20, 4, "two")
    assert (given["starts"]["n"], given["starts"]["seed"]) == (2, 7)
    study = api.finished(submitted["run"])
    assert study["name"] == "two-starts"
    assert study["state"]["type"] == "COMPLETED", api.logs(submitted["run"])
    with open(checkout / "runs" / "two" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) for row in rows] == [4, 4]


def test_run_is_suspended_and_goes_on_with_what_was_typed_into_the_form(
    api: Prefect, first_version: Browser, components: dict[str, str], checkout: Path
) -> None:
    """It calls a pause so."""
    parameters = {"run_key": "suspended", **components, "run": {"observe": "run"}}
    adam = {"driver": {"name": "adam"}, "stop": {"max_steps": 100_000, "gradient_tolerance": 0.0}}
    run = api.trigger("beam", {**parameters, **adam})
    journal = checkout / "runs" / "suspended" / "journal"
    wait_for("the first steps", lambda: n_steps(journal) > 3)
    assert first_version.visit("suspend", run=run)["status"] == "ACCEPT"
    wait_for("the pause", lambda: api.get(f"flow_runs/{run}")["state"]["state_details"]["run_input_keyset"] is not None)
    paused = n_steps(journal)
    resumed = first_version.visit("resume", run=run, learningRate="0.0123", maxSteps=str(paused + 5))
    assert resumed["status"] == "ACCEPT"
    assert "Scheduled numbers, which stay like this from now on." in resumed["text"]
    found = api.completed(run, checkout)
    assert found.result["steps"] == paused + 5
    assert found.result["reason"].startswith("maximum number of steps")
    assert "learning_rate 0.0123" in found.history[paused + 1]["events"]


def test_page_of_a_run_says_why_it_ended_and_lists_its_cards(
    api: Prefect, first_version: Browser, submitted: dict[str, Any], checkout: Path
) -> None:
    run = api.completed(submitted["run"], checkout)
    page = first_version.visit("run", run=run.id)
    assert "NotConverged" in page["text"]
    assert "maximum number of steps reached (8)" in page["text"]
    assert {key for key in api.artifacts(run.id) if key in page["cards"]} == set(api.artifacts(run.id))


def test_cards_show_pictures_and_none_of_their_bytes(api: Prefect, first_version: Browser, optimised: Run) -> None:
    cards = api.artifacts(optimised.id)
    for what in ("convergence", "design"):
        page = first_version.visit("card", artifact=cards[f"cantilever-optimised-{what}"]["id"])
        assert page["width"] > 300  # an image that the browser cannot draw has no width
        assert "base64" not in page["text"]
