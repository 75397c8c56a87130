"""Where a Tesseract is and what opens its door: URLs, credentials, headers, taken apart and checked.

Secrets go in here and do not come out: no message quotes a text that may hold one.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from tesseract_flow.errors import OptionError, Unreachable

Headers = tuple[tuple[str, str], ...]

_HOST = re.compile(r"[\w.:%-]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_VALUE = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")
# The client sets these, and the answer could not be read if they said something else.
_RESERVED = frozenset({"accept", "accept-encoding", "content-type", "content-length", "transfer-encoding"})

_SHORTEST_SECRET = 8  # characters


def shown(address: str) -> str:
    """`address` for a message, or what is said in its place if it may hold credentials."""
    return "what was given (not shown here: it may hold credentials)" if set("@?#") & set(address) else repr(address)


def split_url(url: str) -> tuple[str, Headers]:
    """A clean root address, and the header for the `user:password@` that was written into it.

    Raises:
        Unreachable: the text is no address of a server.
    """
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    refusal = Unreachable(f"{shown(text)} is no address of a Tesseract. One looks like http://host:8000.")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        netloc = f"[{host}]" if ":" in host else host
        netloc = netloc if port is None else f"{netloc}:{port}"
        clean = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
        host_on_the_wire(host)
    except ValueError:
        raise refusal from None  # its text would quote the address
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or not parts.path.isprintable():
        raise refusal
    if parts.query or parts.fragment or "@" in parts.path:
        raise Unreachable(
            "The address of a Tesseract ends with its path, and this one (not shown here) goes on. Leave out '?' and "
            "'#'; in a user name or password write them, '/' and '@' percent-encoded, or use token= or headers=."
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user and not password:
        return clean, ()
    basic = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")  # RFC 7617
    return clean, (("Authorization", f"Basic {basic}"),)


def host_on_the_wire(host: str) -> bytes:
    """`host` as it is looked up, by IDNA where it is not plain ASCII.

    Raises:
        ValueError: there can be no such host.
    """
    if host.isascii():
        return host.encode("idna")  # which also knows how long a label may be
    import httpx  # 0.1 s that most addresses do without

    try:
        return httpx.URL(scheme="http", host=host).raw_host
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error


def checked_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> Headers:
    """`headers` as pairs that can be sent.

    Raises:
        OptionError: not in the form of a header, or one that the client sets itself.
    """
    try:
        given: dict[Any, Any] = dict(headers)
    except (TypeError, ValueError):
        raise OptionError("headers: expected a dict of names and values, or pairs of them.") from None
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise OptionError("headers: a name has characters that HTTP does not allow. Expected {'X-Name': 'value'}.")
        if name.lower() in _RESERVED:
            raise OptionError(f"headers: {name!r} is set by the client itself; see encoding= and compression=.")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise OptionError(
                f"headers: the value of {name!r} (not shown) is no line of ASCII text. Does it end with a line break?"
            )
    return tuple(given.items())


def checked_token(token: str | None) -> str | None:
    """`token` without the line break that it has when it was read from a file; `None` if nothing is left.

    Raises:
        OptionError: it cannot stand in a header.
    """
    token = (token or "").strip()
    if token and not _VALUE.fullmatch(token):
        raise OptionError("token: the text (not shown) has characters that cannot stand in a header.")
    return token or None


def secret_words(headers: Iterable[tuple[str, str]]) -> tuple[bytes, ...]:
    """What in these headers nobody but the server should see: each value, its words, and what is in base64 there; as
    they are, in base64, quoted for an address, and escaped for JSON."""
    found: set[bytes] = set()
    for _, value in headers:
        for word in {value, *value.split()}:
            found.add(word.encode())
            with contextlib.suppress(ValueError):
                user_and_password = base64.b64decode(word, validate=True)
                found |= {user_and_password, user_and_password.partition(b":")[2]}
    # What is shorter is no secret, and may be part of any text.
    words = [word for word in found if len(word) >= _SHORTEST_SECRET]
    forms = {form for word in words for form in _forms(word)}
    return tuple(sorted(forms, key=len, reverse=True))


def _forms(word: bytes) -> Iterator[bytes]:
    yield word
    yield quote(word, safe="").encode()
    yield word.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    for encoded in (base64.b64encode(word), base64.urlsafe_b64encode(word)):
        yield encoded.rstrip(b"=")
