"""Where the runs of a study are made, if not on threads of its flow run: as flow runs of a deployment, or as tasks.

A flow run of its own has a page, cards, a log, *Pause* and a place in a work pool, like any run of `optimize_design`;
its run key is that of its start, and its folder lies in the study's. A task goes to the flow's task runner, Dask's for
example. Whatever becomes of this flow run, theirs are found by it when it is tried again: those that are over are not
repeated, and those that are under way are waited for.

No `from __future__ import annotations` here, as in all modules that Prefect looks at.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from tesseract_flow.errors import DeploymentError, OptimizationError
from tesseract_flow.flows.forms import Each
from tesseract_flow.optimize import load_problem, optimize
from tesseract_flow.optimize.partition import named_leaves
from tesseract_flow.report.files import npz
from tesseract_flow.storage import folder_name, is_url, open_store, place_in
from tesseract_flow.study.elsewhere import AbstractElsewhere, Errand, in_time
from tesseract_flow.tasks.call import Sealed
from tesseract_flow.tasks.log import own_log, run_logger

_PACE = 2.0  # seconds between two questions to the server
_PATIENCE = 60.0  # until it is said that no run has begun
_ROOM = "TESSERACT_FLOW_ROOM"  # NAME=LIMIT of the deployments whose server has started this process
_START, _FLOW_RUN = "start.npz", "flow-run.txt"
_OPTIMISES = "optimize-design"
# What the form of a study has for itself: one that was made of a factory, and one that names its problem.
_OF_A_STUDY_OF_A_FACTORY = frozenset({"starts", "over", "run_key", "run"})
_OF_A_STUDY = frozenset(
    {
        "n",
        "starts",
        "seed",
        "spread",
        "over",
        "max_workers",
        "wall_time",
        "run_key",
        "folder",
        "check",
        "each",
        "deployment",
    }
)


def made_as(
    each: Each,
    deployment: str | None,
    *,
    name: str,
    problem: Any,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    swept: Callable[[int], Mapping[str, Any]] | None = None,
) -> AbstractElsewhere | None:
    """Who makes the runs of a study; None: its own threads.

    Args:
        deployment: that of each run, for `"flow-run"`; by default that of the same name which optimises.
        name: of the study, for the names of its runs.
        problem, settings, options: as `load_problem` and `optimize` take them, for `"task"`.
        swept: the settings of a run by its index, as the form has them, for `"flow-run"`.

    Raises:
        DeploymentError: there is no such deployment, or it does not optimise the same problem.
    """
    if each == "flow-run":
        return EachAsFlowRun(deployment, name, swept)
    return EachAsTask(problem, settings, options) if each == "task" else None


# --- as flow runs -----------------------------------------------------------------------------------------------------


class EachAsFlowRun(AbstractElsewhere):
    """Each run as a flow run of a deployment, which has the same form but for what is the study's."""

    def __init__(self, deployment: str | None, name: str, swept: Callable[[int], Mapping[str, Any]] | None):
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise DeploymentError(
                "Runs of their own need a flow run that triggers them: call the flow, and not its fn."
            )
        self._name, self._swept = name, swept
        self._lock = threading.Lock()
        self._pulse = _Pulse()
        with get_client(sync_client=True) as client:
            self._deployment = _deployment(client, deployment, context.flow_run)
            _require_room(client, self._deployment, context.flow_run)
        self._fixed, self._is_nested = _common_parameters(self._deployment, context.flow_run.parameters)
        _require_same_problem(self._deployment, context.flow_run, self._fixed)

    def run(self, errand: Errand, sleep: Callable[[float], None]) -> None:
        store = open_store(place_in(errand.folder, folder_name(errand.key)))
        flow_run = self._under_way(store)
        if flow_run is None:
            store.make()
            flow_run = self._triggered(errand)
            store.write(_FLOW_RUN, str(flow_run.id).encode())
        try:
            state = self._pulse.end_of(flow_run.id, sleep)
        except BaseException:
            with contextlib.suppress(Exception), get_client(sync_client=True) as client:
                client.set_flow_run_state(flow_run.id, Cancelling())
            raise
        if not state.is_completed():
            why = f": {state.message}" if state.message else ""
            raise OptimizationError(f"Its flow run {flow_run.name!r} ended as {state.name}{why}")

    def _under_way(self, store: Any) -> FlowRun | None:
        """A flow run that was triggered for it before, and that is not over."""
        if _FLOW_RUN not in store.names():
            return None
        with contextlib.suppress(ValueError, ObjectNotFound), get_client(sync_client=True) as client:
            found = client.read_flow_run(UUID(store.read(_FLOW_RUN).decode()))
            if found.state is not None and not found.state.is_final() and not found.state.is_cancelling():
                return found
        return None

    def _triggered(self, errand: Errand) -> FlowRun:
        about: dict[str, Any] = {"folder": _absolute(errand.folder), "check": False}
        parameters = dict(self._fixed)
        if self._swept is None:
            about["start_from"] = _start_written(errand)
        elif self._is_nested:
            parameters |= self._swept(errand.index)
        else:
            parameters["settings"] = {**parameters.get("settings", {}), **self._swept(errand.index)}
        accepts = parameters.pop("accept_changes", False)
        about |= {"accept_changes": True} if accepts else {}
        parameters |= {"run": about} if self._is_nested else about
        with self._lock:  # Prefect numbers what a flow run triggers
            found: Any = run_deployment(
                self._deployment.id,
                parameters={**parameters, "run_key": errand.key},
                flow_run_name=f"{self._name} #{errand.index}",
                timeout=0,
            )
        return found


