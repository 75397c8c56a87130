"""Where a ready call goes: on a thread, into a Prefect task, or run on the spot."""

from __future__ import annotations

import abc
import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from tesseract_flow.client import RetryPolicy
from tesseract_flow.execute.units import Node


class AbstractFuture(Protocol):
    """What the executor needs of a future: `concurrent.futures` and Prefect both have it."""

    def result(self) -> Any: ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> Any: ...


class AbstractSubmitter(abc.ABC):
    """Takes calls whose operands are complete, and answers with futures.

    Attributes:
        needs_producers: whether `producers` are of any use to it; without, results are dropped as soon as they can be.
    """

    needs_producers: bool = True

    @abc.abstractmethod
    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        """Start `node.run(operands)`; always called on the thread that called the executor.

        Args:
            producers: finished futures of the calls that `operands` were made from.
        """


class ThreadSubmitter(AbstractSubmitter):
    """Each call on a thread of a pool.

    Args:
        n_threads: calls in flight at once, over all Tesseracts.
        retry: for transient errors, in place of the handles' own policies; None leaves it to these. The component's
            own errors are never repeated.
    """

    needs_producers = False

    def __init__(self, n_threads: int = 64, retry: RetryPolicy | None = None):
        self.retry = retry
        self._pool = concurrent.futures.ThreadPoolExecutor(n_threads, thread_name_prefix="tesseract-call")

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        if self.retry is None:
            return self._pool.submit(node.run, operands)
        return self._pool.submit(self.retry.run, functools.partial(node.run, operands), label=node.label)


class InlineSubmitter(AbstractSubmitter):
    """Each call at once on the calling thread, one after the other: for debugging and as a reference in tests."""

    needs_producers = False

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        return on_the_spot(functools.partial(node.run, operands))


def on_the_spot(fn: Callable[[], Any]) -> AbstractFuture:
    """What comes of `fn()`, as a future that is done."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    try:
        future.set_result(fn())
    except Exception as error:
        future.set_exception(error)
    return future


@functools.cache
def default_submitter() -> ThreadSubmitter:
    """The process's thread pool, made when first needed."""
    return ThreadSubmitter()
