"""tesseract-core's own Tesseracts as handles: same values, same errors, called through their public methods."""

# Stubs stand in for Tesseracts.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import enum
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import orjson
import pydantic
import pytest
import requests
import urllib3
from tesseract_core import Tesseract

from tesseract_flow.client import CoreTesseract, RetryPolicy, ServedTesseract, count_requests
from tesseract_flow.errors import (
    AccessDenied,
    CallError,
    CallTimeout,
    ComponentFailed,
    ConnectionLost,
    EndpointNotFound,
    InvalidAnswer,
    InvalidInput,
    NotServed,
    Overloaded,
    SchemaError,
    Unreachable,
)
from tests.client.helpers import PROBE, Reply, document

X = np.array([1.0, 2.0, 3.0])


class Stub:
    """What a `Tesseract` looks like from outside; `apply` does as told."""

    def __init__(self, apply=lambda **arguments: {"y": X}, schema=None):
        self._apply = apply
        self._schema = orjson.loads(document()) if schema is None else schema
        self.n_looks = 0
        self.calls: list[dict] = []

    @property
    def openapi_schema(self):
        self.n_looks += 1
        return self._schema

    def apply(self, **arguments):
        self.calls.append(arguments)
        return self._apply(**arguments)

    def abstract_eval(self, abstract_inputs):
        return abstract_inputs


def raising(error: BaseException) -> CoreTesseract:
    def apply(**arguments):
        raise error

    return CoreTesseract(Stub(apply), label="fem", retry=RetryPolicy(n_retries=0))  # type: ignore[arg-type]


# Handles are values, and the schema belongs to the object.


def test_equality_is_that_of_the_object():
    one, other = Stub(), Stub()
    assert CoreTesseract(one) == CoreTesseract(one) and hash(CoreTesseract(one)) == hash(CoreTesseract(one))
    assert CoreTesseract(one) != CoreTesseract(other)
    assert CoreTesseract(one) != CoreTesseract(one, label="fem")
    assert CoreTesseract(one) != one


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/"])
def test_objects_for_one_address_are_equal(url):
    one, other = CoreTesseract(Tesseract.from_url("http://a:1")), CoreTesseract(Tesseract.from_url(url))
    assert one == other and hash(one) == hash(other)
    assert one != CoreTesseract(Tesseract.from_url(url), label="fem")


class Spy(Tesseract):
    pass


def with_header(tesseract):
    tesseract._client._session.headers["Authorization"] = "Bearer x"
    return tesseract


def with_spy(tesseract):
    tesseract.apply = lambda inputs: inputs
    return tesseract


def with_auth(tesseract):
    tesseract._client._session.auth = ("user", "password")
    return tesseract


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tesseract.from_url("http://b:1"),
        lambda: Tesseract.from_url("http://a:1", timeout=3.0),
        lambda: Tesseract.from_url("http://a:1", server_output_path="elsewhere"),
        lambda: Spy.from_url("http://a:1"),
        lambda: with_spy(Tesseract.from_url("http://a:1")),
        lambda: with_header(Tesseract.from_url("http://a:1")),
        lambda: with_auth(Tesseract.from_url("http://a:1")),
        Stub,
    ],
    ids=["address", "timeout", "output", "subclass", "spy", "header", "auth", "stub"],
)
def test_objects_that_are_told_something_else_are_others(make):
    one, other = make(), make()
    assert CoreTesseract(one) != CoreTesseract(Tesseract.from_url("http://a:1"))
    assert CoreTesseract(one) == CoreTesseract(one) and hash(CoreTesseract(one)) == hash(CoreTesseract(one))
    told_all = type(one) is Tesseract and vars(one).keys() == {"_client"} and _is_plain(one)
    assert (CoreTesseract(one) == CoreTesseract(other)) == told_all


def _is_plain(tesseract):
    session = tesseract._client._session
    return session.auth is None and "Authorization" not in session.headers


def test_answers_have_the_containers_of_the_protocol():
    class Colour(enum.Enum):
        RED = "red"

    handle = CoreTesseract(Stub(lambda **arguments: {"pair": (X, Colour.RED), "set": frozenset({2, 1})}))
    answer = handle.apply({})
    np.testing.assert_array_equal(answer["pair"][0], X)
    assert answer["pair"][0] is not X and answer["pair"][1:] == ["red"] and answer["set"] == [1, 2]