def _deployment(client: SyncPrefectClient, wanted: str | None, flow_run: FlowRun) -> DeploymentResponse:
    if wanted is None and flow_run.deployment_id is None:
        raise DeploymentError(
            "Which deployment makes each run? This flow run is of none. Name one that optimises the same problem, as "
            f"deployment={_OPTIMISES + '/NAME'!r}; `tesseract-flow deploy PROBLEM` makes it."
        )
    if wanted is None:
        assert flow_run.deployment_id is not None
        wanted = f"{_OPTIMISES}/{client.read_deployment(flow_run.deployment_id).name}"
    try:
        return client.read_deployment_by_name(wanted)
    except (ObjectNotFound, ValueError) as error:
        raise DeploymentError(
            f"There is no deployment {wanted!r}, which would make each run. Deploy the problem to a work pool "
            "(tesseract-flow deploy), or name another one as its deployment."
        ) from error


def served_as(name: str, limit: int) -> None:
    """Let the runs of deployments that this process serves know how many there may be at once."""
    os.environ[_ROOM] = f"{name}={limit}"


def _require_room(client: SyncPrefectClient, deployment: DeploymentResponse, flow_run: FlowRun) -> None:
    """
    Raises:
        DeploymentError: while this flow run goes on, none of the deployment could begin, where that can be told.
    """
    says = (
        "Each run of this study is to be a flow run of its own, and there is room for one at a time, which is this one"
    )
    if deployment.work_pool_name is None:
        name, _, limit = os.environ.get(_ROOM, "").rpartition("=")
        if (name, limit) == (deployment.name, "1"):
            raise DeploymentError(
                f"{says}: none would ever begin.\nServe with room for more (tesseract-flow serve-flow --limit 4, or up "
                "--limit 4), deploy to a work pool, or let each run be a thread."
            )
        return
    if deployment.work_pool_name != flow_run.work_pool_name:
        return
    pool = client.read_work_pool(deployment.work_pool_name)
    limits = {f"{pool.name!r}": pool.concurrency_limit}
    if deployment.work_queue_name is not None and deployment.work_queue_name == flow_run.work_queue_name:
        queue = client.read_work_queue_by_name(deployment.work_queue_name, work_pool_name=pool.name)
        limits[f"{pool.name!r}, queue {queue.name!r},"] = queue.concurrency_limit
    for where, limit in limits.items():
        if limit == 1:
            raise DeploymentError(
                f"{says}, in work pool {where}: none would ever begin.\nRaise its limit (prefect work-pool "
                f"set-concurrency-limit {pool.name} 4), or let each run be a thread."
            )


