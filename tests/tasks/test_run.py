"""Names of flow runs: whose they are."""

from __future__ import annotations

import pytest

from tesseract_flow.tasks.run import _is_made_up


@pytest.mark.parametrize(
    "name",
    [
        "solemn-pronghorn",  # the server's
        "Sleek-Fox",  # the form's of V2
        "omicron581-nasu-v",  # the form's of V1
        "eta4-nyika-boundary",
        "kappa-ursae-majoris",
        "kappa7-ursae-majoris-ring",
    ],
)
def test_names_that_prefect_makes_up_give_way(name: str) -> None:
    assert _is_made_up(name)


@pytest.mark.parametrize(
    "name", ["first-look", "alpha-cantilever", "beta4-fine", "beta4-fine-ring", "mu3", "Sleek wing"]
)
def test_names_that_somebody_has_chosen_stay(name: str) -> None:
    assert not _is_made_up(name)
