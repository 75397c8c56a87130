"""What servers and components answer instead of a result → our exception tree: the one place that reads status codes.

All text that comes from a server is cut and made printable before it enters a message.
"""

from __future__ import annotations

import dataclasses
import email.utils
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from tesseract_flow.errors import (
    AccessDenied,
    CallError,
    ComponentFailed,
    EndpointNotFound,
    Fault,
    InvalidAnswer,
    InvalidInput,
    Overloaded,
)

_LONGEST_TEXT = 8000  # characters of a server's own text that go into a message
_MOST_FAULTS = 20  # lines of a message; the exception keeps them all
_LONGEST_WAIT = 3600.0  # seconds; no header of a server can put us to sleep for longer

_TRACEBACK = re.compile(r"^(?=Traceback \(most recent call last\):$)", re.MULTILINE)
# A frame of tesseract-core's runtime, with its line of code and the marks below that.
_RUNTIME_FRAME = re.compile(
    r'^  File "[^"\n]*[/\\]tesseract_core[/\\]runtime[/\\][^\n]*\n(?:    [^\n]*\n)*', re.MULTILINE
)

Error = TypeVar("Error", bound=CallError)


@dataclasses.dataclass(frozen=True)
class Question:
    """What was asked of whom: the beginning of every message. `url` and `proxy` must carry no credentials."""

    endpoint: str
    name: str
    url: str = ""
    proxy: str = ""

    def __str__(self) -> str:
        at = f" at {self.url}" if self.url else ""
        way = f", by way of the proxy {self.proxy}" if self.proxy else ""
        return f"{self.endpoint!r} of Tesseract {self.name!r}{at}{way}"

    @property
    def advice_on_the_way(self) -> str:
        """What else to look at, where a request does not go straight to its server."""
        if not self.proxy:
            return ""
        return (
            "\nOr it is the proxy. To ask without it: open_tesseract(url, proxy=False), or the host in NO_PROXY; to "
            "ask another one: proxy='http://user:password@host:port'."
        )

    def error(self, kind: type[Error], text: str, **details: Any) -> Error:
        """An exception of this `kind` that says what was asked, and then `text`."""
        whom = f"{self.name} ({self.url})" if self.url else self.name
        return kind(f"{self}: {text}", tesseract=whom, endpoint=self.endpoint, **details)


def error_of_status(question: Question, status: int, headers: Mapping[str, str], content: bytes) -> CallError:
    """The exception for an answer with a `status` other than 200."""
    if status == 422:
        return invalid_input(question, faults_of_detail(_detail(content)), readable(content))
    if status == 413:
        return question.error(
            InvalidInput,
            "the request is too large for the server, or for a proxy before it (HTTP 413).\n"
            'Raise the limit there, or send less: compression="lz4", or encoding="binref" on a shared file system.',
        )
    if status in (401, 403):
        return question.error(
            AccessDenied,
            f"access denied (HTTP {status}).\n"
            "Give the handle the server's credentials: open_tesseract(url, token=...) or headers={...}.",
        )
    if status == 407:
        return question.error(
            AccessDenied,
            "the proxy wants credentials (HTTP 407).\n"
            "Give them with its address: open_tesseract(url, proxy='http://user:password@host:port').",
        )
    if status in (404, 405):
        return question.error(
            EndpointNotFound,
            f"the server has no such endpoint (HTTP {status}).\n"
            "Check the URL (it must be the Tesseract's root), and its endpoints: tesseract-flow inspect URL."
            + question.advice_on_the_way,
        )
    if status in (429, 502, 503, 504):
        wait = retry_after(headers.get("retry-after"))
        said = "" if wait is None else f" It asked to wait {wait:g} s."
        return question.error(
            Overloaded,
            f"the server, or a proxy before it, is not able to answer now (HTTP {status}).{said}\n"
            "If it persists, look at the server's log and number of workers." + question.advice_on_the_way,
            retry_after=wait,
            status=status,
        )
    if status == 406:
        return question.error(
            InvalidAnswer,
            f"the server cannot answer in the encoding that was asked for (HTTP 406): {readable(content)}\n"
            'Open it with another one: open_tesseract(url, encoding="json").',
        )
    if 300 <= status < 400:
        return question.error(
            InvalidAnswer,
            f"the server redirects to {headers.get('location', '')[:200]!r} (HTTP {status}).\n"
            "Open the Tesseract with the address it redirects to.",
        )
    if status == 500:  # any other is the word of something that stands before the component
        return component_failed(question, readable(content))
    return question.error(
        InvalidAnswer,
        f"expected HTTP 200, received {status}: {readable(content)}\n"
        "A Tesseract does not answer like this: check the URL, and what stands between here and there."
        + question.advice_on_the_way,
    )


