"""`tesseract-flow up`, with a real Prefect server: from a folder of one's own, to the end of all of it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tesseract_flow.cli import main
from tesseract_flow.cli.server import _answers

PROBLEM = """
import jax.numpy as jnp
import tesseract_flow as tf

def bowl(center: float = 3.0):
    return tf.Problem({"x": jnp.zeros(2)}, lambda design: jnp.sum((design["x"] - center) ** 2), name="My bowl")
"""
COMPONENT = """
import os
import pathlib
from typing import Any

import numpy as np
from pydantic import BaseModel
from tesseract_core.runtime import Array, Differentiable, Float64

with (pathlib.Path(__file__).parents[1] / "processes").open("a") as file:
    print(os.getpid(), file=file)


class InputSchema(BaseModel):
    x: Differentiable[Array[(2,), Float64]]


class OutputSchema(BaseModel):
    y: Differentiable[Float64]


def apply(inputs: InputSchema) -> OutputSchema:
    return OutputSchema(y=((inputs.x - CENTER) ** 2).sum() + CENTER)


def vector_jacobian_product(
    inputs: InputSchema, vjp_inputs: set[str], vjp_outputs: set[str], cotangent_vector: dict[str, Any]
):
    return {"x": 2 * (inputs.x - CENTER) * cotangent_vector["y"]}


def abstract_eval(abstract_inputs):
    return {"y": {"shape": [], "dtype": "float64"}}


CENTER = 1.0
"""
SERVED = """
import jax
import jax.numpy as jnp
import tesseract_flow as tf

jax.config.update("jax_enable_x64", True)

def bowl():
    served = tf.open_tesseract("component")
    return tf.Problem({"x": jnp.zeros(2)}, lambda d: tf.apply_tesseract(served, {"x": d["x"]})["y"], name="My bowl")
"""
# What a shell starts in the background ignores Ctrl-C, and so would what it starts.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from tesseract_flow.cli import main; sys.exit(main())"
)
PATIENCE = 240.0


class Up:
    """The command at work, in a process group of its own."""

    def __init__(self, folder: Path, *arguments: str):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "JAX_"))}
        environment |= {"HOME": str(folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        self.log = folder / f"{'-'.join(arguments) or 'up'}.log"
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "up", "problem.py:bowl", *arguments],
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def api(self) -> str:
        """Its address, once it serves."""
        end = time.monotonic() + PATIENCE
        while "Serving until interrupted" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)
        pages = re.search(r"The pages: (http://127\.0\.0\.1:\d+)", self.log.read_text())
        assert pages is not None
        return f"{pages[1]}/api"

    def end(self, kind: signal.Signals) -> None:
        self.process.send_signal(kind)
        self.process.wait(PATIENCE)


@contextlib.contextmanager
def up(folder: Path, *arguments: str) -> Iterator[Up]:
    running = Up(folder, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def is_up(api: str, folder: Path) -> bool:
    """Whether the server of this folder is: its port may be somebody else's by now."""
    try:
        home = httpx.get(f"{api}/admin/settings", trust_env=False).json()["home"]
    except httpx.TransportError:
        return False
    return Path(home).is_relative_to(folder)


def deployment(api: str, name: str) -> dict[str, Any]:
    return httpx.get(f"{api}/deployments/name/optimize-design/{name}", trust_env=False).json()


def created(api: str, name: str, parameters: dict[str, Any]) -> str:
    """The id of a new run."""
    start = f"{api}/deployments/{deployment(api, name)['id']}/create_flow_run"
    end = time.monotonic() + PATIENCE
    # A server that has just been started may say for a moment that its database is locked.
    while (taken := httpx.post(start, json={"parameters": parameters}, trust_env=False)).status_code >= 500:
        assert time.monotonic() < end, taken.text
        time.sleep(0.5)
    assert taken.status_code == 201, taken.text
    return taken.json()["id"]


def completed(api: str, name: str, parameters: dict[str, Any]) -> str:
    """The id of a run, once it is over."""
    run = created(api, name, parameters)
    end = time.monotonic() + PATIENCE
    while (state := httpx.get(f"{api}/flow_runs/{run}", trust_env=False).json()["state"])["type"] != "COMPLETED":
        assert state["type"] not in ("FAILED", "CRASHED") and time.monotonic() < end, state
        time.sleep(0.5)
    return run


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "problem.py").write_text(PROBLEM)
    (tmp_path / "home").mkdir()
    return tmp_path


