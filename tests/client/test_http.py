"""What `HttpTesseract` sends, how it reads answers, and that it repeats only what cannot have started."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import threading
import traceback

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow import wire
from tesseract_flow.client import HttpTesseract
from tesseract_flow.errors import (
    AccessDenied,
    CallTimeout,
    ComponentFailed,
    ConnectionLost,
    EndpointNotFound,
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
    np.testing.assert_array_equal(fake.handle(**options).apply({"x": X})["y"], X**2)
    (request,) = fake.requests
    assert request.headers["accept"] == accept
    assert orjson.loads(request.content)["inputs"]["x"]["data"]["encoding"] == options["encoding"]


def test_binref_files_live_as_long_as_the_request(tmp_path):
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
    np.testing.assert_array_equal(handle.apply({"x": X})["y"], X**2)
    assert fake.requests[0].headers["accept"] == "application/json+binref"
    assert len(seen) == 1 and not seen[0].exists()

    fake.answer = lambda request: httpx.Response(500)
    with pytest.raises(ComponentFailed):
        handle.apply({"x": X})
    assert [file.name for file in tmp_path.iterdir()] == ["out.bin"]


def test_a_server_cannot_point_at_our_files(tmp_path):
    data = {"encoding": "binref", "buffer": "/etc/passwd:0"}
    answer = {"y": {"object_type": "array", "shape": [1], "dtype": "uint8", "data": data}}
    with pytest.raises(InvalidAnswer):
        mocked(orjson.dumps(answer)).handle().apply({})


def test_inputs_that_cannot_travel_are_not_sent():
    fake = mocked()
    with pytest.raises(WireError, match="x"):
        fake.handle().apply({"x": object()})
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


# Repeating: only what cannot have started.


@pytest.mark.parametrize("raised", [httpx.ConnectError, httpx.ConnectTimeout, httpx.WriteError])
def test_what_cannot_have_started_is_repeated_once(raised):
    fake = mocked(raised("refused"))
    with pytest.raises(Unreachable):
        fake.handle().apply({"x": X})
    assert len(fake.requests) == 2
    assert fake.sleeps == [0.2]


def test_the_second_attempt_may_succeed():
    def answer(request: httpx.Request) -> httpx.Response:
        if len(fake.requests) == 1:
            raise httpx.ConnectError("refused")
        return component(request)

    fake = Mock(answer)
    np.testing.assert_array_equal(fake.handle().apply({"x": X})["y"], X**2)
    first, second = fake.requests
    assert (first.content, first.url) == (second.content, second.url)  # and with the same run_id


@pytest.mark.parametrize(
    "raised",
    [
        httpx.ReadTimeout,
        httpx.WriteTimeout,
        httpx.PoolTimeout,
        httpx.ReadError,
        httpx.CloseError,
        httpx.RemoteProtocolError,
        httpx.LocalProtocolError,
        httpx.DecodingError,
    ],
)
def test_everything_else_is_sent_once(raised):
    fake = mocked(raised("gone"))
    with pytest.raises(TesseractFlowError):
        fake.handle().apply({"x": X})
    assert len(fake.requests) == 1
    assert fake.sleeps == []


@pytest.mark.parametrize("status", [307, 401, 404, 422, 429, 500, 502, 503, 504])
def test_no_status_is_repeated(status):
    fake = mocked(b"", status=status, headers={"Retry-After": "1", "Location": "http://elsewhere"})
    with pytest.raises(TesseractFlowError):
        fake.handle().apply({"x": X})
    assert len(fake.requests) == 1
    assert fake.sleeps == []


def test_an_answer_that_breaks_off_is_not_repeated():
    fake = mocked((b'{"y": ', httpx.ReadError("reset")))
    with pytest.raises(ConnectionLost):
        fake.handle().apply({"x": X})
    assert len(fake.requests) == 1


# Answers are not to be trusted.


@pytest.mark.parametrize("status", [200, 422, 500])
@pytest.mark.parametrize("declare", [True, False], ids=["declared", "undeclared"])
def test_an_answer_that_is_too_large_is_not_read(status, declare):
    def pieces():
        for _ in range(1000):
            n_read.append(1)
            yield b"x" * 1000

    class Endless(httpx.SyncByteStream):
        def __iter__(self):
            return pieces()

    n_read: list[int] = []
    headers = {"Content-Length": "1000000"} if declare else {}
    fake = Mock(lambda request: httpx.Response(status, headers=headers, stream=Endless()))
    with pytest.raises(InvalidAnswer, match="max_bytes"):
        fake.handle(max_bytes=2500).apply({"x": X})
    assert len(n_read) == (0 if declare else 3)


@pytest.mark.parametrize("declared", ["5", "-1", "5, 5", "²", "9" * 5000, "", "x"])
def test_a_declared_size_is_not_trusted(declared):
    fake = mocked(b"x" * 5000, headers={"Content-Length": declared})
    with pytest.raises(InvalidAnswer, match="5000 bytes or more"):
        fake.handle(max_bytes=2500).apply({"x": X})


def test_an_answer_of_just_the_largest_size():
    body = b'{"y": 1}'
    for headers in ({"Content-Length": str(len(body))}, {}):
        assert mocked(body, headers=headers).handle(max_bytes=len(body)).apply({}) == {"y": 1}
        with pytest.raises(InvalidAnswer):
            mocked(body, headers=headers).handle(max_bytes=len(body) - 1).apply({})


def test_arrays_count_as_bytes_too():
    # A short text that is honest about being 8 MB of zeros.
    body = wire.dumps({"y": np.zeros(10**6)}, compression="lz4")
    assert len(body) < 10**5
    assert mocked(body).handle(max_bytes=8 * 10**6).apply({})["y"].nbytes == 8 * 10**6
    with pytest.raises(InvalidAnswer, match="8000000 bytes"):
        mocked(body).handle(max_bytes=8 * 10**6 - 1).apply({})


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "x" * 1000])
def test_compressed_answers_are_not_unpacked(packing):
    fake = mocked(b"\x1f\x8bno matter what", headers={"Content-Encoding": packing})
    with pytest.raises(InvalidAnswer, match="Content-Encoding") as caught:
        fake.handle().apply({"x": X})
    assert len(str(caught.value)) < 600
    with pytest.raises(ComponentFailed):  # the status still counts
        mocked(b"?", status=500, headers={"Content-Encoding": packing}).handle().apply({"x": X})


@pytest.mark.parametrize("packing", ["identity", " Identity ", ""])
def test_a_packing_that_is_none(packing):
    assert mocked(b"{}", headers={"Content-Encoding": packing}).handle().apply({}) == {}


@pytest.mark.parametrize("charset", ["zip", "rot13", "idna", "base64", "no-such-codec", "utf-16"])
def test_a_charset_is_not_followed(charset):
    fake = mocked(b"the mesh is tangled", status=500, headers={"Content-Type": f"text/plain; charset={charset}"})
    with pytest.raises(ComponentFailed, match="the mesh is tangled"):
        fake.handle().apply({"x": X})


@pytest.mark.parametrize(
    ("answer", "lacking"),
    [({}, "'x'"), ({"y": 1}, "'x'"), ([], "'x'"), (None, "'x'"), ("x", "'x'")],
)
def test_a_pullback_without_what_was_asked(answer, lacking):
    def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=document() if request.method == "GET" else orjson.dumps(answer))

    with pytest.raises(InvalidAnswer, match=f"without {lacking}"):
        Mock(reply).handle().vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": X})


def test_a_jacobian_without_what_was_asked():
    def reply(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, content=document(endpoints=("apply", "jacobian")))
        return httpx.Response(200, content=orjson.dumps(answer))

    handle = Mock(reply).handle()
    answer: dict = {"y": {"x": 1.0}, "not asked for": None}
    assert handle.jacobian({"x": X}, ["x"], ["y"])["y"] == {"x": 1.0}
    for bad in ({"y": {}}, {"y": None}, {"z": {"x": 1.0}}):
        answer = bad
        with pytest.raises(InvalidAnswer, match="without"):
            handle.jacobian({"x": X}, ["x"], ["y"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.just("x"), inner, max_size=4),
    max_leaves=10,
)
nearly_arrays = st.fixed_dictionaries(
    {"object_type": st.just("array") | json_values},
    optional={
        "shape": st.lists(st.integers(-1, 2**70), max_size=3) | json_values,
        "dtype": st.sampled_from(["float64", "bool", "object", "complex128"]) | json_values,
        "data": st.fixed_dictionaries(
            {"encoding": st.sampled_from(["json", "base64", "binref"]) | json_values, "buffer": json_values}
        )
        | json_values,
    },
)
trees = json_values | nearly_arrays | st.dictionaries(st.sampled_from("xyz"), nearly_arrays | json_values, max_size=3)


def as_json(tree: object) -> bytes:
    # The standard library, as orjson refuses the integers that a hostile server would send.
    return json.dumps(tree).encode("utf-8", errors="replace")


bodies = st.binary(max_size=80) | trees.map(as_json) | trees.map(as_json).map(lambda body: body[:-1])
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "Location", "Content-Type", "Content-Encoding", "Content-Length"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12),
    max_size=3,
)


@given(bodies, st.sampled_from([200, 200, 200, 204, 302, 404, 406, 422, 422, 429, 500, 503, 599]), headers)
def test_no_answer_gets_past_the_translation(body, status, sent):
    known = mocked(document(endpoints=("apply", "jacobian", "vector_jacobian_product")))
    handle = known.handle()
    assert handle.schema.name == "probe"
    known.answer = mocked(body, status, sent).answer
    unknown = Mock(known.answer).handle()
    for ask in (
        lambda: handle.apply({}),
        lambda: handle.jacobian({}, ["x"], ["y"]),
        lambda: handle.vector_jacobian_product({}, ["x"], ["y"], {"y": 1.0}),
        lambda: unknown.schema,
        lambda: unknown.name,
    ):
        with contextlib.suppress(TesseractFlowError):
            ask()


@given(st.integers(1, 3000))
def test_deep_answers(depth):
    for body in (b"[" * depth, b"[" * depth + b"]" * depth, b'{"x":' * depth + b"1" + b"}" * depth):
        for ask in (lambda handle: handle.apply({}), lambda handle: handle.schema):
            with contextlib.suppress(TesseractFlowError):
                ask(mocked(body).handle())


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
    fake.handle(connect_timeout=3.0, read_timeout=5.0).apply({})
    fake.handle().apply({})
    first, second = (request.extensions["timeout"] for request in fake.requests)
    assert first == {"connect": 3.0, "read": 5.0, "write": 5.0, "pool": None}
    assert second == {"connect": 10.0, "read": None, "write": None, "pool": None}


# Secrets.


def test_secrets_stay_inside(local_server, refused_url, caplog):
    secrets = ["t0k3n", "p4ssw0rd", "k3y"]

    def outcome(handle: HttpTesseract) -> str:
        try:
            handle.apply({"x": X})
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
        mocked(refusal).handle().apply({})
    assert "t0k3n" not in str(caught.value)


# Servers on real sockets.


def test_nobody_listens(refused_url):
    sleeps: list[float] = []
    with pytest.raises(Unreachable, match="Nothing was started"):
        HttpTesseract(refused_url, sleep=sleeps.append).apply({"x": X})
    assert sleeps == [0.2]


def test_a_slow_server_runs_into_the_read_timeout(line_server):
    asked: list[bytes] = []

    def script(line):
        asked.append(line.read_request())
        line.read_request()  # until the client hangs up

    with pytest.raises(CallTimeout, match="may still be running"):
        HttpTesseract(line_server(script), read_timeout=0.1).apply({"x": X})
    assert len(asked) == 1


def test_a_server_that_trickles_is_not_timed_out(line_server):
    def script(line):
        line.read_request()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for byte in b'{"y": 1}':
            line.send(bytes([byte]))

    assert HttpTesseract(line_server(script), read_timeout=5.0).apply({}) == {"y": 1}


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\n", b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"y": '],
    ids=["before the answer", "in its head", "in its body"],
)
def test_a_server_that_dies_while_it_answers(line_server, said, reset):
    asked: list[bytes] = []

    def script(line):
        asked.append(line.read_request())
        line.send(said)
        if reset:
            line.reset()

    sleeps: list[float] = []
    with pytest.raises(ConnectionLost, match="may still be running"):
        HttpTesseract(line_server(script), sleep=sleeps.append).apply({"x": X})
    assert len(asked) == 1 and sleeps == []


def test_a_server_that_speaks_another_protocol(line_server):
    with pytest.raises(ConnectionLost):
        HttpTesseract(line_server(lambda line: line.send(b"SSH-2.0-OpenSSH_9.6\r\n"))).apply({"x": X})


def test_a_server_that_closes_kept_connections(line_server):
    lines: list[int] = []

    def script(line):
        lines.append(1)
        if line.read_request():
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")  # and hangs up, without a word about it
            line.close()
            closed.release()

    closed = threading.Semaphore(0)
    sleeps: list[float] = []
    handle = HttpTesseract(line_server(script), sleep=sleeps.append)
    for _ in range(3):
        assert handle.apply({}) == {}
        assert closed.acquire(timeout=5)
    assert len(lines) == 3 and sleeps == []


def test_a_kept_connection_that_closes_in_the_face_of_a_request(line_server):
    asked: list[bytes] = []

    def script(line):
        asked.append(line.read_request())
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        asked.append(line.read_request())

    handle = HttpTesseract(line_server(script))
    assert handle.apply({}) == {}
    # The server had the whole request, and may have started: not for the client to repeat.
    with pytest.raises(ConnectionLost):
        handle.apply({})
    assert len(asked) == 2


@pytest.mark.parametrize("status", [401, 404])
def test_a_connection_survives_an_error(local_server, status):
    local_server.answer = lambda asked: Reply(status, b"text")
    handle = HttpTesseract(local_server.url)
    for _ in range(3):
        with pytest.raises((AccessDenied, EndpointNotFound)):
            handle.apply({"x": X})
    assert local_server.n_connections == 1
    local_server.answer = lambda asked: Reply()
    assert handle.apply({"x": X}) == {}
    assert local_server.n_connections == 1


def test_after_a_failure_of_the_component_the_connection_is_not_used_again(line_server):
    lines: list[int] = []
    second_requests: list[bytes] = []
    ended = threading.Event()

    def script(line):
        lines.append(1)
        if len(lines) == 1:
            line.read_request()
            line.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\ntext")
            # uvicorn closes the connection about now. A second request would find it open, and then lose it.
            second_requests.append(line.read_request())
            ended.set()
        while line.read_request():
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    handle = HttpTesseract(line_server(script), read_timeout=5.0)
    with pytest.raises(ComponentFailed, match="text"):
        handle.apply({})
    for _ in range(3):
        assert handle.apply({}) == {}
    assert ended.wait(5)
    assert second_requests == [b""] and len(lines) == 2
