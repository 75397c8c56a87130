"""Deployments of the flows for one problem: on a work pool, or served from this machine.

The same for the command line, for `deployments/` and for scripts of one's own. A deployment is the flow's name in the
installed package, the problem's name, and the folder in which runs start, in which that name is resolved. What can be
wrong is found out here, before anything is deployed: a run that fails for a typing mistake fails an hour later, on
another machine. The problem comes first, for which nobody has to be asked.

No `from __future__ import annotations` here, as in all modules that Prefect looks at.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Flow, serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, ParameterTypeError, SignatureMismatchError
from prefect.runner.storage import LocalStorage
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.urls import url_for

from tesseract_flow.checks import check
from tesseract_flow.client.handles.lender import Lender
from tesseract_flow.errors import DeploymentError, did_you_mean
from tesseract_flow.flows.check import settings_of_form
from tesseract_flow.flows.many import served_as
from tesseract_flow.flows.of_problem import Kind, entrypoint_of, flow_of, form_of
from tesseract_flow.optimize import Problem, load_problem
from tesseract_flow.tasks.cards import artifact_key

_KINDS: dict[Kind, str] = {
    "optimize": "Optimise",
    "multi-start": "From several starts, optimise",
    "sweep": "For several settings, optimise",
    "check": "Look for all that is wrong with",
    "gradients": "Compare the gradients with the values of",
}
_TAGS = ("tesseract-flow",)


@dataclass(frozen=True)
class Deployed:
    """A deployment that Prefect knows."""

    name: str  # flow/deployment, as `prefect deployment run` takes it
    page: str | None


def deploy_problem(
    problem: str,
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    pool: str | None = None,
    image: str | None = None,
    folder: str | None = None,
) -> tuple[str, list[Deployed]]:
    """Deploy a problem to a work pool, whose workers run it: to be optimised, once, from several starts or for several
    settings; to be checked; to have its gradients checked.

    Args:
        problem: folder/problem.py:factory or folder/problem.yaml, relative to the working directory, or
            package.module:factory.
        name: of the deployments; that of the problem, if there is none.
        settings: arguments of the factory, which forms then show. "block:NAME" stands for an endpoint block.
        pool: the work pool; Prefect's default one, or the only one there is.
        image: for pools of containers, with tesseract-flow and the problem in it.
        folder: in which runs start; the working directory, or that of the image.

    Returns:
        The work pool, and the deployments.

    Raises:
        ProblemError: the problem cannot be loaded.
        DeploymentError: there is no Prefect API, no such pool, or settings cannot be stored.
    """
    loaded = _loaded(problem, settings or {})
    at = folder or (None if image else str(Path.cwd()))
    with _api() as client:
        chosen = _pool(client, pool, image)
        made = []
        for deployment in _deployments(loaded, problem, name, settings or {}):
            deployment.storage = _Folder(at)
            made.append(_made(deployment, deployment.apply(work_pool_name=chosen, image=image)))  # type: ignore[arg-type]
    return chosen, made


def serve_problem(
    problem: str,
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    components: bool = False,
) -> None:
    """Make the same deployments known, and run from this process and in this folder what is triggered, until
    interrupted.

    Args:
        problem: folder/problem.py:factory or folder/problem.yaml, relative to the working directory, or
            package.module:factory.
        name: of the deployments; that of the problem, if there is none.
        settings: arguments of the factory, which forms then show. "block:NAME" stands for an endpoint block.
        limit: runs at once (one).
        components: serve what the problem opens by path, once for all runs, which then need not start it; as often as
            there may be runs at once, as each has its own. Otherwise each run starts it, and ends it.

    Raises:
        ProblemError: the problem cannot be loaded.
        DeploymentError: there is no Prefect API, the name belongs to a work pool, or settings cannot be stored.
    """
    with Lender() if components else nullcontext() as lender:
        loaded = _loaded(problem, settings or {})
        with _api() as client:
            deployments = _deployments(loaded, problem, name, settings or {})
            for deployment in deployments:
                _not_of_a_pool(client, deployment)
            if lender is not None:
                _offered(loaded, lender, limit or 1)
            made = [_made(deployment, deployment.apply()) for deployment in deployments]  # type: ignore[arg-type]
        for one in made:
            print(f"{one.name}: {one.page or 'deployed'}")
        print(f"Runs start here, in {Path.cwd()}. Serving until interrupted (Ctrl-C).", flush=True)
        served_as(deployments[0].name, limit or 1)
        serve(*deployments, limit=limit or 1, print_starting_message=False)


def _offered(problem: Problem, lender: Lender, n_each: int) -> None:
    """Serve what a problem opens by path; looking for all that is wrong with it opens all of it."""
    report = check(problem)
    if not report.ok:
        print("\n".join([f"{report.headline} Runs will say so as well.", *map(str, report.errors)]), file=sys.stderr)
    for component, urls in lender.offer(n_each).items():
        print(f"{component}: {' '.join(urls)}")


def enter_folder(directory: str | None = None) -> dict[str, str]:
    """The step before a run on a worker: go to the folder in which runs start.

    Raises:
        DeploymentError: this machine has no such folder.
    """
    folder = Path(directory or ".").expanduser()
    if not folder.is_dir():
        raise DeploymentError(
            f"Runs of this deployment start in {folder}, and there is no such folder on {platform.node()}, where the "
            "worker runs.\nGive the worker's machine the folder under the same path, or deploy again: from a folder "
            "that it has, with --folder, or by a prefect.yaml whose pull step fetches the problem (git_clone)."
        )
    os.chdir(folder)
    here = os.getcwd()
    if here not in sys.path:  # problems by package.module:factory; behind what is installed, of which it hides nothing
        sys.path.append(here)
    return {"directory": here}


class _Folder(LocalStorage):
    """A folder that workers have, entered by our own step: Prefect's does not say what to do when there is none."""

    def __init__(self, folder: str | None):
        super().__init__(folder or ".")
        self._folder = folder

    def to_pull_step(self) -> dict[str, Any]:
        return {f"{enter_folder.__module__}.{enter_folder.__name__}": {"directory": self._folder}}


