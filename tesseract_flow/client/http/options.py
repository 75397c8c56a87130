"""What there is to say about a server before it is asked anything: `HttpOptions`, checked and in one form."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tesseract_flow.client.address import Headers, checked_headers, checked_token, split_url
from tesseract_flow.client.retry import DEFAULT_RETRY, RetryPolicy
from tesseract_flow.errors import OptionError, WireError
from tesseract_flow.wire import Compression, Encoding, accept_header

if TYPE_CHECKING:
    import httpx


@dataclasses.dataclass(frozen=True)
class HttpOptions:
    """The fields of an `HttpTesseract`.

    Attributes:
        url: root of the server, such as `http://solver:8000`; `http://user:password@solver:8000` works as well.
        label: what to call it; default the name in its schema, else host and port.
        token: sent as `Authorization: Bearer`.
        headers: further headers, as a dict or as pairs.
        encoding: how arrays travel both ways: `base64`, `json`, `binref` (files that both sides can read), or `auto`:
            each array by `binref` or `base64`, whichever is faster, once it is seen that both sides share the folders.
        compression: `lz4` or none. It pays on slow networks, for arrays that repeat themselves: see docs/wire.md.
        connect_timeout: seconds.
        read_timeout: seconds without a byte of an answer; `None` waits for as long as the solve takes, and says so in
            the log after a minute, two, four, ... TCP keep-alive probes notice a dead machine in either case.
        question_timeout: seconds for a question that needs no solve (the schema, `abstract_eval`, `health`) as a
            whole. A server that is busy for longer counts as one that does not answer; `None` waits for it.
        retry: what happens after transient errors, where nobody else repeats the call, as a Prefect task does;
            `RetryPolicy(n_retries=0)` leaves them to the caller.
        n_lanes: the most connections kept open, and calls in flight at once. Each is a worker of the server: as many
            are opened as there are workers to answer on them.
        proxy: the address of a proxy to ask through, such as `http://user:password@proxy:3128`. None: as the
            environment says (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), but never for this machine. False:
            none.
        verify: check the server's certificate; a path names the authorities to trust.
        cert: client certificate, as a path or a pair of paths (certificate, key).
        input_dir, output_dir: for `binref` and `auto`: the folders that the server knows as its input and output path.
        max_bytes: the largest answer that is accepted.
        transport, sleep: seams for tests. The transport is closed with the last handle.

    Raises:
        Unreachable: `url` is no address.
        OptionError: another field cannot be used.
    """

    url: str
    label: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)
    headers: Headers = dataclasses.field(default=(), repr=False)
    encoding: Encoding | Literal["auto"] = "base64"
    compression: Compression | None = None
    connect_timeout: float = 10.0
    read_timeout: float | None = None
    question_timeout: float | None = 120.0
    retry: RetryPolicy = DEFAULT_RETRY
    n_lanes: int = 8
    proxy: str | bool | None = dataclasses.field(default=None, repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    input_dir: Path | None = None
    output_dir: Path | None = None
    max_bytes: int = 8 * 2**30
    transport: httpx.BaseTransport | None = dataclasses.field(default=None, repr=False)
    sleep: Callable[[float], object] = dataclasses.field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        url, basic = split_url(self.url)
        token, headers = checked_token(self.token), checked_headers(self.headers)
        has_own = any(name.lower() == "authorization" for name, _ in headers)
        if token and has_own:
            raise OptionError(f"Tesseract at {url}: token= and an Authorization header exclude each other; give one.")
        if not token and not has_own:
            headers += basic
        normal = {
            "url": url,
            "token": token,
            "headers": headers,
            "verify": self.verify if isinstance(self.verify, bool) else os.fspath(self.verify),
            "cert": tuple(self.cert) if isinstance(self.cert, list) else self.cert,  # hashable
            "input_dir": None if self.input_dir is None else Path(self.input_dir),
            "output_dir": None if self.output_dir is None else Path(self.output_dir),
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        if complaint := self._complaint():
            raise OptionError(f"Tesseract at {url}: {complaint}")

    def _complaint(self) -> str | None:
        """What is wrong with the options, if anything."""
        try:
            accept_header("binref" if self.encoding == "auto" else self.encoding, self.compression)
        except WireError as error:
            return str(error)
        for name in ("connect_timeout", "read_timeout", "question_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= threading.TIMEOUT_MAX:
                return f"{name} is {seconds}; expected a positive number of seconds."
        for name in ("n_lanes", "max_bytes"):
            if getattr(self, name) < 1:
                return f"{name} is {getattr(self, name)}; expected at least 1."
        if self.encoding in ("binref", "auto") and (self.input_dir is None or self.output_dir is None):
            return (
                f"encoding={self.encoding!r} needs input_dir and output_dir, the folders that the server was started "
                "with (--input-path, --output-path) as this machine sees them."
            )
        return None
