"""Open connections, shared by equal handles of one process and closed with the last of them.

Here is what concerns sockets and TLS. What travels over the connections is `http`'s, which call takes which of them
`lanes`'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from tesseract_flow.client.exchange import Folders
from tesseract_flow.client.lanes import Lane, Lanes
from tesseract_flow.errors import OptionError
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.wire import accept_header

if TYPE_CHECKING:
    from tesseract_flow.client.http import HttpTesseract

# uvicorn, as tesseract-core runs it, closes idle connections after 60 s. Leaving first avoids the race in which a
# request is sent down a connection that the server is just closing.
_KEEPALIVE_EXPIRY = 55.0
_LONGEST_GREETING = 2**16  # bytes


class Session:
    """Open connections, shared folders and the schema of one server."""

    def __init__(self, handle: HttpTesseract):
        accept = accept_header("base64" if handle.encoding == "auto" else handle.encoding, handle.compression)
        headers = [
            ("Accept", accept),
            ("User-Agent", "tesseract-flow"),
            # A compressed body would cost time on both sides, and could unpack to any size.
            ("Accept-Encoding", "identity"),
            ("Content-Type", "application/json"),
            *handle.headers,
        ]
        if handle.token is not None:
            headers.append(("Authorization", f"Bearer {handle.token}"))
        # In the form in which they travel: they are the same at every call, and there are thousands.
        self._headers = httpx.Request("POST", handle.url, headers=headers).headers.raw
        self._timeout = httpx.Timeout(handle.read_timeout, connect=handle.connect_timeout, pool=None).as_dict()
        self._url = httpx.URL(handle.url)
        self._base = self._url.raw_path.rstrip(b"/")
        # A call waits for a free lane for as long as the calls before it take. Here, and not in one pool of httpcore,
        # where no call can choose its connection, and which under load sometimes closes a good one.
        if handle.transport is None:
            connect = functools.partial(_connect, _tls(handle))
            is_answered = functools.partial(_is_answered, weakref.WeakMethod(self.response))
            self.lanes = Lanes(handle.n_lanes, connect, is_answered, expiry=_KEEPALIVE_EXPIRY)
        else:
            self.lanes = Lanes(handle.n_lanes, functools.partial(_Shared, handle.transport))
        self.schema: TesseractSchema | None = None
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.folders: Folders | None = None
        if handle.input_dir is not None and handle.output_dir is not None and handle.encoding in ("binref", "auto"):
            self.folders = Folders(handle.input_dir, handle.output_dir, is_choosing=handle.encoding == "auto")
            weakref.finalize(self, self.folders.close)
        weakref.finalize(self, _close, self.lanes, handle.transport)

    @contextlib.contextmanager
    def response(
        self,
        lane: Lane,
        method: str,
        target: str,
        content: bytes = b"",
        *,
        accept: str | None = None,
        seconds: float | None = None,
    ) -> Iterator[httpx.Response]:
        """The response to a request, under way; of which nothing is left afterwards.

        Without an `httpx.Client`: its cookies, redirects and ways to authenticate would take 0.2 ms that nobody needs.

        Args:
            target: path and query, after the server's address.
            accept: instead of the usual encoding of the answer.
            seconds: a limit for each part of the exchange, instead of the usual ones.
        """
        own = {b"content-length": str(len(content)).encode()}
        if accept is not None:
            own[b"accept"] = accept.encode()
        headers = [*((name, value) for name, value in self._headers if name.lower() not in own), *own.items()]
        extensions: dict[str, Any] = {"timeout": self._timeout if seconds is None else httpx.Timeout(seconds).as_dict()}
        url, raw_path = self._url, self._base + target.encode("ascii")
        if isinstance(lane.connection, _Shared):
            url = url.copy_with(raw_path=raw_path)
        else:  # httpx would take the address apart anew for each of them
            extensions["target"] = raw_path
        stream = _Sending(httpx.ByteStream(content), lane, self.lanes)
        request = httpx.Request(method, url, headers=headers, stream=stream, extensions=extensions)
        response = lane.connection.handle_request(request)
        response.request = request
        try:
            yield response
        finally:
            response.close()
            # It and its stream refer to each other, which would keep the request, arrays and all, until the garbage
            # collector comes by.
            response.stream = httpx.ByteStream(b"")


def _close(lanes: Lanes, shared: httpx.BaseTransport | None) -> None:
    lanes.close()
    if shared is not None:
        shared.close()


class _Sending(httpx.SyncByteStream):
    """The body of a request, which tells the lanes when all of it has gone."""

    def __init__(self, body: httpx.SyncByteStream, lane: Lane, lanes: Lanes):
        self._body = body
        self._lane = lane
        self._lanes = lanes

    def __iter__(self) -> Iterator[bytes]:
        yield from self._body
        _acknowledge_at_once(self._lane.stream)
        self._lanes.sent(self._lane)


class _Shared(httpx.BaseTransport):
    """A lane of a transport that the user has given, which is closed with the session and not with the lane."""

    def __init__(self, transport: httpx.BaseTransport):
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._transport.handle_request(request)


def _connect(tls: ssl.SSLContext | bool) -> httpx.HTTPTransport:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEEPALIVE_EXPIRY)
    return httpx.HTTPTransport(verify=tls, limits=limits, socket_options=_tcp_keepalive())


def _is_answered(response_of: weakref.WeakMethod[Any], lane: Lane, seconds: float | None) -> bool:
    """Whether anybody answers on a new lane. A no means that all workers are busy, or that whoever sends next finds
    out what is wrong; it is never taken for the death of a server."""
    ask = response_of()
    if ask is None:  # the session is being closed
        return False
    try:
        with ask(lane, "GET", "/health", seconds=seconds) as response:
            n_bytes = 0
            for chunk in response.iter_raw():  # to its end: else the connection is closed
                n_bytes += len(chunk)
                if n_bytes > _LONGEST_GREETING:
                    return False
            lane.arrived_by(response.extensions.get("network_stream"))
            return not response.is_server_error
    except httpx.HTTPError:
        return False


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


def _acknowledge_at_once(stream: Any) -> None:
    """Acknowledge the first bytes of the answer without delay.

    With several workers uvicorn binds the socket itself, in a way that makes asyncio leave Nagle's algorithm on. The
    body of a short answer then waits for the acknowledgement of its head, which the kernel here holds back for 40 ms.
    """
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):  # Linux's; it holds for the next answer only
        with contextlib.suppress(OSError):  # a socket that is closed; httpcore will find out, or has already
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
