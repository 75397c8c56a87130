"""What a flow run shows of a study: how many runs are over, the ranked table, all runs in a picture, the best one."""

from tesseract_flow.optimize import StepRecord
from tesseract_flow.report import markdown_table
from tesseract_flow.report.tables import summary_rows
from tesseract_flow.study import AbstractStudy, AbstractStudyObserver, StudyRun
from tesseract_flow.study.table import brief_rows
from tesseract_flow.tasks.cards import Cards
from tesseract_flow.tasks.publish import TABLE_ROWS
from tesseract_flow.tasks.steering import PausesOfFlowRun


class StudyPublisher(AbstractStudyObserver):
    """Publishes progress as runs end, and all the rest at the end.

    Args:
        cards: of this flow run.
        pauses: told that the study waits.
    """

    def __init__(self, cards: Cards, pauses: PausesOfFlowRun):
        self._cards, self._pauses = cards, pauses
        self._n_runs, self._n_over = 0, 0

    def on_start(self, name: str, n_runs: int) -> None:
        self._n_runs = n_runs
        self._cards.progress(0.0, f"Running {name}")

    def on_step(self, index: int, record: StepRecord) -> None:
        return None

    def on_run(self, run: StudyRun) -> None:
        self._n_over += 1
        self._cards.progress(100.0 * self._n_over / self._n_runs, f"run {run.index} {run.status}: {run.why}")

    def on_wait(self, why: str | None) -> None:
        self._pauses.waiting(why)

    def on_finish(self, study: AbstractStudy) -> None:
        words = [f"# {study.kind} of {study.name}", study.summary]
        if (best := study.ranked[0].result) is not None:
            words.append(markdown_table([{"": label, "value": text} for label, text in summary_rows(best)]))
        words += [f"* {note}" for note in study.notes]
        self._cards.table("runs", brief_rows(study.rows())[:TABLE_ROWS], study.summary)
        self._cards.picture("all-runs", study.picture, study.summary)
        self._cards.markdown("best", "\n\n".join(words), study.summary)
