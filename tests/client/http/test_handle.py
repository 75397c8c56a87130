"""What `HttpTesseract` sends and reads, its name and schema, its options, and that secrets stay inside."""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import traceback
import weakref

import httpx
import numpy as np
import orjson
import pytest

from tesseract_flow import wire
from tesseract_flow.client import HttpTesseract
from tesseract_flow.errors import (
    ComponentFailed,
    InvalidAnswer,
    OptionError,
    SchemaError,
    TesseractFlowError,
    Unreachable,
    WireError,
)
from tests.client.helpers import Mock, Reply, document, mocked

X = np.array([1.0, 2.0, 3.0])


def component(request: httpx.Request) -> httpx.Response:
    """y = x², as a server would answer it."""
    if request.url.path.endswith("/openapi.json"):
        endpoints = ("apply", "abstract_eval", "jacobian", "jacobian_vector_product", "vector_jacobian_product")
        return httpx.Response(200, content=document(endpoints=endpoints))
    payload = wire.loads(request.content)
    x = payload["inputs"]["x"]
    match request.url.path.rpartition("/")[2]:
        case "apply":
            answer = {"y": x**2}
        case "abstract_eval":
            answer = {"y": {"shape": x["shape"], "dtype": x["dtype"]}}
        case "jacobian":
            answer = {"y": {"x": np.diag(2 * x)}}
        case "jacobian_vector_product":
            answer = {"y": 2 * x * payload["tangent_vector"]["x"]}
        case "vector_jacobian_product":
            answer = {"x": 2 * x * payload["cotangent_vector"]["y"]}
    return httpx.Response(200, content=wire.dumps(answer))


# What is asked, and what comes back.


def test_all_operations():
    fake = Mock(component)
    handle = fake.handle()
    x_dot = np.array([1.0, 0.0, -1.0])
    assert handle.abstract_eval({"x": {"shape": [3], "dtype": "float64"}}) == {"y": {"shape": [3], "dtype": "float64"}}
    np.testing.assert_array_equal(handle.apply({"x": X})["y"], X**2)
    np.testing.assert_array_equal(handle.jacobian({"x": X}, ["x"], ["y"])["y"]["x"], np.diag(2 * X))
    np.testing.assert_array_equal(
        handle.jacobian_vector_product({"x": X}, ["x"], ["y"], {"x": x_dot})["y"], 2 * X * x_dot
    )
    np.testing.assert_array_equal(
        handle.vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": x_dot})["x"], 2 * X * x_dot
    )
    asked = [(request.method, request.url.path) for request in fake.requests]
    assert asked == [
        ("GET", "/openapi.json"),
        ("POST", "/abstract_eval"),
        ("POST", "/apply"),
        ("POST", "/jacobian"),
        ("POST", "/jacobian_vector_product"),
        ("POST", "/vector_jacobian_product"),
    ]
    sent = orjson.loads(fake.requests[-1].content)
    assert set(sent) == {"inputs", "vjp_inputs", "vjp_outputs", "cotangent_vector"}
    assert (sent["vjp_inputs"], sent["vjp_outputs"]) == (["x"], ["y"])


def test_every_request_says_what_it_accepts_and_who_it_is():
    fake = Mock(component)
    handle = fake.handle("http://solver:8000/fem", token="t0ken", headers={"X-Project": "wing"})
    assert handle.schema.name == "probe"
    handle.apply({"x": X})
    handle.abstract_eval({"x": {"shape": [3], "dtype": "float64"}})
    handle.vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": X}, run_id="step 7/a")
    for request in fake.requests:
        assert request.headers.get_list("accept") == ["application/json+base64"]
        assert request.headers.get_list("accept-encoding") == ["identity"]
        assert request.headers.get_list("content-type") == ["application/json"]
        assert request.headers.get_list("authorization") == ["Bearer t0ken"]
        assert request.headers["x-project"] == "wing"
        assert request.url.path.startswith("/fem/")
    run_ids = [request.url.params.get("run_id") for request in fake.requests]
    assert run_ids[0] is None  # the schema is no run
    assert all(run_ids[1:]) and len(set(run_ids[1:])) == 3
    assert run_ids[-1] == "step 7/a"


