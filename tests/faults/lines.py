"""Faults of the connection and of the framing of HTTP, from a slow answer to a header that never ends."""

from __future__ import annotations

import gzip
import itertools
import threading

from tesseract_flow.testing import faults
from tesseract_flow.testing.faults import Exchange
from tests.faults.faults import QUESTIONS, Comes, fault

LATE = 1.2  # seconds, more than the client's read_timeout in these tests
AWAY = 0.03  # seconds, less than all attempts of a policy take

# --- time -------------------------------------------------------------------------------------------------------------


fault(Comes.RIGHT, name="latency")(faults.latency(0.03))


fault(Comes.REFUSED, "CallTimeout", says="no answer")(faults.hang)


@fault(Comes.REFUSED, "CallTimeout")
def head_and_then_silence(x: Exchange) -> None:
    x.read()
    x.send(x.head(length=1000))
    x.hang()


@fault(Comes.REFUSED, "CallTimeout")
def frozen_without_reading(x: Exchange) -> None:
    x.wait_for_the_client_to_go()


fault(Comes.REFUSED, "CallTimeout", name="answer after the client's patience")(faults.latency(LATE))


fault(Comes.RIGHT, name="slow drip that ends")(faults.slow_drip(0.04))


@fault(Comes.REFUSED, "CallTimeout", at=QUESTIONS)
def drip_without_end(x: Exchange) -> None:
    x.read()
    x.send(x.head(length=10**6))
    while True:
        x.send(b" ")
        x.pause(0.02)


@fault(Comes.REFUSED, "CallTimeout", at=QUESTIONS)
def drip_in_the_head_without_end(x: Exchange) -> None:
    x.read()
    x.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        x.send(b"z")
        x.pause(0.02)


@fault(Comes.REFUSED, "CallTimeout", "InvalidAnswer", "ConnectionLost", at=QUESTIONS)
def endless_103(x: Exchange) -> None:
    x.read()
    while True:
        x.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        x.pause(0.01)


@fault(Comes.REFUSED, "CallTimeout", "InvalidAnswer", "ConnectionLost", at=QUESTIONS)
def endless_100(x: Exchange) -> None:
    x.read()
    while True:
        x.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        x.pause(0.01)


# --- connections ------------------------------------------------------------------------------------------------------


@fault(Comes.REFUSED, "ConnectionLost", "Unreachable", name="dies in the call and stays away")
def dies_in_the_call(x: Exchange) -> None:
    x.read()
    x.server.stop_listening()
    x.reset()


@fault(Comes.RIGHT, name="dies in the call and comes back")
def dies_and_comes_back(x: Exchange) -> None:
    if x.server.n_faulty > 1:  # back for good
        x.answer()
        return
    x.read()
    x.server.stop_listening()
    threading.Timer(AWAY, x.server.listen).start()
    x.reset()


fault(Comes.RECOVERED, "ConnectionLost", name="reset before the answer")(faults.reset)


@fault(Comes.RECOVERED, "ConnectionLost", "Unreachable")
def reset_in_the_middle_of_the_request(x: Exchange) -> None:
    x.reset()


@fault(Comes.RECOVERED, "ConnectionLost")
def reset_in_the_head_of_the_answer(x: Exchange) -> None:
    x.read()
    x.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    x.reset()


fault(Comes.RECOVERED, "ConnectionLost", name="reset in the middle of the answer")(faults.reset_in_the_middle)


@fault(Comes.RECOVERED, "ConnectionLost")
def close_without_an_answer(x: Exchange) -> None:
    x.read()
    x.close()


@fault(Comes.RECOVERED, "ConnectionLost")
def close_in_the_head_of_the_answer(x: Exchange) -> None:
    x.read()
    x.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    x.close()


fault(Comes.RECOVERED, "ConnectionLost", name="truncated answer")(faults.truncated)


@fault(Comes.RECOVERED, "ConnectionLost")
def half_closed_without_an_answer(x: Exchange) -> None:
    x.read()
    x.stop_writing()
    x.hang()


@fault(Comes.RIGHT)
def half_closed_after_the_answer(x: Exchange) -> None:
    x.answer()
    x.stop_writing()
    x.hang()


@fault(Comes.RIGHT)
def closed_after_the_answer_without_a_word(x: Exchange) -> None:
    x.answer()
    x.close()


