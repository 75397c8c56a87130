"""When something goes wrong: rules of a script, which count the requests that they look at.

The one idea: by count a script is deterministic. "For two seconds" is there as well, for what counts cannot say.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from tesseract_flow.errors import OptionError, did_you_mean
from tesseract_flow.testing.faults.exchange import Act

When = Callable[[int], bool]  # the number of a request, from 1 on -> whether the fault happens
SOLVES = ("apply", "jacobian", "jacobian_vector_product", "vector_jacobian_product")
ENDPOINTS = (*SOLVES, "abstract_eval", "openapi.json")
_ALSO = {
    "pullback": "vector_jacobian_product",
    "pushforward": "jacobian_vector_product",
    "shapes": "abstract_eval",
    "schema": "openapi.json",
}


@dataclasses.dataclass
class Rule:
    """A fault, and the requests at which it happens.

    Attributes:
        act: what the server does then.
        endpoints: which requests are counted.
        when: of their numbers, whether it happens.
        seconds: and not longer than this after the first one.
    """

    act: Act
    endpoints: tuple[str, ...] = SOLVES
    when: When = lambda k: True
    seconds: float | None = None
    clock: Callable[[], float] = dataclasses.field(default=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        self.n_asked = 0
        self._began: float | None = None
        self._lock = threading.Lock()

    def anew(self) -> Rule:
        """The same, with nothing counted yet."""
        return dataclasses.replace(self)

    def takes(self, endpoint: str) -> bool:
        """Count a request; whether the fault happens to it."""
        if endpoint not in self.endpoints:
            return False
        with self._lock:
            self.n_asked += 1
            if self._began is None:
                self._began = self.clock()
            is_over = self.seconds is not None and self.clock() - self._began >= self.seconds
            return not is_over and self.when(self.n_asked)


def at(
    endpoint: str | tuple[str, ...],
    act: Act,
    *,
    nth: int | tuple[int, ...] | None = None,
    first: int | None = None,
    every: int | None = None,
    seconds: float | None = None,
) -> Rule:
    """What goes wrong at an endpoint; at each request to it, unless told which.

    >>> at("pullback", status(503), nth=3)      # the third pullback
    >>> at("apply", hang, every=10)             # each tenth
    >>> at("apply", status(429, retry_after=1), seconds=2)     # for two seconds from the first one on

    Args:
        endpoint: a name of the protocol, or "pullback", "pushforward", "shapes", "schema"; "solves" for `apply` and all
            derivatives together. Several are counted together.
        act: one of the faults, or any function of an `Exchange`.
        nth, first, every: the numbers, from 1 on, of the requests at which it happens.
        seconds: it is over then. Which requests that are depends on the machine.

    Raises:
        OptionError: there is no such endpoint, or a number that means nothing.
    """
    names = (endpoint,) if isinstance(endpoint, str) else endpoint
    endpoints = tuple(one for name in names for one in (SOLVES if name == "solves" else (_ALSO.get(name, name),)))
    for name in endpoints:
        if name not in ENDPOINTS:
            known = [*ENDPOINTS, *_ALSO, "solves"]
            raise OptionError(
                f"There is no endpoint {name!r}.{did_you_mean(name, known)} Expected one of {', '.join(known)}."
            )
    if sum(value is not None for value in (nth, first, every)) > 1:
        raise OptionError("Only one of nth, first and every says at which requests it happens.")
    for name, value in (("nth", nth), ("first", first), ("every", every)):
        for n in value if isinstance(value, tuple) else (value,):
            if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
                raise OptionError(f"{name} is {value!r}; expected a whole number of at least 1.")
    if nth is not None:
        numbers = nth if isinstance(nth, tuple) else (nth,)
        return Rule(act, endpoints, lambda k: k in numbers, seconds)
    if first is not None:
        return Rule(act, endpoints, lambda k: k <= first, seconds)
    if every is not None:
        return Rule(act, endpoints, lambda k: k % every == 0, seconds)
    return Rule(act, endpoints, seconds=seconds)