def _common_parameters(deployment: DeploymentResponse, given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """What of this flow run's form holds for each run, and whether the form of these has their place in `run`.

    Raises:
        DeploymentError: its form lacks a field.
    """
    schema = deployment.parameter_openapi_schema
    fields = (schema if isinstance(schema, Mapping) else schema.model_dump() if schema else {}).get("properties", {})
    is_nested = "run" in fields
    ours = _OF_A_STUDY_OF_A_FACTORY if is_nested else _OF_A_STUDY
    common = {name: value for name, value in given.items() if name not in ours}
    accepts = (given.get("run") or {}).get("accept_changes") if is_nested else common.pop("accept_changes", False)
    needed = [*common, "run_key", *(() if is_nested else ("folder", "start_from"))]
    if missing := [name for name in needed if name not in fields]:
        raise DeploymentError(
            f"Deployment {deployment.name!r} cannot make the runs of this study: its form has no field {missing[0]!r}. "
            "It has to be one that optimises the same problem, with the same parameters."
        )
    return {**common, **({"accept_changes": True} if accepts else {})}, is_nested


def _require_same_problem(deployment: DeploymentResponse, flow_run: FlowRun, fixed: Mapping[str, Any]) -> None:
    """By its entrypoint, where that names the problem. Each run is held against it as well, once it is over."""
    if "problem" in fixed or flow_run.deployment_id is None:
        return
    with get_client(sync_client=True) as client:
        ours = client.read_deployment(flow_run.deployment_id).entrypoint or ""
    theirs = deployment.entrypoint or ""
    if ours.rpartition("/")[0] != theirs:
        raise DeploymentError(
            f"Deployment {deployment.name!r} is about another problem: {theirs!r}, and this one is {ours!r}."
        )


class _Pulse:
    """How flow runs are, asked for all at once and not too often, however many wait."""

    def __init__(self, pace: float = _PACE, clock: Callable[[], float] = time.monotonic):
        self._pace, self._clock = pace, clock
        self._lock = threading.Lock()
        self._states: dict[UUID, State | None] = {}
        self._next = 0.0
        self._began = clock()
        self._has_begun = False

    def end_of(self, key: UUID, sleep: Callable[[float], None]) -> State:
        """The state in which a flow run ends."""
        with self._lock:
            self._states[key] = None
        while True:
            state = self._look(key)
            if state is not None and state.is_final():
                with self._lock:
                    del self._states[key]
                return state
            sleep(self._pace)

    def _look(self, key: UUID) -> State | None:
        with self._lock:
            if self._clock() >= self._next:
                self._next = self._clock() + self._pace
                try:
                    self._ask()
                except Exception as error:  # it will answer again; the runs go on without it
                    run_logger().warning("Prefect did not tell how the runs are, and is asked again: %s", error)
            return self._states.get(key)

    def _ask(self) -> None:
        keys = list(self._states)
        with get_client(sync_client=True) as client:
            for k in range(0, len(keys), 100):
                asked = FlowRunFilter(id=FlowRunFilterId(any_=keys[k : k + 100]))
                for found in client.read_flow_runs(flow_run_filter=asked, limit=100):
                    self._states[found.id] = found.state
        self._has_begun |= any(state is not None and not _waits(state) for state in self._states.values())
        if not self._has_begun and self._clock() - self._began > _PATIENCE:
            self._has_begun = True  # said once
            run_logger().warning(
                "None of the runs has begun after %.0f s. They need a worker with room beside this run: a work pool or "
                "worker with a limit of more than one run at once, or serve-flow --limit 4.",
                _PATIENCE,
            )


def _waits(state: State) -> bool:
    return state.is_scheduled() or state.is_pending()


# --- as tasks ---------------------------------------------------------------------------------------------------------


class EachAsTask(AbstractElsewhere):
    """Each run as a task, wherever the flow's task runner makes it."""

    def __init__(self, problem: Any, settings: Mapping[str, Any], options: Mapping[str, Any]):
        self._problem, self._settings, self._options = problem, settings, options
        self._lock = threading.Lock()

    def run(self, errand: Errand, sleep: Callable[[float], None]) -> None:
        start = None if errand.settings else _start_written(errand)
        journal = _absolute(place_in(errand.folder, folder_name(errand.key), "journal"))
        what = Sealed((self._problem, {**self._settings, **errand.settings}, start, dict(self._options), errand.until))
        with self._lock:
            future = run_of_study.with_options(task_run_name=f"run #{errand.index}").submit(what, journal)
        while not future.state.is_final():
            with contextlib.suppress(TimeoutError):
                future.wait(timeout=_PACE)
            sleep(0.0)
        future.result()


@task(name="run-of-study", cache_policy=NO_CACHE, persist_result=False)
def run_of_study(what: Sealed[Any], journal: str) -> str:
    """One run of a study, in whatever process; why it ended.

    Args:
        what: the problem by name or its factory, its settings, the file with its start (None: its own), options of
            `optimize`, and the moment before which it stops (None: none).
        journal: where all of it is kept.
    """
    factory, settings, start, options, until = what.value
    with own_log():
        problem = load_problem(factory, settings)
        return optimize(problem, **in_time(problem, options, until), journal=journal, start_from=start).reason


def _start_written(errand: Errand) -> str:
    """The address of a file with the start of a run, in its folder."""
    store = open_store(place_in(errand.folder, folder_name(errand.key)))
    store.make()
    store.write(_START, npz({name: np.asarray(leaf) for name, leaf in named_leaves(errand.problem.start)}))
    return _absolute(place_in(errand.folder, folder_name(errand.key), _START))


def _absolute(address: str) -> str:
    """For somebody who works in another folder."""
    return address if is_url(address) else str(Path(address).resolve())
