"""One request as a server sees it, and all that a server may do about it, to the byte.

The one idea: no HTTP library on this side, as none would send what is needed here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from tesseract_flow.testing.faults.server import FaultyServer


@dataclass
class Asked:
    """One request as it arrived.

    Attributes:
        is_faulty: whether a planted fault answers it.
        is_whole: whether the server has read all of it.
    """

    method: str
    endpoint: str
    target: str
    headers: Mapping[str, str]
    is_faulty: bool = False
    is_whole: bool = False
    body: bytes = field(default=b"", repr=False)


class Exchange:
    """One request, and the server's end of the connection it came on."""

    def __init__(self, server: FaultyServer, connection: socket.socket, reader: Any, asked: Asked):
        self.server = server
        self.asked = asked
        self.is_kept = asked.headers.get("connection", "").lower() != "close"
        self._socket = connection
        self._reader = reader
        self._healthy: tuple[int, bytes] | None = None

    # What was asked, and what a healthy server would answer.

    def read(self) -> bytes:
        """The body of the request, to its end."""
        if not self.asked.is_whole:
            n_bytes = int(self.asked.headers.get("content-length", 0))
            self.asked.body = self._reader.read(n_bytes)
            self.asked.is_whole = len(self.asked.body) == n_bytes
        return self.asked.body

    def tree(self) -> Any:
        """The healthy answer, with arrays encoded: dicts and lists that a fault may change."""
        return orjson.loads(self.body())

    def body(self) -> bytes:
        """The healthy answer as text."""
        return self._well()[1]

    def _well(self) -> tuple[int, bytes]:
        self.read()
        if self._healthy is None:  # asked once, as it may cost a solve
            self._healthy = self.server.healthy(self.asked)
        return self._healthy

    def answer_well(self) -> None:
        """As a server does of which nothing is wrong."""
        status, body = self._well()
        self.answer(body, status)

    # What a server may do.

    def answer(
        self,
        body: bytes | None = None,
        status: int | str = 200,
        *headers: tuple[str, str],
        version: str = "HTTP/1.1",
        length: int | str | None = -1,
    ) -> None:
        """A whole answer in one piece, after the request was read.

        Args:
            body: default the healthy answer.
            status: a number, or number and reason.
            headers: beside Content-Type and Content-Length.
            length: what Content-Length says; -1 for the truth, None for no such header.
        """
        body = self.body() if body is None else body
        self.read()
        self.send(self.head(status, *headers, version=version, length=len(body) if length == -1 else length) + body)

    def head(
        self,
        status: int | str = 200,
        *headers: tuple[str, str],
        version: str = "HTTP/1.1",
        length: int | str | None = None,
    ) -> bytes:
        status = f"{status} Whatever" if isinstance(status, int) else status
        pairs = [*headers]
        if not any(name.lower() == "content-type" for name, _ in headers):
            pairs.append(("Content-Type", "application/json"))
        if length is not None:
            pairs.append(("Content-Length", str(length)))
        lines = [f"{version} {status}", *(f"{name}: {value}" for name, value in pairs)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def pause(self, seconds: float) -> None:
        """Rest, unless the server is released in the meantime."""
        if self.server.released.wait(seconds):
            raise ConnectionAbortedError

    def hang(self) -> None:
        """Say nothing until the client has gone, or the server is released."""
        with contextlib.suppress(OSError):
            while self._reader.read1(65536):
                pass
        self.close()

    def wait_for_the_client_to_go(self) -> None:
        """As `hang`, without reading a byte of what it still sends."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP | select.POLLHUP)
        poll.poll()
        self.close()

    def reset(self) -> None:
        """Hang up at once, as the kernel of a killed process does with unread data."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def stop_writing(self) -> None:
        """Close this direction only."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.is_kept = False
        with contextlib.suppress(OSError):
            self._reader.close()
        self._socket.close()


Act = Callable[[Exchange], object]
