"""What a flow run shows while it goes: a progress bar, the convergence plot, the design, the history, the outcome.

Cards are made of the same parts as the report (`tesseract_flow.report`).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tesseract_flow.optimize import AbstractObserver, Evaluation, FileJournal, Problem, Result, StepRecord, read_account
from tesseract_flow.report import convergence_figure, design_figure, history_rows, markdown_table
from tesseract_flow.report.tables import constraint_rows, event_rows, summary_rows
from tesseract_flow.tasks.cards import Cards

TABLE_ROWS = 100  # the UI shows tables as one page


def result_markdown(title: str, result: Result, requests: dict[str, int]) -> str:
    """The outcome in words and numbers."""
    parts = [f"# {title}", markdown_table([{"": label, "value": text} for label, text in summary_rows(result)])]
    if result.constraints:
        parts += ["## Constraints", markdown_table(constraint_rows(result.constraints))]
    if requests:
        parts += ["## Requests in this run", markdown_table([{"call": k, "requests": n} for k, n in requests.items()])]
    if events := event_rows(result.history, TABLE_ROWS):
        parts += ["## Events", markdown_table(events)]
    if result.notes:
        parts += ["## Notes", *(f"* {note}" for note in result.notes)]
    return "\n\n".join(parts)


class ArtifactPublisher(AbstractObserver):
    """Publishes by time and not by step: progress every second or two, pictures more rarely, and all of it at the end,
    however that comes: an observer, and the block around `optimize`.

    Args:
        cards: of this run.
        journal: of this run, which knows the outcome where an error or a cancellation ends it.
        n_steps: the length of the progress bar.
        requests: counts by call, for the summary at the end.
        graph: which call waits for which, as rows.
        progress_every, pictures_every: seconds.
    """

    def __init__(
        self,
        cards: Cards,
        journal: FileJournal,
        n_steps: int,
        requests: Callable[[], dict[str, int]],
        graph: Callable[[], list[dict[str, Any]]] = list,
        *,
        progress_every: float = 1.5,
        pictures_every: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.cards = cards
        self.journal = journal
        self.n_steps = max(n_steps, 1)
        self.requests = requests
        self.graph = graph
        self.progress_every = progress_every
        self.pictures_every = pictures_every
        self._clock = clock
        self._problem: Problem | None = None
        self._history: list[StepRecord] = []
        self._last: tuple[Any, Evaluation] | None = None
        self._is_over = False

    def on_start(self, problem: Problem, history: Sequence[StepRecord]) -> None:
        self._problem = problem
        self._history = list(history)
        self._progress_at = self._pictures_at = self._clock()
        self.cards.progress(self._percent(), f"Optimising {problem.name}")

    def on_step(self, record: StepRecord, design: Any, evaluation: Evaluation) -> None:
        self._history.append(record)
        self._last = design, evaluation
        now = self._clock()
        if now - self._progress_at >= self.progress_every:
            self._progress_at = now
            self._show_progress(self._percent())
        if now - self._pictures_at >= self.pictures_every:
            self._show_pictures(design, evaluation)
            self._pictures_at = self._clock()

    def on_finish(self, result: Result) -> None:
        self._history = list(result.history)
        self._conclude(result, result.design, result.evaluation)
        self._show_progress(100.0)

    def __enter__(self) -> "ArtifactPublisher":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or self._is_over or self._last is None:
            return
        try:
            result = read_account(self.journal).result
        except Exception:  # of a run that has failed, and says so itself
            return
        self._show_progress(self._percent())
        self._conclude(result, *self._last)

    def _conclude(self, result: Result, design: Any, evaluation: Evaluation) -> None:
        assert self._problem is not None
        self._is_over = True
        self._show_pictures(design, evaluation)
        self.cards.markdown("result", result_markdown(self._problem.name, result, self.requests()), result.reason)

    def _show_progress(self, percent: float) -> None:
        if self._history:
            last = self._history[-1]
            self.cards.progress(percent, f"step {last.step}: value {last.value:.8g}, best {last.best_value:.8g}")

    def _show_pictures(self, design: Any, evaluation: Evaluation) -> None:
        problem, history = self._problem, list(self._history)
        assert problem is not None
        step = history[-1].step if history else 0

        def drawn() -> Any:
            return (
                design_figure(design, problem.design)
                if problem.picture is None
                else problem.picture(design, evaluation)
            )

        self.cards.picture("convergence", lambda: convergence_figure(history), f"Convergence up to step {step}")
        self.cards.picture("design", drawn, f"Design at step {step}")
        if calls := self.graph():
            self.cards.table("graph", calls, "Which call waits for which, and how long they take")
        self.cards.table("history", history_rows(history, TABLE_ROWS), f"History up to step {step}")

    def _percent(self) -> float:
        done = self._history[-1].step if self._history else 0
        return min(100.0 * done / self.n_steps, 100.0)
