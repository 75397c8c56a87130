"""Runs of a study that are made elsewhere, as tasks and as flow runs: the same bits, no run twice, no other problem."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterParentFlowRunId
from prefect.workers.process import ProcessWorker

import tesseract_flow as tf
from tesseract_flow.errors import DeploymentError, EvaluationFailed, ProblemError, RunStopped
from tesseract_flow.flows import Optimizer, Stop, deploying, flow_of, many
from tesseract_flow.flows.drivers import Adam  # type: ignore[attr-defined]
from tesseract_flow.flows.forms import Many, Starts
from tesseract_flow.flows.multi_start import multi_start
from tesseract_flow.flows.sweep import sweep
from tesseract_flow.optimize import read_account
from tesseract_flow.study import Errand
from tesseract_flow.tasks.call import Sealed
from tests.flows.test_studies import PROBLEM

FEW: dict[str, Any] = {"optimizer": Optimizer(name="adam", learning_rate=0.05), "stop": Stop(max_steps=2)}
OF_FACTORY: dict[str, Any] = {"driver": Adam(learning_rate=0.05), "stop": Stop(max_steps=2)}


@pytest.fixture
def problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bowls.py").write_text(PROBLEM)
    return "bowls.py:bowl"


def values(folder: str) -> list[str]:
    """Of all runs, as the table has them."""
    lines = (Path(folder) / "runs.csv").read_text().splitlines()
    return [",".join(part for k, part in enumerate(line.split(",")) if k < 4) for line in lines]


def test_runs_as_tasks_end_with_the_bits_of_threads_and_are_not_repeated(prefect_harness, problem):
    here: Any = multi_start(problem, n=2, run_key="here", **FEW)
    there: Any = multi_start(problem, n=2, run_key="there", each="task", **FEW)
    assert there["value"] == here["value"] and there["runs"] == here["runs"]
    assert values(there["folder"]) == values(here["folder"]) and there["requests"] == here["requests"]
    with tf.count_requests() as requests:
        again = multi_start(problem, n=2, run_key="there", each="task", **FEW)
    assert requests.n_solves == 0 and again == there


def test_failures_elsewhere_are_rows(prefect_harness, problem):
    found: Any = sweep(problem, {"center": [0.0, -1000.0]}, run_key="both", each="task", **FEW)
    assert found["runs"] == {"converged": 0, "stopped": 1, "failed": 1} and found["run"] == 0
    assert "too large" in (Path(found["folder"]) / "runs.txt").read_text()


@pytest.mark.slow
def test_forms_of_a_factory_for_many_runs(prefect_harness, problem):
    first: Any = flow_of(problem, kind="multi-start")(center=0.25, starts=Starts(n=2), run_key="a", **OF_FACTORY)
    assert first["runs"]["stopped"] == 2
    swept: Any = flow_of(problem, kind="sweep")(over={"center": [0.0, 0.25]}, run_key="b", **OF_FACTORY)
    assert swept["runs"]["stopped"] == 2 and swept["run"] == 1
    with pytest.raises(ProblemError, match="Did you mean 'center'"):
        flow_of(problem, kind="sweep")(over={"centre": [0.0]}, **OF_FACTORY)
    with pytest.raises(ProblemError, match="`over` is empty"):
        flow_of(problem, kind="sweep")(**OF_FACTORY)
    with pytest.raises(ProblemError, match="does not take"):
        flow_of(problem, kind="sweep")(over={"center": ["wide"]}, **OF_FACTORY)


@pytest.mark.slow
def test_flow_runs_of_their_own_need_a_deployment_that_optimises_the_same(prefect_harness, problem, tmp_path):
    options: dict[str, Any] = {"n": 2, "each": "flow-run", **FEW}
    with pytest.raises(DeploymentError, match="Which deployment"):
        multi_start(problem, **options)
    with pytest.raises(DeploymentError, match="no deployment 'optimize-design/nobody'"):
        multi_start(problem, deployment="optimize-design/nobody", **options)
    with work_pool("for-nobody"):
        deploying.deploy_problem(problem, name="bowl", pool="for-nobody")
        with pytest.raises(DeploymentError, match="has no field 'problem'"):
            multi_start(problem, deployment="optimize-design/bowl", **options)


@pytest.mark.slow
def test_flow_runs_of_their_own_need_room_beside_that_of_the_study(prefect_harness, problem, monkeypatch):
    alone: dict[str, Any] = {"starts": Starts(n=2), "run": Many(each="flow-run", deployment="optimize-design/one")}
    for deployment in deploying._deployments(deploying._loaded(problem, {}), problem, "one", {}):
        deployment.apply()
    monkeypatch.setenv(many._ROOM, "one=1")
    with pytest.raises(DeploymentError, match=r"none would ever begin\.\nServe with room for more"):
        flow_of(problem, kind="multi-start")(**alone)
    monkeypatch.setenv(many._ROOM, "one=2")
    with pytest.raises(EvaluationFailed, match="time of this process"):  # there is room, and nobody who serves
        flow_of(problem, kind="multi-start")(**alone | {"run": Many(**alone["run"].model_dump() | {"wall_time": 0.1})})
    with work_pool("narrow"), get_client(sync_client=True) as client:
        deploying.deploy_problem(problem, name="narrow", pool="narrow")
        deployment = client.read_deployment_by_name("optimize-design/narrow")
        run = client.create_flow_run_from_deployment(client.read_deployment_by_name("multi-start/narrow").id)
        many._require_room(client, deployment, run)
        client.update_work_pool("narrow", WorkPoolUpdate(concurrency_limit=1))
        with pytest.raises(DeploymentError, match="set-concurrency-limit narrow 4"):
            many._require_room(client, deployment, run)
        client.update_work_pool("narrow", WorkPoolUpdate(concurrency_limit=2))
        assert run.work_queue_name is not None
        queue = client.read_work_queue_by_name(run.work_queue_name, work_pool_name="narrow")
        client.update_work_queue(queue.id, concurrency_limit=1)
        with pytest.raises(DeploymentError, match="'narrow', queue 'default'"):
            many._require_room(client, deployment, run)


def test_a_flow_run_is_called_off_when_the_time_of_the_study_is_up(prefect_harness, problem, tmp_path):
    def sleep(seconds: float) -> None:
        raise RunStopped("the time is up")

    @flow
    def study() -> None:
        elsewhere = many.EachAsFlowRun("optimize-design/late", "late", None)
        elsewhere.run(Errand(0, "x", deploying._loaded(problem, {}), {}, str(tmp_path / "late")), sleep)

    with work_pool("nobody-works-here"), get_client(sync_client=True) as client:
        deploying.deploy_problem(problem, name="late", pool="nobody-works-here")
        with pytest.raises(RunStopped):
            study()
        deployment = client.read_deployment_by_name("optimize-design/late")
        its = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))
        (run,) = client.read_flow_runs(flow_run_filter=its)
        assert run.state is not None and (run.state.is_cancelling() or run.state.is_cancelled())


@pytest.mark.slow
def test_a_task_stops_in_time_and_the_next_study_goes_on(prefect_harness, problem):
    first: Any = multi_start(problem, n=1, run_key="first", each="task", **FEW)
    (journal,) = (Path(first["folder"]) / "runs").glob("*/journal")
    what = Sealed((problem, {}, None, {"driver": "adam", "learning_rate": 0.05, "stop": {"max_steps": 5}}, time.time()))
    assert many.run_of_study.fn(what, "late").startswith("the time of this process is nearly up")
    assert read_account("late").result.steps == 0
    more: Any = multi_start(
        problem, n=1, run_key="first", each="task", wall_time=3600.0, **FEW | {"stop": Stop(max_steps=3)}
    )
    assert read_account(journal).result.steps == 3 and more["runs"]["stopped"] == 1
    with pytest.raises(EvaluationFailed, match="time of this process"):
        sweep(problem, {"center": [0.0]}, run_key="none", wall_time=0.1, **FEW)


@pytest.mark.slow
def test_each_start_is_a_flow_run_of_a_worker_and_goes_on_with_the_whole(prefect_harness, problem, tmp_path):
    here: Any = flow_of(problem, kind="multi-start")(starts=Starts(n=2), run_key="here", **OF_FACTORY)
    with work_pool("many") as server:
        deploying.deploy_problem(problem, name="many", pool="many")
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", "many"]
        worker = subprocess.Popen(command, env={**os.environ, "PREFECT_API_URL": server}, cwd=tmp_path)
        try:
            for n_children in (2, 0):  # again: nothing is left to do
                assert triggered("multi-start/many") == n_children
        finally:
            worker.terminate()
            worker.wait()
    assert values(str(tmp_path / "runs" / "there")) == values(here["folder"])


def triggered(name: str) -> int:
    """Run a deployment to its end; how many flow runs it has triggered itself."""
    parameters = {
        "starts": {"n": 2},
        "run": {"each": "flow-run"},
        "run_key": "there",
        "driver": {"name": "adam", "learning_rate": 0.05},
        "stop": {"max_steps": 2},
    }
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name)
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        end = time.monotonic() + 300
        while not (state := client.read_flow_run(run.id).state) or not state.is_final():
            assert time.monotonic() < end
            time.sleep(0.5)
        assert state.is_completed(), state.message
        its = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
        return len(client.read_flow_runs(flow_run_filter=its))


@contextlib.contextmanager
def work_pool(name: str) -> Iterator[str]:
    """A pool that is gone afterwards, as other tests look at what there is; the address of the API."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        try:
            yield str(client.api_url)
        finally:
            client.delete_work_pool(name)
