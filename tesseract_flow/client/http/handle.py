"""A Tesseract behind HTTP.

`HttpTesseract` is the value that people hold, compare, send to other processes and see in logs; the open connections
and the schema belong to a `Session`, which equal handles of one process share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import time
import uuid
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import httpcore
import orjson

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, ByFields, Endpoint, Tree
from tesseract_flow.client.http.digest import digest_of
from tesseract_flow.client.http.exchange import Exchange, FileExchange, large_bytes
from tesseract_flow.client.http.failures import TRANSPORT_ERRORS, error_of_transport
from tesseract_flow.client.http.lane import Lane
from tesseract_flow.client.http.options import HttpOptions
from tesseract_flow.client.http.pairing import hang_up, headers_of, is_clean_end, refuse_strangers, refuse_two_lengths
from tesseract_flow.client.http.patience import FIRST_WORD, Patience
from tesseract_flow.client.http.session import Session, session_of
from tesseract_flow.client.http.sharing import is_read_from
from tesseract_flow.client.meter import Recalled, look_out, record_request
from tesseract_flow.client.translate import Question, error_of_status
from tesseract_flow.errors import CallError, CallReleased, InvalidAnswer, SchemaError, WireError
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.wire import Message, check_once

DERIVATIVES = frozenset({"jacobian", "jacobian_vector_product", "vector_jacobian_product"})
# What a server answers without a solve.
QUESTIONS = frozenset({"openapi.json", "abstract_eval", "health"})

_log = logging.getLogger("tesseract_flow")
T = TypeVar("T")


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
                session.learn(self._read_schema())
                assert session.schema is not None
            return session.schema

    def refresh(self) -> None:
        session = self._session
        if session.schema is None or session.is_vouched_for():
            return
        with session.lock:
            if (known := session.schema) is None or session.is_vouched_for():
                return
            try:
                schema = self._ask_schema()
            except CallError:  # who is not there is nobody else; what is sent next says so
                return
            session.learn(schema)
            if (schema.name, schema.version, schema.digest) != (known.name, known.version, known.digest):
                _log.warning(
                    "The component at %s is another one now, and so are its answers: %s %s has become %s %s%s.",
                    self.url,
                    known.name,
                    known.version,
                    schema.name,
                    schema.version,
                    "" if known.digest == schema.digest else ", with another schema",
                )

    def read_schema(self) -> TesseractSchema:
        return self._read_schema()

    @property
    def anchor(self) -> object:
        return self._session

    @property
    def known_schema(self) -> TesseractSchema | None:
        return self._session.schema

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        key = self._primals_key(endpoint, payload)
        return self._repeated(endpoint, lambda: self.ask(endpoint, payload, run_id, key))

    def learn_schema(self, schema: TesseractSchema) -> None:
        """Take it from somebody who has asked the same server, a process of ours."""
        self._session.learn(schema, is_ours=True)

    def ask(self, endpoint: Endpoint, payload: Mapping[str, Any], run_id: str | None, key: Hashable) -> Tree:
        """`request`, once, for callers that know more.

        Args:
            key: stands for the primals: the call goes where they were seen before.
        """
        question = self._question(endpoint)
        with self._exchange(endpoint, payload, run_id) as exchange:
            body = exchange.body(payload)
            record_request(question.name, endpoint)
            answer, lane = self._send("POST", question, body, {"run_id": exchange.run_id}, key, accept=exchange.accept)
            # Afterwards, so that the first answer on a connection is that to a call: of it alone it is sure that it can
            # be nobody else's.
            self.refresh()
            if self._session.schema is None and b"null" in answer:
                with contextlib.suppress(SchemaError, CallError):  # without it, nothing tells NaN from None
                    _ = self.schema

            def read(answer: bytes) -> Tree:
                tree = exchange.tree(answer)
                self.check_answer(endpoint, payload, tree)
                return tree

            try:
                return self._read_cleanly(read, answer)
            except InvalidAnswer:
                self._session.lanes.distrust(lane)
                raise
            except WireError as error:
                self._session.lanes.distrust(lane)
                raise question.error(InvalidAnswer, f"the answer is not understood.\n{error}") from error

    def _read_cleanly(self, read: Callable[[bytes], T], content: bytes) -> T:
        """What `read` makes of a server's bytes. Where it fails it fails with words, and in attributes, without the
        credentials that the bytes may repeat: it then reads them without these."""
        try:
            return read(content)
        except (InvalidAnswer, WireError, SchemaError, orjson.JSONDecodeError):
            clean = self._session.without_secrets(content)
            if clean == content:
                raise
        # Out here, so that nothing leads from the new error to the old one.
        read(clean)
        raise WireError("it is not what was asked for, and repeats the credentials that were sent.")

    def _question(self, endpoint: str) -> Question:
        proxy = self._session.proxy
        return Question(endpoint, self._short_name, self.url, "" if proxy is None else str(proxy))

    def _repeated(self, endpoint: str, ask: Callable[[], T]) -> T:
        return self.retry.run(ask, label=f"{self._short_name}.{endpoint}", sleep=self.sleep)

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
        question = self._question("apply")
        try:
            return is_read_from(folder, self.schema, lambda body: self._send("POST", question, Message(body), {})[0])
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
        return self._repeated("openapi.json", self._ask_schema)

    def _ask_schema(self) -> TesseractSchema:
        """Once."""
        content, _ = self._send("GET", self._question("openapi.json"), Message(), {})
        try:
            return self._read_cleanly(_schema, content)
        except (orjson.JSONDecodeError, SchemaError, WireError) as error:
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
    ) -> tuple[bytes, Lane]:
        """The body of a good answer, and the way that it came."""
        session = self._session
        # A pullback waits for the worker that has its residuals. An apply gains nothing by it.
        lane = session.lanes.take(question.endpoint, key, is_patient=question.endpoint != "apply")
        is_good = False
        start = time.monotonic()
        try:
            answer = self._send_once(lane, method, question, body, params, accept)
            is_good = True
            return answer, lane
        except TRANSPORT_ERRORS as error:
            is_whole, failure = lane.sent_at is not None, error
        except Recalled as error:
            seconds = time.monotonic() - start
            raise question.error(
                CallReleased,
                f"no answer after {seconds:.1f} s, and somebody has asked not to wait for it any longer. The solve may "
                "still be running there.",
            ) from error
        finally:
            if is_good:
                session.took(question.endpoint, time.monotonic() - start)
            session.lanes.give_back(lane, has_seen=is_good)
        # Out here, so that nothing leads back to it where another one takes its place: it quotes what the server said.
        if (text := session.clean(str(failure))) != str(failure):
            failure = type(failure)(text)
        raise error_of_transport(
            question, failure, time.monotonic() - start, is_whole, self._limit(question)
        ) from failure

    def _send_once(
        self,
        lane: Lane,
        method: str,
        question: Question,
        body: Message,
        params: Mapping[str, str],
        accept: str | None,
    ) -> bytes:
        target = f"/{question.endpoint}?{urlencode(params)}" if params else f"/{question.endpoint}"
        lane.is_lost = True  # until the whole answer is here
        patience = self._patience(question)
        with self._session.response(lane, method, target, body, accept=accept, patience=patience) as response:
            lane.arrived_by(response.extensions.get("network_stream"))
            headers = headers_of(response)
            try:
                refuse_two_lengths(question, headers)
            except InvalidAnswer:
                hang_up(response)  # or the end of the body would be waited for
                raise
            answer = self._read(response, headers, question)
            lane.is_lost = not is_clean_end(response, lane)
            if lane.is_lost:
                hang_up(response)
            refuse_strangers(question, response.status, headers, lane)
            if response.status != 200:
                said = {name: self._session.clean(value) for name, value in headers.items()}
                raise error_of_status(question, response.status, said, self._session.without_secrets(answer))
            return answer

    def _patience(self, question: Question) -> Patience:
        """The limits of one exchange."""
        if question.endpoint in QUESTIONS:
            return Patience(self.question_timeout, look_out=look_out())
        # What has always taken long is no news.
        usual = self._session.longest.get(question.endpoint, 0.0)
        says = functools.partial(_say_waiting, question, self.read_timeout)
        return Patience(says=says, first_word=max(FIRST_WORD, 2 * usual), look_out=look_out())

    def _limit(self, question: Question) -> str:
        return "question_timeout" if question.endpoint in QUESTIONS else "read_timeout"

    def _read(self, response: httpcore.Response, headers: Mapping[str, str], question: Question) -> bytes:
        """The body, refused before it fills the memory, whether or not the server tells its size beforehand."""
        packing = self._session.clean(headers.get("content-encoding", "")).strip().lower() or "identity"
        if packing != "identity":
            # Not even read: we did not ask for it, and it could unpack to any size.
            if response.status != 200:
                said = {name: self._session.clean(value) for name, value in headers.items()}
                raise error_of_status(question, response.status, said, b"(a compressed text)")
            raise question.error(
                InvalidAnswer,
                f"expected a plain answer, received one with Content-Encoding {packing[:50]!r}.\n"
                "Tell the proxy that compresses it to leave application/json alone; see compression= instead.",
            )
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


def _schema(content: bytes) -> TesseractSchema:
    # Not `wire.loads`: an array in this document is somebody's default value, and part of the schema.
    schema = TesseractSchema.from_openapi(orjson.loads(content))
    check_once(content)
    return schema


def _say_waiting(question: Question, read_timeout: float | None, seconds: float) -> None:
    limit = (
        "There is no limit to that; set one with open_tesseract(url, read_timeout=SECONDS)."
        if read_timeout is None
        else f"It is waited for until {read_timeout:g} s pass without a byte (read_timeout)."
    )
    _log.warning("%s: no whole answer for %.0f s. %s", question, seconds, limit)


def primals_key(endpoint: Endpoint, payload: Mapping[str, Any]) -> Hashable:
    """What stands for the primals of a call that works at them."""
    return None if endpoint == "abstract_eval" else digest_of(payload.get("inputs"))
