"""What `run.sh` has started, as fixtures. Without it there is nothing to look at, and nothing here is collected."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesseract_flow.client import open_tesseract
from tests.ui.helpers import Browser, Prefect, Run

collect_ignore_glob = [] if "TESSERACT_FLOW_UI_WORK" in os.environ else ["test_*.py"]

BEAM = Path(__file__).resolve().parents[2] / "examples" / "beam"


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The copy of the checkout in which the flow runs are started."""
    return Path(os.environ["TESSERACT_FLOW_UI_WORK"]) / "checkout"


@pytest.fixture(scope="session")
def api() -> Iterator[Prefect]:
    with Prefect(os.environ["TESSERACT_FLOW_UI_API"]) as api:
        yield api


@pytest.fixture(scope="session")
def browser(api: Prefect) -> Browser:
    return Browser(
        chromium=os.environ["TESSERACT_FLOW_UI_CHROMIUM"],
        pages=api.url.removesuffix("/api"),
        work=Path(os.environ["TESSERACT_FLOW_UI_WORK"]),
        pictures=Path(os.environ["TESSERACT_FLOW_UI_PICTURES"]),
    )


@pytest.fixture(scope="session")
def first_version(browser: Browser) -> Browser:
    """The same for the pages of the first version of the UI."""
    return dataclasses.replace(browser, version="first")


@pytest.fixture(scope="session")
def components() -> dict[str, str]:
    """Addresses of the beam's three Tesseracts; they end with this process."""
    return {name: open_tesseract(BEAM / name).url for name in ("section", "fem", "compliance")}  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def optimised(api: Prefect, components: dict[str, str], checkout: Path) -> Run:
    """A run that was triggered by the API and went to the optimum, with the solver's address in a block."""
    block = api.save_endpoint_block("beam-fem", url=components["fem"], label="fem", token="a secret nobody asks for")
    chosen = {**components, "fem": {"$ref": {"block_document_id": block}}}  # as the form says it
    adam = {"driver": {"name": "adam"}, "stop": {"max_steps": 300}}
    run = api.trigger("beam", {"run_key": "optimised", **chosen, **adam})
    return api.completed(run, checkout)
