"""Every answer of a server that is no result has its place in the tree, and says what it must say."""

from __future__ import annotations

import pickle

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.client.translate import (
    error_of_status,
    faults_of_detail,
    readable,
    retry_after,
)
from tesseract_flow.errors import (
    AccessDenied,
    CallError,
    CallTimeout,
    ComponentFailed,
    ConnectionLost,
    EndpointNotFound,
    Fault,
    InvalidAnswer,
    InvalidInput,
    Overloaded,
    TransientError,
    Unreachable,
)
from tests.client.helpers import QUESTION, check_message, document, mocked

OF_STATUS: dict[int, type[CallError]] = {
    **dict.fromkeys(range(201, 600), InvalidAnswer),
    500: ComponentFailed,
    **dict.fromkeys((401, 403, 407), AccessDenied),
    **dict.fromkeys((404, 405), EndpointNotFound),
    **dict.fromkeys((413, 422), InvalidInput),
    **dict.fromkeys((429, 502, 503, 504), Overloaded),
}


# With those of requests that got no answer.
ALL = {*OF_STATUS.values(), CallTimeout, ConnectionLost, Unreachable}


def test_every_status():
    for status, expected in OF_STATUS.items():
        for body in (b"", b"some text", b'{"detail": "text"}', b'{"detail": [{"loc": ["body"], "msg": "m"}]}'):
            error = error_of_status(QUESTION, status, {}, body)
            assert type(error) is expected, status
            check_message(error)


@pytest.mark.parametrize("status", [301, 401, 404, 406, 413, 418, 422, 429, 500, 503])
def test_status_through_a_handle(status):
    with pytest.raises(OF_STATUS[status]) as caught:
        mocked(b"some text", status=status).handle(label="fem").request("apply", {"inputs": {"x": 1.0}})
    check_message(caught.value)


@pytest.mark.parametrize("cls", sorted(ALL, key=lambda cls: cls.__name__))
def test_errors_survive_pickling(cls):
    error = QUESTION.error(cls, "what happened")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and str(again) == str(error)
    assert (again.tesseract, again.endpoint) == (error.tesseract, error.endpoint)
    assert again.__dict__ == error.__dict__


def test_errors_are_what_code_for_the_peers_catches():
    builtin = {
        InvalidInput: ValueError,
        EndpointNotFound: NotImplementedError,
        ComponentFailed: RuntimeError,
        InvalidAnswer: ValueError,
        AccessDenied: PermissionError,
        Unreachable: ConnectionError,
        ConnectionLost: ConnectionError,
        CallTimeout: TimeoutError,
        Overloaded: RuntimeError,
    }
    assert set(builtin) == ALL
    for ours, base in builtin.items():
        assert issubclass(ours, base)


def test_only_what_may_pass_is_transient():
    transient = {cls for cls in OF_STATUS.values() if issubclass(cls, TransientError)}
    assert transient == {Overloaded}
    assert {s for s, cls in OF_STATUS.items() if issubclass(cls, TransientError)} == {429, 502, 503, 504}


def test_faults_of_422():
    detail = [
        {"type": "missing", "loc": ["body", "inputs", "mesh", "knots", 3], "msg": "Field required"},
        {"type": "array_shape", "loc": ["body", "inputs", "x"], "msg": "got 2D, expected 1D", "input": [[1.0]]},
        {"type": "extra_forbidden", "loc": ["body", "jvp_inputs"], "msg": "Extra inputs"},
        {"type": "model", "loc": ["body", "inputs"], "msg": "no model"},
    ]
    body = orjson.dumps({"detail": detail})
    with pytest.raises(InvalidInput) as caught:
        mocked(body, status=422).handle(label="fem").request("apply", {"inputs": {"x": 1.0}})
    assert caught.value.faults == (
        Fault("mesh.knots.[3]", "Field required", "missing"),
        Fault("x", "got 2D, expected 1D", "array_shape"),
        Fault("jvp_inputs", "Extra inputs", "extra_forbidden"),
        Fault("", "no model", "model"),
    )
    for line in ("mesh.knots.[3]: Field required", "x: got 2D, expected 1D", "(root): no model"):
        assert line in str(caught.value)


def test_a_field_called_inputs_keeps_its_name():
    (fault,) = faults_of_detail([{"loc": ["body", "inputs", "inputs", "body"], "msg": "m", "type": "t"}])
    assert fault.path == "inputs.body"


def test_many_faults_are_all_kept_and_some_are_shown():
    detail = [{"loc": ["body", "inputs", f"x{i}"], "msg": "m", "type": "t"} for i in range(1000)]
    error = error_of_status(QUESTION, 422, {}, orjson.dumps({"detail": detail}))
    assert isinstance(error, InvalidInput)
    assert len(error.faults) == 1000
    assert "x0: m" in str(error) and "and 980 more" in str(error) and len(str(error).splitlines()) < 30


def test_the_component_speaks_for_itself():
    text = "Traceback (most recent call last):\n" + "  deep in a solver\n" * 5000 + "ValueError: the mesh is tangled"
    message = str(error_of_status(QUESTION, 500, {}, text.encode()))
    assert message.endswith("ValueError: the mesh is tangled")
    assert len(message) < 10_000