def test_the_schema_is_read_once_per_object():
    stub = Stub()
    handles = [CoreTesseract(stub) for _ in range(3)]
    assert len({id(handle.schema) for handle in handles}) == 1
    assert handles[0].name == "probe"
    assert stub.n_looks == 1


def test_the_schema_is_read_once_by_many_threads():
    class Watched(Stub):
        @property
        def openapi_schema(self):
            document = super().openapi_schema
            second.wait(0.2) if self.n_looks == 1 else second.set()  # gives a second reader the time to come in
            return document

    second = threading.Event()
    stub = Watched()
    start = threading.Barrier(8)

    def look(_):
        start.wait(5)
        return CoreTesseract(stub).schema

    with ThreadPoolExecutor(8) as pool:
        schemas = set(map(id, pool.map(look, range(8))))
    assert len(schemas) == 1 and stub.n_looks == 1


def test_remembering_a_schema_keeps_nothing_alive():
    stub = Stub()
    assert CoreTesseract(stub).schema
    gone = weakref.ref(stub)
    del stub
    gc.collect()
    assert gone() is None


def test_names():
    assert CoreTesseract(Stub()).name == "probe"
    assert CoreTesseract(Stub(), label="fem").name == "fem"
    assert CoreTesseract(Stub(schema=orjson.loads(document("Tesseract")))).name == "tesseract"


def test_repr_asks_nothing():
    stub = Stub()
    assert repr(CoreTesseract(stub)) == "CoreTesseract(tesseract)"
    assert repr(CoreTesseract(stub, label="fem")) == "CoreTesseract(fem)"
    assert stub.n_looks == 0
    assert CoreTesseract(stub).schema
    assert repr(CoreTesseract(stub)) == "CoreTesseract(probe)"


def test_a_document_that_describes_no_tesseract():
    with pytest.raises(SchemaError, match="'fem' does not describe itself"):
        _ = CoreTesseract(Stub(schema={"paths": {}}), label="fem").schema


# Calls.


def test_a_run_id_is_passed_on_where_there_is_one():
    stub = Stub()
    CoreTesseract(stub).apply({"x": X})
    CoreTesseract(stub).apply({"x": X}, run_id="step-7")
    assert [set(call) for call in stub.calls] == [{"inputs"}, {"inputs", "run_id"}]
    assert stub.calls[1]["run_id"] == "step-7"


def test_requests_are_counted():
    handle = CoreTesseract(Stub(), label="fem")
    with count_requests() as counts:
        handle.apply({"x": X})
        with pytest.raises(ComponentFailed):
            raising(RuntimeError("boom")).apply({"x": X})
    assert counts == {"fem.apply": 2}


def test_public_methods_are_called(in_process, monkeypatch):
    seen = []
    original = in_process.apply

    def spy(*args, **kwargs):
        seen.append((args, set(kwargs)))
        return original(*args, **kwargs)

    monkeypatch.setattr(in_process, "apply", spy)
    np.testing.assert_array_equal(CoreTesseract(in_process).apply({"x": X})["y"], X**2)
    assert seen == [((), {"inputs"})]


def test_a_component_in_this_process_has_promotion_of_its_own():
    """Behind a server it does not hear of the caller's either."""

    def mixed(**arguments):
        return {"y": np.asarray(jnp.asarray(X) * jnp.arange(3) + np.float64(0.5))}

    handle = CoreTesseract(Stub(mixed))
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose(handle.apply({"x": X})["y"], X * np.arange(3) + 0.5)
        with pytest.raises(Exception, match=r"(?i)promotion"):
            mixed()


def test_subclasses_keep_working():
    class Doubling(Tesseract):
        def apply(self, inputs, run_id=None):
            return {"y": 2 * super().apply(inputs, run_id)["y"]}

    np.testing.assert_array_equal(CoreTesseract(Doubling.from_tesseract_api(PROBE)).apply({"x": X})["y"], 2 * X**2)


# Errors.

