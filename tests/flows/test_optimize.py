"""The flow, on Prefect's test server, through components in this process."""

import contextvars
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from tesseract_flow import errors
from tesseract_flow.flows import Optimizer, Stop, optimize_design
from tesseract_flow.optimize import driver_names, read_contents
from tesseract_flow.optimize.drivers.optax.named import LEARNING_RATES
from tesseract_flow.storage import open_store
from tesseract_flow.tasks import ArtifactPublisher, Cards

PROBLEM = """
import os
import numpy as np
import jax.numpy as jnp
import tesseract_flow as tf
from tesseract_flow.testing import FunctionTesseract

misfit = FunctionTesseract(
    lambda i: {"r": jnp.stack([1.0 - i["x"][0], 10.0 * (i["x"][1] - i["x"][0] ** 2)])}, {"x": np.ones(2)}, name="misfit"
)
square = FunctionTesseract(lambda i: {"f": jnp.sum(i["r"] ** 2)}, {"r": np.ones(2)}, name="square")


def rosenbrock(start=(-1.2, 1.0)):
    fail_at = int(os.environ.get("FAIL_AT", "0"))

    def evaluate(design):
        r = tf.apply_tesseract(misfit, {"x": design["x"]})["r"]
        return tf.apply_tesseract(square, {"r": r})["f"]

    applied = []

    def before(endpoint, inputs):
        applied.append(endpoint)
        if len(applied) == fail_at:
            raise KeyboardInterrupt

    misfit.before = before
    return tf.Problem({"x": jnp.array(start), "label": "valley"}, evaluate, name="Rosenbrock's valley")
"""


@pytest.fixture
def problem(tmp_path: Path) -> str:
    file = tmp_path / "valley.py"
    file.write_text(PROBLEM)
    return f"{file}:rosenbrock"


def run(problem: str, tmp_path: Path, **options):
    options.setdefault("optimizer", Optimizer(name="lbfgs"))
    return optimize_design(problem, folder=str(tmp_path / "runs"), return_state=True, **options)


def task_runs(state):
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id])), limit=200
        )
    return {run.name: run for run in runs}


def test_finds_the_minimum_and_leaves_everything(prefect_harness, problem, tmp_path):
    state = run(problem, tmp_path, run_key="valley", observe="run")
    summary = state.result()
    assert summary["value"] < 1e-10
    folder = tmp_path / "runs" / "valley"
    result = json.loads((folder / "result.json").read_text())
    assert {"value", "reason", "steps", "constraints", "requests"} <= set(result)
    assert result["requests"] == summary["requests"] > 0
    with np.load(folder / "design.npz", allow_pickle=False) as design:
        np.testing.assert_allclose(design["x"], [1.0, 1.0], atol=1e-5)
    assert (folder / "history.csv").read_text().count("\n") == summary["steps"] + 2  # header and step 0
    assert "<svg" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_run_again_with_the_same_key_costs_nothing(prefect_harness, problem, tmp_path):
    first = run(problem, tmp_path, run_key="valley", observe="run").result()
    again = run(problem, tmp_path, run_key="valley", observe="run").result()
    assert again == first  # the total of requests included: none was added


@pytest.mark.slow
def test_interrupted_run_continues_to_the_same_bits(prefect_harness, problem, tmp_path, monkeypatch):
    whole = run(problem, tmp_path, run_key="whole", observe="run").result()
    monkeypatch.setenv("FAIL_AT", "21")
    with pytest.raises(KeyboardInterrupt):
        run(problem, tmp_path, run_key="cut", observe="run")
    monkeypatch.delenv("FAIL_AT")
    resumed = run(problem, tmp_path, run_key="cut", observe="run").result()
    assert resumed["value"] == whole["value"]
    assert resumed["steps"] == whole["steps"]
    designs = [np.load(tmp_path / "runs" / key / "design.npz")["x"].tobytes() for key in ("whole", "cut")]
    assert designs[0] == designs[1]


def test_calls_are_named_task_runs_with_their_producers_as_edges(prefect_harness, problem, tmp_path):
    state = run(problem, tmp_path, observe="calls", stop=Stop(max_steps=1), optimizer=Optimizer(name="adam"))
    state.result()
    runs = task_runs(state)
    expected = {
        f"{call} #{step}"
        for call in ("misfit.apply", "square.apply", "square.pullback", "misfit.pullback")
        for step in (0, 1)
    }
    assert expected | {"checkpoint #0", "checkpoint #1"} <= set(runs)

    def producers(name):
        names = {run.id: key for key, run in runs.items()}
        return {names[source.id] for source in runs[name].task_inputs.get("wait_for", [])}

    assert producers("square.apply #1") == {"misfit.apply #1"}
    assert producers("square.pullback #1") == {"misfit.apply #1"}
    assert producers("misfit.pullback #1") == {"square.pullback #1"}


