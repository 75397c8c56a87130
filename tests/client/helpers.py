"""Servers that behave and servers that do not, a transport that answers as told, and the smallest documents."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import orjson

from tesseract_flow.client import HttpTesseract
from tesseract_flow.client.translate import Question
from tesseract_flow.errors import CallError

QUESTION = Question("apply", "fem", "http://solver:8000")
PROBE = Path(__file__).parent / "components" / "probe" / "tesseract_api.py"


@dataclass(frozen=True)
class Asked:
    """One request as a server saw it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


class LocalServer(ThreadingHTTPServer):
    """A real HTTP server with kept connections: `answer` decides, and everything that was asked is on record."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[Asked], Reply] = lambda asked: Reply()
        self.asked: list[Asked] = []
        self.n_connections = 0
        self.all_closed = threading.Event()  # by the clients
        self.all_closed.set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self.n_connections += 1
            self._open.add(request)
            self.all_closed.clear()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._lock:
            self._open.discard(request)
            if not self._open:
                self.all_closed.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""

    def hang_up(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            for connection in self._open:
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one piece: two would wait for each other (Nagle)
    server: LocalServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        asked = Asked(self.command, self.path, dict(self.headers.items()), body)
        self.server.asked.append(asked)
        reply = self.server.answer(asked)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)
        self.wfile.flush()

    do_GET = do_POST = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Not on the terminal."""


class Line:
    """The server's end of one connection, for answers that no HTTP library would send."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._reader = connection.makefile("rb")

    def read_head(self) -> bytes:
        """The head of a request; empty when the client has gone."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self._reader.readline()
            if not line:
                return b""
            head += line
        return head

    def wait_for_end(self) -> None:
        """Until the client hangs up; what it sends in the meantime is read and dropped."""
        with contextlib.suppress(OSError):
            while self._reader.read(2**16):
                pass

    def read_request(self, piece: int = 2**30) -> bytes:
        """One whole request, its body in pieces of so many bytes; empty when the client has gone."""
        head = self.read_head()
        n_bytes = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            n_bytes = int(value) if name.lower() == b"content-length" else n_bytes
        sizes = [min(piece, n_bytes - start) for start in range(0, n_bytes, piece)]
        return head + b"".join(map(self._reader.read, sizes))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reset(self) -> None:
        """Hang up at once, as the kernel of a killed process does with unread data."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


class LineServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def shutdown_request(self, request: Any) -> None:
        """The script closes its line."""


class Pieces(httpx.SyncByteStream):
    """A body that comes in pieces; an exception among them is raised where it stands."""

    def __init__(self, *pieces: bytes | Exception):
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class Mock:
    """A transport that answers as told and keeps what it was asked."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]):
        self.answer = answer
        self.requests: list[httpx.Request] = []
        self.sleeps: list[float] = []

    def handle(self, url: str = "http://solver:8000", **options: Any) -> HttpTesseract:
        return HttpTesseract(url, transport=httpx.MockTransport(self._answer), sleep=self.sleeps.append, **options)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answer(request)


def mocked(answer: Any = b"{}", status: int = 200, headers: Mapping[str, str] | None = None) -> Mock:
    """A `Mock` whose answer is a function of the request, a body, a body in pieces, or an exception."""
    if isinstance(answer, Exception):

        def fail(request: httpx.Request) -> httpx.Response:
            raise answer

        return Mock(fail)
    if callable(answer):
        return Mock(answer)
    pieces = (answer,) if isinstance(answer, bytes) else tuple(answer)
    # As bytes, since a server may send what httpx would not.
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return Mock(lambda request: httpx.Response(status, headers=raw, stream=Pieces(*pieces)))


def check_message(error: CallError) -> None:
    """Asked of whom, what happened, what to do."""
    text = str(error)
    assert text.startswith("'apply' of Tesseract 'fem' at http://solver:8000: ")
    assert len(text.splitlines()) >= 2 and all(text.splitlines())
    assert (error.tesseract, error.endpoint) == ("fem (http://solver:8000)", "apply")


def files(folder: Path) -> list[str]:
    """All files of a folder, also while somebody tidies it up."""
    # Not `rglob`, which fails where a folder goes while it looks.
    found = (os.path.join(here, name) for here, _, names in os.walk(folder) for name in names)
    return sorted(os.path.relpath(path, folder) for path in found)


def arrays(folder: Path) -> list[str]:
    return [name for name in files(folder) if name.endswith(".bin")]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.002)


def array(values: list[float]) -> dict[str, Any]:
    data = {"encoding": "json", "buffer": values}
    return {"object_type": "array", "shape": [len(values)], "dtype": "float64", "data": data}


def document(title: str = "probe", endpoints: tuple[str, ...] = ("apply", "vector_jacobian_product")) -> bytes:
    """The smallest OpenAPI document that describes a Tesseract."""

    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    model = {"type": "object", "properties": {"x": {"default": array([1.0])}}}
    apply = {
        "requestBody": content({"type": "object", "properties": {"inputs": model}}),
        "responses": {"200": content({"type": "object", "properties": {"y": {}}})},
    }
    paths = {f"/{endpoint}": {"post": apply} for endpoint in endpoints}
    return orjson.dumps({"info": {"title": title, "version": "1.0"}, "paths": {**paths, "/health": {"get": {}}}})
