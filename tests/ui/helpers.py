"""What the tests of the UI share: Prefect's REST API, flow runs, a browser, and waiting for conditions.

Prefect is spoken to as any other program would, by HTTP; its Python client has been told by `tests/conftest.py` to
know no server.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
PATIENCE = 300.0  # seconds; on a busy machine a served run takes a while to start
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def wait_for(what: str, ask: Callable[[], T | None], timeout: float = PATIENCE) -> T:
    """The first answer of `ask` that is neither None nor False."""
    end = time.monotonic() + timeout
    while (answer := ask()) is None or answer is False:
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.2)
    return answer


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished flow run and the folder that it left."""

    id: str
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def history(self) -> list[dict[str, str]]:
        with open(self.folder / "history.csv", newline="") as file:
            return list(csv.DictReader(file))


def n_steps(journal: Path) -> int:
    """The last step of a run that is under way."""
    return max((int(path.stem.removeprefix("step-")) for path in journal.glob("step-*.ckpt")), default=0)


class Prefect:
    """The few requests to Prefect's REST API that the tests need."""

    def __init__(self, url: str):
        self.url = url
        self._http = httpx.Client(base_url=url + "/", timeout=60.0, trust_env=False)

    def __enter__(self) -> Prefect:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        return self._answered("GET", path).json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._answered("POST", path, json=body).json()

    def _answered(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Asks again while SQLite is too busy, as Prefect's own client does."""

        def ask() -> httpx.Response | None:
            answer = self._http.request(method, path, **options)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer.raise_for_status()

        return wait_for("Prefect's database", ask)

    def deployment(self, name: str, flow: str = "optimize-design") -> dict[str, Any]:
        return self.get(f"deployments/name/{flow}/{name}")

    def trigger(self, deployment: str, parameters: Mapping[str, Any]) -> str:
        """Id of a new flow run."""
        path = f"deployments/{self.deployment(deployment)['id']}/create_flow_run"
        return self.post(path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"]

    def finished(self, run: str) -> dict[str, Any]:
        """The flow run, once it is in a final state."""

        def ask() -> dict[str, Any] | None:
            found = self.get(f"flow_runs/{run}")
            return found if found["state"]["type"] in FINAL else None

        return wait_for("the end of a flow run", ask)

    def completed(self, run: str, checkout: Path) -> Run:
        found = self.finished(run)
        assert found["state"]["type"] == "COMPLETED", f"{found['state']}\n{self.logs(run)}"
        return Run(run, checkout / "runs" / (found["parameters"].get("run_key") or run))

    def logs(self, run: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_DESC", "limit": 30}
        return "\n".join(line["message"] for line in reversed(self.post("logs/filter", body)))

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """The newest artifact of each key."""
        body = {"artifacts": {"flow_run_id": {"any_": [run]}}, "sort": "CREATED_DESC", "limit": 100}
        found: dict[str, dict[str, Any]] = {}
        for artifact in self.post("artifacts/filter", body):
            found.setdefault(artifact["key"], artifact)
        return found

    def parents(self, run: str) -> dict[str, set[str]]:
        """The graph of the run page: name of each task run -> names of those it waited for."""
        nodes = [node for _, node in self.get(f"flow_runs/{run}/graph-v2")["nodes"]]
        names = {node["id"]: node["label"] for node in nodes}
        return {node["label"]: {names[parent["id"]] for parent in node["parents"]} for node in nodes}

    def save_endpoint_block(self, name: str, **data: Any) -> str:
        """Its id. As the page "Blocks" does it; the server knows the type from the installed package."""
        kind = self.get("block_types/slug/tesseract-endpoint")["id"]
        (schema,) = self.post("block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})
        document = {"name": name, "data": data, "block_type_id": kind, "block_schema_id": schema["id"]}
        return self.post("block_documents/", document)["id"]


@dataclasses.dataclass(frozen=True)
class Browser:
    """A headless Chromium; each visit is a fresh one."""

    chromium: str
    pages: str  # address of the UI
    work: Path
    pictures: Path
    version: str = "second"  # of the UI

    def visit(self, task: str, **options: Any) -> dict[str, Any]:
        """What the script of this version's visits reports about `task`, after the visit."""
        options |= {"chromium": self.chromium, "pages": self.pages, "work": str(self.work)}
        options |= {"pictures": str(self.pictures), "patience": 90_000}
        script = Path(__file__).with_name(f"{self.version}_version.mjs")
        done = subprocess.run(
            ["node", str(script), task, json.dumps(options)], capture_output=True, text=True, timeout=2 * PATIENCE
        )
        assert done.returncode == 0, f"{script.name} {task} failed:\n{done.stdout}\n{done.stderr}"
        report = json.loads(done.stdout.splitlines()[-1])
        # Whoever runs this on a closed network, or does not like to be watched, relies on it. (The pages of V2 ask one
        # host for the settings of their telemetry, which second_version.mjs keeps from them.)
        assert report["hosts"] == [self.pages.removeprefix("http://")], "the pages asked somebody else"
        return report["answer"]
