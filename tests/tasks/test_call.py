"""The task around a call: what it repeats, what it names, and how it looks to the executor."""

import numpy as np
import pytest
from prefect import flow
from prefect.states import Failed

from tesseract_flow import errors
from tesseract_flow.autodiff import apply_tesseract
from tesseract_flow.execute import concurrent
from tesseract_flow.tasks import PrefectSubmitter, call_tesseract, retry_if_transient
from tesseract_flow.tasks.call import run_id_of
from tesseract_flow.testing import FunctionTesseract

TRANSIENT = [errors.Unreachable, errors.ConnectionLost, errors.Overloaded]
FINAL = [
    errors.CallTimeout,
    errors.InvalidInput,
    errors.ComponentFailed,
    errors.EndpointNotFound,
    errors.InvalidAnswer,
    errors.AccessDenied,
    errors.NotServed,
    errors.OverBudget,
    errors.NotRecorded,
    errors.StaleRecording,
]


def doubler(**options) -> FunctionTesseract:
    return FunctionTesseract(lambda i: {"y": 2.0 * i["x"]}, {"x": np.ones(3)}, name="doubler", **options)


def node_of(tesseract):
    plan = concurrent(lambda x: apply_tesseract(tesseract, {"x": x})["y"]).plan(np.ones(3))
    (node,) = plan.nodes
    return node


@pytest.mark.parametrize("cls", TRANSIENT)
def test_transient_errors_are_retried(cls):
    assert retry_if_transient(None, None, Failed(data=cls("lost")))


@pytest.mark.parametrize("cls", [*FINAL, ValueError])
def test_other_errors_are_not_retried(cls):
    assert not retry_if_transient(None, None, Failed(data=cls("no")))


def test_every_call_error_has_a_verdict():
    def subclasses(cls):
        return {cls}.union(*map(subclasses, cls.__subclasses__())) if cls.__subclasses__() else {cls}

    known = {errors.CallError, errors.TransientError, *TRANSIENT}.union(*map(subclasses, FINAL))
    assert {cls for cls in subclasses(errors.CallError) if cls.__module__ == errors.__name__} == known


def test_task_body_runs_without_a_server():
    (y,) = call_tesseract.fn("doubler.apply #0", node_of(doubler()), [np.arange(3.0)], "run")
    np.testing.assert_array_equal(y, [0.0, 2.0, 4.0])


def test_overloaded_server_is_given_the_time_it_asks_for(monkeypatch):
    slept = []
    monkeypatch.setattr("tesseract_flow.tasks.call.time.sleep", slept.append)

    def busy(endpoint, inputs):
        raise errors.Overloaded("busy", retry_after=1.0e9)

    tesseract = doubler()
    node = node_of(tesseract)
    tesseract.before = busy
    with pytest.raises(errors.Overloaded):
        call_tesseract.fn("doubler.apply #0", node, [np.ones(3)], "run")
    assert slept == [300.0]  # asked for more than thirty years, given five minutes


def test_run_ids_are_unique_and_safe_as_folder_names():
    first, second = run_id_of("fem.pullback #1/../x"), run_id_of("fem.pullback #1/../x")
    assert first != second
    assert "/" not in first
    assert "#" not in first


def test_calls_of_a_flow_are_task_runs_and_transient_failures_are_repeated(prefect_harness):
    failures = [errors.ConnectionLost("gone"), errors.Overloaded("busy")]

    def flaky(endpoint, inputs):
        if endpoint == "apply" and failures:
            raise failures.pop()

    tesseract = doubler(before=flaky)
    submitter = PrefectSubmitter(retry=_impatient())

    @flow
    def double():
        submitter.step = 7
        return concurrent(lambda x: apply_tesseract(tesseract, {"x": x})["y"], submitter=submitter)(np.ones(3))

    np.testing.assert_array_equal(double(), [2.0, 2.0, 2.0])
    assert failures == []


def test_components_own_error_ends_the_flow_at_once_with_its_type(prefect_harness):
    attempts = []

    def broken(endpoint, inputs):
        if endpoint == "apply":
            attempts.append(endpoint)
            raise errors.ComponentFailed("negative thickness")

    tesseract = doubler(before=broken)

    @flow
    def double():
        submitter = PrefectSubmitter(retry=_impatient())
        return concurrent(lambda x: apply_tesseract(tesseract, {"x": x})["y"], submitter=submitter)(np.ones(3))

    with pytest.raises(errors.ComponentFailed, match="negative thickness") as caught:
        double()
    assert attempts == ["apply"]
    assert any("doubler.apply" in note for note in caught.value.__notes__)


def _impatient():
    from tesseract_flow.client import RetryPolicy

    return RetryPolicy(n_retries=3, first_delay=0.01, jitter=0.0)
