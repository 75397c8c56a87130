"""Through which proxy a server is asked, if any.

The environment says so as it does to every HTTP client: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` by the scheme of the
server's address, and `NO_PROXY` with hosts, domains and networks that are asked directly. With one exception, which is
Go's: no proxy leads back to this machine, so nothing on it is looked for there.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import ipaddress
import ssl
import urllib.request
from urllib.parse import urlsplit

import httpcore

from tesseract_flow.client.address import Headers, shown, split_url
from tesseract_flow.errors import OptionError, Unreachable

_SOCKS = ("socks5", "socks5h")


@dataclasses.dataclass(frozen=True)
class Proxy:
    """Where requests go first.

    Attributes:
        url: its address, without credentials.
        headers: what it wants to see; for SOCKS nothing.
        credentials: user and password, for SOCKS.
        source: who named it.
    """

    url: str
    headers: Headers = dataclasses.field(default=(), repr=False)
    credentials: tuple[bytes, bytes] | None = dataclasses.field(default=None, repr=False)
    source: str = ""

    def __str__(self) -> str:
        return f"{self.url} ({self.source})"

    def connection(
        self, origin: httpcore.Origin, tls: ssl.SSLContext | None, expiry: float, backend: httpcore.NetworkBackend
    ) -> httpcore.ConnectionInterface:
        """A new connection to `origin` by way of it."""
        # Its pool is not used; it knows how to make a connection, and that is what it is made for.
        if self.url.startswith(_SOCKS):
            socks = httpcore.SOCKSProxy(
                self.url, proxy_auth=self.credentials, ssl_context=tls, keepalive_expiry=expiry, network_backend=backend
            )
            return socks.create_connection(origin)
        headers = [(name.encode(), value.encode()) for name, value in self.headers]
        proxy = httpcore.HTTPProxy(
            self.url, proxy_headers=headers, ssl_context=tls, keepalive_expiry=expiry, network_backend=backend
        )
        return proxy.create_connection(origin)


def proxy_for(url: str, option: str | bool | None) -> Proxy | None:
    """The proxy for a server at `url`, as the option `proxy=` or the environment has it.

    Raises:
        OptionError: it is no address of a proxy, or of a kind that is not there.
    """
    if option is False or option == "":
        return None
    if isinstance(option, str):
        return _named(option, "proxy=")
    if option is True:
        raise OptionError("proxy is True; expected the address of a proxy, False for none, None for the environment's.")
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    for name in (parts.scheme, "all"):
        if address := proxies.get(name):
            # Looked at last, as on some systems it looks up names.
            if _is_here(host) or _is_excepted(host, parts.port, proxies.get("no", "")):
                return None
            return _named(address, f"{name.upper()}_PROXY of the environment")
    return None


def _named(address: str, source: str) -> Proxy:
    scheme = address.partition("://")[0].lower() if "://" in address else "http"
    try:
        if scheme in _SOCKS:
            # With the rest checked as any address is.
            _, headers = split_url("http" + address[len(scheme) :])
            parts = urlsplit(address)
            if importlib.util.find_spec("socksio") is None:
                raise OptionError(
                    f"The proxy of {source} speaks SOCKS, for which a package is missing: pip install socksio.\n"
                    "Or ask without it: open_tesseract(url, proxy=False)."
                )
            credentials = ((parts.username or "").encode(), (parts.password or "").encode()) if headers else None
            return Proxy(f"{scheme}://{parts.hostname}:{parts.port or 1080}", credentials=credentials, source=source)
        url, headers = split_url(address)
    except (Unreachable, ValueError):
        raise OptionError(
            f"{shown(address)}, given by {source}, is no address of a proxy. One looks like http://proxy:3128.\n"
            "To ask without one: open_tesseract(url, proxy=False)."
        ) from None
    return Proxy(url, tuple((f"Proxy-{name}", value) for name, value in headers), source=source)


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_excepted(host: str, port: int | None, exceptions: str) -> bool:
    """Whether NO_PROXY has the host, its domain, or the network of its address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for item in (item.strip() for item in exceptions.split(",")):
        if address is not None and "/" in item:
            try:
                if address in ipaddress.ip_network(item, strict=False):
                    return True
            except ValueError:
                continue
    return bool(urllib.request.proxy_bypass(host if port is None else f"{host}:{port}"))
