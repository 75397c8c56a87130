"""When a failed request is worth another attempt, how long to wait for it, and who sees to that.

One policy value for every place: handles drive it themselves, and `tesseract_flow.tasks` translates it into a task's
own retry settings. The one idea: attempts never multiply, because the outermost owner is the only one. What asks on
behalf of somebody who repeats already (`somebody_else`, or another policy's `run` further out) asks once.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tesseract_flow.errors import Overloaded, TransientError

_log = logging.getLogger("tesseract_flow")
T = TypeVar("T")

_has_owner: contextvars.ContextVar[bool] = contextvars.ContextVar("tesseract_flow_retries_have_an_owner", default=False)


def is_transient(error: BaseException) -> bool:
    """Whether repeating the call may help: a lost connection or an overloaded server, never a faulty input.

    Endpoints are pure functions of their inputs, so running one twice is safe, though it may cost a second solve.
    """
    return isinstance(error, TransientError)


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Inside, requests are repeated by whoever asks, such as a task with retries of its own, and not by their handle.

    It holds for this thread and this context; threads that are started inside take it along if they run in a copy of
    the context.
    """
    token = _has_owner.set(True)
    try:
        yield
    finally:
        _has_owner.reset(token)


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, for transient errors only.

    Attributes:
        n_retries: attempts after the first one.
        first_delay: seconds before the first repetition; each further one waits twice as long.
        longest_delay: seconds, the ceiling of the backoff.
        jitter: each wait is stretched by a random factor in [1, 1 + jitter], so that clients do not return in step.
        patience: seconds that are waited beyond that, in all, where a server asks for it (`Retry-After`), which may
            ask for a day.
    """

    n_retries: int = 3
    first_delay: float = 0.5
    longest_delay: float = 60.0
    jitter: float = 0.5
    patience: float = 600.0

    def delays(self) -> list[float]:
        """Waits before each repetition, in seconds, without jitter."""
        # 2.0**1024 is more than a float holds.
        return [min(self.first_delay * 2.0 ** min(k, 1000), self.longest_delay) for k in range(self.n_retries)]

    def run(
        self,
        fn: Callable[[], T],
        *,
        label: str = "call",
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> T:
        """`fn()`, repeated by this policy; inside of another one's `run`, or of `somebody_else`, once.

        The last error propagates, and says how often it was tried, and how the first attempt ended if otherwise: a
        server that cannot be reached any more may have had the first request.
        """
        if _has_owner.get():
            return fn()
        first: TransientError | None = None
        patience = self.patience
        with somebody_else():
            for delay in self.delays():
                try:
                    return fn()
                except TransientError as error:
                    first = first or error
                    wait = delay * uniform(1.0, 1.0 + self.jitter)
                    first_line = str(error).partition("\n")[0]
                    limit = ""
                    asked = error.retry_after if isinstance(error, Overloaded) else None
                    if asked is not None and asked > wait:
                        granted = min(asked - wait, max(patience, 0.0))
                        if granted < asked - wait:
                            limit = f" It is not waited longer: RetryPolicy(patience={self.patience:g}) limits that."
                        wait, patience = wait + granted, patience - granted
                    _log.warning("%s: %s Trying again in %.1f s.%s", label, first_line, wait, limit)
                    sleep(wait)
            try:
                return fn()
            except TransientError as error:
                # In its text, which is all that is left of an error under `jit` and in a state of Prefect.
                tried = f"It was tried {self.n_retries + 1} times." if self.n_retries > 0 else "It is not tried again."
                if first is not None and type(first) is not type(error):
                    tried += f" The first attempt: {str(first).partition(chr(10))[0]}"
                error.args = (f"{error}\n{tried}", *error.args[1:])
                raise


DEFAULT_RETRY = RetryPolicy()