def test_a_server_that_hides_its_errors():
    assert "TESSERACT_DEBUG=1" in str(error_of_status(QUESTION, 500, {}, b"Internal Server Error"))
    assert "TESSERACT_DEBUG=1" in str(error_of_status(QUESTION, 500, {}, b""))


def test_overloaded_says_how_long():
    error = error_of_status(QUESTION, 503, {"retry-after": "7"}, b"")
    assert isinstance(error, Overloaded) and error.retry_after == 7.0 and "wait 7 s" in str(error)
    with pytest.raises(Overloaded) as caught:
        mocked(b"", status=429, headers={"Retry-After": "2.5"}).handle().request("apply", {"inputs": {}})
    assert caught.value.retry_after == 2.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("120", 120.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("inf", 3600.0),  # no server sends us to sleep for good
        ("1e300", 3600.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Thu, 01 Foo 1970 00:01:40 GMT", None),
    ],
)
def test_retry_after(header, seconds):
    assert retry_after(header, now=lambda: 60.0) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{1,5} \d\d:\d\d:\d\d ([+-]\d{4}|GMT|)"))
def test_retry_after_takes_anything(header):
    found = retry_after(header)
    assert found is None or 0.0 <= found <= 3600.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
faulty = st.fixed_dictionaries({}, optional={"loc": json_values, "msg": json_values, "type": json_values})


@given(st.lists(faulty | json_values, max_size=4) | json_values)
def test_faults_take_anything(detail):
    for fault in faults_of_detail(detail):
        assert all(isinstance(part, str) for part in (fault.path, fault.message, fault.kind))
        assert len(str(fault)) < 2000


@given(st.binary() | st.text())
def test_text_from_outside_is_printable(content):
    text = readable(content)
    assert all(c.isprintable() or c in "\n\t" for c in text)


def traceback_of(*files: str, error: str = "ValueError: singular matrix") -> str:
    frames = "".join(f'  File "{file}", line {k}, in f{k}\n    call({k})\n    ^^^^\n' for k, file in enumerate(files))
    return f"Traceback (most recent call last):\n{frames}{error}"


STARLETTE, RUNTIME = "/venv/starlette/routing.py", "/venv/tesseract_core/runtime/serve.py"


def test_a_traceback_begins_with_the_component():
    own = ("/fem/tesseract_api.py", "/venv/numpy/linalg.py")
    shown = readable(traceback_of(STARLETTE, RUNTIME, RUNTIME, *own))
    frames = [line for line in shown.splitlines() if line.startswith("  File")]
    assert frames == [f'  File "{own[0]}", line 3, in f3', f'  File "{own[1]}", line 4, in f4']
    assert shown.startswith("Traceback (most recent call last):\n  File")
    assert shown.endswith("    call(4)\n    ^^^^\nValueError: singular matrix")


def test_of_an_error_and_its_cause_each_traceback_begins_there():
    between = "\n\nThe above exception was the direct cause of the following exception:\n\n"
    cause = traceback_of("/fem/solve.py")
    error = traceback_of(STARLETTE, RUNTIME, "/fem/tesseract_api.py", error="RuntimeError: no convergence")
    shown = readable(cause + between + error)
    assert shown.startswith(cause + between) and "starlette" not in shown and "/fem/tesseract_api.py" in shown


@pytest.mark.parametrize(
    "text",
    [
        traceback_of(STARLETTE, RUNTIME),  # the server's own failure
        traceback_of(STARLETTE),
        f'said\n  File "{RUNTIME}", line 1\n  File "/x.py", line 2',
        "no traceback at all",
    ],
)
def test_other_texts_stay_as_they_are(text):
    assert readable(text) == text


def test_text_from_outside_cannot_act_on_a_terminal():
    assert "\x1b" not in readable("\x1b]0;owned\x07\x1b[2J")
    assert "\x1b" not in str(faults_of_detail([{"loc": ["\x1b[2J"], "msg": "\x1b[2J", "type": "\r"}])[0])


def test_redirect_names_the_new_address():
    error = error_of_status(QUESTION, 307, {"location": "https://elsewhere/" + "a" * 5000}, b"")
    assert "https://elsewhere/" in str(error) and len(str(error)) < 1000


def test_missing_endpoint_is_named_before_it_is_asked():
    fake = mocked(document(endpoints=("apply", "vector_jacobian_product")))
    handle = fake.handle()
    for call in (
        lambda: handle.jacobian({"x": np.ones(1)}, ["x"], ["y"]),
        lambda: handle.jacobian_vector_product({"x": np.ones(1)}, ["x"], ["y"], {"x": np.ones(1)}),
        lambda: handle.abstract_eval({"x": {"shape": [1], "dtype": "float64"}}),
    ):
        with pytest.raises(EndpointNotFound, match=r"it has: apply, vector_jacobian_product"):
            call()
    assert [request.url.path for request in fake.requests] == ["/openapi.json"]
