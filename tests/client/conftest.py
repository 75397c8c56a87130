"""Servers for one test, and the component that the real ones serve."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tesseract_flow.client import ServedTesseract
from tests.client.helpers import PROBE, Line, LineServer, LocalServer


@pytest.fixture
def local_server() -> Iterator[LocalServer]:
    with _serving() as server:
        yield server


@pytest.fixture
def other_local_server() -> Iterator[LocalServer]:
    with _serving() as server:
        yield server


@contextlib.contextmanager
def _serving() -> Iterator[LocalServer]:
    server = LocalServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.hang_up()
    server.all_closed.wait(5)
    server.server_close()
    thread.join(5)


@pytest.fixture
def line_server() -> Iterator[Callable[[Callable[[Line], None]], str]]:
    """script -> URL of a server that runs the script on each connection."""
    with contextlib.ExitStack() as stack:

        def serve(script: Callable[[Line], None]) -> str:
            class Handler(socketserver.BaseRequestHandler):
                def handle(self) -> None:
                    with contextlib.closing(Line(self.request)) as line, contextlib.suppress(OSError):
                        script(line)

            server = stack.enter_context(LineServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            stack.callback(thread.join, 5)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield serve


@pytest.fixture
def refused_url() -> Iterator[str]:
    """An address where nobody listens, and nobody will while the test runs."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}"


@pytest.fixture(scope="session")
def served() -> Iterator[ServedTesseract]:
    """The probe in a process of its own."""
    handle = ServedTesseract(PROBE)
    yield handle
    handle.stop()


@pytest.fixture(scope="session")
def in_process() -> Any:
    """The probe as tesseract-core runs it in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's and tesseract-core's remarks about themselves
        from tesseract_core import Tesseract

        return Tesseract.from_tesseract_api(PROBE)
