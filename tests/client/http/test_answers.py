"""Answers are not to be trusted: their size, their packing, their form. Nothing but our own errors comes out."""

from __future__ import annotations

import base64
import contextlib
import json
import traceback
from urllib.parse import quote

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow import wire
from tesseract_flow.errors import (
    CallError,
    ComponentFailed,
    InvalidAnswer,
    SchemaError,
    TesseractFlowError,
)
from tests.client.helpers import Mock, array, document, mocked

X = np.array([1.0, 2.0, 3.0])


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
        fake.handle(max_bytes=2500).request("apply", {"inputs": {"x": X}})
    assert len(n_read) == (0 if declare else 3)


@pytest.mark.parametrize("declared", ["5", "-1", "5, 5", "²", "9" * 5000, "", "x"])
def test_a_declared_size_is_not_trusted(declared):
    fake = mocked(b"x" * 5000, headers={"Content-Length": declared})
    with pytest.raises(InvalidAnswer, match="5000 bytes or more"):
        fake.handle(max_bytes=2500).request("apply", {"inputs": {"x": X}})


def test_an_answer_of_just_the_largest_size():
    body = b'{"y": 1}'
    for headers in ({"Content-Length": str(len(body))}, {}):
        assert mocked(body, headers=headers).handle(max_bytes=len(body)).request("apply", {"inputs": {}}) == {"y": 1}
        with pytest.raises(InvalidAnswer):
            mocked(body, headers=headers).handle(max_bytes=len(body) - 1).request("apply", {"inputs": {}})


def test_arrays_count_as_bytes_too():
    # A short text that is honest about being 8 MB of zeros.
    body = wire.dumps({"y": np.zeros(10**6)}, compression="lz4")
    assert len(body) < 10**5
    assert mocked(body).handle(max_bytes=8 * 10**6).request("apply", {"inputs": {}})["y"].nbytes == 8 * 10**6
    with pytest.raises(InvalidAnswer, match="8000000 bytes"):
        mocked(body).handle(max_bytes=8 * 10**6 - 1).request("apply", {"inputs": {}})


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "x" * 1000])
def test_compressed_answers_are_not_unpacked(packing):
    fake = mocked(b"\x1f\x8bno matter what", headers={"Content-Encoding": packing})
    with pytest.raises(InvalidAnswer, match="Content-Encoding") as caught:
        fake.handle().request("apply", {"inputs": {"x": X}})
    assert len(str(caught.value)) < 600
    with pytest.raises(ComponentFailed):  # the status still counts
        mocked(b"?", status=500, headers={"Content-Encoding": packing}).handle().request("apply", {"inputs": {"x": X}})


@pytest.mark.parametrize("packing", ["identity", " Identity ", ""])
def test_a_packing_that_is_none(packing):
    assert mocked(b"{}", headers={"Content-Encoding": packing}).handle().request("apply", {"inputs": {}}) == {}


@pytest.mark.parametrize("charset", ["zip", "rot13", "idna", "base64", "no-such-codec", "utf-16"])
def test_a_charset_is_not_followed(charset):
    fake = mocked(b"the mesh is tangled", status=500, headers={"Content-Type": f"text/plain; charset={charset}"})
    with pytest.raises(ComponentFailed, match="the mesh is tangled"):
        fake.handle().request("apply", {"inputs": {"x": X}})


@pytest.mark.parametrize(
    ("answer", "lacking"),
    [({}, "'x'"), ({"y": 1}, "'x'"), ([], "'x'"), (None, "'x'"), ("x", "'x'")],
)
def test_a_pullback_without_what_was_asked(answer, lacking):
    def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=document() if request.method == "GET" else orjson.dumps(answer))

    with pytest.raises(InvalidAnswer, match=f"expected an object with the paths {lacking}|x: is missing"):
        Mock(reply).handle().vector_jacobian_product({"x": X}, ["x"], ["y"], {"y": X})


@pytest.mark.parametrize("answer", [{}, {"z": 1}, [], None])
def test_the_first_answer_of_all_is_compared(answer):
    fake = Mock(lambda request: httpx.Response(200, content=about if request.method == "GET" else orjson.dumps(answer)))
    about = document().replace(b'{"y":{}}', b'{"y":{}},"required":["y"]')
    assert b"required" in about
    with pytest.raises(InvalidAnswer, match="does not fit the question"):
        fake.handle().apply({"x": X})
    assert [request.url.path for request in fake.requests] == ["/openapi.json", "/apply"]


