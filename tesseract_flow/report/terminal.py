"""A running optimisation in the terminal: one live line that moves, or plain lines every few seconds in a log.

An observer of the optimisation loop. It draws at most ten times a second, whatever the pace of the steps.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tesseract_flow.report import tables
from tesseract_flow.report.tables import duration, number

if TYPE_CHECKING:
    from tesseract_flow.optimize.observers import AbstractObserver
else:
    # The methods are all that the loop asks for; importing it would bring the HTTP client with it.
    AbstractObserver = object

_LOOK_BACK = 20  # steps whose median is the pace
_COMPILING = 2  # steps at the beginning, also of a run that goes on, which say nothing of those to come


class TerminalProgress(AbstractObserver):
    """Shows step, value, best value, violation, gradient norm, requests, pace and the time that remains.

    Args:
        console: where to print; standard error by default, so that results on standard output stay clean.
        max_steps: length of the bar, and what the remaining time is reckoned from; None shows neither.
        clock: seconds from any origin.
        live_every: least time between two frames on a terminal.
        line_every: least time between two lines where the output is not a terminal.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        max_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        live_every: float = 0.1,
        line_every: float = 5.0,
    ):
        self._console = console if console is not None else Console(stderr=True)
        self._max_steps = max_steps
        self._clock = clock
        self._every = live_every if self._console.is_terminal else line_every
        self._begin()

    def _begin(self) -> None:
        self._live: Live | None = None
        self._times: deque[float] = deque(maxlen=_LOOK_BACK + 1)
        self._n_seen = 0
        self._drawn_at = -float("inf")
        self._pending: Any = None  # a record that was held back by the throttle

    def on_start(self, problem: Any, history: Sequence[Any] = (), **facts: Any) -> None:
        """Print what is being optimised, with the facts; `max_steps` among them replaces the argument of that name."""
        self.close()
        self._max_steps = facts.get("max_steps", self._max_steps)
        self._begin()
        details = [f"{key.replace('_', ' ')} {number(fact)}" for key, fact in facts.items()]
        if history:
            details.insert(0, f"going on after step {history[-1].step}")
        name = str(getattr(problem, "name", "design"))
        title = Text.assemble(("optimising ", "bold"), name, (f"  {', '.join(details)}" if details else "", "dim"))
        self._console.print(title, soft_wrap=True)
        if self._console.is_terminal:
            # Prints of the user's code appear above the line; but what is piped to a file must go on to the file.
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            # Should the loop die without on_finish, the cursor must not stay hidden.
            weakref.finalize(self, self._live.stop)
            self._live.start()

    def on_step(self, record: Any, design: Any = None, evaluation: Any = None) -> None:
        """Take note of a finished step, and draw if the last drawing is long enough ago."""
        now = self._clock()
        if self._n_seen >= _COMPILING:
            self._times.append(now)
        self._n_seen += 1
        self._pending = record
        if now - self._drawn_at >= self._every:
            self._drawn_at = now
            self._draw()

    def on_finish(self, result: Any) -> None:
        """Show the last step and a summary."""
        self.close()
        self._console.print(summary_table(result))

    def close(self) -> None:
        """Show what was held back and give the terminal back. May be called at any time, and more than once."""
        if self._pending is not None:
            self._draw()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        record, self._pending = self._pending, None
        line = self._line(record)
        if self._live is None:
            self._console.print(line, soft_wrap=True)
            return
        frame = Table.grid(expand=True)
        if self._max_steps is not None:
            frame.add_row(ProgressBar(total=self._max_steps, completed=record.step, width=min(60, self._console.width)))
        frame.add_row(line)
        self._live.update(frame, refresh=True)

    def _line(self, record: Any) -> Text:
        of_total = "" if self._max_steps is None else f"/{self._max_steps}"
        parts = [
            ("step ", f"{record.step}{of_total}"),
            ("value ", number(record.value, 8)),
            ("best ", number(record.best_value, 8)),
            ("violation ", number(record.violation, 2)),
            ("|gradient| ", number(record.gradient_norm, 3)),
            ("requests ", number(record.requests)),
        ]
        if len(self._times) > 1:
            pace = statistics.median(b - a for a, b in itertools.pairwise(self._times))
            parts.append(("", f"{duration(pace)}/step"))
            if self._max_steps is not None:
                parts.append(("at most ", duration(pace * max(self._max_steps - record.step, 0))))
        line = Text()
        for i, (label, text) in enumerate(parts):
            line.append("  " if i else "").append(label, style="dim").append(text)
        return line


def summary_table(result: Any) -> Table:
    """Outcome, constraints and requests as one table for the terminal."""
    table = Table(show_header=False, title="converged" if result.converged else "not converged", title_justify="left")
    table.add_column(style="dim")
    table.add_column()
    for label, text in tables.summary_rows(result):
        if label != "converged":  # it is the title
            table.add_row(label, Text(text, style="bold" if label == "objective" else ""))
    for row in tables.constraint_rows(result.constraints or {}):
        low, high = number(row["smallest"]), number(row["largest"])
        table.add_row(Text(f"constraint {row['constraint']}"), Text(low if low == high else f"{low} to {high}"))
    for row in tables.request_rows(result.requests):
        counts = ", ".join(f"{n} {name}" for name, n in row.items() if name not in ("tesseract", "total") and n)
        table.add_row(Text(f"requests to {row['tesseract']}"), Text(counts))
    for note in getattr(result, "notes", ()):
        table.add_row("note", Text(note))
    return table
