"""How long one exchange may take, and what is said while it lasts.

Two limits: on the silence between two bytes, which is what a timeout of a socket is, and on the whole of it, which no
socket knows. A server that sends a byte now and then keeps within the first for ever. The one idea: each wait of a
socket ends at the next thing that is to happen, be that the end or a word in the log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_GLANCE = 0.25  # seconds
FIRST_WORD = 60.0  # seconds, after which a call is said to be waited for; then at twice as many, and so on


class Patience:
    """The time of one exchange, which begins now.

    Args:
        whole: seconds for all of it; None for no limit.
        says: called with the seconds so far, after `first_word` of them, twice as many, four times as many, ...
        look_out: raises if the exchange is to be given up; looked at every quarter of a second.
    """

    def __init__(
        self,
        whole: float | None = None,
        says: Callable[[float], object] | None = None,
        *,
        first_word: float = FIRST_WORD,
        clock: Callable[[], float] = time.monotonic,
        look_out: Callable[[], None] | None = None,
    ):
        self._look_out = look_out
        self._clock = clock
        self._start = clock()
        self._end = math.inf if whole is None else self._start + whole
        self._says = says
        self._pause = first_word
        self._next_word = math.inf if says is None else self._start + first_word

    def wait(self, silence: float | None) -> Wait:
        """One wait, of at most so many seconds."""
        return Wait(self, silence)

    def speak(self, now: float) -> None:
        if now < self._next_word or self._says is None:
            return
        self._says(now - self._start)
        while self._next_word <= now:
            self._pause *= 2
            self._next_word = self._start + self._pause


class Wait:
    """One wait for a socket, which may have to be taken up again after a word in between."""

    def __init__(self, patience: Patience, silence: float | None):
        self._patience = patience
        self._end = patience._end if silence is None else min(patience._end, patience._clock() + silence)

    def seconds(self) -> float | None:
        """How long the socket may wait now; None for ever.

        Raises:
            TimeoutError: not at all.
        """
        patience = self._patience
        now = patience._clock()
        patience.speak(now)
        if patience._look_out is not None:
            patience._look_out()
        if now >= self._end:
            raise TimeoutError("the time is over")
        moment = min(self._end, patience._next_word)
        if patience._look_out is not None:
            moment = min(moment, now + _GLANCE)
        return None if moment == math.inf else moment - now