@fault(Comes.RIGHT)
def reset_after_the_answer(x: Exchange) -> None:
    x.answer()
    x.pause(0.02)  # a reset drops what the client has not read yet
    x.reset()


# --- more than one answer, or another one -----------------------------------------------------------------------------


fault(Comes.RIGHT, name="surplus answer")(faults.surplus)


# Where another question follows at once, the surplus is taken for its answer unless it has another form.
@fault(Comes.EITHER, "InvalidAnswer", "ConnectionLost", "SchemaError")
def surplus_answer_a_moment_later(x: Exchange) -> None:
    body = x.body()
    x.answer()
    x.pause(0.02)
    x.send(x.head(length=len(body)) + body)


@fault(Comes.RIGHT)
def surplus_bytes_after_the_answer(x: Exchange) -> None:
    body = x.body()
    x.send(x.head(length=len(body)) + body + b"\r\n\r\nHTTP/1.1 200 OK")


@fault(Comes.RIGHT)
def surplus_408_after_the_answer(x: Exchange) -> None:
    # As some servers do before they close an idle connection.
    body = x.body()
    x.send(x.head(length=len(body)) + body + x.head(408, ("Connection", "close"), length=0))
    x.stop_writing()
    x.hang()


@fault(Comes.REFUSED, "InvalidAnswer", "SchemaError", says="Age")
def answer_out_of_a_cache_in_between(x: Exchange) -> None:
    x.answer(None, 200, ("Age", "17"))


@fault(Comes.REFUSED, "InvalidInput")
def early_413_without_reading(x: Exchange) -> None:
    x.send(x.head(413, ("Connection", "close"), length=0))
    x.stop_writing()
    x.hang()


# --- versions of HTTP, and what is none -------------------------------------------------------------------------------


@fault(Comes.RIGHT)
def http_1_0_without_keep_alive(x: Exchange) -> None:
    x.answer(version="HTTP/1.0")
    x.close()


@fault(Comes.RIGHT)
def http_1_0_without_a_length(x: Exchange) -> None:
    x.answer(version="HTTP/1.0", length=None)
    x.close()


@fault(Comes.RIGHT)
def connection_close(x: Exchange) -> None:
    x.answer(None, 200, ("Connection", "close"))
    x.close()


@fault(Comes.RIGHT)
def hundred_continue_first(x: Exchange) -> None:
    x.read()
    x.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    x.answer()


@fault(Comes.RIGHT)
def some_103_first(x: Exchange) -> None:
    x.read()
    x.send(20 * b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    x.answer()


@fault(Comes.REFUSED, "InvalidAnswer", "ConnectionLost")
def switching_protocols_101(x: Exchange) -> None:
    x.read()
    x.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n")


@fault(Comes.RECOVERED, "ConnectionLost")
def answer_of_http_0_9(x: Exchange) -> None:
    x.send(x.body())
    x.close()


@fault(Comes.RECOVERED, "ConnectionLost")
def bytes_of_tls(x: Exchange) -> None:
    x.read()
    x.send(b"\x15\x03\x01\x00\x02\x02\x28")
    x.close()


@fault(Comes.RECOVERED, "ConnectionLost")
def frames_of_http_2(x: Exchange) -> None:
    x.read()
    x.send(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18))
    x.close()


@fault(Comes.EITHER, "ConnectionLost")
def status_line_without_a_reason(x: Exchange) -> None:
    x.answer(None, "200")


# --- headers ----------------------------------------------------------------------------------------------------------


@fault(Comes.RECOVERED, "ConnectionLost")
def header_of_a_megabyte(x: Exchange) -> None:
    x.read()
    x.send(b"HTTP/1.1 200 OK\r\nX-Bomb: " + b"z" * 2**20 + b"\r\n\r\n")
    x.close()


@fault(Comes.EITHER, "ConnectionLost")
def ten_thousand_headers(x: Exchange) -> None:
    x.answer(None, 200, *((f"X-{k}", str(k)) for k in range(10_000)))


@fault(Comes.RIGHT)
def header_of_another_alphabet(x: Exchange) -> None:
    x.answer(None, 200, ("X-Ort", "München"))


@fault(Comes.RECOVERED, "ConnectionLost")
def null_byte_in_a_header(x: Exchange) -> None:
    x.answer(None, 200, ("X-Null", "a\0b"))
    x.close()


@fault(Comes.EITHER, "ConnectionLost", "InvalidAnswer")
def folded_header(x: Exchange) -> None:
    x.answer(None, 200, ("X-Long", "one\r\n two"))


