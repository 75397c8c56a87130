"""Proxies: those of the environment as every HTTP client has them, one's own, none; and never a word of credentials."""

from __future__ import annotations

import pickle

import pytest

from tesseract_flow.client import HttpTesseract, RetryPolicy
from tesseract_flow.client.http.proxies import proxy_for
from tesseract_flow.errors import AccessDenied, OptionError, Overloaded, TesseractFlowError, Unreachable
from tests.client.helpers import Reply, document

ONCE = RetryPolicy(n_retries=0)
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://solver:8000", {}, None),
        ("http://solver:8000", {"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("http://solver:8000", {"http_proxy": "proxy:3128"}, "http://proxy:3128"),
        ("https://solver", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("https://solver", {"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://solver", {"ALL_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("http://solver.lab:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "lab"}, None),
        ("http://solver.lab:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "other, .lab"}, None),
        ("http://solver.lab:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "*"}, None),
        ("http://solver:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "solver:8000"}, None),
        ("http://solver:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "solver:9000"}, "http://proxy"),
        ("http://10.1.2.3:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://10.1.2.3:8000", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "10.2.0.0/16,nonsense/x"}, "http://proxy"),
        ("http://127.0.0.1:8000", {"HTTP_PROXY": "http://proxy"}, None),
        ("http://127.8.9.1:8000", {"ALL_PROXY": "http://proxy"}, None),
        ("http://localhost:8000", {"HTTP_PROXY": "http://proxy"}, None),
        ("http://[::1]:8000", {"HTTP_PROXY": "http://proxy"}, None),
    ],
)
def test_the_environment(monkeypatch, url, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(url, None)
    assert (found and found.url) == expected
    assert proxy_for(url, False) is None
    other = proxy_for(url, "http://other:1")
    assert other is not None and other.url == "http://other:1"


@pytest.fixture
def proxy(local_server):
    """A proxy that answers by itself, as one that forwards would."""
    local_server.answer = lambda asked: Reply(200, document() if "openapi" in asked.path else b'{"y": 1}')
    return local_server


def test_requests_go_by_way_of_it(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", "http://bob:secret@"))
    handle = HttpTesseract("http://solver.invalid:8000/fem")
    assert handle.schema.name == "probe"
    assert handle.apply({}) == {"y": 1} and handle.apply({}) == {"y": 1}
    paths = [asked.path.partition("?")[0] for asked in proxy.asked]
    assert paths[:2] == ["http://solver.invalid:8000/fem/openapi.json", "http://solver.invalid:8000/fem/apply"]
    assert {asked.headers["Proxy-Authorization"] for asked in proxy.asked} == {"Basic Ym9iOnNlY3JldA=="}
    assert {asked.headers["Host"] for asked in proxy.asked} == {"solver.invalid:8000"}
    assert proxy.n_connections == 1


def test_an_option_says_otherwise(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://nowhere.invalid:1")
    handle = HttpTesseract("http://solver.invalid", proxy=proxy.url)
    assert handle.apply({}) == {"y": 1}
    assert "proxy" not in repr(handle)
    assert pickle.loads(pickle.dumps(handle)) == handle
    assert handle != HttpTesseract("http://solver.invalid")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(407, AccessDenied, "wants credentials"), (502, Overloaded, "proxy=False"), (404, TesseractFlowError, "NO_PROXY")],
)
def test_what_a_proxy_says_itself(proxy, status, kind, words):
    proxy.answer = lambda asked: Reply(status, b"")
    address = proxy.url.replace("http://", "http://bob:s3cret@")
    with pytest.raises(kind, match=words) as caught:
        HttpTesseract("http://solver.invalid", proxy=address, retry=ONCE).apply({})
    text = str(caught.value)
    assert f"by way of the proxy {proxy.url} (proxy=)" in text and "s3cret" not in text and "bob" not in text


@pytest.mark.parametrize("url", ["http://solver.invalid", "https://solver.invalid"])
def test_a_proxy_that_is_not_there(monkeypatch, refused_url, url):
    monkeypatch.setenv("ALL_PROXY", refused_url)
    with pytest.raises(Unreachable, match="ALL_PROXY of the environment") as caught:
        HttpTesseract(url, retry=ONCE).apply({})
    assert "proxy=False" in str(caught.value) and "Nothing was started" in str(caught.value)


@pytest.mark.parametrize("refusal", [b"407 Proxy Authentication Required", b"403 Forbidden"])
def test_a_tunnel_that_is_refused(line_server, refusal):
    def script(line):
        assert line.read_head().startswith(b"CONNECT solver.invalid:443 ")
        line.send(b"HTTP/1.1 " + refusal + b"\r\nContent-Length: 0\r\n\r\n")

    kind = AccessDenied if refusal[:3] == b"407" else Unreachable
    with pytest.raises(kind, match="by way of the proxy"):
        HttpTesseract("https://solver.invalid", proxy=line_server(script), retry=ONCE).apply({})


@pytest.mark.parametrize("option", [True, "ftp://proxy:1", "http://", "http://bob:s3cret@:80", "socks5://proxy:1080"])
def test_what_is_no_proxy(option):
    with pytest.raises(OptionError) as caught:
        HttpTesseract("http://solver.invalid", proxy=option).apply({})
    assert "s3cret" not in str(caught.value)
