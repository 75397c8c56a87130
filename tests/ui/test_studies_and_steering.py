"""The form of a study, and Pause and Resume on the page of a run, in a real browser, V2; with screenshots."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tests.ui.helpers import Browser, Prefect, n_steps, wait_for


def test_study_has_what_was_typed_into_its_form(api: Prefect, browser: Browser, checkout: Path) -> None:
    deployment = api.deployment("beam", "multi-start")["id"]
    submitted = browser.visit("study", deployment=deployment, name="three-starts", runKey="three")
    given = submitted["parameters"]
    assert (given["n_elements"], given["starts"]["n"], given["starts"]["seed"], given["stop"]["max_steps"]) == (
        20,
        3,
        7,
        4,
    )
    study = api.finished(submitted["run"])
    assert study["name"] == "three-starts"
    assert study["state"]["type"] == "COMPLETED", api.logs(submitted["run"])
    folder = checkout / "runs" / "three"
    with open(folder / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and {int(row["steps"]) for row in rows} == {4}
    with np.load(folder / "design.npz") as design:
        assert design["thickness"].shape == (20,)
    page = browser.visit("ranking", artifact=api.artifacts(submitted["run"])["cantilever-three-runs"]["id"])
    assert "3 runs, 3 stopped" in page["text"]


def test_run_is_paused_and_goes_on_with_what_was_typed_into_the_form(
    api: Prefect, browser: Browser, components: dict[str, str], checkout: Path
) -> None:
    parameters = {"run_key": "steered", **components, "run": {"observe": "run"}}
    adam = {"driver": {"name": "adam"}, "stop": {"max_steps": 100_000, "gradient_tolerance": 0.0}}
    run = api.trigger("beam", {**parameters, **adam})
    journal = checkout / "runs" / "steered" / "journal"
    wait_for("the first steps", lambda: n_steps(journal) > 3)
    browser.visit("pause", run=run)
    wait_for("the pause", lambda: api.get(f"flow_runs/{run}")["state"]["state_details"]["run_input_keyset"] is not None)
    paused = n_steps(journal)
    resumed = browser.visit("resume", run=run, learningRate="0.0123", maxSteps=str(paused + 5))
    assert resumed["status"] == "ACCEPT"
    assert "Scheduled numbers, which stay like this from now on." in resumed["text"]
    found = api.completed(run, checkout)
    assert found.result["steps"] == paused + 5
    assert found.result["reason"].startswith("maximum number of steps")
    assert "learning_rate 0.0123" in found.history[paused + 1]["events"]


def test_page_of_a_block_has_no_broken_picture(api: Prefect, browser: Browser) -> None:
    block = api.save_endpoint_block("on-a-page", url="http://127.0.0.1:1", label="fem")
    page = browser.visit("block", block=block)
    assert "http://127.0.0.1:1" in page["text"] and page["broken"] == 0
