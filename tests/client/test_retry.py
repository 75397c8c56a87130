"""The retry policy repeats what may pass, waits as it says, and leaves everything else alone."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow import errors
from tesseract_flow.client import RetryPolicy, is_transient
from tesseract_flow.errors import (
    AccessDenied,
    CallTimeout,
    ComponentFailed,
    ConnectionLost,
    EndpointNotFound,
    InvalidAnswer,
    InvalidInput,
    NotRecorded,
    NotServed,
    OverBudget,
    Overloaded,
    StaleRecording,
    TesseractFlowError,
    Unreachable,
)

TRANSIENT = [Unreachable, ConnectionLost, Overloaded]
FINAL = [
    CallTimeout,
    ComponentFailed,
    InvalidInput,
    EndpointNotFound,
    InvalidAnswer,
    AccessDenied,
    NotServed,
    NotRecorded,
    OverBudget,
    StaleRecording,
]


class Flaky:
    """Raises what it is given, one after the other, then answers."""

    def __init__(self, *failures: Exception):
        self.failures = list(failures)
        self.n_calls = 0
        self.sleeps: list[float] = []

    def __call__(self) -> str:
        self.n_calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "answer"

    def run(self, policy: RetryPolicy, stretch: float = 1.0) -> str:
        return policy.run(self, sleep=self.sleeps.append, uniform=lambda low, high: stretch)


@pytest.mark.parametrize("cls", TRANSIENT)
def test_transient_errors_are_repeated(cls):
    flaky = Flaky(cls("once"), cls("twice"))
    assert flaky.run(RetryPolicy(n_retries=3, first_delay=0.5)) == "answer"
    assert flaky.n_calls == 3
    assert flaky.sleeps == [0.5, 1.0]
    assert is_transient(cls("x"))


@pytest.mark.parametrize("cls", [*FINAL, ValueError, KeyError, ConnectionError, TimeoutError, KeyboardInterrupt])
def test_other_errors_are_not(cls):
    error = cls("the same inputs would fail again")
    flaky = Flaky(error)
    with pytest.raises(cls) as caught:
        flaky.run(RetryPolicy(n_retries=5))
    assert caught.value is error
    assert (flaky.n_calls, flaky.sleeps) == (1, [])
    assert not is_transient(error)


def test_the_two_lists_are_complete():
    all_of_ours = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.CallError)}
    listed = {cls for cls in all_of_ours if issubclass(cls, (*TRANSIENT, *FINAL))}
    assert all_of_ours - listed == {errors.CallError, errors.TransientError}


def test_the_last_error_arrives_unchanged():
    failures = [ConnectionLost(f"attempt {i}") for i in range(4)]
    flaky = Flaky(*failures)
    with pytest.raises(ConnectionLost) as caught:
        flaky.run(RetryPolicy(n_retries=3))
    assert caught.value is failures[-1]
    assert flaky.n_calls == 4 and len(flaky.sleeps) == 3


def test_no_retries():
    flaky = Flaky(ConnectionLost("gone"))
    with pytest.raises(ConnectionLost):
        flaky.run(RetryPolicy(n_retries=0))
    assert (flaky.n_calls, flaky.sleeps) == (1, [])


def test_delays_double_up_to_the_longest():
    assert RetryPolicy(n_retries=5, first_delay=1.0, longest_delay=5.0).delays() == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert RetryPolicy(n_retries=5000).delays()[-1] == RetryPolicy().longest_delay


@given(st.floats(0.0, 3.0), st.integers(1, 6))
def test_jitter_only_stretches(jitter, n_retries):
    policy = RetryPolicy(n_retries=n_retries, jitter=jitter)
    flaky = Flaky(*[ConnectionLost("gone")] * n_retries)
    assert policy.run(flaky, sleep=flaky.sleeps.append) == "answer"
    for waited, delay in zip(flaky.sleeps, policy.delays(), strict=True):
        assert delay <= waited <= delay * (1.0 + jitter) * (1 + 1e-12)


def test_jitter_is_drawn_from_the_right_interval():
    asked = []
    policy = RetryPolicy(n_retries=1, jitter=0.25)
    policy.run(Flaky(ConnectionLost("gone")), sleep=no_sleep, uniform=lambda *ends: asked.append(ends) or 1.0)
    assert asked == [(1.0, 1.25)]


def no_sleep(seconds: float) -> None:
    """A sleep that does not."""


@pytest.mark.parametrize(("asked", "waited"), [(None, 0.5), (0.1, 0.5), (7.0, 7.0)])
def test_retry_after_is_the_least(asked, waited):
    flaky = Flaky(Overloaded("busy", retry_after=asked))
    flaky.run(RetryPolicy(first_delay=0.5))
    assert flaky.sleeps == [waited]


@pytest.mark.parametrize(("patience", "waited"), [(600.0, [600.5, 1.0, 2.0]), (5000.0, [3600.0, 1401.5, 2.0])])
def test_what_a_server_asks_to_wait_has_a_limit_in_all(patience, waited, caplog):
    """It may ask for a day (`Retry-After: 100000` is read as an hour), at each attempt. The log names the option."""
    flaky = Flaky(*[Overloaded("busy", retry_after=3600.0)] * 3)
    with caplog.at_level(logging.WARNING, logger="tesseract_flow"):
        flaky.run(RetryPolicy(first_delay=0.5, patience=patience))
    assert flaky.sleeps == waited
    assert f"RetryPolicy(patience={patience:g})" in caplog.messages[1]


def test_it_says_why_it_waits(caplog):
    flaky = Flaky(Overloaded("the server is busy\nlook at its log"), ConnectionLost(""))
    with caplog.at_level(logging.WARNING, logger="tesseract_flow"):
        RetryPolicy(first_delay=2.0, jitter=0.0).run(flaky, label="fem.apply", sleep=flaky.sleeps.append)
    assert caplog.messages[0] == "fem.apply: the server is busy Trying again in 2.0 s."
    assert len(caplog.messages) == 2 and "\n" not in "".join(caplog.messages)


def test_policies_are_values():
    assert RetryPolicy() == RetryPolicy() and hash(RetryPolicy()) == hash(RetryPolicy())
    assert RetryPolicy(n_retries=1) != RetryPolicy(n_retries=2)
    assert issubclass(errors.TransientError, TesseractFlowError)


def test_the_last_error_says_how_the_first_attempt_ended_if_otherwise():
    """A server that cannot be reached any more may have had the first request."""
    raised = [
        ConnectionLost("it was lost. The solve may still be running there.\nMore."),
        Unreachable("a"),
        Unreachable("b"),
    ]

    def fail():
        raise raised.pop(0)

    with pytest.raises(Unreachable) as caught:
        RetryPolicy(n_retries=2).run(fail, sleep=lambda seconds: None)
    last = str(caught.value).splitlines()[-1]
    assert last == ("It was tried 3 times. The first attempt: it was lost. The solve may still be running there.")
