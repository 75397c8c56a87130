"""Connections: shared by equal handles, kept, bounded, closed with the last handle, and encrypted where asked."""

from __future__ import annotations

import copy
import datetime
import gc
import ipaddress
import os
import pickle
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cryptography import x509  # comes with Prefect
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tesseract_flow.client import HttpTesseract
from tesseract_flow.errors import ConnectionLost, OptionError, Unreachable
from tests.client.helpers import Asked, LocalServer, Reply, mocked

OPTIONS = {
    "token": "t",
    "headers": {"X-Project": "wing"},
    "label": "fem",
    "encoding": "json",
    "read_timeout": 5.0,
    "n_lanes": 3,
    "verify": False,
    "cert": ("certificate.pem", "key.pem"),
}


# Handles are values.


def test_equal_handles():
    one, other = HttpTesseract("http://solver:8000/", **OPTIONS), HttpTesseract("solver:8000", **OPTIONS)
    assert one == other and hash(one) == hash(other)
    assert one != "http://solver:8000"
    assert len({one, other}) == 1


@pytest.mark.parametrize("option", OPTIONS)
def test_different_handles(option):
    options = {name: value for name, value in OPTIONS.items() if name != option}
    assert HttpTesseract("solver", **OPTIONS) != HttpTesseract("solver", **options)


def test_a_list_for_a_pair_stays_hashable():
    listed = HttpTesseract("solver", cert=["certificate.pem", "key.pem"])
    assert hash(listed) == hash(HttpTesseract("solver", cert=("certificate.pem", "key.pem")))


def test_handles_do_not_change():
    with pytest.raises(AttributeError):
        HttpTesseract("solver").url = "http://elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize("copied", [lambda h: pickle.loads(pickle.dumps(h)), copy.copy, copy.deepcopy])
def test_copies_share_the_connection(local_server, copied):
    handle = HttpTesseract(local_server.url, **{**OPTIONS, "cert": None})
    handle.request("apply", {"inputs": {}})  # a handle in use holds a connection, which must not travel
    again = copied(handle)
    assert again == handle and hash(again) == hash(handle) and repr(again) == repr(handle)
    again.request("apply", {"inputs": {}})
    HttpTesseract(local_server.url, **{**OPTIONS, "cert": None}).request("apply", {"inputs": {}})
    assert local_server.n_connections == 1
    assert len(local_server.asked) == 3


def test_other_handles_have_other_connections(local_server):
    HttpTesseract(local_server.url).request("apply", {"inputs": {}})
    keep = HttpTesseract(local_server.url, token="a")
    keep.request("apply", {"inputs": {}})
    other = HttpTesseract(local_server.url, token="b")
    other.request("apply", {"inputs": {}})
    assert [asked.headers.get("Authorization") for asked in local_server.asked] == [None, "Bearer a", "Bearer b"]
    assert local_server.n_connections == 3


def test_the_last_handle_closes_the_connection(local_server):
    one = HttpTesseract(local_server.url)
    other = pickle.loads(pickle.dumps(one))
    one.request("apply", {"inputs": {}})
    other.request("apply", {"inputs": {}})
    del one
    gc.collect()
    assert not local_server.all_closed.is_set()
    other.request("apply", {"inputs": {}})
    assert local_server.n_connections == 1
    del other
    gc.collect()
    assert local_server.all_closed.wait(5)
    HttpTesseract(local_server.url).request("apply", {"inputs": {}})
    assert local_server.n_connections == 2


def test_a_transport_is_closed_with_the_last_handle():
    closed = []

    class Transport(httpx.MockTransport):
        def close(self) -> None:
            closed.append(True)

    handle = HttpTesseract("solver", transport=Transport(lambda request: httpx.Response(200, json={})))
    handle.request("apply", {"inputs": {}})
    assert not closed
    del handle
    gc.collect()
    assert closed == [True]


def test_a_forked_child_opens_its_own_connection(local_server, monkeypatch):
    handle = HttpTesseract(local_server.url)
    handle.request("apply", {"inputs": {}})
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    handle.request("apply", {"inputs": {}})
    handle.request("apply", {"inputs": {}})
    assert local_server.n_connections == 2


# Addresses, as they travel.


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("http://solver", "solver", "/apply"),
        ("http://solver:80", "solver:80", "/apply"),
        ("https://solver:8000/a b/é/%20", "solver:8000", "/a%20b/%C3%A9/%20/apply"),
        ("http://[::1]:8000", "[::1]:8000", "/apply"),
        ("http://fa\N{LATIN SMALL LETTER SHARP S}.example:1", "xn--fa-hia.example:1", "/apply"),
    ],
)
def test_where_a_request_goes(url, host, target):
    fake = mocked()
    fake.handle(url).request("apply", {"inputs": {}})
    (request,) = fake.requests
    assert request.headers["host"] == host
    assert request.url.raw_path.decode().partition("?")[0] == target


def test_a_host_of_ones_own(local_server):
    HttpTesseract(local_server.url, headers={"host": "behind.a.proxy"}).request("apply", {"inputs": {}})
    (asked,) = local_server.asked
    assert [value for name, value in asked.headers.items() if name.lower() == "host"] == ["behind.a.proxy"]


# Under load.


