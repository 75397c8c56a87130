"""What a flow run shows while it goes: a progress bar, the convergence plot, the problem's own picture, the history.

Artifacts are made of the same parts as the report (`tesseract_flow.report`). They are a service, not the work: if
Prefect's API refuses one, the run says so in its log and goes on.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.utilities.annotations import opaque

from tesseract_flow.optimize import AbstractObserver, Evaluation, Problem, Result, StepRecord
from tesseract_flow.report import convergence_figure, data_uri, history_rows, markdown_table
from tesseract_flow.report.tables import constraint_rows, event_rows, number, summary_rows
from tesseract_flow.storage import folder_name, slug

TABLE_ROWS = 100  # the UI shows tables as one page


@task(name="publish", task_run_name="publish #{step}", cache_policy=NO_CACHE, persist_result=False)
def publish_pictures(step: int, key: str, history: Sequence[StepRecord], figures: dict[str, Figure]) -> None:
    """Convergence plot, history table and further pictures as artifacts, each a new version of its key."""
    create_image_artifact(
        data_uri(convergence_figure(history)), key=f"{key}-convergence", description=f"Convergence up to step {step}"
    )
    for name, figure in figures.items():
        create_image_artifact(
            data_uri(figure), key=f"{key}-{artifact_key(name)}", description=f"{name.capitalize()} at step {step}"
        )
    rows = history_rows(history, TABLE_ROWS)
    create_table_artifact(legible(rows), key=f"{key}-history", description=f"History up to step {step}")


@task(name="publish result", task_run_name="publish result", cache_policy=NO_CACHE, persist_result=False)
def publish_result(key: str, title: str, result: Result, requests: dict[str, int]) -> None:
    """The outcome in words and numbers, as a Markdown artifact."""
    parts = [f"# {title}", markdown_table([{"": label, "value": text} for label, text in summary_rows(result)])]
    if result.constraints:
        parts += ["## Constraints", markdown_table(constraint_rows(result.constraints))]
    if requests:
        parts += ["## Requests in this run", markdown_table([{"call": k, "requests": n} for k, n in requests.items()])]
    if events := event_rows(result.history, TABLE_ROWS):
        parts += ["## Events", markdown_table(events)]
    if result.notes:
        parts += ["## Notes", *(f"* {note}" for note in result.notes)]
    create_markdown_artifact("\n\n".join(parts), key=f"{key}-result", description=result.reason)


class ArtifactPublisher(AbstractObserver):
    """Publishes by time and not by step: progress every second or two, pictures more rarely, and all of it at the end.

    Args:
        n_steps: the length of the progress bar.
        requests: counts by call, for the summary at the end.
        progress_every, pictures_every: seconds.
    """

    def __init__(
        self,
        n_steps: int,
        requests: Callable[[], dict[str, int]],
        *,
        progress_every: float = 1.5,
        pictures_every: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.n_steps = max(n_steps, 1)
        self.requests = requests
        self.progress_every = progress_every
        self.pictures_every = pictures_every
        self._clock = clock
        self._progress_id: Any = None
        self._history: list[StepRecord] = []
        self._pictured_step = -1
        self._guarded = Guarded()

    def on_start(self, problem: Problem, history: Sequence[StepRecord]) -> None:
        self._problem = problem
        self._key = artifact_key(problem.name)
        self._history = list(history)
        self._progress_at = self._pictures_at = self._clock()
        self._guarded(self._create_progress)

    def on_step(self, record: StepRecord, design: Any, evaluation: Evaluation) -> None:
        self._history.append(record)
        now = self._clock()
        if now - self._progress_at >= self.progress_every:
            self._progress_at = now
            self._guarded(self._update_progress)
        if now - self._pictures_at >= self.pictures_every:
            self._guarded(lambda: self._publish_pictures(design, evaluation))
            self._pictures_at = self._clock()

    def on_finish(self, result: Result) -> None:
        self._history = list(result.history)
        self._guarded(lambda: self._publish_pictures(result.design, result.evaluation))
        self._guarded(lambda: publish_result(self._key, self._problem.name, opaque(result), self.requests()))  # type: ignore[arg-type]
        self._guarded(lambda: self._update_progress(100.0))

    def _create_progress(self) -> None:
        self._progress_id = create_progress_artifact(
            self._percent(), key=f"{self._key}-progress", description=f"Optimising {self._problem.name}"
        )

    def _update_progress(self, percent: float | None = None) -> None:
        if self._progress_id is None or not self._history:
            return
        last = self._history[-1]
        update_progress_artifact(
            self._progress_id,
            self._percent() if percent is None else percent,
            description=f"step {last.step}: value {last.value:.8g}, best {last.best_value:.8g}",
        )

    def _publish_pictures(self, design: Any, evaluation: Evaluation) -> None:
        figures = {}
        if self._problem.picture is not None:
            figures["design"] = self._problem.picture(design, evaluation)
        step = self._history[-1].step if self._history else 0
        publish_pictures(step, self._key, opaque(list(self._history)), opaque(figures))  # type: ignore[arg-type]

    def _percent(self) -> float:
        done = self._history[-1].step if self._history else 0
        return min(100.0 * done / self.n_steps, 100.0)


class Guarded:
    """Does what is a service and not the work: if Prefect's API refuses it, the log says so, once."""

    def __init__(self) -> None:
        self._has_failed = False

    def __call__(self, publish: Callable[[], object]) -> None:
        try:
            publish()
        except Exception as error:
            if not self._has_failed:  # a server that is away would fill the log
                get_run_logger().warning("An artifact could not be published, the run goes on: %s", error)
            self._has_failed = True


def legible(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table with their numbers as one reads them; the exact ones are in the files."""
    return [{name: number(x) if isinstance(x, float) else x for name, x in row.items()} for row in rows]


def artifact_key(name: str) -> str:
    """`name` as Prefect wants keys: lowercase letters, numbers and dashes.

    Where that leaves out more than a space or an apostrophe, names that differ in it stay different: a key is a thread
    of versions, and two problems should not share one.
    """
    plain = slug(name)
    return plain if plain and re.fullmatch(r"[\w '’.,()-]+", name, re.ASCII) else folder_name(name)