def test_a_jacobian_without_what_was_asked():
    def reply(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, content=document(endpoints=("apply", "jacobian")))
        return httpx.Response(200, content=orjson.dumps(answer))

    handle = Mock(reply).handle()
    answer: dict = {"y": {"x": array([1.0, 2.0, 3.0])}}
    np.testing.assert_array_equal(handle.jacobian({"x": X}, ["x"], ["y"])["y"]["x"], [1.0, 2.0, 3.0])
    for bad in ({"y": {}}, {"y": None}, {"z": answer["y"]}, answer | {"z": answer["y"]}, {"y": {"x": array([1.0])}}):
        answer = bad
        with pytest.raises(InvalidAnswer, match="does not fit the question"):
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
        lambda: handle.request("apply", {"inputs": {}}),
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
        for ask in (lambda handle: handle.request("apply", {"inputs": {}}), lambda handle: handle.schema):
            with contextlib.suppress(TesseractFlowError):
                ask(mocked(body).handle())


# --- what an answer repeats of the credentials that it came with ------------------------------------------------------

TOKEN = "S3cr3t-T0ken/123456"
PAIR = base64.b64encode(b"bob:S3cr3t-passw0rd").decode()
ECHOES = {
    "a text": lambda said: httpx.Response(200, content=b"hello " + said),
    "a text that is cut off": lambda said: httpx.Response(200, content=b"x" * (60 - len(said) // 2) + said),
    "a dtype": lambda said: httpx.Response(200, json={"y": {**wire.encode_tree(X), "dtype": said.decode()}}),
    "an encoding": lambda said: httpx.Response(
        200, json={"y": {**wire.encode_tree(X), "data": {"buffer": "", "encoding": said.decode()}}}
    ),
    "a redirection": lambda said: httpx.Response(307, headers={"Location": f"http://{quote(said, safe='')}@x/"}),
    "a packing": lambda said: httpx.Response(200, headers={"Content-Encoding": said.decode()}, content=b"x"),
    "a failure": lambda said: httpx.Response(500, content=said),
    "another status": lambda said: httpx.Response(418, content=said),
    "inputs": lambda said: httpx.Response(
        422, json={"detail": [{"loc": ["body", said.decode()], "msg": f"got {said.decode()}", "type": said.decode()}]}
    ),
}
GIVEN = {"token": {"token": TOKEN}, "header": {"headers": {"Authorization": f"Basic {PAIR}"}}}


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("form", ["as it is", "in base64"])
def test_no_error_repeats_the_credentials_that_the_server_was_told(given, form, echo):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/openapi.json":
            return httpx.Response(200, content=document())
        said = request.headers["Authorization"].split()[-1]
        if form == "in base64":
            said = base64.b64encode(said.encode()).decode()
        return ECHOES[echo](said.encode())

    handle = Mock(answer).handle(**GIVEN[given])
    assert handle.schema  # by which answers are judged
    with pytest.raises(CallError) as caught:
        handle.request("apply", {"inputs": {"x": X}})
    assert "***" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:  # with what led to it
        told = "".join([str(error), repr(vars(error)), *getattr(error, "__notes__", [])])
        for secret in (TOKEN, PAIR, "S3cr3t", PAIR[:8], base64.b64encode(TOKEN.encode()).decode()[:12]):
            assert secret not in told
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("content", [b"<html>%s</html>", b'{"info": {"title": "%s"}}', b'{"%s'])
def test_no_description_of_something_else_does_either(content):
    fake = Mock(lambda request: httpx.Response(200, content=content % TOKEN.encode()))
    with pytest.raises(SchemaError) as caught:
        _ = fake.handle(token=TOKEN).schema
    assert "".join(traceback.format_exception(caught.value)).count("S3cr3t") == 0
    assert "S3cr3t" not in repr([vars(error) for error in (caught.value, caught.value.__cause__)])


def test_an_answer_that_is_right_may_repeat_them():
    fake = Mock(lambda request: httpx.Response(200, json={"y": wire.encode_tree(X), "said": TOKEN}))
    assert fake.handle(token=TOKEN).request("apply", {"inputs": {"x": X}})["said"] == TOKEN