def test_many_threads_share_few_connections(local_server):
    n_threads, n_calls, n_lanes = 16, 20, 4
    together = threading.Barrier(n_lanes)

    def answer(asked: Asked) -> Reply:
        if len(local_server.asked) <= n_lanes:
            together.wait(5)  # all lanes are really in use at once
        return Reply(200, asked.body)

    def work(k: int) -> list[float]:
        # Each thread with a handle of its own: equal ones are as good as the same.
        handle = HttpTesseract(local_server.url, n_lanes=n_lanes)
        return [handle.request("apply", {"inputs": {"x": 100.0 * k + i}})["inputs"]["x"] for i in range(n_calls)]

    keep = HttpTesseract(local_server.url, n_lanes=n_lanes)
    keep.request("apply", {"inputs": {}})
    local_server.asked.clear()
    local_server.answer = answer
    with ThreadPoolExecutor(n_threads) as pool:
        answers = list(pool.map(work, range(n_threads)))
    assert answers == [[100.0 * k + i for i in range(n_calls)] for k in range(n_threads)]
    assert len(local_server.asked) == n_threads * n_calls
    assert local_server.n_connections == n_lanes
    assert len({asked.path for asked in local_server.asked}) == n_threads * n_calls  # a run_id each
    # All of them were kept: as many calls at once again, and no new connection.
    local_server.asked.clear()
    with ThreadPoolExecutor(n_lanes) as pool:
        list(pool.map(work, range(n_lanes)))
    assert local_server.n_connections == n_lanes


def test_a_lost_connection_is_replaced(local_server):
    handle = HttpTesseract(local_server.url, n_lanes=2)
    handle.request("apply", {"inputs": {}})
    local_server.hang_up()
    assert local_server.all_closed.wait(5)
    handle.request("apply", {"inputs": {}})
    assert local_server.n_connections == 2


@pytest.mark.slow
def test_failures_leave_no_lane_occupied(line_server):
    handle = HttpTesseract(line_server(lambda line: line.read_request()), n_lanes=1)
    for _ in range(3):
        with pytest.raises(ConnectionLost):
            handle.request("apply", {"inputs": {}})


def test_the_kernel_watches_over_idle_connections(local_server, monkeypatch):
    made = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: made.append(connect(*a, **k)) or made[-1])
    handle = HttpTesseract(local_server.url)
    handle.request("apply", {"inputs": {}})
    (connection,) = made
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on every platform
        # Firewalls forget idle connections after minutes; an hour-long solve is silent.
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) <= 60


# TLS.


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate that vouches for itself, its key, and the key behind a password."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tesseract-flow test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files = {
        "certificate": certificate.public_bytes(pem),
        "key": key.private_bytes(pem, pkcs8, serialization.NoEncryption()),
        "locked": key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"password")),
    }
    files["both"] = files["certificate"] + files["key"]
    paths = {name: folder / f"{name}.pem" for name in files}
    for name, content in files.items():
        paths[name].write_bytes(content)
    return paths


@pytest.fixture
def tls_server(local_server: LocalServer, pem: dict[str, Path]) -> tuple[LocalServer, ssl.SSLContext, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem["certificate"], pem["key"])
    # Hands shaken in the connection's own thread, where a refusal does no harm.
    local_server.socket = context.wrap_socket(local_server.socket, server_side=True, do_handshake_on_connect=False)
    return local_server, context, local_server.url.replace("http:", "https:")


def test_a_certificate_that_is_trusted(tls_server, pem):
    server, _, url = tls_server
    handle = HttpTesseract(url, verify=pem["certificate"], token="t")  # type: ignore[arg-type] - paths are welcome
    assert handle == HttpTesseract(url, verify=str(pem["certificate"]), token="t")
    for _ in range(3):
        assert handle.request("apply", {"inputs": {}}) == {}
    assert server.n_connections == 1
    assert server.asked[0].headers["Authorization"] == "Bearer t"


def test_a_certificate_that_is_not_trusted(tls_server):
    server, _, url = tls_server
    with pytest.raises(Unreachable, match="verify="):
        HttpTesseract(url, token="t", sleep=lambda seconds: None).request("apply", {"inputs": {}})
    assert server.asked == []  # the token stayed here


def test_a_certificate_that_is_not_checked(tls_server):
    _, _, url = tls_server
    assert HttpTesseract(url, verify=False).request("apply", {"inputs": {}}) == {}


@pytest.mark.parametrize("form", ["pair", "one file"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_client_with_a_certificate(tls_server, pem, form, checked):
    _, context, url = tls_server
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pem["certificate"])
    verify = str(pem["certificate"]) if checked else False
    cert = str(pem["both"]) if form == "one file" else (str(pem["certificate"]), str(pem["key"]))
    assert HttpTesseract(url, verify=verify, cert=cert).request("apply", {"inputs": {}}) == {}
    with pytest.raises((ConnectionLost, Unreachable)):  # whether before or after the handshake is TLS's affair
        HttpTesseract(url, verify=verify, sleep=lambda seconds: None).request("apply", {"inputs": {}})


def test_certificates_that_cannot_be_used(pem, tmp_path):
    certificate = str(pem["certificate"])
    for options in (
        {"verify": str(tmp_path / "missing.pem")},
        {"verify": str(pem["key"])},
        {"cert": str(tmp_path / "missing.pem")},
        {"cert": (certificate, certificate)},
        {"cert": (certificate, str(pem["locked"]))},  # and nobody is asked for a password
    ):
        with pytest.raises(OptionError, match="certificates"):
            HttpTesseract("https://127.0.0.1:1", **options).request("apply", {"inputs": {}})


def test_an_empty_folder_trusts_nobody(tls_server, tmp_path):
    _, _, url = tls_server
    with pytest.raises(Unreachable, match="verify="):
        HttpTesseract(url, verify=str(tmp_path), sleep=lambda seconds: None).request("apply", {"inputs": {}})


def test_plain_http_reads_no_certificates(tmp_path):
    assert mocked().handle("http://solver", verify=str(tmp_path / "missing.pem")).request("apply", {"inputs": {}}) == {}
    with pytest.raises(Unreachable):
        HttpTesseract("http://127.0.0.1:1", cert=str(tmp_path / "missing.pem"), sleep=lambda seconds: None).request(
            "apply", {"inputs": {}}
        )
