"""Requests that got no answer → our exception tree: the one place that reads exceptions of httpcore."""

from __future__ import annotations

import httpcore

from tesseract_flow.client.translate import Question, error_of_status
from tesseract_flow.errors import CallError, CallTimeout, ConnectionLost, Unreachable

# What a request can fail with; httpcore has no one name for all of it.
TRANSPORT_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
# Requests that fail with these never reached a server.
_NOT_CONNECTED = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError)
# uvicorn's supervisor kills a worker that does not answer it for so many seconds.
_SILENCE_OF_A_WORKER = 5.0


def error_of_transport(
    question: Question, error: Exception, seconds: float, is_whole: bool, limit: str = "read_timeout"
) -> CallError:
    """The exception for a request that could not be completed within `seconds`.

    Args:
        is_whole: whether all of the request had been sent.
        limit: the option that limits how long such a question may take.
    """
    kind = type(error).__name__
    if isinstance(error, httpcore.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return question.error(
            Unreachable,
            f"the server's certificate is not trusted ({error}). Nothing was started.\n"
            'Name the authorities to trust: open_tesseract(url, verify="authorities.pem").',
        )
    if isinstance(error, httpcore.ProxyError) and str(error).startswith("407"):
        return error_of_status(question, 407, {}, b"")
    if isinstance(error, _NOT_CONNECTED):
        return question.error(
            Unreachable,
            f"cannot connect ({error or kind}). Nothing was started.\n"
            "Is the server running, and is the address right? Try: tesseract-flow inspect URL."
            + question.advice_on_the_way,
        )
    if isinstance(error, httpcore.WriteTimeout):
        return question.error(
            CallTimeout,
            f"the request could not be sent within {seconds:.1f} s. Nothing was started.\n"
            f"Allow more time with open_tesseract(url, {limit}=SECONDS or None), or look at the network.",
        )
    if isinstance(error, httpcore.TimeoutException) and not isinstance(error, httpcore.PoolTimeout):
        if limit == "question_timeout":  # no solve, so there is nothing that could still be running
            return question.error(
                CallTimeout,
                f"no answer after {seconds:.1f} s ({kind}), though it needs no solve. Either the server is frozen, or "
                "all of its workers are busy with other calls.\n"
                "Allow more time with open_tesseract(url, question_timeout=SECONDS or None), or look at the server.",
            )
        return question.error(
            CallTimeout,
            f"no answer after {seconds:.1f} s ({kind}). The solve may still be running there.\n"
            f"Allow more time with open_tesseract(url, {limit}=SECONDS or None), or look at the server's log.",
        )
    if isinstance(error, httpcore.UnsupportedProtocol | httpcore.LocalProtocolError):
        # Without the error's text: where a header is refused, it quotes the header.
        return question.error(
            Unreachable,
            f"the request cannot be put into HTTP ({kind}). Nothing was sent.\n"
            "Check the address, which looks like http://host:8000, and the headers.",
        )
    if not is_whole or isinstance(error, httpcore.WriteError | httpcore.PoolTimeout):
        return question.error(
            Unreachable,
            f"the request could not be sent ({kind}: {str(error)[:500]}). Nothing was started: the server never had "
            "all of it.\nIf it persists, look at the server's log.",
        )
    if limit == "question_timeout":
        return question.error(
            ConnectionLost,
            f"the connection was lost after {seconds:.1f} s ({kind}: {str(error)[:500]}), and nothing was to be "
            "solved.\nIf it persists, look at the server's log." + question.advice_on_the_way,
        )
    advice = "If it persists, the component probably crashed: look at its log."
    if seconds > _SILENCE_OF_A_WORKER:
        advice += (
            "\nOr the server has several workers (--num-workers) and a solver that holds Python's interpreter lock: "
            "uvicorn kills a worker that is silent for 5 s, at each attempt. Serve several servers of one worker each "
            "instead, and open them as replicas: open_tesseract([url, url])."
        )
    return question.error(
        ConnectionLost,
        f"the connection was lost after {seconds:.1f} s ({kind}: {str(error)[:500]}). "
        f"The solve may still be running there.\n{advice}",
    )
