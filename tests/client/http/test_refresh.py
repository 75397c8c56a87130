"""A server that takes another one's place is asked what it is before anything that it says is used or kept."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from tesseract_flow.client import HttpTesseract, MemoryCache, RetryPolicy, open_tesseract
from tests.client.helpers import Asked, LocalServer, Reply, array, document, wait_until

X = np.array([1.0])
ONCE = RetryPolicy(n_retries=0)


def serve(server: LocalServer, version: str, y: float) -> None:
    about = orjson.loads(document())
    about["info"]["version"] = version

    def answer(asked: Asked) -> Reply:
        return Reply(body=orjson.dumps(about if asked.method == "GET" else {"y": array([y])}))

    server.answer = answer


def n_questions(server: LocalServer) -> int:
    return sum(asked.path == "/openapi.json" for asked in server.asked)


def y_of(handle: HttpTesseract) -> float:
    return float(handle.apply({"x": X})["y"][0])


@pytest.mark.parametrize("is_new", [False, True])
def test_what_was_kept_of_the_old_one_is_not_taken_for_the_new_ones(local_server, is_new, caplog):
    cache = MemoryCache()
    serve(local_server, "1.0", 8.0)
    handle = open_tesseract(local_server.url, cache=cache)
    assert y_of(handle) == y_of(handle) == 8.0
    assert n_questions(local_server) == 1
    serve(local_server, "2.0", 4.0)
    local_server.hang_up()
    local_server.all_closed.wait(5)
    if is_new:
        handle = open_tesseract(local_server.url, cache=cache)
    assert y_of(handle) == 4.0
    assert n_questions(local_server) == 2 and handle.schema.version == "2.0"
    assert "probe 1.0 has become probe 2.0" in caplog.text


def test_nothing_is_asked_while_a_connection_lasts(local_server):
    serve(local_server, "1.0", 8.0)
    handle = HttpTesseract(local_server.url)
    for _ in range(5):
        y_of(handle)
    assert n_questions(local_server) == 1 and len(local_server.asked) == 6


def test_a_server_that_is_gone_is_nobody_else(local_server, refused_url):
    serve(local_server, "1.0", 8.0)
    handle = open_tesseract(local_server.url, cache=MemoryCache(), retry=ONCE)
    assert y_of(handle) == 8.0
    local_server.server_close()
    local_server.hang_up()
    wait_until(lambda: not local_server._open)
    local_server.shutdown()
    assert y_of(handle) == 8.0  # it is kept, and still that component's


def test_what_was_kept_of_replicas_is_not_taken_for_that_of_the_new_ones(local_server, other_local_server):
    """A cache answered for both of the old ones until something new was asked."""
    servers = local_server, other_local_server
    for server in servers:
        serve(server, "1.0", 8.0)
    handle = open_tesseract([server.url for server in servers], cache=MemoryCache())
    assert y_of(handle) == y_of(handle) == 8.0
    for server in servers:
        serve(server, "2.0", 4.0)
        server.hang_up()
        server.all_closed.wait(5)
    assert y_of(handle) == 4.0 and handle.schema.version == "2.0"
