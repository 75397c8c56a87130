"""What a flow run shows of a study: how many runs are over, the ranked table, all runs in a picture, the best one.

Artifacts are a service, not the work, as in `publish`.
"""

from collections.abc import Sequence
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
from prefect.utilities.annotations import opaque

from tesseract_flow.optimize import StepRecord
from tesseract_flow.report import data_uri, markdown_table
from tesseract_flow.report.tables import summary_rows
from tesseract_flow.study import AbstractStudy, AbstractStudyObserver, StudyRun
from tesseract_flow.study.table import brief_rows
from tesseract_flow.tasks.publish import TABLE_ROWS, Guarded, artifact_key, legible


@task(name="publish study", task_run_name="publish study", cache_policy=NO_CACHE, persist_result=False)
def publish_study(
    key: str, title: str, rows: Sequence[dict[str, Any]], figure: Figure | None, words: Sequence[str]
) -> None:
    """The ranked table, the picture, and the best run in words and numbers."""
    create_table_artifact(legible(rows[:TABLE_ROWS]), key=f"{key}-runs", description=title)
    if figure is not None:
        create_image_artifact(data_uri(figure), key=f"{key}-all-runs", description=title)
    create_markdown_artifact("\n\n".join(words), key=f"{key}-best", description=title)


class StudyPublisher(AbstractStudyObserver):
    """Publishes progress as runs end, and all the rest at the end.

    Args:
        key: begins the keys of all artifacts.
    """

    def __init__(self, key: str):
        self._key = artifact_key(key)
        self._guarded = Guarded()
        self._progress_id: Any = None
        self._n_runs, self._n_over = 0, 0

    def on_start(self, name: str, n_runs: int) -> None:
        self._n_runs = n_runs
        self._guarded(lambda: self._begin(name))

    def on_step(self, index: int, record: StepRecord) -> None:
        return None

    def on_run(self, run: StudyRun) -> None:
        self._n_over += 1
        if self._progress_id is not None:
            percent, words = 100.0 * self._n_over / self._n_runs, f"run {run.index} {run.status}: {run.why}"
            self._guarded(lambda: update_progress_artifact(self._progress_id, percent, description=words))

    def on_finish(self, study: AbstractStudy) -> None:
        words = [f"# {study.kind} of {study.name}", study.summary]
        if (best := study.ranked[0].result) is not None:
            words.append(markdown_table([{"": label, "value": text} for label, text in summary_rows(best)]))
        words += [f"* {note}" for note in study.notes]
        rows, figure = brief_rows(study.rows()), study.picture()
        self._guarded(lambda: publish_study(self._key, study.summary, rows, opaque(figure), words))  # type: ignore[arg-type]

    def _begin(self, name: str) -> None:
        self._progress_id = create_progress_artifact(0.0, key=f"{self._key}-progress", description=f"Running {name}")
