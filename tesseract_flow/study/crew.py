"""Runs at once on threads of this process, which end in time when somebody says stop.

A run waits for its components nearly all the time, so threads are enough; the calls of all runs go to the same handles,
and so to the same lanes, connections and caches. Knows nothing of problems. The one idea: whoever waits in a run waits
for something that a stop can answer, so an interrupt takes effect at once, as it does for a run alone, and calls that
are on their way are abandoned to their servers.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

import jax
import numpy as np

from tesseract_flow.execute import AbstractFuture, AbstractSubmitter, Node
from tesseract_flow.execute.waiting import next_of

T = TypeVar("T")

_GRACE = 10.0  # seconds for what cannot be interrupted, such as compiling


class Stop:
    """Whether to stop, and what is waited for until then."""

    def __init__(self) -> None:
        self._said = threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}

    def check(self) -> None:
        """Raise what an interrupt raises in a run alone."""
        if self._said.is_set():
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Wait, unless it is time to stop."""
        if self._said.wait(seconds):
            raise KeyboardInterrupt

    def now(self) -> None:
        """Stop: whoever waits is interrupted."""
        with self._lock:
            self._said.set()
            waiting = list(self._waiting.values())
        for future in waiting:
            with contextlib.suppress(InvalidStateError):  # the answer was faster
                future.set_exception(KeyboardInterrupt())

    def enlist(self, future: Future[Any]) -> None:
        """Let a stop interrupt whoever waits for this."""
        with self._lock:
            self.check()
            self._waiting[id(future)] = future

    def dismiss(self, future: Future[Any]) -> None:
        with self._lock:
            self._waiting.pop(id(future), None)


class StoppableSubmitter(AbstractSubmitter):
    """Another submitter, whose answers a stop can do without."""

    needs_producers = False

    def __init__(self, inner: AbstractSubmitter, stop: Stop):
        self._inner, self._stop = inner, stop

    def submit(self, node: Node, operands: Sequence[np.ndarray], producers: Sequence[AbstractFuture]) -> AbstractFuture:
        answer = _Answer()
        self._stop.enlist(answer)
        answer.source = source = self._inner.submit(node, operands, producers)
        source.add_done_callback(lambda done: self._pass_on(done, answer))
        return answer

    def _pass_on(self, done: Any, answer: _Answer) -> None:
        self._stop.dismiss(answer)
        answer.source = None  # or the two would keep each other, and a large result, until a collector comes
        try:
            result = done.result()
        except CancelledError:
            Future.cancel(answer)
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):
                answer.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):
                answer.set_result(result)


class _Answer(Future[Any]):
    """What the executor waits for; to cancel it is to cancel what it stands for."""

    source: Any = None

    def cancel(self) -> bool:
        source = self.source
        return source is not None and source.cancel()


def at_once(
    jobs: Sequence[Callable[[], T]],
    max_workers: int,
    stop: Stop,
    events: queue.SimpleQueue[Callable[[], None]],
    done: Callable[[int, T], None],
) -> None:
    """Run the jobs, so many at once and in their order; each what it is the moment it is over.

    Args:
        events: further things to be done on this thread, put by whoever wants them done.
        done: told each job's result on this thread.

    Raises:
        BaseException: the first that a job raised, or that comes to this thread while it waits, an interrupt for
            example. All other jobs are stopped before.
    """
    order = iter(range(len(jobs)))
    taking = threading.Lock()
    n_left = len(jobs)
    settings = _settings_of_this_thread()

    def finish(k: int, result: T) -> None:
        nonlocal n_left
        n_left -= 1
        done(k, result)

    def fail(error: BaseException) -> None:
        raise error

    def work() -> None:
        with settings():
            while True:
                with taking:
                    k = next(order, None)
                if k is None:
                    return
                try:
                    stop.check()
                    result = jobs[k]()
                except BaseException as error:
                    events.put(lambda error=error: fail(error))
                    return
                events.put(lambda k=k, result=result: finish(k, result))

    # Not a pool, whose threads the interpreter would wait for when it ends.
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(work,), name=f"run-{k}", daemon=True)
        for k in range(min(max_workers, len(jobs)))
    ]
    try:
        for thread in threads:
            thread.start()
        while n_left:
            next_of(events)()
    except BaseException:
        stop.now()
        patience = time.monotonic() + _GRACE
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, patience - time.monotonic()))
        raise
    for thread in threads:
        thread.join()


# What decides about numbers, and which JAX keeps by thread where a `with` has set it.
_BY_THREAD: dict[str, Callable[[Any], contextlib.AbstractContextManager[Any]]] = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_device": jax.default_device,
}


def _settings_of_this_thread() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """JAX's settings here, for another thread.

    Only those that differ from everybody's: a problem that is loaded there may still change these.
    """
    here = {name: getattr(jax.config, name) for name in _BY_THREAD}
    everybodys: dict[str, Any] = {}
    fresh = threading.Thread(target=lambda: everybodys.update({name: getattr(jax.config, name) for name in _BY_THREAD}))
    fresh.start()
    fresh.join()
    own = {name: value for name, value in here.items() if value != everybodys[name]}

    @contextlib.contextmanager
    def settings() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, value in own.items():
                stack.enter_context(_BY_THREAD[name](value))
            yield

    return settings
