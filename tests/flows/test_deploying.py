"""Deployments of a problem, from a folder that is no checkout: what Prefect knows of them, and who can run them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.importtools import import_object
from prefect.workers.process import ProcessWorker

from tesseract_flow.cli import main
from tesseract_flow.errors import DeploymentError, ProblemError
from tesseract_flow.flows import deploying

PROBLEM = """
import jax.numpy as jnp
import tesseract_flow as tf

def bowl(center=3.0, token=None):
    return tf.Problem({"x": jnp.zeros(2)}, lambda design: jnp.sum((design["x"] - center) ** 2), name="My bowl")
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user, in which there is a problem and nothing else."""
    (tmp_path / "problem.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pool(prefect_harness) -> str:
    with get_client(sync_client=True) as client:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name="designs", type="process", base_job_template=template))
    return "designs"


def known(name: str):
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


def found(name: str):
    """The flow of a deployment, as a worker finds it: first the step, then the entrypoint."""
    deployment = known(name)
    assert deployment.pull_steps
    assert deployment.entrypoint
    ((step, inputs),) = deployment.pull_steps[0].items()
    import_object(step)(**inputs)
    return load_flow_from_entrypoint(deployment.entrypoint, use_placeholder_flow=False)


@pytest.mark.parametrize("command", ["deploy", "serve-flow"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["problem.py:bowll"], "Did you mean 'bowl'"),
        (["problme.py:bowl"], "Did you mean 'problem.py'"),
        (["problem.py:bowl", "--set", "centre=2"], "Did you mean 'center'"),
        (["problem.py:bowl"], "prefect server start"),
        (["problem.py:bowl", "--set", "center=block:bowl"], "No Prefect API is configured"),
    ],
)
def test_mistakes_are_said_at_once_and_nobody_is_asked(elsewhere, capsys, command, arguments, says):
    with temporary_settings({PREFECT_API_URL: None}):
        assert main([command, *arguments]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_api_that_does_not_answer(elsewhere):
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(DeploymentError, match="does not answer"),
    ):
        deploying.deploy_problem("problem.py:bowl")


def test_flows_are_deployed_with_the_folder_in_which_runs_start(elsewhere, pool, capsys):
    assert main(["deploy", "problem.py:bowl", "--pool", pool, "--set", "center=2"]) == 0
    said = capsys.readouterr().out
    flows = ("optimize-design", "multi-start", "sweep", "check-design", "check-gradients")
    for name in (f"{flow}/my-bowl" for flow in flows):
        assert f"{name}: http" in said
        deployment = known(name)
        assert deployment.parameters == {"center": 2}
        assert deployment.work_pool_name == pool
        assert deployment.pull_steps == [{"tesseract_flow.flows.deploying.enter_folder": {"directory": str(elsewhere)}}]
        schema = deployment.parameter_openapi_schema or {}
        assert "center" in schema["properties"] and schema["additionalProperties"] is False
    assert f"prefect worker start --pool {pool}" in said
    # Again, under the same name: the deployment is another one now, not a second one.
    assert main(["deploy", "problem.py:bowl", "--pool", pool, "--set", "center=4"]) == 0
    assert known("optimize-design/my-bowl").parameters == {"center": 4}


def test_flow_of_a_deployment_is_found_from_anywhere_and_runs_in_its_folder(elsewhere, pool, tmp_path_factory):
    deploying.deploy_problem("problem.py:bowl", name="found", pool=pool)
    for name in ("optimize-design/found", "check-design/found"):
        os.chdir(tmp_path_factory.mktemp("worker"))
        flow = found(name)
        assert Path.cwd() == elsewhere
    assert flow(center=2.5)["ok"]


def test_worker_without_the_folder_says_so(elsewhere, pool):
    gone = elsewhere / "gone"
    deploying.deploy_problem("problem.py:bowl", name="gone", pool=pool, folder=str(gone))
    with pytest.raises(DeploymentError, match="no such folder") as caught:
        found("optimize-design/gone")
    assert str(gone) in str(caught.value)
    assert "git_clone" in str(caught.value)


def test_image_needs_a_pool_of_containers_and_brings_its_own_folder(elsewhere, pool):
    with pytest.raises(DeploymentError, match="take no image"):
        deploying.deploy_problem("problem.py:bowl", pool=pool, image="wing:1")
    template = {
        "job_configuration": {"image": "{{ image }}"},
        "variables": {"properties": {"image": {"type": "string"}}},
    }
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="containers", type="docker", base_job_template=template))
    try:
        with pytest.raises(DeploymentError, match="there are containers, designs: choose one"):
            deploying.deploy_problem("problem.py:bowl", image="wing:1")
        deploying.deploy_problem("problem.py:bowl", name="contained", pool="containers", image="wing:1")
        deployment = known("optimize-design/contained")
        assert deployment.job_variables["image"] == "wing:1"
        assert deployment.pull_steps == [{"tesseract_flow.flows.deploying.enter_folder": {"directory": None}}]
        found("optimize-design/contained")
        assert Path.cwd() == elsewhere
    finally:
        with get_client(sync_client=True) as client:
            client.delete_work_pool("containers")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"center": float("inf")}, "JSON"),
        ({"token": "abc"}, "'token' holds what looks like a credential"),
        ({"center": "middle"}, "(?s)does not take these settings.*center"),
    ],
)
def test_settings_that_a_deployment_should_not_keep(elsewhere, pool, settings, says):
    with pytest.raises((DeploymentError, ProblemError), match=says):
        deploying.deploy_problem("problem.py:bowl", pool=pool, settings=settings)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"pool": "design"}, "Did you mean 'designs'"), ({"name": "a/b"}, "no slash")],
)
def test_names_that_cannot_be(elsewhere, pool, options, says):
    with pytest.raises(DeploymentError, match=says):
        deploying.deploy_problem("problem.py:bowl", **options)


def test_only_pool_is_the_default_and_a_deployed_name_is_not_served(elsewhere, pool, capsys):
    chosen, _ = deploying.deploy_problem("problem.py:bowl", name="taken")
    assert chosen == pool
    assert main(["serve-flow", "problem.py:bowl", "--name", "taken"]) == 1
    assert "is deployed to work pool 'designs'" in capsys.readouterr().err


@pytest.mark.slow
def test_served_flow_runs_in_this_folder_and_ends_with_ctrl_c(elsewhere, prefect_harness):
    """As its user does it: the command in a folder of one's own, a run by the API, Ctrl-C."""
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    # What a shell starts in the background ignores Ctrl-C, and so would what it starts.
    listens = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{listens}; from tesseract_flow.cli import main; sys.exit(main())"]
    with subprocess.Popen(
        [*command, "serve-flow", "problem.py:bowl", "--name", "served"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as served:
        assert served.stdout is not None
        try:
            while "Serving until interrupted" not in (line := served.stdout.readline()):
                assert line, "the command ended"
            with get_client(sync_client=True) as client:
                deployment = client.read_deployment_by_name("optimize-design/served")
                with pytest.raises(PrefectHTTPStatusError, match="409"):
                    client.create_flow_run_from_deployment(deployment.id, parameters={"centre": 1.0})
                parameters = {"center": 1.5, "driver": {"name": "lbfgs"}, "run_key": "first"}
                run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
                while not ((state := client.read_flow_run(run.id).state) and state.is_final()):
                    assert served.poll() is None
                    time.sleep(0.5)
            assert state.is_completed() and state.name == "Completed", state
        finally:
            served.send_signal(signal.SIGINT)
    result = json.loads((elsewhere / "runs" / "first" / "result.json").read_text())
    assert result["converged"] and result["value"] < 1e-10