@pytest.mark.slow
def test_runs_at_the_same_time_count_their_own_requests(prefect_harness, problem, tmp_path):
    def requests(observe, max_steps, key):
        stop, folder = Stop(max_steps=max_steps), tmp_path / key
        return run(problem, folder, observe=observe, stop=stop, optimizer=Optimizer(name="adam")).result()["requests"]

    chosen = [("calls", 1), ("steps", 3), ("run", 5)]
    alone = [requests(observe, n, f"alone-{observe}") for observe, n in chosen]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(len(chosen)) as pool:
        # In copies of the context, which has the test server's address.
        runs = [
            pool.submit(contextvars.copy_context().run, requests, observe, n, f"together-{observe}")
            for observe, n in chosen
        ]
        assert [future.result() for future in runs] == alone


@pytest.mark.slow
def test_steps_are_task_runs_when_asked_for(prefect_harness, problem, tmp_path):
    state = run(problem, tmp_path, observe="steps", stop=Stop(max_steps=2))
    state.result()
    assert {"step #0", "step #1", "step #2", "checkpoint #2"} <= set(task_runs(state))
    assert not any("misfit" in name for name in task_runs(state))


def test_run_page_says_how_the_run_went(prefect_harness, problem, tmp_path, monkeypatch):
    """Its name and state, a card for each thing, and a log that one can read."""
    renewed = []
    put = Cards._put
    monkeypatch.setattr(Cards, "_put", lambda self, what, *rest: (renewed.append(what), put(self, what, *rest)))
    monkeypatch.setattr(ArtifactPublisher.__init__, "__kwdefaults__", EAGER)
    state = run(problem, tmp_path, run_key="Mach 0.8", observe="calls", stop=Stop(max_steps=3))
    assert (state.type, state.name) == (StateType.COMPLETED, "NotConverged")
    assert state.message == "maximum number of steps reached (3)" == state.result()["reason"]
    APILogWorker.drain_all(timeout=30)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).name == "Rosenbrock's valley Mach 0.8"
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        found = client.read_artifacts(flow_run_filter=mine)
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id])))
    cards = {artifact.key.removeprefix("rosenbrock-s-valley-mach-0-8-"): artifact for artifact in found}
    assert len(cards) == len(found) < len(renewed)
    kinds = {"progress": "progress", "history": "table", "graph": "table"}
    kinds |= dict.fromkeys(("check", "convergence", "design", "result"), "markdown")
    assert {name: card.type for name, card in cards.items()} == kinds
    assert cards["progress"].data == 100.0
    assert cards["convergence"].data.startswith("![convergence](data:image/png;base64,")
    assert [row["step"] for row in json.loads(cards["history"].data)] == [0, 1, 2, 3]
    graph = {row["call"]: row for row in json.loads(cards["graph"].data)}
    assert graph["square.apply"]["waits for"] == "misfit.apply"
    assert graph["misfit.pullback"]["waits for"] == "square.pullback"
    assert graph["misfit.apply"]["calls"] >= 4
    assert sum(len(str(card.data)) for card in found) < 100_000
    lines = [log.message for log in logs]
    assert any(line.startswith("Step 3: value ") for line in lines)
    assert sum("Finished in state" in line for line in lines) == 1  # the flow's own, and none of its calls


EAGER = {"progress_every": 0.0, "pictures_every": 0.0, "clock": time.monotonic}


