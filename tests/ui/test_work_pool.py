"""The flow deployed by `prefect.yaml` to a process work pool, with a worker that was started in another folder."""

from __future__ import annotations

from pathlib import Path

from tests.ui.helpers import Prefect


def test_run_by_a_worker_completes_in_the_folder_that_was_deployed(
    api: Prefect, components: dict[str, str], checkout: Path
) -> None:
    assert api.deployment("beam-pool")["work_pool_name"] == "designs"
    parameters = {"run_key": "pool", **components, "run": {"observe": "steps"}, "stop": {"max_steps": 3}}
    run = api.completed(api.trigger("beam-pool", parameters), checkout)
    assert run.result["steps"] == 3
    assert (run.folder / "report.html").is_file()
    assert {"step #0", "step #3", "checkpoint #3"} <= set(api.parents(run.id))


def test_continues_where_another_deployment_stopped(api: Prefect, components: dict[str, str], checkout: Path) -> None:
    """The journal belongs to the run key, whoever starts the run."""
    parameters = {"run_key": "moved", **components, "driver": {"name": "adam"}, "run": {"observe": "run"}}
    first = api.completed(api.trigger("beam", {**parameters, "stop": {"max_steps": 3}}), checkout)
    earlier = first.history
    second = api.completed(api.trigger("beam-pool", {**parameters, "stop": {"max_steps": 5}}), checkout)
    assert second.history[:4] == earlier
    assert second.result["steps"] == 5
    assert second.result["extra"]["requests_of_this_run"]["fem.vector_jacobian_product"] == 2
