"""One lane: a kept connection to a server, and what is known of it. Which call takes which is decided in `lanes`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol


class Connection(Protocol):
    """What carries the requests of one lane."""

    n_requests: int  # so far, since it was opened

    def handle_request(self, request: Any, /) -> Any: ...

    def is_ahead(self) -> bool: ...

    def was_ahead(self) -> bool: ...

    def alive_since(self) -> float: ...

    def has_rest(self) -> bool: ...

    def close(self) -> object: ...


class Lane:
    """One kept connection, in use by one call at a time.

    Attributes:
        connection: what carries its requests.
        is_proven: it is known that its worker has no other proven lane.
        is_open: it may be given to further calls.
        is_lost: its connection cannot be used again; true while an answer is under way.
        is_ahead: the server had said something, or hung up, before it had the whole question.
        stream: the socket that brought the last answer.
        is_renewed: another socket than the one before it.
    """

    __slots__ = (
        "connection",
        "endpoint",
        "is_ahead",
        "is_free",
        "is_lost",
        "is_open",
        "is_proven",
        "is_renewed",
        "key",
        "sent_at",
        "stream",
        "taken_at",
        "used_at",
        "worked_at",
    )

    def __init__(self, connection: Connection, is_proven: bool):
        self.connection = connection
        self.is_proven = is_proven
        self.is_open = True
        self.is_free = False
        self.is_lost = False
        self.is_ahead = False
        self.is_renewed = False
        self.stream: Any = None
        self.endpoint = ""
        self.key: Hashable = None
        self.taken_at = self.used_at = 0.0
        self.worked_at = float("-inf")  # when a call was over of which something may be left there
        self.sent_at: float | None = None

    def arrived_by(self, stream: Any) -> None:
        """Tell it the socket that an answer comes from."""
        self.is_renewed |= self.stream is not None and stream is not self.stream
        self.stream = stream
