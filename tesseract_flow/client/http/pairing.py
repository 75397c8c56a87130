"""Whether an answer belongs to its question, as far as HTTP can tell.

HTTP/1.1 has no name for an exchange: the first answer on a connection belongs to the first question, and so on. One
answer too many, and each further call gets that of the call before it, in the right form. The one idea: a connection
on which anything was out of turn is not used again, and an answer that may be somebody else's is no answer.

What nothing here can see: an answer too many that comes after a question and before its own answer, on a kept
connection. It is found with the next call, and the log says so (`connection`).
"""

from __future__ import annotations

from collections.abc import Mapping

import httpcore

from tesseract_flow.client.http.lane import Lane
from tesseract_flow.client.translate import Question
from tesseract_flow.errors import ConnectionLost, InvalidAnswer


def headers_of(response: httpcore.Response) -> dict[str, str]:
    """By their names in lower case; those of one name joined, as RFC 9110 has it (section 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def is_clean_end(response: httpcore.Response, lane: Lane) -> bool:
    """Whether the next question can go down the connection that brought the whole of `response`."""
    # After an exception in the application uvicorn closes the connection in any case, a moment after the answer, and
    # would take the next request down with it.
    is_closing = response.status >= 500
    return not (is_closing or lane.is_ahead or lane.connection.has_rest())


def refuse_two_lengths(question: Question, headers: Mapping[str, str]) -> None:
    """Raise if an answer has no certain end, which its head tells: the body may never come to one.

    Raises:
        InvalidAnswer: another attempt would fare no better.
    """
    # Read in two ways by two programs (RFC 9112, section 6.3), and then the next answer begins at two places.
    if "content-length" in headers and "transfer-encoding" in headers:
        raise question.error(
            InvalidAnswer,
            "the answer tells its length in two ways (Content-Length and Transfer-Encoding), so where it ends is "
            "anybody's guess.\nSomething between here and the server mixes up messages: look at the proxies.",
        )


def refuse_strangers(question: Question, status: int, headers: Mapping[str, str], lane: Lane) -> None:
    """Raise if a whole answer may be the answer to something else.

    Raises:
        ConnectionLost: another attempt, on another connection, will be answered by what belongs to it.
        InvalidAnswer: another one would fare no better.
    """
    if status == 200 and "age" in headers:  # RFC 9111, section 5.1
        raise question.error(
            InvalidAnswer,
            "the answer comes out of a cache in between (it has the header Age), so it may be that to another "
            "question.\nTell the proxy to cache nothing of a Tesseract; cache=... keeps answers on this side.",
        )
    if status == 200 and (lane.is_ahead or lane.sent_at is None):
        raise question.error(
            ConnectionLost,
            "an answer came before the server had the whole question, so it belongs to another one. It is not used, "
            "and the connection is given up.\nA server or a proxy in between sends answers that nobody waits for.",
        )
    # The first answer on a connection can be nobody else's.
    if lane.connection.n_requests > 1 and lane.connection.has_rest():
        raise question.error(
            ConnectionLost,
            "two answers came to one question, and nothing tells which of them belongs to it. Neither is used, and "
            "the connection is given up.\nA server or a proxy in between sends answers that nobody waits for.",
        )


def hang_up(response: httpcore.Response) -> None:
    """Close the connection that brought `response`."""
    stream = response.extensions.get("network_stream")
    if stream is not None:  # there is none behind a test's transport
        stream.close()
