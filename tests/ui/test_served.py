"""The flow behind `serve.py`, triggered by the API: what it finds, and what the server then knows about it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from examples.beam.demo import OPTIMUM
from tesseract_flow.report.tables import number
from tests.ui.helpers import Browser, Prefect, Run, wait_for


def test_run_triggered_by_the_api_finds_the_optimum(optimised: Run) -> None:
    result = optimised.result
    assert result["value"] == pytest.approx(OPTIMUM, rel=1e-3)
    np.testing.assert_allclose(result["constraints"]["volume"], 0.01, rtol=1e-6)
    assert [int(row["step"]) for row in optimised.history] == list(range(result["steps"] + 1))


def test_graph_has_the_names_and_edges_of_the_dataflow(api: Prefect, optimised: Run) -> None:
    # Task runs reach the server as events, some seconds after they happened.
    last = f"checkpoint #{optimised.result['steps'] // 100 * 100}"
    wait_for("all task runs", lambda: last in api.parents(optimised.id))
    parents = api.parents(optimised.id)
    for step in (0, 1, 19, 20):
        assert {name: parents.get(f"{name} #{step}") for name in CALLS} == {
            name: {f"{parent} #{step}" for parent in names} for name, names in CALLS.items()
        }
        assert parents[f"checkpoint #{step}"] == set()
    # Beyond the first twenty, fast calls are shown at every tenth step.
    assert "section.apply #21" not in parents
    # Prefect knows results by their addresses, and must not be misled by addresses that are used again.
    assert [name for name, names in parents.items() if any(step_of(parent) != step_of(name) for parent in names)] == []


def step_of(name: str) -> str:
    return name.rpartition("#")[2]


# The pullback of the section waits for its apply as well: the volume decides how much more volume costs.
CALLS = {
    "section.apply": set(),
    "fem.apply": {"section.apply"},
    "compliance.apply": {"fem.apply"},
    "compliance.pullback": {"fem.apply"},
    "fem.pullback": {"compliance.pullback", "section.apply"},
    "section.pullback": {"fem.pullback", "section.apply"},
}


def test_artifacts_tell_the_outcome(api: Prefect, optimised: Run) -> None:
    artifacts = api.artifacts(optimised.id)
    assert {key.removeprefix("cantilever-optimised-"): artifact["type"] for key, artifact in artifacts.items()} == {
        "check": "markdown",
        "progress": "progress",
        "convergence": "markdown",
        "design": "markdown",
        "graph": "table",
        "history": "table",
        "result": "markdown",
    }
    assert artifacts["cantilever-optimised-progress"]["data"] == 100.0
    assert sum(len(json.dumps(artifact["data"])) for artifact in artifacts.values()) < 150_000
    rows = json.loads(artifacts["cantilever-optimised-history"]["data"])
    assert rows[0]["step"] == 0
    assert rows[-1]["step"] == optimised.result["steps"]
    assert number(optimised.result["value"], 11) in artifacts["cantilever-optimised-result"]["data"]


def test_killed_run_continues_when_retry_is_pressed(
    api: Prefect, first_version: Browser, optimised: Run, checkout: Path
) -> None:
    adam = {"driver": {"name": "adam"}, "stop": {"max_steps": 300}}
    run = api.trigger("beam", {"run_key": "killed", "run": {"observe": "run"}, **adam})
    journal = checkout / "runs" / "killed" / "journal"
    history = journal / "history.jsonl"
    wait_for("thirty steps", lambda: history.exists() and history.read_bytes().count(b"\n") > 30)
    process = int((journal / "lock").read_text().split()[1])
    assert b"deployments/serve.py" in Path(f"/proc/{parent_of(process)}/cmdline").read_bytes(), "not a served run"
    components = children_of(process)
    assert len(components) == 3

    os.kill(process, signal.SIGKILL)
    assert api.finished(run)["state"]["type"] == "CRASHED"
    wait_for("the end of the components", lambda: not any(is_alive(child) for child in components))
    n_finished = max(int(path.stem.removeprefix("step-")) for path in journal.glob("step-*.ckpt"))
    kept = b"".join(history.read_bytes().splitlines(keepends=True)[: n_finished + 1])

    assert first_version.visit("retry", run=run)["status"] == "ACCEPT"
    wait_for("the second attempt", lambda: api.get(f"flow_runs/{run}")["run_count"] == 2)
    retried = api.completed(run, checkout)
    assert history.read_bytes().startswith(kept)
    assert [int(row["step"]) for row in retried.history] == list(range(retried.result["steps"] + 1))
    # No step was computed twice, and the design is that of the run which nobody disturbed, to the last bit.
    requests = retried.result["extra"]["requests_of_this_run"]
    assert requests["fem.vector_jacobian_product"] == retried.result["steps"] - n_finished + 2  # looks at the optimum
    assert retried.result["value"] == optimised.result["value"]
    with np.load(optimised.folder / "design.npz") as whole, np.load(retried.folder / "design.npz") as parts:
        assert whole["thickness"].tobytes() == parts["thickness"].tobytes()


def children_of(process: int) -> list[int]:
    threads = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def is_alive(process: int) -> bool:
    return status_of(process)[0] != "Z"  # a zombie is dead, only that nobody has asked yet how it died


def parent_of(process: int) -> int:
    return int(status_of(process)[1])


def status_of(process: int) -> list[str]:
    """State, parent and more, as in proc_pid_stat(5), after the name of the command, which may hold spaces."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["Z", "0"]
