"""The flow that optimises a design from several starts.

No `from __future__ import annotations` here: Prefect builds the form from live annotations.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefect import flow

from tesseract_flow import study
from tesseract_flow.flows.check import require_soundness, settings_of_form
from tesseract_flow.flows.forms import Failures, Optimizer, Stop, said
from tesseract_flow.optimize import load_problem
from tesseract_flow.storage import folder_name, is_url, place_in
from tesseract_flow.study import AbstractStudy, StudyProgress
from tesseract_flow.tasks.cards import Cards
from tesseract_flow.tasks.log import own_log, run_logger
from tesseract_flow.tasks.run import ended, key_of_run, label_of_run, name_run
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
    run_key: str | None = None,
    folder: str = "runs",
    check: bool = True,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Optimise a design from several starts, all at once in this flow run.

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
        max_workers: runs at once; empty: 8.
        run_key: name of the study's folder; the same key goes on with the same study. Empty: this flow run's own.
        folder: where the study's folder is made, with journals, table and report: a folder, or a URL.
        check: look for all that is wrong before the first solve, and refuse to start with an error.
        accept_changes: go on although the problem is another one now.

    Returns:
        value, reason, converged and feasible of the best run, how many runs ended how, and the folder with all.
    """
    with own_log():
        loaded = load_problem(problem, settings_of_form(problem, settings))
        label = label_of_run(run_key)
        name_run(f"{loaded.name} {label}")
        cards = Cards(loaded.name, label)
        if check:
            require_soundness(loaded, cards)
        out = place_in(folder, folder_name(key_of_run(run_key)))
        run_logger().info("Optimising %s from %d starts; journals and results in %s", loaded.name, n, out)
        found = study.multi_start(
            loaded,
            n,
            optimizer.name,
            starts=starts,
            seed=seed,
            spread=spread,
            journal=place_in(out, "runs"),
            max_workers=max_workers,
            observers=[StudyProgress(), StudyPublisher(cards)],
            accept_changes=accept_changes,
            **options_of(optimizer, stop, on_failure),
        )
        return concluded(found, out, flow=multi_start.fn)


def options_of(optimizer: Optimizer, stop: Stop, on_failure: Failures) -> dict[str, Any]:
    """What the form says of each run, for `optimize`."""
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
        "runs": {status: counts[status] for status in ("converged", "stopped", "failed")},
        "requests": found.requests,
        "folder": out if is_url(out) else str(Path(out).resolve()),
    }
    return ended(summary, converged=best.converged, message=found.summary, flow=flow)
