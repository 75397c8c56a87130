"""A step as one task run, for `observe="steps"`."""

from collections.abc import Callable
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import opaque

T = TypeVar("T")


@task(name="step", task_run_name="step #{step}", cache_policy=NO_CACHE, persist_result=False)
def run_step(step: int, fn: Callable[[], object]) -> None:
    """One step of the optimisation, its calls included.

    Not retried: the calls inside have their own policy, and attempts would multiply.
    """
    fn()


def run_step_as_task(step: int, fn: Callable[[], T]) -> T:
    """`fn()` inside a task run of the current flow run, on the calling thread."""
    outcome: list[T] = []
    # Not returned by the task: Prefect takes a later tuple at the same address for this one (see execute.Answer).
    run_step(step, opaque(lambda: outcome.append(fn())))  # type: ignore[arg-type]
    return outcome[0]
