"""Open connections, shared by equal handles of one process and closed with the last of them.

Here is what concerns sockets and TLS. What travels over the connections is `http`'s.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from tesseract_flow.errors import OptionError
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.wire import accept_header

if TYPE_CHECKING:
    from tesseract_flow.client.http import HttpTesseract

# uvicorn, as tesseract-core runs it, closes idle connections after 60 s. Leaving first avoids the race in which a
# request is sent down a connection that the server is just closing.
_KEEPALIVE_EXPIRY = 55.0


class Session:
    """Open connections and the schema of one server."""

    def __init__(self, handle: HttpTesseract):
        limits = httpx.Limits(
            max_connections=handle.n_lanes,
            # As many kept as allowed: a smaller number would close connections under load, and with them the way back
            # to the worker that holds the residuals.
            max_keepalive_connections=handle.n_lanes,
            keepalive_expiry=_KEEPALIVE_EXPIRY,
        )
        transport = handle.transport or httpx.HTTPTransport(
            verify=_tls(handle), limits=limits, socket_options=_tcp_keepalive()
        )
        headers = [
            ("Accept", accept_header(handle.encoding, handle.compression)),
            # A compressed body would cost time on both sides, and could unpack to any size.
            ("Accept-Encoding", "identity"),
            ("Content-Type", "application/json"),
            *handle.headers,
        ]
        if handle.token is not None:
            headers.append(("Authorization", f"Bearer {handle.token}"))
        # A call waits for a free lane for as long as the calls before it take. Here, and not in httpcore's pool, which
        # under load sometimes closes a connection that has just become idle in order to open a new one.
        self.lanes = threading.BoundedSemaphore(handle.n_lanes)
        timeout = httpx.Timeout(handle.read_timeout, connect=handle.connect_timeout, pool=None)
        self.client = httpx.Client(transport=transport, headers=headers, timeout=timeout, follow_redirects=False)
        self.schema: TesseractSchema | None = None
        self.lock = threading.Lock()
        self.pid = os.getpid()
        weakref.finalize(self, self.client.close)


_sessions: weakref.WeakValueDictionary[Hashable, Session] = weakref.WeakValueDictionary()
_sessions_lock = threading.Lock()


def session_of(handle: HttpTesseract) -> Session:
    """The session that `handle` shares with all handles that are equal to it."""
    # Not the handle itself, which holds the session that holds its place here. And the pid, because a forked child that
    # wrote into its parent's connections would mix up their answers.
    key = (os.getpid(), *(getattr(handle, field.name) for field in dataclasses.fields(handle)))
    with _sessions_lock:
        session = _sessions.get(key)
        if session is None:
            session = _sessions[key] = Session(handle)
        return session


def _tls(handle: HttpTesseract) -> ssl.SSLContext | bool:
    if urlsplit(handle.url).scheme == "http":
        return False  # loading the authorities costs 20 ms that a plain connection has no use for
    try:
        if isinstance(handle.verify, str):
            is_folder = Path(handle.verify).is_dir()
            context = ssl.create_default_context(
                cafile=None if is_folder else handle.verify, capath=handle.verify if is_folder else None
            )
        else:
            context = httpx.create_ssl_context(verify=handle.verify)
        if handle.cert is not None:
            certificate, key = (handle.cert, None) if isinstance(handle.cert, str) else handle.cert
            # The empty password makes an encrypted key an error, instead of a question on somebody's terminal.
            context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise OptionError(
            f"Tesseract at {handle.url}: the certificates of verify={handle.verify!r}, cert={handle.cert!r} cannot be "
            f"used: {error}\nExpected PEM files; a private key must not be encrypted."
        ) from error
    return context


def _tcp_keepalive() -> list[tuple[int, int, int]]:
    """Probe an idle connection every 30 s after a minute: firewalls then keep an hour-long solve's connection."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 8)):
        if hasattr(socket, name):  # not on every platform
            options.append((socket.IPPROTO_TCP, getattr(socket, name), seconds))
    return options
