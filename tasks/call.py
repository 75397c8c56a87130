"""A Prefect task around every remote call, and the submitter that makes the executor use it."""

import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext

from tesseract_flow.client import RetryPolicy, is_transient
from tesseract_flow.client.retry import DEFAULT_RETRY, somebody_else
from tesseract_flow.errors import Overloaded
from tesseract_flow.execute import AbstractFuture, AbstractSubmitter, Answer, Node

T = TypeVar("T")

# A server may ask for any patience; beyond this a failed task that says so serves its owner better.
_LONGEST_WAIT = 300.0


def retry_if_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Repeat what a lost connection or a busy server caused, never what the component or its input did.

    A plain function, because Prefect 3.8 silently drops retries whose condition is a partial or a callable object.
    """
    return isinstance(state.data, BaseException) and is_transient(state.data)


# How a task around a call is repeated, and that nothing of it is stored.
REPEATED: dict[str, Any] = {
    "retries": DEFAULT_RETRY.n_retries,
    "retry_delay_seconds": DEFAULT_RETRY.delays(),
    "retry_jitter_factor": DEFAULT_RETRY.jitter,
    "retry_condition_fn": retry_if_transient,
    # The call's own key is exact and cheap; Prefect's default would hash every array once more, and store nothing.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def wait_as_asked(error: Overloaded, sleep: Callable[[float], object]) -> None:
    """Wait as long as an overloaded server asks for, within reason; the task's own pause comes on top."""
    if error.retry_after is not None:
        sleep(min(error.retry_after, _LONGEST_WAIT))


class Sealed(Generic[T]):
    """An argument that nobody looks into.

    Prefect would walk into lists and dataclasses, element by element, looking for futures. Its own word against that,
    `opaque`, is a tuple, which Dask takes apart on the way to another process.
    """

    def __init__(self, value: T):
        self.value = value


@task(name="tesseract-call", task_run_name="{label}", **REPEATED)
def call_tesseract(
    label: str, node: Node | Sealed[Node], operands: Sequence[np.ndarray] | Sealed[Sequence[np.ndarray]], run_id: str
) -> Answer:
    """One request to one Tesseract: `apply`, a pushforward or a pullback.

    Args:
        label: the run's name in the UI, such as `fem.pullback #12`.
        node: what to ask, and whom.
        operands: its arrays.
        run_id: names the server's output folder, so that its logs can be matched with this run.
    """
    node = node.value if isinstance(node, Sealed) else node
    operands = operands.value if isinstance(operands, Sealed) else operands
    try:
        with somebody_else():  # this task repeats it
            return node.run(operands, run_id)
    except Overloaded as error:
        wait_as_asked(error, time.sleep)
        raise


class PrefectSubmitter(AbstractSubmitter):
    """Each call becomes a task run of the current flow run, with its producers as edges of the graph.

    Use it on the flow's own thread: a task that is submitted from another thread becomes an orphan.

    Args:
        retry: the retry policy of the tasks; default that of `call_tesseract`.
    """

    def __init__(self, retry: RetryPolicy = DEFAULT_RETRY):
        self.step = 0
        self._task = call_tesseract
        if retry != DEFAULT_RETRY:
            self._task = call_tesseract.with_options(
                retries=retry.n_retries, retry_delay_seconds=retry.delays(), retry_jitter_factor=retry.jitter
            )

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        label = f"{node.label} #{self.step}"
        return self._task.submit(
            label,
            Sealed(node),
            Sealed(operands),
            run_id_of(label),
            wait_for=list(producers) or None,  # type: ignore[arg-type]
        )


def run_id_of(label: str) -> str:
    """A name for the server's output folder: flow run, step and call, and unique."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{_flow_run_name()}-{label}-{uuid.uuid4().hex[:8]}")


def _flow_run_name() -> str:
    context = FlowRunContext.get()
    return context.flow_run.name if context is not None and context.flow_run is not None else "local"