_POOL = urllib3.HTTPConnectionPool("solver")
_REFUSED = urllib3.exceptions.MaxRetryError(
    _POOL, "/apply", urllib3.exceptions.NewConnectionError(urllib3.connection.HTTPConnection("solver"), "refused")
)
RAISED: list[tuple[Exception, type[CallError]]] = [
    (requests.ConnectionError(_REFUSED), Unreachable),
    (requests.ConnectTimeout("slow"), Unreachable),
    (requests.exceptions.SSLError("certificate"), Unreachable),
    (requests.exceptions.InvalidURL("http://me:s3cr3t@"), Unreachable),
    (requests.exceptions.InvalidSchema("ftp://me:s3cr3t@solver"), Unreachable),
    (requests.exceptions.MissingSchema("me:s3cr3t@solver"), Unreachable),
    (requests.ReadTimeout("slow"), CallTimeout),
    (requests.Timeout("slow"), CallTimeout),
    (requests.ConnectionError(urllib3.exceptions.ProtocolError("aborted")), ConnectionLost),
    (requests.ConnectionError(), ConnectionLost),
    (requests.exceptions.ChunkedEncodingError("broken off"), ConnectionLost),
    (requests.exceptions.ContentDecodingError("gzip"), InvalidAnswer),
    (requests.exceptions.JSONDecodeError("no JSON", "<html>", 0), InvalidAnswer),
    (requests.RequestException("something"), InvalidAnswer),
    (NotImplementedError("Jacobian not implemented for this Tesseract."), EndpointNotFound),
    (RuntimeError("ValueError: the mesh is tangled"), ComponentFailed),
    (RuntimeError("Error 500 from Tesseract: the mesh is tangled"), ComponentFailed),
    (RuntimeError("Error 401 from Tesseract: "), AccessDenied),
    (RuntimeError("Error 404 from Tesseract: Not Found"), EndpointNotFound),
    (RuntimeError("Error 429 from Tesseract: later"), Overloaded),
    (RuntimeError("Error 503 from Tesseract: later\nplease"), Overloaded),
    (RuntimeError("Error 422 from Tesseract: no pydantic"), InvalidInput),
    (RuntimeError("you must either use it as a context manager or call .serve() before use."), NotServed),
    (TypeError("Type is not JSON serializable: object"), InvalidInput),
    (ValueError("expected value at line 1 column 1"), InvalidAnswer),
    (KeyError("data"), InvalidAnswer),
    (TypeError("list indices must be integers"), InvalidAnswer),
    (AttributeError("no attribute 'items'"), InvalidAnswer),
    (OSError("no space left on device"), ComponentFailed),
    (Exception("boom"), ComponentFailed),
]


@pytest.mark.parametrize(("raised", "expected"), RAISED, ids=lambda case: getattr(case, "__name__", repr(case)[:50]))
def test_errors(raised, expected):
    with pytest.raises(CallError) as caught:
        raising(raised).apply({"x": X})
    error = caught.value
    assert type(error) is expected
    assert error.__cause__ is raised
    assert str(error).startswith("'apply' of Tesseract 'fem'")
    assert (error.tesseract, error.endpoint) == ("fem", "apply")
    assert "s3cr3t" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_error_of_requests_is_in_the_map():
    def subclasses(cls: type) -> Iterator[type]:
        yield cls
        for child in cls.__subclasses__():
            yield from subclasses(child)

    for cls in subclasses(requests.RequestException):
        if cls.__module__.startswith("requests"):
            error = cls("boom", "", 0) if cls is requests.exceptions.JSONDecodeError else cls("boom")
            with pytest.raises((Unreachable, CallTimeout, ConnectionLost, InvalidAnswer)):
                raising(error).apply({})


def test_our_own_errors_pass():
    error = Overloaded("busy", retry_after=7.0)
    with pytest.raises(Overloaded) as caught:
        raising(error).apply({})
    assert caught.value is error


def test_an_interruption_is_no_error_of_the_component():
    with pytest.raises(KeyboardInterrupt):
        raising(KeyboardInterrupt()).apply({})


def test_an_object_without_the_method():
    with pytest.raises(InvalidAnswer):
        CoreTesseract(Stub()).request("jacobian", {"inputs": {}})


# In process.


