"""A real HTTP server on plain sockets whose answers go wrong on demand.

`FaultyServer` answers for a component: a description of it, and a function from endpoint and payload to a tree.
`plant` says which fault happens at which requests to which endpoint; what is not planted is answered well. A fault is a
function of an `Exchange`, one request as the server sees it: it reads as much of it as it likes, and sends what it
likes, to the byte. The one idea: no HTTP library on this side, as none would send what is needed here.
"""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from tesseract_flow import wire

When = Callable[[int], bool]  # the number of a request, from 1 on -> whether the fault happens


def always(k: int) -> bool:
    return True


def first(n: int) -> When:
    """The first `n` requests."""
    return lambda k: k <= n


def nth(n: int) -> When:
    """The n-th request alone."""
    return lambda k: k == n


def every(n: int) -> When:
    """Every n-th request."""
    return lambda k: k % n == 0


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
        content = self.read()
        return self.server.healthy(self.asked.endpoint, content)

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


# Below those that Linux gives to outgoing connections: the port of a server that is away for a while must be its own
# when it comes back.
_PORTS = range(10_000, 32_000)


def _bind(listener: socket.socket, port: int) -> None:
    """To this port, or to any free one where it is 0."""
    for candidate in (port,) if port else random.sample(_PORTS, 100):
        try:
            return listener.bind(("127.0.0.1", candidate))
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(f"none of 100 ports from {_PORTS.start} to {_PORTS.stop} is free")


class FaultyServer:
    """A server on a free port of this machine.

    Args:
        answer: (endpoint, payload with decoded arrays) -> the component's answer, as a tree.
        document: the component's OpenAPI document.

    Attributes:
        asked: every request, in order of arrival.
        released: set while all that hangs is let go.
    """

    def __init__(self, answer: Callable[[str, Any], Any], document: bytes):
        self.component = answer
        self.document = document
        self.asked: list[Asked] = []
        self.released = threading.Event()
        self._fault: tuple[Act, str, When] | None = None
        self.n_faulty = 0
        self._n_asked = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition()
        self._n_acting = 0
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_listening()
        self.release()
        for thread in list(self._threads):
            thread.join(5)

    # What goes wrong.

    def plant(self, act: Act, endpoint: str, when: When = always) -> None:
        """From now on `act` answers the requests to `endpoint` that `when` picks."""
        with self._lock:
            self._fault, self._n_asked, self.n_faulty = (act, endpoint, when), 0, 0

    def clear(self) -> None:
        """From now on all is well, for whoever asks; also where nobody was listening."""
        with self._lock:
            self._fault = None
        self.released.clear()
        self.listen()

    def release(self) -> None:
        """Hang up all connections, those on which a fault hangs included."""
        self.released.set()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def wait_until_idle(self, seconds: float) -> bool:
        """Whether nothing is under way here any more, within so many seconds: surplus answers are sent."""
        with self._idle:
            return self._idle.wait_for(lambda: self._n_acting == 0, seconds)

    # Who listens.

    def listen(self) -> None:
        """Take connections, at the same port as before."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(listener, self.port)
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def stop_listening(self) -> None:
        """Refuse connections; those that are open stay."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()

    def _start(self, fn: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            try:
                fn(*args)
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="faulty-server", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
            self._start(self._converse, connection)

    def _converse(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        try:
            while True:
                asked = _read_head(reader)
                if asked is None:
                    return
                exchange = Exchange(self, connection, reader, asked)
                with self._acting():
                    self._act(asked)(exchange)
                if not exchange.is_kept:
                    return
                exchange.read()
        except (OSError, ValueError):  # the client has gone; a reader that was closed says ValueError
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            with contextlib.suppress(OSError):
                reader.close()
            connection.close()

    @contextlib.contextmanager
    def _acting(self) -> Iterator[None]:
        with self._idle:
            self._n_acting += 1
        try:
            yield
        finally:
            with self._idle:
                self._n_acting -= 1
                self._idle.notify_all()

    def _act(self, asked: Asked) -> Act:
        with self._lock:
            self.asked.append(asked)
            if self._fault is not None:
                act, endpoint, when = self._fault
                if asked.endpoint == endpoint:
                    self._n_asked += 1
                    if when(self._n_asked):
                        asked.is_faulty = True
                        self.n_faulty += 1
                        return act
        return Exchange.answer

    # What is right.

    def healthy(self, endpoint: str, body: bytes) -> bytes:
        if endpoint == "openapi.json":
            return self.document
        if endpoint == "health":
            return b'{"status":"ok"}'
        return wire.dumps(self.component(endpoint, wire.loads(body)))


def _read_head(reader: Any) -> Asked | None:
    lines: list[bytes] = []
    for line in iter(reader.readline, b""):
        if line in (b"\r\n", b"\n"):
            break
        lines.append(line)
    else:
        return None
    method, target, _ = lines[0].decode("latin-1").split(" ", 2)
    headers = {}
    for line in lines[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Asked(method, urlsplit(target).path.strip("/"), target, headers)


@contextlib.contextmanager
def watched(server: FaultyServer, seconds: float) -> Iterator[threading.Event]:
    """Let go of everything that still hangs after so many seconds; the event says that it came to that."""
    barked = threading.Event()

    def bark() -> None:
        barked.set()
        server.release()

    timer = threading.Timer(seconds, bark)
    timer.start()
    try:
        yield barked
    finally:
        timer.cancel()
        timer.join()