@fault(Comes.EITHER, "ConnectionLost", "InvalidAnswer")
def content_length_twice_and_equal(x: Exchange) -> None:
    x.answer(None, 200, ("Content-Length", str(len(x.body()))))


@fault(Comes.REFUSED, "ConnectionLost", "InvalidAnswer")
def content_length_twice_and_different(x: Exchange) -> None:
    x.answer(None, 200, ("Content-Length", "7"))


@fault(Comes.EITHER, "ConnectionLost", "InvalidAnswer")
def content_type_twice(x: Exchange) -> None:
    x.answer(None, 200, ("Content-Type", "text/html"), ("Content-Type", "application/json"))


@fault(Comes.REFUSED, "ConnectionLost", "InvalidAnswer")
def content_length_negative(x: Exchange) -> None:
    x.answer(length="-5")


@fault(Comes.REFUSED, "ConnectionLost", "InvalidAnswer")
def content_length_no_number(x: Exchange) -> None:
    x.answer(length="many")


@fault(Comes.REFUSED, "InvalidAnswer", "ConnectionLost")
def content_length_of_an_exabyte(x: Exchange) -> None:
    x.answer(length=10**18)


@fault(Comes.REFUSED, "InvalidAnswer", "SchemaError")
def content_length_too_short(x: Exchange) -> None:
    x.answer(length=len(x.body()) - 9)


@fault(Comes.REFUSED, "CallTimeout")
def content_length_too_long(x: Exchange) -> None:
    x.answer(length=len(x.body()) + 9)
    x.hang()


@fault(Comes.RIGHT)
def no_length_and_close(x: Exchange) -> None:
    x.answer(length=None)
    x.close()


@fault(Comes.REFUSED, "InvalidAnswer", "SchemaError", "ConnectionLost")
def no_length_and_truncated(x: Exchange) -> None:
    x.answer(x.body()[:-9], length=None)
    x.close()


# --- chunks -----------------------------------------------------------------------------------------------------------


def chunks(body: bytes, size: int = 100) -> bytes:
    parts = [body[k : k + size] for k in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def chunked(x: Exchange, rest: bytes, *headers: tuple[str, str]) -> None:
    x.send(x.head(200, ("Transfer-Encoding", "chunked"), *headers) + rest)


@fault(Comes.RIGHT)
def chunks_as_they_should_be(x: Exchange) -> None:
    chunked(x, chunks(x.body()) + b"0\r\n\r\n")


@fault(Comes.RIGHT)
def chunks_with_extensions_and_trailers(x: Exchange) -> None:
    body = x.body()
    chunked(x, b"%x;note=1\r\n%s\r\n0\r\nX-Sum: 12\r\n\r\n" % (len(body), body))


@fault(Comes.RECOVERED, "ConnectionLost")
def chunks_with_a_broken_size(x: Exchange) -> None:
    chunked(x, chunks(x.body()[:100]) + b"zz\r\nabc\r\n0\r\n\r\n")


@fault(Comes.RECOVERED, "ConnectionLost")
def chunks_without_an_end(x: Exchange) -> None:
    chunked(x, chunks(x.body()))
    x.close()


@fault(Comes.RECOVERED, "ConnectionLost", name="chunk shorter than it says")
def chunk_too_short(x: Exchange) -> None:
    chunked(x, b"%x\r\n%s" % (10**6, x.body()))
    x.close()


@fault(Comes.EITHER, "ConnectionLost", "InvalidAnswer", "SchemaError")
def chunks_and_a_length_that_disagrees(x: Exchange) -> None:
    chunked(x, chunks(x.body()) + b"0\r\n\r\n", ("Content-Length", "40"))


@fault(Comes.REFUSED, "ConnectionLost", "InvalidAnswer", says="")
def unknown_transfer_encoding(x: Exchange) -> None:
    body = gzip.compress(x.body())
    x.send(x.head(200, ("Transfer-Encoding", "gzip, chunked")) + chunks(body) + b"0\r\n\r\n")


@fault(Comes.REFUSED, "InvalidAnswer", "ConnectionLost", "SchemaError", name="chunks that never end")
def endless_chunks(x: Exchange) -> None:
    x.read()
    chunked(x, b"")
    for _ in itertools.count():
        x.send(chunks(b" " * 65536, 65536))
