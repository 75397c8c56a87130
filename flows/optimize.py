"""The flow that optimises a design: a form in, artifacts and a folder of results out.

No `from __future__ import annotations` here: Prefect builds the form from live annotations, and a served run fails on
postponed ones.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, Field

from tesseract_flow.checks import Report
from tesseract_flow.checks.views import finding_rows
from tesseract_flow.client import own_requests
from tesseract_flow.execute import concurrent, default_submitter
from tesseract_flow.flows.check import blamed, require_soundness, resolved
from tesseract_flow.optimize import (
    FailureAction,
    FileJournal,
    Result,
    WhichDesign,
    load_problem,
    optimize,
)
from tesseract_flow.report import Reporting, TerminalProgress
from tesseract_flow.storage import is_url, place_in
from tesseract_flow.tasks import (
    ArtifactPublisher,
    ObservedSubmitter,
    ObserveLevel,
    PrefectJournal,
    PrefectSubmitter,
    observation_of,
    run_step_as_task,
    warnings_in_run_log,
)
from tesseract_flow.tasks.run_folder import in_run_folder

T = TypeVar("T")

# The drivers worth offering in a form; the settings of each are those of its library.
_OfOptax = Literal[
    "adam", "lbfgs", "adamw", "nadam", "amsgrad", "adabelief", "radam", "rmsprop", "yogi", "lion", "sgd", "polyak_sgd"
]
_ForMisfits = Literal["levenberg-marquardt", "gauss-newton", "dogleg"]
OptimizerName = Literal[
    "auto", _OfOptax, "slsqp", "l-bfgs-b", "trust-constr", "mma", "ccsaq", "ld_slsqp", _ForMisfits, "cma-es"
]


class Optimizer(BaseModel):
    """Which optimiser, of Optax, SciPy, NLopt or Optimistix, and its settings."""

    name: OptimizerName = Field(
        default="auto",
        description="auto: slsqp with constraints, unless there are many unknowns or constraints, else adam. Or an "
        "Optax optimiser (lbfgs searches along a line); or one of SciPy's: slsqp, l-bfgs-b (bounds only), "
        "trust-constr; or of NLopt's, if it is installed: mma, ccsaq (inequalities only), ld_slsqp; for least squares "
        "levenberg-marquardt, gauss-newton or dogleg; or cma-es, which asks for no gradients",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Of an Optax optimiser, in units of the problem's scale; empty for the optimiser's default",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description='Further settings, such as {"schedule": "cosine", "schedule_steps": 300}'
    )


class Stop(BaseModel):
    """When to stop; whichever comes first. Empty fields do not count."""

    max_steps: int = Field(default=200, ge=0, description="Steps, over all runs with this run key")
    gradient_tolerance: float | None = Field(
        default=1e-6,
        ge=0,
        description="Of first-order optimality: stationarity and complementarity; constraints must be met as well",
    )
    patience: int | None = Field(default=None, ge=1, description="Steps without improvement of the best design")
    stagnation_tolerance: float = Field(default=1e-6, ge=0, description="Relative improvement that counts as one")
    wall_time: float | None = Field(default=None, gt=0, description="Seconds, over all runs with this run key")
    max_requests: int | None = Field(default=None, ge=1, description="Requests of this run to Tesseracts")


class Failures(BaseModel):
    """What to do when an evaluation fails: NaN, a component's own error, a time-out, an answer that is not valid."""

    action: FailureAction = Field(
        default="shrink",
        description="shrink: back along the step until it can be evaluated; skip: drop the update; stop: end with the "
        "best so far; raise: fail",
    )
    retries: int = Field(default=0, ge=0, description="Evaluate the same design again first, for what may pass")
    shrinks: int = Field(default=10, ge=0, description="How often a step is shortened before it is given up")
    factor: float = Field(default=0.5, gt=0, lt=1, description="By which it is shortened each time")
    memory: Literal["keep", "reset"] = Field(default="keep", description="Of the optimiser, after a dropped update")
    in_a_row: int = Field(default=30, ge=1, description="Failed evaluations in a row after which the run ends")
    patience: float = Field(default=300.0, ge=0, description="Seconds to wait for a component that is away")


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
) -> dict[str, Any]:
    """Optimise a design through Tesseracts.

    After each step everything needed to go on is on disk: a run that was killed, retried or started again with the same
    run key continues from its last finished step.

    Args:
        problem: what to optimise, as folder/problem.py:factory or package.module:factory.
        settings: arguments of the factory. "block:NAME" stands for the Tesseract of the endpoint block NAME.
        optimizer: the optimiser and its settings.
        stop: when to stop.
        on_failure: what to do when an evaluation fails.
        run_key: name of the run's folder; the same key goes on with the same run. Empty: this flow run's own.
        observe: what becomes a task run: every call, every step, nothing, or as much as the pace allows (auto).
        folder: where the run's folder is made, with journal, results and report: a folder, or a URL such as
            s3://bucket/runs.
        start_from: folder or URL of another run, whose design this one starts from; for a new run key.
        start_design: which design of that run, its best or its last one.
        accept_changes: go on with the run of this key although its problem is another one now. History and report say
            what changed.
        check: look for all that is wrong before the first solve (no component is asked to solve for it), and refuse to
            start with an error.
        verify_gradients: whether gradients fit the values, by one evaluation more at the start ("start"), or at the
            start and every so many steps (a number). Where they do not, the run stops, and whose are wrong is in its
            log and in an artifact.

    Returns:
        value, reason, steps, constraints, requests, and the folder with everything else.
    """
    with warnings_in_run_log():
        logger = get_run_logger()
        key = run_key or str(flow_run.id)
        loaded = load_problem(problem, {name: resolved(value) for name, value in settings.items()})
        report = require_soundness(loaded) if check else None
        observation = observation_of(observe)
        submitter = ObservedSubmitter(PrefectSubmitter(), default_submitter(), observation)

        def attempt(out: str) -> Result:
            logger.info("Optimising %s with %s; journal and results in %s", loaded.name, optimizer.name, out)
            journal = FileJournal(place_in(out, "journal"))
            reporting = Reporting(journal, out, extra=lambda: _extra(requests, report))
            with reporting:
                return optimize(
                    loaded,
                    optimizer.name,
                    learning_rate=optimizer.learning_rate,
                    driver_settings=optimizer.settings,
                    stop=stop.model_dump(),
                    on_failure=on_failure.model_dump(),
                    journal=PrefectJournal(journal, observation),
                    transform=partial(concurrent, submitter=submitter),
                    run_step=_step_runner(submitter, observe),
                    observers=[
                        ArtifactPublisher(stop.max_steps, lambda: dict(requests)),
                        TerminalProgress(max_steps=stop.max_steps),
                        reporting,
                    ],
                    start_from=None if start_from is None else (start_from, start_design),
                    accept_changes=accept_changes,
                    verify_gradients=verify_gradients,
                )

        with own_requests() as requests:
            out, result = in_run_folder(folder, key, attempt)
            if result.history[-1].contradiction:
                blamed(loaded, result)
        logger.info("%s after %d steps: value %.10g. Results in %s", result.reason, result.steps, result.value, out)
        return {
            "value": result.value,
            "reason": result.reason,
            "steps": result.steps,
            "constraints": {name: value.tolist() for name, value in result.constraints.items()},
            "requests": result.requests,
            "folder": out if is_url(out) else str(Path(out).resolve()),
        }


def _step_runner(submitter: ObservedSubmitter, observe: ObserveLevel) -> Callable[[int, Callable[[], T]], T]:
    def run_step(step: int, fn: Callable[[], T]) -> T:
        submitter.begin_step(step)
        return run_step_as_task(step, fn) if observe == "steps" else fn()

    return run_step


def _extra(requests: Counter[str], report: Report | None) -> dict[str, Any]:
    found = {} if report is None else {"check": finding_rows(report) or report.headline}
    return {"requests_of_this_run": dict(requests), **found}
