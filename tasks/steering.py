"""Steering from Prefect's pages: *Pause* there pauses the run, and *Resume* asks what is to change.

Prefect's pause is a state of the flow run, which a flow has to look at itself. Here it becomes a request beside the
journal, as from anywhere else (`steer`), so that what is done is in the journal. While a run waits, whoever asked for
it, its state is Paused, with a form; the other way round, going on from elsewhere ends that state.

No `from __future__ import annotations` here: Prefect makes the form from live annotations.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext
from prefect.input.run_input import RunInput, keyset_from_paused_state
from prefect.states import Paused, Running
from pydantic import Field

from tesseract_flow.errors import SteeringError
from tesseract_flow.optimize import FileJournal, steer
from tesseract_flow.tasks.log import run_logger

_BY = "Prefect"
_FOREVER = 10 * 365 * 24 * 3600  # seconds; Prefect fails a run whose pause is over
_PACE = 2.0  # seconds between two questions to the server


class Steer(RunInput):
    """What *Resume* asks for. What is empty stays as it is."""

    # No name that JSON Schema has for itself (then, type, items, ...): Prefect's V2 pages (3.9.1) check what was typed
    # as if it were a schema, and would not send it.
    action: Literal["go on", "stop with the best so far"] = Field("go on", description="What to do now.")
    learning_rate: float | None = Field(None, gt=0, description="Of a driver of Optax by name.")
    max_steps: int | None = Field(None, ge=0, description="The most steps of the whole run.")
    gradient_tolerance: float | None = Field(None, ge=0, lt=1, description="Stop at a first-order optimum; 0: do not.")
    wall_time: float | None = Field(None, ge=0, description="The most seconds of the whole run.")
    max_requests: int | None = Field(None, ge=0, description="The most requests of the whole run.")
    bounds: dict[str, list[Any]] = Field({}, description="By leaf of the design [lower, upper]; null is unbounded.")
    schedule: dict[str, float] = Field({}, description="Scheduled numbers, which stay like this from now on.")


def _keep_suspensions_from_prefect() -> None:
    """Have a run that is suspended on a page wait, as here, and go on in this process.

    From 3.9 on Prefect ends the process of a deployed run at its next task or at its end, once it has heard of a
    suspension, even if the run was resumed long before; its page would show it running for ever.
    """
    request = getattr(FlowRunContext.get(), "flow_run_suspension_request", None)
    if request is not None:
        request.mark_requested(None)  # the state itself is looked at, as long as it is there
        request.mark_requested = lambda state: None


class PausesOfFlowRun:
    """Brings together the pauses of a flow run and those of its journal, or of its study's folder. A context; nothing
    outside of a flow run."""

    def __init__(self, journal: FileJournal | str, pace: float = _PACE, clock: Callable[[], float] = time.monotonic):
        self._journal, self._pace, self._clock = journal, pace, clock
        context = FlowRunContext.get()
        self._id: UUID | None = None if context is None or context.flow_run is None else context.flow_run.id
        self._is_over = threading.Event()
        self._is_held = threading.Event()
        self._next = 0.0
        self._n = 0
        self._keyset: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._id is not None:
            _keep_suspensions_from_prefect()
            self._thread = threading.Thread(target=self._watch, name="tesseract-flow pauses", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def waiting(self, why: str | None) -> None:
        """Told again and again while the run waits, on the flow's thread; and with None when it goes on."""
        if self._id is None or (why is not None and self._clock() < self._next):
            return
        self._next = self._clock() + self._pace
        try:
            with get_client(sync_client=True) as client:
                self._bring_together(client, self._id, why)
        except Exception as error:  # the page is a service; the run can be steered without it
            run_logger().warning("Prefect's state of this run could not be looked at: %s", error)

    def _bring_together(self, client: SyncPrefectClient, run: UUID, why: str | None) -> None:
        state = client.read_flow_run(run).state
        if why is None:
            if state is not None and state.is_paused():
                client.set_flow_run_state(run, Running(), force=True)
            self._keyset = None
            self._is_held.clear()
        elif self._keyset is None:
            self._is_held.set()
            self._ask(client, run, why)
        elif state is not None and state.is_running():
            answer, keyset = Steer.load(self._keyset), self._keyset
            self._keyset = None  # another form, should the run go on waiting
            assert isinstance(answer, Steer), keyset
            self._pass_on(answer)

    def _ask(self, client: SyncPrefectClient, run: UUID, why: str) -> None:
        self._n += 1
        state = Paused(timeout_seconds=_FOREVER, reschedule=False, pause_key=f"steer-{time.time_ns()}")
        state.message = why
        keyset = keyset_from_paused_state(state)
        Steer.save(keyset)
        state.state_details.run_input_keyset = {str(key): value for key, value in keyset.items()}
        client.set_flow_run_state(run, state, force=True)
        self._keyset = keyset

    def _pass_on(self, answer: Steer) -> None:
        stop = {
            name: value
            for name in ("max_steps", "gradient_tolerance", "wall_time", "max_requests")
            if (value := getattr(answer, name)) is not None
        }
        changes = {
            "learning_rate": answer.learning_rate,
            "stop": stop or None,
            "bounds": answer.bounds or None,
            "schedule": answer.schedule or None,
        }
        try:
            if any(value is not None for value in changes.values()):
                steer(self._journal, by=_BY, **changes)
        except SteeringError as error:
            run_logger().error("The run is still paused, as what was asked for cannot be: %s", error)
            return
        if answer.action != "go on":
            steer(self._journal, "stop", by=_BY)
        else:
            steer(self._journal, "go-on", by=_BY)

    def _watch(self) -> None:
        """A pause that somebody asks for on a page."""
        assert self._id is not None
        was_paused = False
        with get_client(sync_client=True) as client:
            while not self._is_over.wait(self._pace):
                with contextlib.suppress(Exception):  # the server is busy; asked again
                    state = client.read_flow_run(self._id).state
                    is_paused = state is not None and state.is_paused() and not self._is_held.is_set()
                    if is_paused and not was_paused:
                        steer(self._journal, "pause", by=_BY)
                    was_paused = is_paused