def faults_of_detail(detail: Any) -> tuple[Fault, ...]:
    """Pydantic's `detail` list as faults, with paths as we write them: `mesh.knots.[3]`."""
    if not isinstance(detail, Sequence) or isinstance(detail, str):
        return ()
    faults = []
    for item in detail:
        if not isinstance(item, Mapping):
            continue
        loc = item.get("loc")
        keys = [key for key in loc if isinstance(key, str | int)] if isinstance(loc, list | tuple) else []
        # Once each: an input may be called "inputs" itself.
        for wrapper in ("body", "inputs"):
            if keys and keys[0] == wrapper:
                keys = keys[1:]
        path = ".".join(f"[{key}]" if isinstance(key, int) else key for key in keys)
        faults.append(Fault(_printable(path), _printable(item.get("msg", "")), _printable(item.get("type", ""))))
    return tuple(faults)


def invalid_input(question: Question, faults: Sequence[Fault], text: str) -> InvalidInput:
    """Inputs that were refused: one line per fault, or the server's `text` where it gives none."""
    lines = [f"  {fault}" for fault in faults[:_MOST_FAULTS]] or [f"  {text}"]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"  and {len(faults) - _MOST_FAULTS} more")
    listed = "\n".join(lines)
    return question.error(
        InvalidInput,
        f"the inputs do not fit its schema:\n{listed}\nSee what it expects: tesseract-flow inspect URL.",
        faults=faults,
    )


def component_failed(question: Question, text: str) -> ComponentFailed:
    """The component's own error, with the advice that helps where a server hides it."""
    if text.strip() in ("", "Internal Server Error"):
        text = "(the server keeps the text to its own log; serve the component with TESSERACT_DEBUG=1 to see it here)"
    return question.error(
        ComponentFailed,
        f"the component raised an error. It is not tried again, as the same inputs would fail again.\n{text}",
    )


def retry_after(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait, from a `Retry-After` header: a number, or an HTTP date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now()
        except (ValueError, TypeError, LookupError, OverflowError, OSError):  # for all that dates can be
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_WAIT)


def readable(content: bytes | str) -> str:
    """A server's own text, fit for a message."""
    if isinstance(content, bytes):
        # UTF-8, whatever the server says: among Python's codecs are some that unpack archives.
        content = content[-4 * _LONGEST_TEXT :].decode("utf-8", errors="replace")
    text = _without_the_servers_frames(content.strip())
    # The end of a traceback says more than its beginning.
    return _printable(text if len(text) <= _LONGEST_TEXT else f"(...)\n{text[-_LONGEST_TEXT:]}", _LONGEST_TEXT + 10)


def _without_the_servers_frames(text: str) -> str:
    """Tracebacks that begin with the component's own frames, and not with forty of its server's."""
    parts = _TRACEBACK.split(text)
    for k, part in enumerate(parts):
        frames = list(_RUNTIME_FRAME.finditer(part))
        if frames and part.startswith("Traceback") and part.startswith("  File", frames[-1].end()):
            head = part.partition("\n")[0]
            parts[k] = f"{head}\n{part[frames[-1].end() :]}"
    return "".join(parts)


def _printable(value: Any, n_max: int = 500) -> str:
    """Text from outside, cut, and without the control characters that would act on a terminal or split a log line."""
    text = value if isinstance(value, str) else type(value).__name__
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text[:n_max])


def _detail(content: bytes) -> Any:
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return body.get("detail") if isinstance(body, dict) else None
