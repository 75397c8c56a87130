"""Every failure of httpcore, and of a transport of httpx, has its place in the tree, and says what it must say."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import httpcore
import httpx
import pytest

from tesseract_flow import errors
from tesseract_flow.client import RetryPolicy
from tesseract_flow.client.http.failures import TRANSPORT_ERRORS, error_of_transport
from tesseract_flow.errors import (
    CallError,
    CallTimeout,
    ConnectionLost,
    NotServed,
    OverBudget,
    TransientError,
    Unreachable,
)
from tests.client.helpers import QUESTION, check_message, mocked
from tests.client.test_translate import OF_STATUS

OF_TRANSPORT: dict[type[Exception], type[CallError]] = {
    httpcore.TimeoutException: CallTimeout,
    httpcore.ConnectTimeout: Unreachable,
    httpcore.ReadTimeout: CallTimeout,
    httpcore.WriteTimeout: CallTimeout,
    httpcore.PoolTimeout: Unreachable,
    httpcore.NetworkError: ConnectionLost,
    httpcore.ConnectError: Unreachable,
    httpcore.ReadError: ConnectionLost,
    httpcore.WriteError: Unreachable,
    httpcore.ProtocolError: ConnectionLost,
    httpcore.LocalProtocolError: Unreachable,
    httpcore.RemoteProtocolError: ConnectionLost,
    httpcore.ProxyError: Unreachable,
    httpcore.UnsupportedProtocol: Unreachable,
}
# Those of a transport that httpcore has no name for.
OF_HTTPX: dict[type[Exception], type[CallError]] = {
    httpx.TransportError: ConnectionLost,
    httpx.CloseError: ConnectionLost,
    httpx.RequestError: ConnectionLost,
    httpx.DecodingError: ConnectionLost,
    httpx.TooManyRedirects: ConnectionLost,
    httpx.InvalidURL: Unreachable,
}
SAME_NAME = {getattr(httpx, cls.__name__): expected for cls, expected in OF_TRANSPORT.items()}


def name_of(cls: type) -> str:
    return cls.__name__


def subclasses(cls: type) -> Iterator[type]:
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


def test_every_failure_of_httpcore_is_in_the_map():
    raised = {cls for cls in vars(httpcore).values() if inspect.isclass(cls) and issubclass(cls, Exception)}
    # Its pools', of which none is used.
    assert raised - {httpcore.ConnectionNotAvailable} == set(OF_TRANSPORT)
    assert all(issubclass(cls, TRANSPORT_ERRORS) for cls in OF_TRANSPORT)


def test_every_failure_of_httpx_is_in_the_map():
    # In httpx only: other libraries, and Prefect, derive exceptions of their own.
    all_of_httpx = {cls for cls in subclasses(httpx.RequestError) if cls.__module__.startswith("httpx")}
    assert all_of_httpx | {httpx.InvalidURL} == {*SAME_NAME, *OF_HTTPX}


def test_every_call_error_is_reached():
    all_of_ours = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, CallError)}
    reached = {*OF_TRANSPORT.values(), *OF_STATUS.values()}
    # Refinements of these, such as ShapesUnknown, belong to the layers above.
    refined = {cls for cls in all_of_ours if any(issubclass(cls, ours) for ours in reached)}
    # A budget is ours to keep, and so is a recording: their errors come before anything is sent.
    before = {OverBudget, NotServed, errors.NotRecorded, errors.StaleRecording}
    assert all_of_ours - refined == {CallError, TransientError, *before}
    assert reached <= all_of_ours


@pytest.mark.parametrize("raised", OF_TRANSPORT, ids=name_of)
def test_transport_error(raised):
    error = error_of_transport(QUESTION, raised("something of the network's"), 1.25, is_whole=True)
    assert type(error) is OF_TRANSPORT[raised]
    check_message(error)


@pytest.mark.parametrize(("raised", "expected"), [*SAME_NAME.items(), *OF_HTTPX.items()], ids=str)
def test_transport_error_through_a_handle(raised, expected):
    cause = raised("something of the network's")
    with pytest.raises(expected) as caught:
        mocked(cause).handle(label="fem", retry=RetryPolicy(n_retries=0)).request("apply", {"inputs": {"x": 1.0}})
    assert isinstance(caught.value.__cause__, TRANSPORT_ERRORS)
    assert caught.value.__cause__.__cause__ is cause
    check_message(caught.value)


@pytest.mark.parametrize("raised", OF_TRANSPORT, ids=name_of)
def test_a_message_says_whether_a_solve_may_be_running(raised):
    text = str(error_of_transport(QUESTION, raised("boom"), 1.25, is_whole=True))
    if OF_TRANSPORT[raised] is Unreachable or raised is httpcore.WriteTimeout:
        assert "Nothing was s" in text and "may still be running" not in text
    elif OF_TRANSPORT[raised] in (ConnectionLost, CallTimeout):
        assert "may still be running" in text and "Nothing was" not in text


@pytest.mark.parametrize("raised", [httpcore.ReadError, httpcore.RemoteProtocolError, httpcore.NetworkError])
def test_a_request_that_was_not_sent_whole_has_started_nothing(raised):
    error = error_of_transport(QUESTION, raised("reset"), 1.25, is_whole=False)
    assert type(error) is Unreachable and "Nothing was started" in str(error)
    check_message(error)


@pytest.mark.parametrize(("seconds", "is_named"), [(4.9, False), (10.7, True)])
def test_a_worker_that_its_supervisor_may_have_killed(seconds, is_named):
    text = str(error_of_transport(QUESTION, httpcore.ReadError("reset"), seconds, is_whole=True))
    assert ("--num-workers" in text) is is_named


def test_a_question_that_needs_no_solve_leaves_none_running():
    text = str(error_of_transport(QUESTION, httpcore.ReadTimeout(""), 120.0, True, limit="question_timeout"))
    assert "still be running" not in text and "question_timeout=" in text


def test_an_untrusted_certificate_has_its_own_remedy():
    error = error_of_transport(
        QUESTION, httpcore.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), 0.1, False
    )
    assert isinstance(error, Unreachable) and "verify=" in str(error)
