"""A Tesseract behind HTTP.

`HttpTesseract` is the value that people hold, compare, send to other processes and see in logs; the open connections
and the schema belong to a `Session`, which equal handles of one process share.
"""

from __future__ import annotations

import dataclasses
import io
import os
import time
import uuid
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpcore
import orjson

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, ByFields, Endpoint, Tree
from tesseract_flow.client.http.digest import digest_of
from tesseract_flow.client.http.exchange import Exchange, FileExchange, large_bytes
from tesseract_flow.client.http.failures import NOT_STARTED, TRANSPORT_ERRORS, error_of_transport
from tesseract_flow.client.http.lanes import Lane
from tesseract_flow.client.http.options import HttpOptions
from tesseract_flow.client.http.session import Session, session_of
from tesseract_flow.client.http.sharing import is_read_from
from tesseract_flow.client.meter import record_request
from tesseract_flow.client.translate import Question, error_of_status
from tesseract_flow.errors import InvalidAnswer, SchemaError, WireError
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.wire import Message

DERIVATIVES = frozenset({"jacobian", "jacobian_vector_product", "vector_jacobian_product"})
# A refused connection may be a server that is just being restarted; a longer outage is the retry policy's affair.
_RECONNECT_DELAY = 0.2


@dataclasses.dataclass(frozen=True)
class HttpTesseract(ByFields, HttpOptions, AbstractTesseract):
    """A Tesseract served at `url`.

    Equal handles share their connections. Handles can be pickled; credentials never appear in their `repr`.

    Its fields are those of `HttpOptions`: `url`, `label`, `token`, `headers`, `encoding`, `read_timeout`, ...
    """

    def __repr__(self) -> str:
        return f"HttpTesseract({self.label + ': ' if self.label else ''}{self.url})"

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        return urlsplit(self.url).netloc if self.schema.name in GENERIC_NAMES else self.schema.name

    @property
    def schema(self) -> TesseractSchema:
        session = self._session
        with session.lock:
            if session.schema is None:
                session.schema = self._read_schema()
            return session.schema

    def read_schema(self) -> TesseractSchema:
        return self._read_schema()

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        return self.ask(endpoint, payload, run_id, self._primals_key(endpoint, payload))

    def ask(
        self,
        endpoint: Endpoint,
        payload: Mapping[str, Any],
        run_id: str | None,
        key: Hashable,
        *,
        waits_for_restart: bool = True,
    ) -> Tree:
        """`request`, for callers that know more.

        Args:
            key: stands for the primals: the call goes where they were seen before.
            waits_for_restart: whether to try once more, a moment later, when the connection is refused.
        """
        question = Question(endpoint, self._short_name, self.url)
        with self._exchange(endpoint, payload, run_id) as exchange:
            body = exchange.body(payload)
            record_request(question.name, endpoint)
            answer = self._send(
                "POST",
                question,
                body,
                {"run_id": exchange.run_id},
                key,
                accept=exchange.accept,
                waits_for_restart=waits_for_restart,
            )
            try:
                return exchange.tree(answer)
            except WireError as error:
                raise question.error(InvalidAnswer, f"the answer is not understood.\n{error}") from error

    def _exchange(self, endpoint: Endpoint, payload: Mapping[str, Any], run_id: str | None) -> Exchange:
        folders = self._session.folders
        if folders is None:
            assert self.encoding != "auto"
            return Exchange(run_id or uuid.uuid4().hex, self.encoding, self.compression, self.max_bytes)
        n_bytes = large_bytes(payload)
        if folders.is_read is None and n_bytes:
            folders.settle("is_read", self._is_read_from(folders.input_dir), folders.input_dir)
        return FileExchange(folders, endpoint, run_id, self.compression, self.max_bytes, n_bytes)

    def _is_read_from(self, folder: Path) -> bool:
        question = Question("apply", self._short_name, self.url)
        try:
            return is_read_from(folder, self.schema, lambda body: self._send("POST", question, Message(body), {}))
        except SchemaError:
            return False

    def owns_folders(self, *, is_known: bool = True) -> None:
        """Take it that nobody but the server uses the folders of this handle, and `is_known`: that it does use them."""
        if self._session.folders is not None:
            self._session.folders.own(is_known=is_known)

    @property
    def _short_name(self) -> str:
        """The name if it is known without asking the server; messages must not depend on another request."""
        if self.label is None and self._session.schema is None:
            return urlsplit(self.url).netloc
        return self.name

    @property
    def _session(self) -> Session:
        session = self.__dict__.get("_own_session")
        if session is None or session.pid != os.getpid():
            session = session_of(self)
            object.__setattr__(self, "_own_session", session)
        return session

    def _primals_key(self, endpoint: Endpoint, payload: Mapping[str, Any]) -> Hashable:
        schema = self._session.schema  # if it is there already; this is not worth a request
        has_residuals = schema is None or not DERIVATIVES.isdisjoint(schema.endpoints)
        return primals_key(endpoint, payload) if self.n_lanes > 1 and has_residuals else None

    def _read_schema(self) -> TesseractSchema:
        content = self._send("GET", Question("openapi.json", self._short_name, self.url), Message(), {})
        try:
            # Not `wire.loads`: an array in this document is somebody's default value, and part of the schema.
            return TesseractSchema.from_openapi(orjson.loads(content))
        except (orjson.JSONDecodeError, SchemaError) as error:
            raise SchemaError(
                f"The server at {self.url} does not describe itself as a Tesseract: {error}\n"
                "Check the URL: it must be the root of a served Tesseract."
            ) from error

    def _send(
        self,
        method: str,
        question: Question,
        body: Message,
        params: Mapping[str, str],
        key: Hashable = None,
        *,
        accept: str | None = None,
        waits_for_restart: bool = True,
    ) -> bytes:
        """The body of a good answer."""
        lanes = self._session.lanes
        # A pullback waits for the worker that has its residuals. An apply gains nothing by it.
        lane = lanes.take(question.endpoint, key, is_patient=question.endpoint != "apply")
        is_good = False
        start = time.monotonic()
        try:
            try:
                answer = self._send_once(lane, method, question, body, params, accept)
            except NOT_STARTED as error:
                if isinstance(error, httpcore.WriteError) or waits_for_restart:
                    self.sleep(_RECONNECT_DELAY)
                    answer = self._send_once(lane, method, question, body, params, accept)
                else:
                    raise
            is_good = True
            return answer
        except TRANSPORT_ERRORS as error:
            raise error_of_transport(question, error, time.monotonic() - start) from error
        finally:
            lanes.give_back(lane, has_seen=is_good)

    def _send_once(
        self,
        lane: Lane,
        method: str,
        question: Question,
        body: Message,
        params: Mapping[str, str],
        accept: str | None,
    ) -> bytes:
        session = self._session
        target = f"/{question.endpoint}?{urlencode(params)}" if params else f"/{question.endpoint}"
        lane.is_lost = True  # until the whole answer is here
        with session.response(lane, method, target, body, accept=accept) as response:
            lane.arrived_by(response.extensions.get("network_stream"))
            # Compressed bodies are not even read: we did not ask for them, and they could unpack to any size.
            headers = _headers_of(response)
            packing = headers.get("content-encoding", "").strip().lower() or "identity"
            answer = self._read(response, headers, question) if packing == "identity" else b"(a compressed text)"
            lane.is_lost = packing != "identity"
            if response.status >= 500:
                lane.is_lost = True
                _hang_up(response)
            if response.status != 200:
                raise error_of_status(question, response.status, headers, answer)
            if packing != "identity":
                raise question.error(
                    InvalidAnswer,
                    f"expected a plain answer, received one with Content-Encoding {packing[:50]!r}.\n"
                    "Tell the proxy that compresses it to leave application/json alone; see compression= instead.",
                )
            return answer

    def _read(self, response: httpcore.Response, headers: Mapping[str, str], question: Question) -> bytes:
        """The body, refused before it fills the memory, whether or not the server tells its size beforehand."""
        declared = headers.get("content-length", "")
        n_bytes = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
        if n_bytes <= self.max_bytes:
            n_bytes, answer = 0, io.BytesIO()  # and not a list of chunks, which would take the memory twice
            for chunk in response.iter_stream():
                n_bytes += len(chunk)
                if n_bytes > self.max_bytes:
                    break
                answer.write(chunk)
            else:
                return answer.getvalue()
        raise question.error(
            InvalidAnswer,
            f"the answer has {n_bytes} bytes or more; at most {self.max_bytes} are accepted.\n"
            "Allow more with open_tesseract(url, max_bytes=...).",
        )


def _headers_of(response: httpcore.Response) -> dict[str, str]:
    """By their names in lower case; those of one name joined, as RFC 9110 has it (section 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _hang_up(response: httpcore.Response) -> None:
    """Close the connection that brought `response`.

    After an exception in the application uvicorn closes it in any case, a moment after the answer, and would take the
    next request down with it.
    """
    stream = response.extensions.get("network_stream")
    if stream is not None:  # there is none behind a test's transport
        stream.close()


def primals_key(endpoint: Endpoint, payload: Mapping[str, Any]) -> Hashable:
    """What stands for the primals of a call that works at them."""
    return None if endpoint == "abstract_eval" else digest_of(payload.get("inputs"))