@pytest.mark.parametrize(
    ("options", "accept"),
    [
        ({"encoding": "json"}, "application/json"),
        ({"encoding": "base64"}, "application/json+base64"),
        ({"encoding": "base64", "compression": "lz4"}, "application/json+base64; compression=lz4"),
    ],
)
def test_encodings_go_both_ways(options, accept):
    fake = Mock(component)
    np.testing.assert_array_equal(fake.handle(**options).request("apply", {"inputs": {"x": X}})["y"], X**2)
    (request,) = fake.requests
    assert request.headers["accept"] == accept
    assert orjson.loads(request.content)["inputs"]["x"]["data"]["encoding"] == options["encoding"]


def test_binref_files_live_as_long_as_the_handle(tmp_path):
    def answer(request: httpx.Request) -> httpx.Response:
        seen.extend(tmp_path.iterdir())
        x = wire.loads(request.content, binref_root=tmp_path)["inputs"]["x"]
        with (tmp_path / "out.bin").open("wb") as file:
            file.write((x**2).tobytes())
        data = {"encoding": "binref", "buffer": "out.bin:0"}
        y = {"object_type": "array", "shape": [3], "dtype": "float64", "data": data}
        return httpx.Response(200, content=orjson.dumps({"y": y}))

    seen = []
    fake = Mock(answer)
    handle = fake.handle(encoding="binref", input_dir=tmp_path, output_dir=str(tmp_path))
    np.testing.assert_array_equal(handle.request("apply", {"inputs": {"x": X}})["y"], X**2)
    assert fake.requests[0].headers["accept"] == "application/json+binref"
    assert len(seen) == 1

    fake.answer = lambda request: httpx.Response(500)
    with pytest.raises(ComponentFailed):
        handle.request("apply", {"inputs": {"x": X}})
    del handle
    gc.collect()
    assert [file.name for file in tmp_path.iterdir()] == ["out.bin"]


def test_nothing_of_a_call_is_left_in_memory():
    """Requests and answers are as large as their arrays, and the garbage collector counts objects, not bytes."""
    fake = Mock(component)
    handle, left = fake.handle(), []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            handle.request("apply", {"inputs": {"x": X}})
            left.append(weakref.ref(fake.requests.pop()))
        fake.answer = lambda request: httpx.Response(500)
        with contextlib.suppress(ComponentFailed):
            handle.request("apply", {"inputs": {"x": X}})
        left.append(weakref.ref(fake.requests.pop()))
        assert [request() for request in left] == [None] * 4
    finally:
        gc.enable()


def test_a_server_cannot_point_at_our_files(tmp_path):
    data = {"encoding": "binref", "buffer": "/etc/passwd:0"}
    answer = {"y": {"object_type": "array", "shape": [1], "dtype": "uint8", "data": data}}
    with pytest.raises(InvalidAnswer):
        mocked(orjson.dumps(answer)).handle().request("apply", {"inputs": {}})


def test_inputs_that_cannot_travel_are_not_sent():
    fake = mocked()
    with pytest.raises(WireError, match="x"):
        fake.handle().request("apply", {"inputs": {"x": object()}})
    assert fake.requests == []


# The schema and the name.


def test_the_schema_is_read_once_by_all_equal_handles(local_server):
    local_server.answer = lambda asked: Reply(200, document())
    one = HttpTesseract(local_server.url)
    other = pickle.loads(pickle.dumps(one))
    assert one.schema is other.schema is HttpTesseract(local_server.url).schema
    assert [asked.path for asked in local_server.asked] == ["/openapi.json"]


def test_an_array_as_default_value_stays_part_of_the_schema():
    assert mocked(document()).handle().schema.digest == mocked(document()).handle().schema.digest


@pytest.mark.parametrize(
    ("options", "title", "name"),
    [
        ({"label": "wing"}, "probe", "wing"),
        ({}, "probe", "probe"),
        ({}, "", "solver:8000"),
        ({}, "Tesseract", "solver:8000"),
    ],
)
def test_names(options, title, name):
    assert mocked(document(title)).handle(**options).name == name


