"""The flow that optimises a design: a form in, cards and a folder of results out.

No `from __future__ import annotations` here: Prefect builds the form from live annotations, and a served run fails on
postponed ones.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from prefect import flow

from tesseract_flow.checks import Report
from tesseract_flow.checks.views import finding_rows
from tesseract_flow.client import own_requests
from tesseract_flow.execute import concurrent, default_submitter
from tesseract_flow.flows.check import blamed, require_soundness, settings_of_form
from tesseract_flow.flows.forms import Failures, Optimizer, Running, Stop, said
from tesseract_flow.optimize import FileJournal, Problem, Result, WhichDesign, load_problem, optimize
from tesseract_flow.optimize.ends import stop_of
from tesseract_flow.optimize.stopping import most_steps
from tesseract_flow.report import Reporting, TerminalProgress
from tesseract_flow.storage import is_url, place_in
from tesseract_flow.tasks import (
    ArtifactPublisher,
    Cards,
    ObservedSubmitter,
    ObserveLevel,
    PausesOfFlowRun,
    PrefectJournal,
    PrefectSubmitter,
    ProgressLog,
    observation_of,
    own_log,
    run_step_as_task,
)
from tesseract_flow.tasks.log import run_logger
from tesseract_flow.tasks.run import ended, in_flow_run, key_of_run, label_of_run, name_run
from tesseract_flow.tasks.run_folder import in_run_folder

T = TypeVar("T")


@flow(name="optimize-design")
def optimize_design(
    problem: str,
    settings: dict[str, Any] = {},  # noqa: B006 (a form shows the default; nobody changes it)
    optimizer: Optimizer = Optimizer(),  # noqa: B008
    stop: Stop = Stop(),  # noqa: B008
    on_failure: Failures = Failures(),  # noqa: B008
    run_key: str | None = None,
    observe: ObserveLevel = "auto",
    folder: str = "runs",
    check: bool = True,
    verify_gradients: Literal["start"] | int | None = "start",
    start_from: str | None = None,
    start_design: WhichDesign = "best",
    accept_changes: bool = False,
    schedule: dict[str, Any] = {},  # noqa: B006
) -> dict[str, Any]:
    """Optimise a design through Tesseracts.

    After each step everything needed to go on is on disk: a run that was killed, retried or started again with the same
    run key continues from its last finished step.

    Args:
        problem: what to optimise, as folder/problem.py:factory, package.module:factory or
            folder/problem.yaml.
        settings: arguments of the factory. "block:NAME" stands for the Tesseract of the endpoint block NAME.
        optimizer: the optimiser and its settings.
        stop: when to stop. As it stands here, a problem that says it itself is believed.
        on_failure: what to do when an evaluation fails.
        run_key: name of the run's folder; the same key goes on with the same run. Empty: this flow run's own.
        observe: what becomes a task run: every call, every step, nothing, or as much as the pace allows (auto).
        folder: where the run's folder is made, with journal, results and report: a folder, or a URL such as
            s3://bucket/runs.
        start_from: folder or URL of another run, whose design this one starts from; for a new run key.
        start_design: which design of that run, its best or its last one.
        accept_changes: go on with the run of this key although its problem is another one now. History and report say
            what changed.
        schedule: other values for numbers that the problem schedules: {"beta": [1, 4, 16]}, one for each phase;
            {"beta": {"values": [1, 4, 16], "every": 40}}, for 40 steps each; or a number that stays.
        check: look for all that is wrong before the first solve (no component is asked to solve for it), and refuse to
            start with an error.
        verify_gradients: whether gradients fit the values, by one evaluation more at the start ("start"), or at the
            start and every so many steps (a number). Where they do not, the run stops, and whose are wrong is in its
            log and in an artifact.

    Returns:
        value, reason, converged, feasible, steps, constraints, requests, and the folder with everything else. As a flow
        run it ends in a state whose message is the reason, called NotConverged if the design is not a first-order
        optimum. `optimize_design.fn(...)` does the same without Prefect, and asks for no server.
    """
    how = Running(
        observe=observe,
        folder=folder,
        check=check,
        verify_gradients=verify_gradients,
        start_from=start_from,
        start_design=start_design,
        accept_changes=accept_changes,
        schedule=schedule,
    )
    with own_log():
        loaded = load_problem(problem, settings_of_form(problem, settings))
        return optimise(loaded, optimizer, stop, on_failure, how, run_key=run_key, flow=optimize_design.fn)


def optimise(
    problem: Problem,
    optimizer: Optimizer,
    stop: Stop,
    on_failure: Failures,
    how: Running,
    *,
    run_key: str | None,
    flow: Callable[..., Any],
) -> Any:
    """Optimise a problem inside of the run of a flow, or without one; what the function of that flow returns."""
    problem = problem.with_schedule(how.schedule) if how.schedule else problem
    label = label_of_run(run_key)
    name_run(f"{problem.name} {label}")
    cards, logger = Cards(problem.name, label), run_logger()
    report = require_soundness(problem, cards) if how.check else None
    observe = how.observe if in_flow_run() else "run"  # nobody there to see
    observation = observation_of(observe)
    submitter = ObservedSubmitter(PrefectSubmitter(), default_submitter(), observation)

    def attempt(out: str) -> Result:
        logger.info("Optimising %s with %s; journal and results in %s", problem.name, optimizer.name, out)
        journal = FileJournal(place_in(out, "journal"))
        reporting = Reporting(journal, out, extra=lambda: _extra(requests, report))
        limits = stop_of(problem, said(stop))
        n_most = most_steps(limits)
        publisher = ArtifactPublisher(cards, journal, n_most, lambda: dict(requests), submitter.graph.rows)
        with reporting, publisher, PausesOfFlowRun(journal) as pauses:
            return optimize(
                problem,
                optimizer.name,
                learning_rate=optimizer.learning_rate,
                driver_settings=optimizer.settings,
                stop=said(stop),
                on_failure=on_failure.model_dump(),
                journal=PrefectJournal(journal, observation, pauses),
                transform=partial(concurrent, submitter=submitter),
                run_step=_step_runner(submitter, observe),
                observers=[ProgressLog(), publisher, TerminalProgress(max_steps=n_most), reporting],
                start_from=None if how.start_from is None else (how.start_from, how.start_design),
                accept_changes=how.accept_changes,
                verify_gradients=how.verify_gradients,
            )

    with own_requests() as requests:
        out, result = in_run_folder(how.folder, key_of_run(run_key), attempt)
        if result.history[-1].contradiction:
            blamed(problem, result, cards)
    logger.info("%s after %d steps: value %.10g. Results in %s", result.reason, result.steps, result.value, out)
    summary = {
        "value": result.value,
        "reason": result.reason,
        "converged": result.converged,
        "feasible": result.feasible,
        "steps": result.steps,
        "constraints": {name: value.tolist() for name, value in result.constraints.items()},
        "requests": result.requests,
        "folder": out if is_url(out) else str(Path(out).resolve()),
    }
    message = result.reason if result.feasible else f"{result.reason}; no design met the constraints"
    return ended(summary, converged=result.converged, message=message, flow=flow)


def _step_runner(submitter: ObservedSubmitter, observe: ObserveLevel) -> Callable[[int, Callable[[], T]], T]:
    def run_step(step: int, fn: Callable[[], T]) -> T:
        submitter.begin_step(step)
        return run_step_as_task(step, fn) if observe == "steps" else fn()

    return run_step


def _extra(requests: Counter[str], report: Report | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if report is None else {"check": finding_rows(report) or report.headline}
    if report is not None and report.wiring is not None:
        found["what_feeds_what"] = report.wiring.rows()
    return {"requests_of_this_run": dict(requests), **found}
