"""What a fault is, what must come of it, and the table of all of them.

The faults themselves are functions of one exchange, by where they sit: `lines` (connections and the framing of HTTP),
`statuses`, `texts` (the bytes of an answer), `trees` (an answer of right form with wrong contents). Not here: a server
that runs them (`server`), and who looks at the outcome (`matrix`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from tesseract_flow.testing.faults import Act

CALLS = ("apply", "abstract_eval", "jacobian", "jacobian_vector_product", "vector_jacobian_product")
SOLVES = tuple(endpoint for endpoint in CALLS if endpoint != "abstract_eval")
QUESTIONS = ("openapi.json", "abstract_eval")
EVERYWHERE = ("openapi.json", *CALLS)
MAX_BYTES = 2**20  # the largest answer that the client accepts in these tests


class Comes(enum.Enum):
    """What must come of a fault."""

    RIGHT = "the right value: a server may do this"
    RECOVERED = "the right value if it passes, else one of the errors"
    REFUSED = "one of the errors"
    EITHER = "the right value or one of the errors"
    CONTRADICTED = "an error, the program's own included, as the component says something else later"
    ASKED_FOR = "a legal answer that no client can tell from a right one, so its value is taken"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: as a person would say it.
        act: what the server does.
        comes: what must come of it.
        errors: names of our exceptions that tell it truly.
        at: the endpoints at which it makes sense.
        says: what the message must hold.
        free: endpoints where the schema leaves it free, so that nothing but `abstract_eval` contradicts it. An eager
            apply does not ask that.
    """

    name: str
    act: Act
    comes: Comes
    errors: tuple[str, ...]
    at: tuple[str, ...]
    says: str = ""
    free: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


FAULTS: list[Fault] = []


def fault(
    comes: Comes,
    *errors: str,
    at: tuple[str, ...] = EVERYWHERE,
    says: str = "",
    free: tuple[str, ...] = (),
    name: str = "",
) -> Callable[[Act], Act]:
    """Enter a function into the table, under its own name unless told otherwise."""

    def enter(act: Act) -> Act:
        FAULTS.append(Fault(name or act.__name__.replace("_", " "), act, comes, errors, at, says, free))
        return act

    return enter


# Entered by being imported; here at the end, as they use what is above.
from tests.faults import lines, statuses, texts, trees  # noqa: E402, F401