def test_a_label_spares_the_question():
    fake = mocked(document())
    assert fake.handle(label="wing").name == "wing"
    assert fake.requests == []


@pytest.mark.parametrize("body", [b"", b"<html>Welcome</html>", b"[]", b"{}", b'{"paths": {}}', b"null", b"\xff\xfe"])
def test_a_server_that_is_no_tesseract(body):
    with pytest.raises(SchemaError, match=r"http://solver:8000.*\n?"):
        _ = mocked(body).handle().schema


def test_a_failed_look_at_the_schema_is_not_remembered():
    fake = mocked(b"<html>starting up</html>", status=503)
    handle = fake.handle()
    with pytest.raises(TesseractFlowError):
        _ = handle.schema
    fake.answer = component
    assert handle.schema.name == "probe"


# Options.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"encoding": "base46"}, "base46"),
        ({"encoding": "json", "compression": "lz4"}, "compression"),
        ({"compression": "gzip"}, "gzip"),
        ({"encoding": "binref"}, "input_dir"),
        ({"n_lanes": 0}, "n_lanes"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"read_timeout": -1.0}, "read_timeout"),
        ({"read_timeout": float("nan")}, "read_timeout"),
        ({"read_timeout": float("inf")}, "read_timeout"),
    ],
)
def test_options_are_checked_at_once(options, named):
    with pytest.raises(OptionError, match=named):
        HttpTesseract("http://solver", **options)


def test_folders_may_be_text(tmp_path):
    options = {"encoding": "binref", "output_dir": tmp_path}
    handle = HttpTesseract("http://solver", input_dir=str(tmp_path), **options)
    assert handle == HttpTesseract("http://solver", input_dir=tmp_path, **options)


def test_timeouts_reach_the_transport():
    fake = mocked()
    fake.handle(connect_timeout=3.0, read_timeout=5.0).request("apply", {"inputs": {}})
    fake.handle().request("apply", {"inputs": {}})
    first, second = (request.extensions["timeout"] for request in fake.requests)
    assert first == {"connect": 3.0, "read": 5.0, "write": 5.0, "pool": None}
    assert second == {"connect": 10.0, "read": None, "write": None, "pool": None}


# Secrets.


@pytest.mark.slow
def test_secrets_stay_inside(local_server, refused_url, caplog):
    secrets = ["t0k3n", "p4ssw0rd", "k3y"]

    def outcome(handle: HttpTesseract) -> str:
        try:
            handle.request("apply", {"inputs": {"x": X}})
        except TesseractFlowError as error:
            again = pickle.loads(pickle.dumps(error))
            whole = "".join(traceback.format_exception(error))
            return f"{whole} {error!r} {error.args} {error.__dict__} {again!r}"
        return ""

    with caplog.at_level(logging.DEBUG):
        seen = []
        for status in (200, 302, 401, 404, 422, 500, 503):
            local_server.answer = lambda asked, status=status: Reply(status, b"not JSON")
            for handle in (
                HttpTesseract(local_server.url, token="t0k3n", headers={"X-Api-Key": "k3y"}),
                HttpTesseract(local_server.url.replace("//", "//me:p4ssw0rd@"), headers={"X-Api-Key": "k3y"}),
                HttpTesseract(refused_url.replace("//", "//me:p4ssw0rd@"), sleep=lambda seconds: None),
            ):
                seen += [outcome(handle), repr(handle), str(handle), f"{handle}", handle.url]
    sent = " ".join(str(asked.headers) for asked in local_server.asked)
    assert "t0k3n" in sent and "k3y" in sent  # the test would pass if nothing were sent
    assert caplog.text  # httpx and httpcore have spoken
    for secret in (*secrets, "bWU6cDRzc3cwcmQ="):  # and the pair in base64
        assert secret not in caplog.text + "".join(seen)


def test_a_foreign_error_does_not_bring_a_header_along():
    refusal = httpx.LocalProtocolError("Illegal header value b'Bearer t0k3n'")
    with pytest.raises(Unreachable) as caught:
        mocked(refusal).handle().request("apply", {"inputs": {}})
    assert "t0k3n" not in str(caught.value)