def _loaded(path: str, settings: Mapping[str, Any]) -> Problem:
    if any(isinstance(value, str) and value.startswith("block:") for value in settings.values()):
        with _api():  # blocks are on the server
            return load_problem(path, settings_of_form(path, settings))
    return load_problem(path, settings_of_form(path, settings))


def _deployments(
    problem: Problem, path: str, name: str | None, settings: Mapping[str, Any]
) -> tuple[RunnerDeployment, ...]:
    named = name or artifact_key(problem.name)
    if "/" in named or "%" in named:
        raise DeploymentError(f"A deployment cannot be called {named!r}: Prefect takes no slash and no percent sign.")
    made = []
    for kind, says in _KINDS.items():
        flow = flow_of(path, kind=kind)
        deployment = RunnerDeployment.from_flow(
            flow,
            named,
            parameters=_storable(flow, settings),
            description=f"{says} {problem.name} through Tesseracts.",
            tags=list(_TAGS),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        deployment._parameter_openapi_schema = form_of(flow)
        deployment.entrypoint = entrypoint_of(path, kind)
        deployment._path = "."
        made.append(deployment)
    return tuple(made)


def _storable(flow: Flow[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Prefect keeps parameters as JSON, in clear, and those that have a place in the form."""
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DeploymentError(
            f"The settings cannot be kept in a deployment, which has them as JSON: {error}. Make them numbers, text, "
            "lists or a default of the factory."
        ) from error
    try:
        flow.validate_parameters(dict(settings))
    except (ParameterTypeError, SignatureMismatchError) as error:
        raise DeploymentError(f"The form of {flow.name} does not take these settings: {error}") from error
    return dict(settings)


@contextmanager
def _api() -> Iterator[SyncPrefectClient]:
    """A client of the Prefect API that is configured, which answers."""
    url = get_current_settings().api.url
    if url is None:
        # Prefect would start a temporary server, on another port than the one whose pages are open.
        raise DeploymentError(
            "No Prefect API is configured. On this machine, start one and name it:\n"
            "  prefect server start\n"
            "  export PREFECT_API_URL=http://127.0.0.1:4200/api\n"
            "With one elsewhere, the second is enough, with its address."
        )
    with get_client(sync_client=True) as client:
        trouble = client.api_healthcheck()
        if trouble is not None:
            raise DeploymentError(
                f"The Prefect API at {url} does not answer: {trouble}\nIs its server running (prefect server start)? "
                "PREFECT_API_URL, or the profile (prefect profile inspect), says where to ask."
            ) from trouble
        yield client


def _pool(client: SyncPrefectClient, wanted: str | None, image: str | None) -> str:
    """The name of the pool to deploy to, which is there and takes an image if there is one."""
    pools = {pool.name: pool for pool in client.read_work_pools()}
    create = "prefect work-pool create --type process designs"
    name = wanted or get_current_settings().deployments.default_work_pool_name
    if name is None:
        if len(pools) != 1:
            there = f"there are {', '.join(sorted(pools))}: choose one with --pool." if pools else "there is none."
            raise DeploymentError(
                f"Which work pool? {there}\nA new one: {create}\nWithout a pool, from this machine: "
                "tesseract-flow serve-flow"
            )
        (name,) = pools
    if name not in pools:
        there = f"There are: {', '.join(sorted(pools))}." if pools else "There is none."
        raise DeploymentError(
            f"There is no work pool {name!r}.{did_you_mean(name, sorted(pools))} {there}\nA new one: "
            f"{create.replace('designs', name)}"
        )
    variables = pools[name].base_job_template.get("variables", {}).get("properties", {})
    if image is not None and "image" not in variables:
        raise DeploymentError(
            f"Work pool {name!r} is of type {pools[name].type!r}, whose workers take no image. Deploy without --image, "
            "or to a pool of type docker or kubernetes."
        )
    return name


def _not_of_a_pool(client: SyncPrefectClient, deployment: RunnerDeployment) -> None:
    """Prefect would keep the pool of a deployment that is served now, and its runs would wait for a worker."""
    try:
        known = client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        return
    if known.work_pool_name is not None:
        raise DeploymentError(
            f"{deployment.full_name} is deployed to work pool {known.work_pool_name!r}. Choose another --name, or "
            f"remove that one: prefect deployment delete {deployment.full_name}"
        )


def _made(deployment: RunnerDeployment, key: Any) -> Deployed:
    return Deployed(deployment.full_name, url_for("deployment", obj_id=key))
