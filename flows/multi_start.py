"""The flow that optimises a design from several starts.

No `from __future__ import annotations` here: Prefect builds the form from live annotations.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from prefect import flow

from tesseract_flow import study
from tesseract_flow.flows.check import require_soundness, settings_of_form
from tesseract_flow.flows.forms import Each, Failures, Many, Optimizer, Starts, Stop, said
from tesseract_flow.flows.many import made_as
from tesseract_flow.optimize import Problem, load_problem
from tesseract_flow.storage import folder_name, is_url, place_in
from tesseract_flow.study import AbstractStudy, StudyProgress
from tesseract_flow.study.outcome import Status
from tesseract_flow.tasks.cards import Cards
from tesseract_flow.tasks.log import own_log, run_logger
from tesseract_flow.tasks.run import ended, key_of_run, label_of_run, name_run
from tesseract_flow.tasks.steering import PausesOfFlowRun
from tesseract_flow.tasks.study import StudyPublisher


@flow(name="multi-start")
def multi_start(
    problem: str,
    settings: dict[str, Any] = {},  # noqa: B006 (a form shows the default; nobody changes it)
    n: int = 16,
    starts: Literal["latin-hypercube", "sobol", "grid"] = "latin-hypercube",
    seed: int = 0,
    spread: float | None = None,
    optimizer: Optimizer = Optimizer(),  # noqa: B008
    stop: Stop = Stop(),  # noqa: B008
    on_failure: Failures = Failures(),  # noqa: B008
    max_workers: int | None = None,
    wall_time: float | None = None,
    run_key: str | None = None,
    folder: str = "runs",
    check: bool = True,
    accept_changes: bool = False,
    each: Each = "thread",
    deployment: str | None = None,
) -> dict[str, Any]:
    """Optimise a design from several starts, all at once.

    A flow run that was killed, cancelled, retried or started again with the same run key repeats no finished run, and
    goes on with the others where they stopped.

    Args:
        problem: what to optimise, as folder/problem.py:factory, package.module:factory or
            folder/problem.yaml.
        settings: arguments of the factory. "block:NAME" stands for the Tesseract of the endpoint block NAME.
        n: how many runs.
        starts: how starts are chosen between the bounds.
        seed: other starts for another seed.
        spread: no farther from the problem's own start than this; needed where there are no bounds.
        optimizer: the optimiser and its settings.
        stop: when a run stops.
        on_failure: what to do when an evaluation fails; with "raise" the first one ends all.
        max_workers: runs at once; empty: 8 threads, or as many flow runs and tasks as there are.
        wall_time: seconds from the beginning of this flow run, in which it is to be over: runs stop in time, and the
            same run key goes on.
        run_key: name of the study's folder; the same key goes on with the same study. Empty: this flow run's own.
        folder: where the study's folder is made, with journals, table and report: a folder, or a URL.
        check: look for all that is wrong before the first solve, and refuse to start with an error.
        accept_changes: go on although the problem is another one now.
        each: what a run is: a "thread" of this flow run; a "flow-run" of its own, on any worker of the pool; a "task"
            of this flow run's task runner, such as Dask's.
        deployment: of each "flow-run", such as optimize-design/wing; empty: the one that is called like this one.

    Returns:
        value, reason, converged and feasible of the best run, how many runs ended how, and the folder with all.
    """
    with own_log():
        factory_settings = settings_of_form(problem, settings)
        return many_starts(
            load_problem(problem, factory_settings),
            Starts(n=n, method=starts, seed=seed, spread=spread),
            optimizer,
            stop,
            on_failure,
            Many(
                each=each,
                deployment=deployment,
                max_workers=max_workers,
                wall_time=wall_time,
                folder=folder,
                check=check,
                accept_changes=accept_changes,
            ),
            made_by=(problem, factory_settings),
            run_key=run_key,
            flow=multi_start.fn,
        )


def many_starts(
    problem: Problem,
    starts: Starts,
    optimizer: Optimizer,
    stop: Stop,
    on_failure: Failures,
    how: Many,
    *,
    made_by: tuple[Any, Mapping[str, Any]],
    run_key: str | None,
    flow: Callable[..., Any],
) -> Any:
    """Optimise a problem from several starts inside of the run of a flow; what the function of that flow returns.

    Args:
        made_by: the factory or its name, and its settings.
    """
    label = label_of_run(run_key)
    name = f"{problem.name} {label}"
    name_run(name)
    cards = Cards(problem.name, label)
    if how.check:
        require_soundness(problem, cards)
    out = place_in(how.folder, folder_name(key_of_run(run_key)))
    options = options_of(optimizer, stop, on_failure)
    elsewhere = made_as(
        how.each,
        how.deployment,
        name=name,
        problem=made_by[0],
        settings=made_by[1],
        options=options | {"driver": optimizer.name},
    )
    run_logger().info("Optimising %s from %d starts; journals and results in %s", problem.name, starts.n, out)
    place = place_in(out, "runs")
    with PausesOfFlowRun(place) as pauses:
        found = study.multi_start(
            problem,
            starts.n,
            optimizer.name,
            starts=starts.method,
            seed=starts.seed,
            spread=starts.spread,
            journal=place,
            max_workers=how.max_workers,
            observers=[StudyProgress(), StudyPublisher(cards, pauses)],
            accept_changes=how.accept_changes,
            elsewhere=elsewhere,
            until=until_of(how),
            **options,
        )
    return concluded(found, out, flow=flow)


def until_of(how: Many) -> float | None:
    """The moment at which the flow run has to be over, in seconds since the epoch."""
    return None if how.wall_time is None else time.time() + how.wall_time


def options_of(optimizer: Optimizer, stop: Stop, on_failure: Failures) -> dict[str, Any]:
    """What the form says of each run, for `optimize`, but for the driver's name."""
    return {
        "learning_rate": optimizer.learning_rate,
        "driver_settings": optimizer.settings,
        "stop": said(stop),
        "on_failure": on_failure.model_dump(),
        "verify_gradients": "start",
    }


def concluded(found: AbstractStudy, out: str, *, flow: Callable[..., Any]) -> Any:
    """Write the report of a study, and say in brief what it found.

    Raises:
        EvaluationFailed: no run has a design.
    """
    found.report(out)
    best, run = found.best, found.best_run
    counts = Counter(run.status for run in found.runs)
    run_logger().info("%s; best is run %d: value %.10g. Results in %s", found.summary, run.index, best.value, out)
    summary = {
        "value": best.value,
        "reason": best.reason,
        "converged": best.converged,
        "feasible": best.feasible,
        "run": run.index,
        "runs": {status: counts[status] for status in get_args(Status) if counts[status] or status != "waiting"},
        "requests": found.requests,
        "folder": out if is_url(out) else str(Path(out).resolve()),
    }
    is_done = best.converged and not counts["waiting"]
    return ended(summary, converged=is_done, message=found.summary, flow=flow)