def test_values_in_process(in_process):
    handle = CoreTesseract(in_process)
    np.testing.assert_array_equal(handle.apply({"x": X})["y"], X**2)
    assert handle.abstract_eval({"x": {"shape": [3], "dtype": "float64"}})["y"]["shape"] == [3]
    np.testing.assert_array_equal(handle.vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": np.ones(3)})["x"], 2 * X)


def test_failures_in_process(in_process):
    handle = CoreTesseract(in_process)
    with pytest.raises(ComponentFailed, match="the mesh is tangled"):
        handle.apply({"x": X, "mode": "raise"})
    with pytest.raises(ComponentFailed, match="z"):
        handle.apply({"x": X, "mode": "break the promise"})
    with pytest.raises(InvalidInput) as caught:
        handle.apply({"x": "text", "bogus": 1})
    assert {fault.path for fault in caught.value.faults} == {"x", "bogus"}
    with pytest.raises(EndpointNotFound, match="it has: abstract_eval, apply, vector_jacobian_product"):
        handle.jacobian({"x": X}, ["x"], ["y"])
    np.testing.assert_array_equal(handle.apply({"x": X})["y"], X**2)  # still usable


def test_an_output_of_the_wrong_form_is_the_components_fault():
    class OutputSchema(pydantic.BaseModel):
        y: int

    with pytest.raises(pydantic.ValidationError) as wrong:
        OutputSchema.model_validate({"y": "text"})
    with pytest.raises(ComponentFailed):
        raising(wrong.value).apply({})


# Through tesseract-core's own HTTP client.


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b"", AccessDenied),
        (404, b"Not Found", EndpointNotFound),
        (500, b"ValueError: the mesh is tangled", ComponentFailed),
        (503, b"", Overloaded),
        (200, b"<html>", InvalidAnswer),
        (200, b'{"y": {"object_type": "array"}}', InvalidAnswer),
    ],
)
@pytest.mark.slow
def test_answers_over_http(local_server, status, body, expected):
    local_server.answer = lambda asked: (
        Reply(200, document()) if asked.path.startswith("/openapi.json") else Reply(status, body)
    )
    handle = CoreTesseract(Tesseract.from_url(local_server.url))
    assert handle.name == "probe"
    with pytest.raises(expected):
        handle.apply({"x": X})


@pytest.mark.slow
def test_connections_over_http(refused_url, line_server):
    with pytest.raises(Unreachable):
        CoreTesseract(Tesseract.from_url(refused_url)).apply({"x": X})
    with pytest.raises(ConnectionLost):
        CoreTesseract(Tesseract.from_url(line_server(lambda line: line.read_request()))).apply({"x": X})

    def silent(line):
        line.read_request()
        line.read_request()

    with pytest.raises(CallTimeout):
        CoreTesseract(Tesseract.from_url(line_server(silent), timeout=0.1)).apply({"x": X})


@pytest.fixture(scope="module")
def from_source() -> Iterator[Tesseract]:
    with Tesseract.from_source(PROBE, python_executable=sys.executable) as tesseract:
        yield tesseract


@pytest.mark.server
@pytest.mark.parametrize("made", ["from_url", "from_source", "from_tesseract_api"])
def test_all_handles_agree(made, served, from_source, in_process):
    core = CoreTesseract(
        {
            "from_url": lambda: Tesseract.from_url(served.url),
            "from_source": lambda: from_source,
            "from_tesseract_api": lambda: in_process,
        }[made]()
    )
    assert core.schema.digest == served.schema.digest
    assert core.schema.inputs == served.schema.inputs and core.schema.endpoints == served.schema.endpoints
    for handle in (core, served):
        np.testing.assert_array_equal(handle.apply({"x": X})["y"], X**2)
        shape = handle.abstract_eval({"x": {"shape": [3], "dtype": "float64"}})["y"]
        assert (list(shape["shape"]), shape["dtype"]) == ([3], "float64")
        np.testing.assert_array_equal(
            handle.vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": X}, run_id="a")["x"], 2 * X**2
        )

    def outcome(handle: CoreTesseract | ServedTesseract, inputs) -> tuple:
        with pytest.raises(CallError) as caught:
            handle.apply(inputs)
        # The places: what is said about them depends on whether the component saw an array or its wire form.
        return type(caught.value), {fault.path for fault in getattr(caught.value, "faults", ())}

    for inputs in (
        {"x": X, "mode": "raise"},
        {"x": X, "mode": "break the promise"},
        {"x": np.ones((2, 2)), "mode": 3},
        {},
    ):
        assert outcome(core, inputs) == outcome(served, inputs)
    assert outcome(served, {}) == (InvalidInput, {"x"})


@pytest.mark.server
def test_the_components_own_text_over_http(from_source):
    with pytest.raises(ComponentFailed, match="the mesh is tangled"):
        CoreTesseract(from_source).apply({"x": X, "mode": "raise"})


@pytest.mark.server
def test_from_source_before_it_is_served():
    handle = CoreTesseract(Tesseract.from_source(PROBE, python_executable=sys.executable))
    with pytest.raises(NotServed, match="with tesseract"):
        handle.apply({"x": X})
