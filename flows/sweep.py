"""The flow that optimises the problems which a factory makes of several settings.

No `from __future__ import annotations` here: Prefect builds the form from live annotations.
"""

from collections.abc import Callable, Mapping
from typing import Any

from prefect import flow

from tesseract_flow import study
from tesseract_flow.errors import ProblemError
from tesseract_flow.flows.check import resolved, settings_of_form
from tesseract_flow.flows.forms import Each, Failures, Many, Optimizer, Stop
from tesseract_flow.flows.many import made_as
from tesseract_flow.flows.multi_start import concluded, options_of, until_of
from tesseract_flow.storage import folder_name, place_in
from tesseract_flow.study import StudyProgress
from tesseract_flow.tasks.cards import Cards
from tesseract_flow.tasks.log import own_log, run_logger
from tesseract_flow.tasks.run import key_of_run, label_of_run, name_run
from tesseract_flow.tasks.steering import PausesOfFlowRun
from tesseract_flow.tasks.study import StudyPublisher


@flow(name="sweep")
def sweep(
    problem: str,
    over: dict[str, list[Any]],
    settings: dict[str, Any] = {},  # noqa: B006 (a form shows the default; nobody changes it)
    optimizer: Optimizer = Optimizer(),  # noqa: B008
    stop: Stop = Stop(),  # noqa: B008
    on_failure: Failures = Failures(),  # noqa: B008
    max_workers: int | None = None,
    wall_time: float | None = None,
    run_key: str | None = None,
    folder: str = "runs",
    accept_changes: bool = False,
    each: Each = "thread",
    deployment: str | None = None,
) -> dict[str, Any]:
    """Optimise the problems that a factory makes of several settings, all at once.

    A flow run that was killed, cancelled, retried or started again with the same run key repeats no finished run, and
    goes on with the others where they stopped.

    Args:
        problem: the factory, as folder/problem.py:factory, package.module:factory or
            folder/problem.yaml.
        over: values of each setting that is swept, such as {"load": [1, 2, 5]}; all combinations are run.
        settings: arguments of the factory for all runs. "block:NAME" stands for the Tesseract of the block NAME.
        optimizer: the optimiser and its settings.
        stop: when a run stops.
        on_failure: what to do when an evaluation fails; with "raise" the first one ends all.
        max_workers: runs at once; empty: 8 threads, or as many flow runs and tasks as there are.
        wall_time: seconds from the beginning of this flow run, in which it is to be over: runs stop in time, and the
            same run key goes on.
        run_key: name of the study's folder; the same key goes on with the same study. Empty: this flow run's own.
        folder: where the study's folder is made, with journals, table and report: a folder, or a URL.
        accept_changes: go on although the problems are others now.
        each: what a run is: a "thread" of this flow run; a "flow-run" of its own, on any worker of the pool; a "task"
            of this flow run's task runner, such as Dask's.
        deployment: of each "flow-run", such as optimize-design/wing; empty: the one that is called like this one.

    Returns:
        value, reason, converged and feasible of the best run, how many runs ended how, and the folder with all.
    """
    with own_log():
        fixed = settings_of_form(problem, settings, over)
        swept = {name: [resolved(value, name) for value in values] for name, values in over.items()}
        how = Many(
            each=each,
            deployment=deployment,
            max_workers=max_workers,
            wall_time=wall_time,
            folder=folder,
            accept_changes=accept_changes,
        )
        return many_settings(
            problem, fixed, swept, over, optimizer, stop, on_failure, how, run_key=run_key, flow=sweep.fn
        )


def many_settings(
    factory: Any,
    fixed: Mapping[str, Any],
    swept: Mapping[str, list[Any]],
    over: Mapping[str, list[Any]],
    optimizer: Optimizer,
    stop: Stop,
    on_failure: Failures,
    how: Many,
    *,
    run_key: str | None,
    flow: Callable[..., Any],
) -> Any:
    """Optimise the problems of a factory inside of the run of a flow; what the function of that flow returns.

    Args:
        fixed, swept: settings of all runs, and values of those that are swept.
        over: the same values as the form has them.
    """
    if not over:
        raise ProblemError('Which settings are swept? `over` is empty; for example {"load": [1, 2, 5]}.')
    label = label_of_run(run_key)
    name = f"{study.factory_name(factory).rpartition(':')[2]} {label}"
    name_run(f"sweep {label}")
    out = place_in(how.folder, folder_name(key_of_run(run_key)))
    options = options_of(optimizer, stop, on_failure)
    elsewhere = made_as(
        how.each,
        how.deployment,
        name=name,
        problem=factory,
        settings={},
        options=options | {"driver": optimizer.name},
        swept=lambda k: study.all_settings(over)[k],
    )
    run_logger().info("Sweeping %s over %s; journals and results in %s", factory, ", ".join(swept), out)
    place = place_in(out, "runs")
    with PausesOfFlowRun(place) as pauses:
        found = study.sweep(
            factory,
            {**{name: [value] for name, value in fixed.items()}, **swept},
            optimizer.name,
            journal=place,
            max_workers=how.max_workers,
            observers=[StudyProgress(), StudyPublisher(Cards(study.factory_name(factory), label), pauses)],
            accept_changes=how.accept_changes,
            elsewhere=elsewhere,
            until=until_of(how),
            **options,
        )
    return concluded(found, out, flow=flow)
