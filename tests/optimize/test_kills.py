"""Killed at any instant, a run loses no finished step and ends with the bits of a run that nobody killed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from tesseract_flow.optimize import driver_names
from tesseract_flow.testing.faults import FaultyServer, at, of_function, status
from tests.faults.component import tesseract_api
from tests.faults.conftest import document

ROOT = pathlib.Path(__file__).parents[2]
KINDS = ("free", "bounded", "constrained", "walled")

LIBRARIES = {
    "l-bfgs-b": "bounded",
    "slsqp": "constrained",
    "trust-constr": "walled",
    "mma": "bounded",
    "ccsaq": "walled",
    "ld_slsqp": "constrained",
    "cma-es": "bounded",
    "dogleg": "misfit",
    "gauss-newton": "misfit",
    "levenberg-marquardt": "misfit",
}

# Every driver by name, three deaths each, over the kinds of problems in turn; libraries where they fit.
OPTAX = [name for name in driver_names() if name not in LIBRARIES]
MANY = [(driver, KINDS[k % 4], k) for k, driver in enumerate(OPTAX)]
MANY += [(driver, kind, len(OPTAX) + k) for k, (driver, kind) in enumerate(LIBRARIES.items())]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> pathlib.Path:
    """What one life has compiled serves the others; what they compute is what is tested here."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def killed(tmp_path, compiled) -> Callable[..., None]:
    """Run until it is done in spite of so many deaths, and compare with the undisturbed run."""

    def run(driver: str, kind: str, seed: int, n_kills: int) -> None:
        command = [sys.executable, "-m", "tests.optimize.killed_run", str(tmp_path), driver, kind]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        done = subprocess.run(
            [*command, str(seed), str(n_kills)], cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment
        )
        assert done.returncode == 0, done.stderr
        undisturbed, found = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("undisturbed", "killed"))
        assert found == undisturbed
        last = undisturbed["history"][-1]
        # A library may have come to its end before.
        assert last["step"] >= 10 or last["failures"] > 0 or (driver in LIBRARIES and last["stalled"])

    return run


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["adam", "lbfgs", "slsqp"])
def test_killed_at_random_moments_it_ends_bit_identical_to_an_undisturbed_run(killed, driver):
    killed(driver, "constrained", 7, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "kind", "seed"), MANY, ids=[f"{driver}-{kind}" for driver, kind, _ in MANY])
def test_every_driver_survives_three_kills(killed, driver, kind, seed):
    killed(driver, kind, seed, 3)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["adam", "lbfgs", "slsqp"])
def test_killed_where_fixed_points_begin_where_the_last_step_left_them(killed, driver):
    killed(driver, "coupled", len(driver), 4)


SCHEDULED = [("scheduled", driver) for driver in ("adam", "lbfgs", "slsqp", "mma", "cma-es")]
SCHEDULED += [("scheduled misfit", "levenberg-marquardt"), ("phases", "adam"), ("phases", "lbfgs"), ("phases", "ccsaq")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "driver"), SCHEDULED)
def test_killed_in_a_phase_or_between_two_of_them(killed, kind, driver):
    killed(driver, kind, len(driver), 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_while_it_is_steered(killed, seed):
    killed("adam", "steered", seed, 5)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["adam", "lbfgs"])
def test_killed_while_it_calls_a_component_that_fails_now_and_then(killed, driver):
    with FaultyServer(of_function(tesseract_api.answer, document())) as server:
        server.plant(at("pullback", status(429, retry_after=0), every=5))
        killed(driver, server.url, 3, 4)
        assert server.n_faulty > 2
