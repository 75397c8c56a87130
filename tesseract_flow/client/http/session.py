"""Open connections, shared by equal handles of one process and closed with the last of them.

Here: what every request to one server has in common, and one exchange with it. What an exchange carries is `handle`'s,
which call takes which connection `lanes`', sockets and TLS are `connection`'s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import ssl
import threading
import time
import weakref
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpcore

from tesseract_flow.client.address import host_on_the_wire, secret_words
from tesseract_flow.client.http.connection import KeptConnection, TransportConnection, acknowledge_at_once, tls_of
from tesseract_flow.client.http.exchange import Folders
from tesseract_flow.client.http.failures import TRANSPORT_ERRORS
from tesseract_flow.client.http.lane import Lane
from tesseract_flow.client.http.lanes import Lanes
from tesseract_flow.client.http.options import HttpOptions
from tesseract_flow.client.http.patience import Patience
from tesseract_flow.client.http.proxies import Proxy, proxy_for
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.wire import Message, accept_header

if TYPE_CHECKING:
    import httpx


# uvicorn, as tesseract-core runs it, closes idle connections after 60 s. Leaving first avoids the race in which a
# request is sent down a connection that the server is just closing.
_KEEPALIVE_EXPIRY = 55.0
_LONGEST_GREETING = 2**16  # bytes
_NOTHING = Message()
_PORTS = {"http": 80, "https": 443}
_IN_A_PATH = "/%:@!$&'()*+,;=-._~"  # RFC 3986, section 3.3; what is encoded already stays as it is


class Session:
    """Open connections, shared folders and the schema of one server."""

    def __init__(self, options: HttpOptions):
        parts = urlsplit(options.url)
        host = host_on_the_wire(parts.hostname or "")
        self._origin = httpcore.Origin(parts.scheme.encode(), host, parts.port or _PORTS[parts.scheme])
        self._path = quote(parts.path, safe=_IN_A_PATH).encode()
        accept = accept_header("base64" if options.encoding == "auto" else options.encoding, options.compression)
        headers = {
            "Accept": accept,
            "User-Agent": "tesseract-flow",
            # An answer that was kept for another question would have the right form.
            "Cache-Control": "no-store",
            # A compressed body would cost time on both sides, and could unpack to any size.
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        own = dict(options.headers)
        if options.token is not None:
            own["Authorization"] = f"Bearer {options.token}"
        given = {name.lower() for name in own}
        headers = {name: value for name, value in headers.items() if name.lower() not in given} | own
        if "host" not in given:
            headers = {"Host": _netloc(host.decode(), parts.port)} | headers
        # In the form in which they travel: they are the same at every call, and there are thousands.
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._other_headers = [pair for pair in self._headers if pair[0] != b"Accept"]
        self._timeout = _timeouts(options.connect_timeout, options.read_timeout)
        # A call waits for a free lane for as long as the calls before it take. Here, and not in a pool of httpcore,
        # where no call can choose its connection, and which under load sometimes closes a good one.
        self.proxy = None if options.transport else proxy_for(options.url, options.proxy)
        self._secrets = secret_words([*own.items(), *(self.proxy.headers if self.proxy is not None else ())])
        if options.transport is None:
            tls = tls_of(options.url, options.verify, options.cert)
            connect = functools.partial(
                KeptConnection, functools.partial(_connection_to, self._origin, tls, self.proxy)
            )
            is_answered = functools.partial(_is_answered, weakref.WeakMethod(self.response), options.question_timeout)
            self.lanes = Lanes(options.n_lanes, connect, is_answered, expiry=_KEEPALIVE_EXPIRY)
        else:
            self.lanes = Lanes(options.n_lanes, functools.partial(TransportConnection, options.transport))
        self.schema: TesseractSchema | None = None
        self._vouched_at = -math.inf
        self.longest: dict[str, float] = {}  # seconds that a call of an endpoint took
        self.lock = threading.RLock()  # a question names the component, by its schema
        self.pid = os.getpid()
        self.folders: Folders | None = None
        if options.input_dir is not None and options.output_dir is not None and options.encoding in ("binref", "auto"):
            self.folders = Folders(options.input_dir, options.output_dir, is_choosing=options.encoding == "auto")
            weakref.finalize(self, self.folders.close)
        weakref.finalize(self, _close, self.lanes, options.transport)

    def learn(self, schema: TesseractSchema, *, is_ours: bool = False) -> None:
        """Its schema, as it was just told.

        Args:
            is_ours: the server is a process of ours, so nobody takes its place.
        """
        self.schema, self._vouched_at = schema, math.inf if is_ours else time.monotonic()

    def is_vouched_for(self) -> bool:
        """Whether the server must still be the one that told its schema: a connection from then is still there, or one
        that was made while such a one was."""
        if self._vouched_at == math.inf:
            return True
        if not self.lanes.has_lasted_since(self._vouched_at):
            return False
        self._vouched_at = time.monotonic()
        return True

    def took(self, endpoint: str, seconds: float) -> None:
        """A call of an endpoint was answered after so many seconds."""
        self.longest[endpoint] = max(seconds, self.longest.get(endpoint, 0.0))

    def without_secrets(self, text: bytes) -> bytes:
        """What a server says of a failure, without the credentials that it may have been told: some say it all.

        To be asked before anything is cut off: a half of a secret is none to this, but it may do.
        """
        for secret in self._secrets:
            text = text.replace(secret, b"***")
        return text

    def clean(self, text: str) -> str:
        """The same of a text."""
        return self.without_secrets(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    @contextlib.contextmanager
    def response(
        self,
        lane: Lane,
        method: str,
        target: str,
        content: Message = _NOTHING,
        *,
        accept: str | None = None,
        patience: Patience | None = None,
        seconds: float | None = None,
    ) -> Iterator[httpcore.Response]:
        """The response to a request, under way.

        Args:
            target: path and query, after the server's address.
            accept: instead of the usual encoding of the answer.
            patience: limits of the exchange as a whole, beside those of its parts.
            seconds: a limit for each part of the exchange, instead of the usual ones.
        """
        headers = [*self._headers] if accept is None else [*self._other_headers, (b"Accept", accept.encode())]
        headers.append((b"Content-Length", b"%d" % content.n_bytes))
        url = httpcore.URL(
            scheme=self._origin.scheme,
            host=self._origin.host,
            port=self._origin.port,
            target=self._path + target.encode("ascii"),
        )
        body = _Sending(content, lane, self.lanes)
        timeout = self._timeout if seconds is None else _timeouts(seconds, seconds)
        extensions = {"timeout": timeout, "patience": patience}
        request = httpcore.Request(method, url, headers=headers, content=body, extensions=extensions)
        response = lane.connection.handle_request(request)
        try:
            yield response
        finally:
            response.close()


def _connection_to(
    origin: httpcore.Origin, tls: ssl.SSLContext | None, proxy: Proxy | None, backend: httpcore.NetworkBackend
) -> httpcore.ConnectionInterface:
    if proxy is not None:
        return proxy.connection(origin, tls, _KEEPALIVE_EXPIRY, backend)
    return httpcore.HTTPConnection(origin, tls, keepalive_expiry=_KEEPALIVE_EXPIRY, network_backend=backend)


def _timeouts(connect: float, read: float | None) -> dict[str, float | None]:
    return {"connect": connect, "read": read, "write": read, "pool": None}


def _netloc(host: str, port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _close(lanes: Lanes, shared: httpx.BaseTransport | None) -> None:
    lanes.close()
    if shared is not None:
        shared.close()


class _Sending:
    """The body of a request, which tells the lanes when all of it has gone."""

    def __init__(self, body: Message, lane: Lane, lanes: Lanes):
        self._body = body
        self._lane = lane
        self._lanes = lanes

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            # What comes before the last piece has gone can be no answer to it.
            self._lane.is_ahead |= self._lane.connection.is_ahead()
            yield piece
        self._lane.is_ahead |= self._lane.connection.was_ahead()
        acknowledge_at_once(self._lane.stream)
        self._lanes.sent(self._lane)


def _is_answered(
    response_of: weakref.WeakMethod[Any], longest: float | None, lane: Lane, seconds: float | None
) -> bool:
    """Whether anybody answers on a new lane. A no means that all workers are busy, or that whoever sends next finds
    out what is wrong; it is never taken for the death of a server."""
    ask = response_of()
    if ask is None:  # the session is being closed
        return False
    try:
        with ask(lane, "GET", "/health", patience=Patience(longest), seconds=seconds) as response:
            n_bytes = 0
            for chunk in response.iter_stream():  # to its end: else the connection is closed
                n_bytes += len(chunk)
                if n_bytes > _LONGEST_GREETING:
                    return False
            lane.arrived_by(response.extensions.get("network_stream"))
            return response.status < 500 and not lane.connection.has_rest()
    except TRANSPORT_ERRORS:
        return False


_sessions: weakref.WeakValueDictionary[Hashable, Session] = weakref.WeakValueDictionary()
_sessions_lock = threading.Lock()


def session_of(options: HttpOptions) -> Session:
    """The session that `options` shares with all handles that are equal to it."""
    # Not the handle itself, which holds the session that holds its place here. And the pid, because a forked child that
    # wrote into its parent's connections would mix up their answers.
    key = (os.getpid(), *(getattr(options, field.name) for field in dataclasses.fields(options)))
    with _sessions_lock:
        session = _sessions.get(key)
        if session is None:
            session = _sessions[key] = Session(options)
        return session
