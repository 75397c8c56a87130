"""When a failed call is worth another attempt, and how long to wait for it.

One policy value, used twice: a plain loop drives it where there is no Prefect, and `tesseract_flow.tasks` translates it
into the task's own retry settings. The HTTP client below repeats only what cannot have started; everything else is
decided here, so attempts never multiply.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from tesseract_flow.errors import Overloaded, TransientError

_log = logging.getLogger("tesseract_flow")
T = TypeVar("T")


def is_transient(error: BaseException) -> bool:
    """Whether repeating the call may help: a lost connection or an overloaded server, never a faulty input.

    Endpoints are pure functions of their inputs, so running one twice is safe, though it may cost a second solve.
    """
    return isinstance(error, TransientError)


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, for transient errors only.

    Attributes:
        n_retries: attempts after the first one.
        first_delay: seconds before the first repetition; each further one waits twice as long.
        longest_delay: seconds, the ceiling of the backoff.
        jitter: each wait is stretched by a random factor in [1, 1 + jitter], so that clients do not return in step.
    """

    n_retries: int = 3
    first_delay: float = 0.5
    longest_delay: float = 60.0
    jitter: float = 0.5

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
        """`fn()`, repeated by this policy; the last error propagates unchanged."""
        for delay in self.delays():
            try:
                return fn()
            except TransientError as error:
                wait = delay * uniform(1.0, 1.0 + self.jitter)
                if isinstance(error, Overloaded) and error.retry_after is not None:
                    wait = max(wait, error.retry_after)
                first_line = str(error).partition("\n")[0]
                _log.warning("%s: %s Trying again in %.1f s.", label, first_line, wait)
                sleep(wait)
        return fn()