def test_flow_is_a_plain_function_without_prefect(problem, tmp_path):
    """No run and no server: with `.fn`, and neither tasks nor cards."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        told = optimize_design.fn(problem, folder=str(tmp_path), optimizer=Optimizer(name="lbfgs"), run_key="valley")
    assert told["converged"] and told["value"] < 1e-10
    assert json.loads((tmp_path / "valley" / "result.json").read_text())["value"] == told["value"]


@pytest.mark.slow
def test_bad_input_is_refused_with_a_remedy_and_loses_nothing(prefect_harness, problem, tmp_path):
    first = run(problem, tmp_path, run_key="kept", observe="run", stop=Stop(max_steps=3)).result()
    folder = problem.removesuffix("valley.py:rosenbrock")
    cases = [
        ({"problem": f"{folder}valley.py:rosenbrok"}, errors.ProblemError, "Did you mean 'rosenbrock'"),
        ({"problem": f"{folder}vally.py:rosenbrock"}, errors.ProblemError, "valley.py"),
        ({"problem": "no_such_package.problem:factory"}, errors.ProblemError, "no module"),
        ({"settings": {"strat": [1.0, 1.0]}}, errors.ProblemError, "Did you mean 'start'"),
        ({"settings": {"start": [2.0, 2.0]}}, errors.OtherRun, r"(?s)varying\.x: .* -> .*factory\.settings\.start"),
        ({"optimizer": Optimizer(settings={"b3": 0.1})}, errors.DriverError, "adam takes"),
    ]
    for change, error, says in cases:
        with pytest.raises(error, match=says):
            run(**{"problem": problem, "tmp_path": tmp_path, "run_key": "kept", "observe": "run", **change}).result()
    again = run(problem, tmp_path, run_key="kept", observe="run", stop=Stop(max_steps=3)).result()
    assert again == first


@pytest.mark.slow
def test_the_same_key_with_another_setting_is_refused_and_there_are_ways_on(prefect_harness, tmp_path):
    file = tmp_path / "amp.py"
    file.write_text(AMPLITUDE)
    problem = f"{file}:problem"

    def at(amplitude, **options):
        options = {"run_key": "one key", "observe": "run", **options}
        return run(problem, tmp_path, settings={"amplitude": amplitude}, **options)

    first = at(0.2).result()
    assert np.load(f"{first['folder']}/design.npz")["x"] == pytest.approx(0.2)
    with pytest.raises(errors.OtherRun, match=r"factory\.settings\.amplitude: 0\.2 -> 0\.9"):
        at(0.9).result()
    started = at(0.9, run_key="another", start_from=first["folder"]).result()
    assert np.load(f"{started['folder']}/design.npz")["x"] == pytest.approx(0.9)
    accepted = at(0.9, accept_changes=True).result()
    assert np.load(f"{accepted['folder']}/design.npz")["x"] == pytest.approx(0.9)
    assert "amplitude: 0.2 -&gt; 0.9" in (Path(accepted["folder"]) / "report.html").read_text()
    assert at(0.9).result() == accepted


AMPLITUDE = """
import jax.numpy as jnp
import tesseract_flow as tf


def problem(amplitude=0.5):
    return tf.Problem({"x": jnp.asarray(0.0)}, lambda design: (design["x"] - amplitude) ** 2)
"""


@pytest.mark.slow
def test_keys_have_folders_of_their_own_and_old_ones_are_still_found(prefect_harness, tmp_path):
    file = tmp_path / "amp.py"
    file.write_text(AMPLITUDE)

    def at(key, amplitude):
        options = {"settings": {"amplitude": amplitude}, "observe": "run", "run_key": key}
        return run(f"{file}:problem", tmp_path, **options).result()["folder"]

    folders = [at("aoa=2", 0.2), at("aoa=-2", 0.9)]
    assert len(set(folders)) == 2
    # As an older version would have left it.
    old = tmp_path / "runs" / "aoa-2"
    shutil.move(folders[0], old)
    (old / "run-key.txt").unlink()
    assert at("aoa=-2", 0.9) == folders[1]
    shutil.rmtree(folders[1])
    assert at("aoa=-2", 0.9) == folders[1]  # the old one holds another run
    assert at("aoa=2", 0.2) == str(old)
    assert (old / "run-key.txt").read_text() == "aoa=2"


@pytest.mark.slow
def test_a_folder_by_url_gets_journal_and_results(prefect_harness, tmp_path):
    file = tmp_path / "amp.py"
    file.write_text(AMPLITUDE)

    def at(folder, **options):
        options = {"observe": "run", "run_key": "far", "optimizer": Optimizer(name="lbfgs"), **options}
        return optimize_design(f"{file}:problem", folder=folder, return_state=True, **options).result()

    folder = f"memory://{tmp_path.name}"
    first = at(folder)
    assert first["folder"] == f"{folder}/far"
    store = open_store(first["folder"])
    assert {"result.json", "design.npz", "history.csv", "report.html", "run-key.txt"} <= set(store.names())
    assert json.loads(store.read("result.json"))["value"] == first["value"]
    assert read_contents(first["folder"]).step == first["steps"]
    assert at(folder) == first
    assert at(str(tmp_path / "runs"), start_from=first["folder"], stop=Stop(max_steps=0))["value"] == first["value"]


def test_the_form_offers_every_driver_that_is_not_of_optax():
    offered = Optimizer.model_json_schema()["properties"]["name"]["enum"]
    assert set(driver_names()) - set(LEARNING_RATES) <= set(offered) <= {"auto", *driver_names()}


def test_unknown_optimizer_is_refused_by_the_form(prefect_harness, problem, tmp_path):
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match="adam"):
        optimize_design(problem, optimizer={"name": "adm"}, folder=str(tmp_path))


def test_form_has_flat_fields_with_descriptions():
    schema = optimize_design.parameters.model_dump()
    names = {
        "problem",
        "settings",
        "optimizer",
        "stop",
        "run_key",
        "observe",
        "folder",
        "on_failure",
        "check",
        "schedule",
    }
    assert set(schema["properties"]) == names | {"start_from", "start_design", "accept_changes", "verify_gradients"}
    assert all(field.get("description") for field in schema["properties"].values())
    assert schema["definitions"]["Optimizer"]["properties"]["name"]["enum"][:2] == ["auto", "adam"]
    assert schema["required"] == ["problem"]
