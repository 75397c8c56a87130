"""Addresses, credentials and headers: what is understood, what is refused, and that no refusal tells a secret."""

from __future__ import annotations

import base64
import traceback

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseract_flow.client import HttpTesseract
from tesseract_flow.errors import OptionError, TesseractFlowError, Unreachable
from tests.client.helpers import mocked

SECRET = "s3cr3t"


def authorization(handle: HttpTesseract) -> str | None:
    return dict(handle.headers).get("Authorization")


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("http://solver:8000", "http://solver:8000"),
        ("http://solver:8000/", "http://solver:8000"),
        ("  http://solver:8000\n", "http://solver:8000"),
        ("solver:8000", "http://solver:8000"),
        ("solver", "http://solver"),
        ("https://Solver.Example/fem/", "https://solver.example/fem"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("http://user:password@solver:8000/fem", "http://solver:8000/fem"),
        ("user:password@solver:8000", "http://solver:8000"),
    ],
)
def test_addresses(url, clean):
    handle = HttpTesseract(url)
    assert handle.url == clean
    assert repr(handle) == f"HttpTesseract({clean})"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http://:8000",
        "ftp://solver",
        "file:///etc/passwd",
        "http://solver:port",
        "http://solver:99999",
        "http://[::1",
        "http://so lver",
        "http://solver/a\x00b",
        "http://" + "a" * 70 + ".com",  # too long for a name in DNS
        "http://solver:8000?token=1",
        "http://solver:8000/#part",
    ],
)
def test_what_is_no_address(url):
    with pytest.raises(Unreachable, match="address"):
        HttpTesseract(url)


@pytest.mark.parametrize(
    ("url", "user", "password"),
    [
        ("http://me:s3cr3t@solver", "me", "s3cr3t"),
        ("http://me@solver", "me", ""),
        ("http://:s3cr3t@solver", "", "s3cr3t"),
        ("http://m%40e:s%3A%2Fr%C3%A9t@solver", "m@e", "s:/rét"),
    ],
)
def test_basic_authentication(url, user, password):
    fake = mocked()
    handle = fake.handle(url)
    handle.request("apply", {"inputs": {}})
    assert fake.requests[0].url.userinfo == b""
    kind, _, text = fake.requests[0].headers["authorization"].partition(" ")
    assert kind == "Basic" and base64.b64decode(text).decode() == f"{user}:{password}"


def test_what_is_said_explicitly_wins_over_the_address():
    assert authorization(HttpTesseract("http://me:pw@solver", token="t")) is None
    assert authorization(HttpTesseract("http://me:pw@solver", headers={"Authorization": "Own"})) == "Own"


def test_two_credentials_exclude_each_other():
    with pytest.raises(OptionError, match="exclude each other") as caught:
        HttpTesseract("http://solver", token=SECRET, headers={"authorization": SECRET})
    assert SECRET not in str(caught.value)


def test_tokens():
    assert HttpTesseract("solver", token="abc\n").token == "abc"  # read from a file
    assert HttpTesseract("solver", token="").token is None
    assert HttpTesseract("solver", token=" ") == HttpTesseract("solver")


def test_headers_as_dict_and_as_pairs():
    headers = {"X-Api-Key": "k", "X-Project": "wing"}
    assert HttpTesseract("solver", headers=headers) == HttpTesseract("solver", headers=tuple(headers.items()))


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Key": f"{SECRET}\n"},
        {"X-Key": f"{SECRET}\r\nX-Other: 1"},
        {"X-Key": f"{SECRET}é"},
        {"X-Key": f" {SECRET}"},
        {"X-Key": SECRET.encode()},
        {f"X Key {SECRET}": "1"},
        {f"Key:{SECRET}": "1"},
        {"": SECRET},
        {1: SECRET},
        [SECRET],
        SECRET,
        7,
    ],
)
def test_headers_that_cannot_be_sent(headers):
    with pytest.raises(OptionError, match="headers") as caught:
        HttpTesseract("http://solver", headers=headers)
    assert SECRET not in "".join(traceback.format_exception(caught.value)).replace(repr(headers), "")


@pytest.mark.parametrize("name", ["Accept", "accept", "Accept-Encoding", "Content-Type", "CONTENT-LENGTH"])
def test_headers_that_are_ours(name):
    with pytest.raises(OptionError, match="set by the client"):
        HttpTesseract("http://solver", headers={name: "text/plain"})


@pytest.mark.parametrize("token", [f"{SECRET}\n{SECRET}", f"{SECRET}é", f"{SECRET}\x00"])
def test_tokens_that_cannot_be_sent(token):
    with pytest.raises(OptionError, match="token") as caught:
        HttpTesseract("http://solver", token=token)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@solver:port",
        f"http://me:{SECRET}/x@solver",  # the slash should have been encoded, and ends the host
        f"http://me:1/{SECRET}@solver",
        f"http://me:{SECRET}#x@solver",
        f"http://me:1#{SECRET}@solver",
        f"http://me:{SECRET}?x@solver",
        f"http://solver?token={SECRET}",
        f"http://solver/#{SECRET}",
        f"ftp://me:{SECRET}@solver",
        f"me:{SECRET}@[solver",
        f"http://me:{SECRET}@",
        f"http://me:{SECRET}@so lver",
    ],
)
def test_a_refusal_keeps_the_secret(url):
    with pytest.raises(Unreachable) as caught:
        HttpTesseract(url)
    error = caught.value
    assert SECRET not in str(error) + repr(error) + repr(error.args) + repr(error.__cause__)
    # What Python prints: message and causes, but not the line of this test.
    assert SECRET not in "".join(traceback.TracebackException.from_exception(error).format_exception_only())
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)


@given(st.text(max_size=60) | st.from_regex(r"https?://[a-z@:/?#%\[\].0-9 é\U0001f600-]{0,60}", fullmatch=True))
def test_any_text_is_an_address_or_refused(url):
    try:
        handle = mocked().handle(url)
    except TesseractFlowError:
        return
    assert handle.request("apply", {"inputs": {}}) == {}
    assert httpx.URL(handle.url).userinfo == b""


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=3), st.none() | st.text(max_size=12))
def test_any_header_is_sent_or_refused(headers, token):
    fake = mocked()
    try:
        handle = fake.handle(headers=headers, token=token)
    except TesseractFlowError:
        return
    assert handle.request("apply", {"inputs": {}}) == {}
    sent = fake.requests[0].headers
    assert all(value in sent.get_list(name) for name, value in headers.items())
