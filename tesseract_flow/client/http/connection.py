"""One connection to one server, opened when it is needed and again after it was lost.

Here is what concerns sockets and TLS, over httpcore; and, for tests, a transport of httpx in place of a socket. Not
here: what travels over it (`session`), and which of several connections a call takes (`lanes`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpcore

from tesseract_flow.client.http.patience import Patience
from tesseract_flow.errors import OptionError

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("tesseract_flow")
_PIECE = 2**18  # bytes to read or write at once; larger ones leave the processor's cache before they are joined


class KeptConnection:
    """A connection that is used by one request at a time, and kept.

    Without a pool around it: which connection a call takes is decided by lanes, and a pool's book-keeping would cost
    every call what encoding a thousand numbers does.

    HTTP/1.1 pairs an answer with a question by their order alone. So whatever comes out of turn costs the connection:
    see `is_ahead` and `has_rest`.
    """

    def __init__(self, connect: Callable[[httpcore.NetworkBackend], httpcore.ConnectionInterface]):
        self._connect = connect
        self._new()

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        self._road.patience, self._road.was_ahead = request.extensions.get("patience") or Patience(), False
        if self._connection.is_closed() or self._connection.has_expired():
            self._tell_of_strays()
            self.close()
            patience = self._road.patience
            self._new()
            self._road.patience = patience
        if not self.n_requests:
            self._made_at = time.monotonic()
        self.n_requests += 1
        return self._connection.handle_request(request)

    def alive_since(self) -> float:
        """When it was made, by the monotonic clock; infinity where there is none, or the server has hung up."""
        if not self.n_requests or self._connection.is_closed() or self._connection.has_expired():
            return math.inf
        return self._made_at

    def is_ahead(self) -> bool:
        """Whether the server has sent something already, or has hung up, before it has the whole question."""
        return self._road.was_ahead or any(
            stream.is_readable() for stream in self._road.streams if self.n_requests > 1 or not stream.is_tls
        )

    def was_ahead(self) -> bool:
        """The same, as far as it was seen while the question was being sent."""
        return self._road.was_ahead

    def has_rest(self) -> bool:
        """Whether more has come than the answer that was just read."""
        connection: Any = self._connection
        while (inner := getattr(connection, "_connection", None)) is not None:
            connection = inner
        # httpcore has no public word for it. It would read the rest as the answer to the next question.
        return bool(connection._h11_state.trailing_data[0])

    def close(self) -> None:
        self._connection.close()

    def _new(self) -> None:
        self._road = _Backend()
        self._connection = self._connect(self._road)
        self.n_requests = 0  # on this connection
        self._made_at = math.inf

    def _tell_of_strays(self) -> None:
        if any(stream.has_strays() for stream in self._road.streams):
            _log.warning(
                "A server has sent bytes that nobody had asked for (%s). The connection is dropped. If a proxy in "
                "between repeats or mixes up answers, the last one that came this way may be wrong as well.",
                self._connection.info(),
            )


class _Backend(httpcore.NetworkBackend):
    """Sockets as httpcore makes them, and streams for large messages that keep to the limits of the exchange."""

    def __init__(self) -> None:
        self.patience = Patience()
        self.was_ahead = False
        self.streams: list[_Stream] = []  # the one in use

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **kwargs: Any) -> httpcore.NetworkStream:
        options = {**kwargs, "socket_options": _socket_options()}  # which httpcore forgets for a proxy
        try:
            seconds = self.patience.wait(timeout).seconds()
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        return _Stream(httpcore.SyncBackend().connect_tcp(host, port, timeout=seconds, **options), self)


class _Stream(httpcore.NetworkStream):
    """A stream that reads in large pieces, and writes without copying what is left to write after each piece.

    httpcore's own takes 64 kB at a time, each of which passes through all layers above: a quarter of the client's time
    for 8 MB there and back.
    """

    def __init__(self, stream: httpcore.NetworkStream, road: _Backend):
        self._stream = stream
        self._road = road
        self._socket: socket.socket = stream.get_extra_info("socket")
        self.is_tls = isinstance(self._socket, ssl.SSLSocket)  # whose own records come unasked, at first above all
        self._is_long = False  # what comes next
        road.streams[:] = [self]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        wait = self._road.patience.wait(timeout)
        while True:
            try:
                self._socket.settimeout(wait.seconds())
            except TimeoutError as error:
                raise httpcore.ReadTimeout(str(error)) from error
            try:
                data = self._socket.recv(_PIECE if self._is_long else max_bytes)
                break
            except TimeoutError:
                continue
            except OSError as error:
                raise httpcore.ReadError(str(error)) from error
        self._is_long = len(data) >= max_bytes
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        while rest:
            wait = self._road.patience.wait(timeout)  # for each piece, as sockets do
            while True:
                try:
                    self._socket.settimeout(wait.seconds())
                except TimeoutError as error:
                    raise httpcore.WriteTimeout(str(error)) from error
                try:
                    # What is there before the last piece has gone is no answer to it. In pieces that no socket
                    # swallows whole, or a server that reads fast enough would let all of it pass unseen.
                    self._road.was_ahead |= not self.is_tls and self.is_readable()
                    rest = rest[self._socket.send(rest[:_PIECE]) :]
                    break
                except TimeoutError:
                    continue
                except OSError as error:
                    raise httpcore.WriteError(str(error)) from error

    def start_tls(self, *args: Any, timeout: float | None = None, **kwargs: Any) -> httpcore.NetworkStream:
        try:
            seconds = self._road.patience.wait(timeout).seconds()
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        return _Stream(self._stream.start_tls(*args, timeout=seconds, **kwargs), self._road)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()

    def is_readable(self) -> bool:
        """Whether there is something to read, or the end of it."""
        try:
            # Not select, which knows no descriptors beyond 1023.
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        except AttributeError:  # not on this platform
            return bool(self._stream.get_extra_info("is_readable"))
        except (OSError, ValueError):  # closed
            return False

    def has_strays(self) -> bool:
        """Whether bytes have come, and not just the end of them."""
        if self.is_tls:
            return False
        try:
            self._socket.setblocking(False)
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except (OSError, ValueError):
            return False


class TransportConnection:
    """A connection over a transport of httpx that the user has given, and closes with the session."""

    def __init__(self, transport: httpx.BaseTransport):
        self._transport = transport

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        import httpx

        url = request.url
        with _errors_of_httpcore():
            response = self._transport.handle_request(
                httpx.Request(
                    request.method.decode("ascii"),
                    httpx.URL(scheme=url.scheme.decode(), host=url.host.decode(), port=url.port, raw_path=url.target),
                    headers=request.headers,
                    content=b"".join(request.stream),  # type: ignore[arg-type]
                    extensions=request.extensions,
                )
            )
        return httpcore.Response(
            response.status_code,
            headers=response.headers.raw,
            content=_Body(response),
            extensions=response.extensions,
        )

    def alive_since(self) -> float:
        return -math.inf

    n_requests = 1  # whatever is behind the transport: nothing is known of its connections

    def is_ahead(self) -> bool:
        return False

    def was_ahead(self) -> bool:
        return False

    def has_rest(self) -> bool:
        return False

    def close(self) -> None:
        """Others may use the transport."""


class _Body:
    """The body of a response of httpx, as httpcore has it."""

    def __init__(self, response: httpx.Response):
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _errors_of_httpcore():
            # Unlike `iter_raw` also where a test has given the content at once. Nothing is compressed: see `handle`.
            yield from self._response.iter_bytes()

    def close(self) -> None:
        self._response.close()


@contextlib.contextmanager
def _errors_of_httpcore() -> Iterator[None]:
    """Raise the errors of httpx as those that httpx makes them from, so that there is one kind to understand."""
    import httpx

    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL) as error:
        names = [cls.__name__ for cls in type(error).__mro__]
        kind = next((vars(httpcore)[name] for name in names if name in vars(httpcore)), None)
        raise (kind or _WITHOUT_A_NAME.get(names[0], httpcore.RemoteProtocolError))(str(error)) from error


# Of httpx alone.
_WITHOUT_A_NAME = {"InvalidURL": httpcore.UnsupportedProtocol, "TransportError": httpcore.NetworkError}


def tls_of(url: str, verify: bool | str, cert: str | tuple[str, str] | None) -> ssl.SSLContext | None:
    """Whom to trust and who to be; `None` where nothing is encrypted.

    Raises:
        OptionError: the certificates cannot be used.
    """
    if urlsplit(url).scheme == "http":
        return None  # loading the authorities costs 20 ms that a plain connection has no use for
    try:
        if isinstance(verify, str):
            is_folder = Path(verify).is_dir()
            context = ssl.create_default_context(
                cafile=None if is_folder else verify, capath=verify if is_folder else None
            )
        else:
            import httpx

            context = httpx.create_ssl_context(verify=verify)
        if cert is not None:
            certificate, key = (cert, None) if isinstance(cert, str) else cert
            # The empty password makes an encrypted key an error, instead of a question on somebody's terminal.
            context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise OptionError(
            f"Tesseract at {url}: the certificates of verify={verify!r}, cert={cert!r} cannot be "
            f"used: {error}\nExpected PEM files; a private key must not be encrypted."
        ) from error
    return context


def _socket_options() -> list[tuple[int, int, int]]:
    """Probe an idle connection every 30 s after a minute: firewalls then keep an hour-long solve's connection."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 8)):
        if hasattr(socket, name):  # not on every platform
            options.append((socket.IPPROTO_TCP, getattr(socket, name), seconds))
    return options


def acknowledge_at_once(stream: Any) -> None:
    """Acknowledge the first bytes of the answer without delay.

    With several workers uvicorn binds the socket itself, in a way that makes asyncio leave Nagle's algorithm on. The
    body of a short answer then waits for the acknowledgement of its head, which the kernel here holds back for 40 ms.
    """
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):  # Linux's; it holds for the next answer only
        with contextlib.suppress(OSError):  # a socket that is closed; httpcore will find out, or has already
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
