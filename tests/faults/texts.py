"""Faults in the bytes of an answer: encodings, and what is no JSON, or is JSON of a kind that nobody should take."""

from __future__ import annotations

import gzip
import zlib

from tesseract_flow.testing import faults
from tesseract_flow.testing.faults import Exchange
from tests.faults.faults import CALLS, MAX_BYTES, SOLVES, Comes, fault

NOT_UNDERSTOOD = ("InvalidAnswer", "SchemaError")


@fault(Comes.EITHER, *NOT_UNDERSTOOD)
def json_as_text_html(x: Exchange) -> None:
    x.answer(None, 200, ("Content-Type", "text/html"))


@fault(Comes.EITHER, *NOT_UNDERSTOOD)
def json_that_says_another_charset(x: Exchange) -> None:
    x.answer(None, 200, ("Content-Type", "application/json; charset=utf-16"))


@fault(Comes.REFUSED, *NOT_UNDERSTOOD, says="gzip")
def gzip_that_nobody_asked_for(x: Exchange) -> None:
    x.answer(gzip.compress(x.body()), 200, ("Content-Encoding", "gzip"))


@fault(Comes.REFUSED, *NOT_UNDERSTOOD, says="deflate")
def deflate_that_nobody_asked_for(x: Exchange) -> None:
    x.answer(zlib.compress(x.body()), 200, ("Content-Encoding", "deflate"))


@fault(Comes.REFUSED, *NOT_UNDERSTOOD, says="x-own")
def unknown_content_encoding(x: Exchange) -> None:
    x.answer(None, 200, ("Content-Encoding", "x-own"))


@fault(Comes.RIGHT)
def content_encoding_identity(x: Exchange) -> None:
    x.answer(None, 200, ("Content-Encoding", "identity"))


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def gzip_without_a_word(x: Exchange) -> None:
    x.answer(gzip.compress(x.body()))


@fault(Comes.EITHER, *NOT_UNDERSTOOD)
def byte_order_mark(x: Exchange) -> None:
    x.answer(b"\xef\xbb\xbf" + x.body())


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def utf_16(x: Exchange) -> None:
    x.answer(x.body().decode().encode("utf-16"))


@fault(Comes.RIGHT)
def white_space_around(x: Exchange) -> None:
    x.answer(b" \r\n\t" + x.body() + b"\n\n")


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def deep_nesting(x: Exchange) -> None:
    x.answer(b"[" * 100_000 + b"]" * 100_000)


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def deep_nesting_of_objects(x: Exchange) -> None:
    x.answer(b'{"y":' * 20_000 + b"1" + b"}" * 20_000)


fault(Comes.REFUSED, "InvalidAnswer", "SchemaError", says="max_bytes", name="gigantic answer")(
    faults.gigantic(2 * MAX_BYTES)
)


fault(Comes.REFUSED, "InvalidAnswer", "SchemaError", says="max_bytes", name="gigantic answer of unknown length")(
    faults.gigantic(2 * MAX_BYTES, says_so=False)
)


TEXTS = {
    "empty": b"",
    "white space": b"  \n ",
    "null": b"null",
    "list": b"[]",
    "number": b"17.5",
    "text": b'"done"',
    "true": b"true",
    "empty object": b"{}",
    "page of HTML": b"<!doctype html><title>Sign in</title>",
    "invalid UTF-8": b'{"y":"\xff\xfe"}',
    "half a surrogate": b'{"y":"\\ud800"}',
    "single quotes": b"{'y': 1}",
    "Python's repr": b"{'y': None}",
    "comment": b'/* ok */ {"y": 1}',
    "error in place of outputs": b'{"error":"out of licences"}',
    "binary": bytes(range(256)),
}
for _name, _body in TEXTS.items():
    fault(Comes.REFUSED, *NOT_UNDERSTOOD, name=f"answer is {_name}")(faults.said(_body))


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def json_cut_off(x: Exchange) -> None:
    x.answer(x.body()[:-20])


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def something_after_the_json(x: Exchange) -> None:
    x.answer(x.body() + b" {}")


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def two_answers_in_one_body(x: Exchange) -> None:
    x.answer(2 * x.body())


@fault(Comes.REFUSED, *NOT_UNDERSTOOD)
def comma_too_many(x: Exchange) -> None:
    x.answer(x.body()[:-1] + b",}")


@fault(Comes.REFUSED, *NOT_UNDERSTOOD, at=CALLS)
def answer_in_a_list(x: Exchange) -> None:
    x.answer(b"[" + x.body() + b"]")


@fault(Comes.REFUSED, *NOT_UNDERSTOOD, at=CALLS)
def answer_in_an_envelope(x: Exchange) -> None:
    x.answer(b'{"outputs":' + x.body() + b"}")


@fault(Comes.EITHER, *NOT_UNDERSTOOD)
def duplicate_keys(x: Exchange) -> None:
    # Which of them counts is not said anywhere; here the last one is right.
    x.answer(x.body().replace(b"{", b'{"shape":[9],"y":{},"x":{},', 1))


@fault(Comes.REFUSED, *NOT_UNDERSTOOD, at=SOLVES, name="literal NaN")
def literal_nan(x: Exchange) -> None:
    x.answer(b'{"y":NaN,"x":NaN}')


@fault(Comes.REFUSED, *NOT_UNDERSTOOD, at=SOLVES, name="literal Infinity")
def literal_infinity(x: Exchange) -> None:
    x.answer(b'{"y":Infinity,"x":-Infinity}')
