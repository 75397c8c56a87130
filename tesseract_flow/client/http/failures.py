"""Requests that got no answer → our exception tree: the one place that reads exceptions of httpcore."""

from __future__ import annotations

import httpcore

from tesseract_flow.client.translate import Question
from tesseract_flow.errors import CallError, CallTimeout, ConnectionLost, Unreachable

# What a request can fail with; httpcore has no one name for all of it.
TRANSPORT_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
# Requests that fail with these cannot have started a solve: the server never had a whole request.
NOT_STARTED = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.WriteError)


def error_of_transport(question: Question, error: Exception, seconds: float) -> CallError:
    """The exception for a request that could not be completed within `seconds`."""
    kind = type(error).__name__
    if isinstance(error, httpcore.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return question.error(
            Unreachable,
            f"the server's certificate is not trusted ({error}). Nothing was started.\n"
            'Name the authorities to trust: open_tesseract(url, verify="authorities.pem").',
        )
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout | httpcore.ProxyError):
        return question.error(
            Unreachable,
            f"cannot connect ({error or kind}). Nothing was started.\n"
            "Is the server running, and is the address right? Try: tesseract-flow inspect URL.",
        )
    if isinstance(error, httpcore.WriteError | httpcore.PoolTimeout):
        return question.error(
            Unreachable,
            f"the request could not be sent ({kind}: {error}). Nothing was started: the server never had all of it.\n"
            "It is tried again by the retry policy; if it persists, look at the server's log.",
        )
    if isinstance(error, httpcore.WriteTimeout):
        return question.error(
            CallTimeout,
            f"the request could not be sent within {seconds:.1f} s. Nothing was started.\n"
            "Allow more time with open_tesseract(url, read_timeout=SECONDS or None), or look at the network.",
        )
    if isinstance(error, httpcore.TimeoutException):
        return question.error(
            CallTimeout,
            f"no answer after {seconds:.1f} s ({kind}). The solve may still be running there.\n"
            "Allow more time with open_tesseract(url, read_timeout=SECONDS or None), or look at the server's log.",
        )
    if isinstance(error, httpcore.UnsupportedProtocol | httpcore.LocalProtocolError):
        # Without the error's text: where a header is refused, it quotes the header.
        return question.error(
            Unreachable,
            f"the request cannot be put into HTTP ({kind}). Nothing was sent.\n"
            "Check the address, which looks like http://host:8000, and the headers.",
        )
    return question.error(
        ConnectionLost,
        f"the connection was lost after {seconds:.1f} s ({kind}: {str(error)[:500]}). "
        "The solve may still be running there.\n"
        "It is tried again by the retry policy; if it persists, the component probably crashed: look at its log.",
    )
