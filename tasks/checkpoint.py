"""The journal as Prefect tasks: each checkpoint is a run in the UI, written by the library's own journal."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import opaque

from tesseract_flow.optimize import AbstractJournal, Checkpoint, Resumption
from tesseract_flow.tasks.observe import AbstractObservation
from tesseract_flow.tasks.steering import PausesOfFlowRun


@task(name="checkpoint", task_run_name="checkpoint #{step}", cache_policy=NO_CACHE, persist_result=False)
def save_checkpoint(step: int, journal: AbstractJournal, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
    """Write a finished step to the journal. Not retried: a full disk does not empty itself."""
    journal.save(checkpoint, record)


class PrefectJournal(AbstractJournal):
    """Wraps a journal: its checkpoints become task runs, at the steps that are observed."""

    def __init__(
        self, journal: AbstractJournal, observation: AbstractObservation, pauses: PausesOfFlowRun | None = None
    ):
        self.journal = journal
        self.observation = observation
        self.pauses = pauses
        self.glance = journal.glance

    @property
    def address(self) -> str:
        return self.journal.address

    def open(self, identity: Mapping[str, Any], *, accept_changes: bool = False) -> Resumption | None:
        return self.journal.open(identity, accept_changes=accept_changes)

    def confirm(self, changes: Sequence[str] = ()) -> None:
        self.journal.confirm(changes)

    def save(self, checkpoint: Checkpoint, record: Mapping[str, Any]) -> None:
        if self.observation.shows_step(checkpoint.step):
            # Called, not submitted: the next step must not start before this one is safe.
            save_checkpoint(checkpoint.step, opaque(self.journal), opaque(checkpoint), opaque(record))  # type: ignore[arg-type]
        else:
            self.journal.save(checkpoint, record)

    def attach(self, name: str, data: bytes) -> None:
        self.journal.attach(name, data)

    def close(self) -> None:
        self.journal.close()

    def inbox(self) -> dict[str, bytes]:
        return self.journal.inbox()

    def act(self, action: Mapping[str, Any]) -> None:
        self.journal.act(action)

    def dismiss(self, name: str, *, is_bad: bool = False) -> None:
        self.journal.dismiss(name, is_bad=is_bad)

    def waiting(self, why: str | None) -> None:
        if self.pauses is not None:
            self.pauses.waiting(why)
