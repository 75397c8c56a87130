"""A real HTTP server on plain sockets whose answers go wrong on demand.

`FaultyServer` stands in front of a component: a server somewhere, a handle, a function. Its script says what happens at
which requests to which endpoint; the rest is answered well. A fault is a function of an `Exchange`, one request as the
server sees it: it reads as much of it as it likes, and sends what it likes.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from tesseract_flow.client import AbstractTesseract
from tesseract_flow.testing.faults.exchange import Act, Asked, Exchange
from tesseract_flow.testing.faults.script import Rule
from tesseract_flow.testing.faults.source import Proxied, Source, source_of

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
    """A Tesseract behind real HTTP, on a free port of this machine, that goes wrong as it is told.

    As a context manager it ends with its block, and what hangs in it is let go.

    Args:
        source: who knows the right answers: the URL of a server, any handle, or what `of_function` makes.
        script: what goes wrong (`at`). The first rule that takes a request answers it; the rest is answered well.

    Attributes:
        asked: every request, in order of arrival.
        n_faulty: requests that a rule has answered.
        released: set while all that hangs is let go.
    """

    def __init__(self, source: Source | AbstractTesseract | str, script: Iterable[Rule] = ()):
        self._source = source_of(source)
        self.asked: list[Asked] = []
        self.released = threading.Event()
        self.script = [*script]
        self.n_faulty = 0
        self._lock = threading.Lock()
        self._door = threading.Lock()  # who comes back after a while and who clears all may meet in it
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
        if isinstance(self._source, Proxied):
            self._source.close()

    # What goes wrong.

    def plant(self, *script: Rule) -> None:
        """From now on this goes wrong, and nothing else."""
        with self._lock:
            self.script, self.n_faulty = [rule.anew() for rule in script], 0

    def clear(self) -> None:
        """From now on all is well, for whoever asks; also where nobody was listening."""
        with self._lock:
            self.script = []
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
        with self._door:
            if self._listener is not None:
                return
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                _bind(listener, self.port)
                listener.listen(128)
            except OSError:
                listener.close()
                raise
            self.port = listener.getsockname()[1]
            self._listener = listener
            self._start(self._accept, listener)

    def stop_listening(self) -> None:
        """Refuse connections; those that are open stay."""
        with self._door:
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
            for rule in self.script:
                if rule.takes(asked.endpoint):
                    asked.is_faulty = True
                    self.n_faulty += 1
                    return rule.act
        return Exchange.answer_well

    # What is right.

    def healthy(self, asked: Asked) -> tuple[int, bytes]:
        """Status and body of the answer that would be right."""
        return self._source(asked)


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