def test_who_answers_at_a_port_is_not_taken_for_the_server_of_a_folder(tmp_path: Path):
    """Somebody else's may be faster to take it, and ours needs a while to find out."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"home": str(tmp_path / "a")}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        try:
            assert [_answers(tmp_path / name, other.server_port) for name in "ab"] == [True, False]
        finally:
            other.shutdown()


@pytest.mark.slow
@pytest.mark.server
def test_all_of_it_comes_up_is_shared_and_ends_and_its_runs_stay(folder: Path):
    with up(folder) as first, up(folder, "--name", "second") as second:
        api = first.api()
        assert second.api() == api  # two servers would lock each other out of one database
        found = {name: deployment(api, name) for name in ("my-bowl", "second")}
        start = f"{api}/deployments/{found['second']['id']}/create_flow_run"
        refused = httpx.post(start, json={"parameters": {"centre": 1.0}}, trust_env=False)
        assert refused.status_code == 409 and "'centre' was unexpected" in refused.json()["detail"]
        run = completed(api, "second", {"center": 1.5, "driver": {"name": "lbfgs"}, "run_key": "one"})
        assert json.loads((folder / "runs" / "one" / "result.json").read_text())["converged"]
        first.end(signal.SIGINT)
        assert is_up(api, folder)  # for the second one
        second.end(signal.SIGTERM)
        assert not is_up(api, folder)
    with up(folder) as again:
        api = again.api()
        known = httpx.get(f"{api}/flow_runs/{run}", trust_env=False).json()
        assert known["name"] == "My bowl one" and known["state"]["name"] == "Completed"
        assert not deployment(api, "my-bowl")["paused"]
        again.end(signal.SIGINT)
    assert not is_up(api, folder)


@pytest.mark.slow
@pytest.mark.server
def test_components_are_served_once_for_all_runs_as_they_are_now_and_none_is_left_behind(folder: Path):
    def processes() -> list[int]:
        return [int(line) for line in dict.fromkeys((folder / "processes").read_text().split())]

    def value_of(key: str) -> float:
        completed(api, "my-bowl", {"driver": {"name": "lbfgs"}, "run_key": key})
        return json.loads((folder / "runs" / key / "result.json").read_text())["value"]

    (folder / "problem.py").write_text(SERVED)
    (folder / "component").mkdir()
    (folder / "component" / "tesseract_api.py").write_text(COMPONENT)
    with up(folder) as running:
        api = running.api()
        assert re.search(r"^component: http://127\.0\.0\.1:\d+$", running.log.read_text(), re.MULTILINE)
        (served,) = processes()
        assert value_of("one") == pytest.approx(1.0) and value_of("two") == pytest.approx(1.0)
        assert processes() == [served]
        (folder / "component" / "tesseract_api.py").write_text(COMPONENT.replace("CENTER = 1.0", "CENTER = 2.0"))
        assert value_of("three") == pytest.approx(2.0)
        wait_for(lambda: "served afresh" in running.log.read_text())
        again = processes()
        assert value_of("four") == pytest.approx(2.0)
        assert processes() == again and not is_alive(served)
        # Nobody is there to tidy up, not even after a run in the middle of its work.
        created(api, "my-bowl", {"driver": {"name": "adam"}, "stop": {"max_steps": 10**6}, "run_key": "endless"})
        wait_for(lambda: any((folder / "runs" / "endless").glob("journal/step-*5.ckpt")))
        threads = Path(f"/proc/{running.process.pid}/task").iterdir()
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        assert len(children) > 2  # server, component, run
        running.end(signal.SIGKILL)
        wait_for(lambda: not is_up(api, folder) and not any(map(is_alive, [*children, *processes()])))


def test_a_problem_that_is_none_starts_nothing(folder: Path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert main(["up", "problem.py:bowl", "--set", "centre=1"]) == 1
    assert "Did you mean 'center'" in capsys.readouterr().err
    assert not list((folder / "home").iterdir())
