"""Faults that a status tells: of components, of the frameworks that serve them, and of proxies on the way."""

from __future__ import annotations

import email.utils
import time

import orjson

from tesseract_flow.testing import faults
from tesseract_flow.testing.faults import Exchange
from tests.faults.faults import CALLS, Comes, fault

DETAIL = [{"loc": ["body", "inputs", "x"], "msg": "Input should be positive", "type": "value_error"}]
TRACEBACK = 'Traceback (most recent call last):\n  File "tesseract_api.py", line 3, in apply\nValueError: no mesh'

# What a client cannot know better, by status: what must come of it, and as which errors.
REFUSED = {
    206: "InvalidAnswer",
    303: "InvalidAnswer",
    300: "InvalidAnswer",
    400: "InvalidAnswer InvalidInput",
    401: "AccessDenied",
    403: "AccessDenied",
    404: "EndpointNotFound",
    405: "EndpointNotFound",
    406: "InvalidAnswer",
    408: "InvalidAnswer CallTimeout Overloaded ConnectionLost",
    409: "InvalidAnswer",
    410: "InvalidAnswer EndpointNotFound",
    411: "InvalidAnswer",
    413: "InvalidInput",
    414: "InvalidAnswer",
    415: "InvalidAnswer",
    418: "InvalidAnswer",
    421: "InvalidAnswer",
    425: "InvalidAnswer Overloaded",
    426: "InvalidAnswer",
    431: "InvalidAnswer",
    451: "InvalidAnswer",
    501: "ComponentFailed InvalidAnswer EndpointNotFound",
    505: "ComponentFailed InvalidAnswer",
    507: "ComponentFailed InvalidAnswer",
    511: "ComponentFailed InvalidAnswer AccessDenied",
    520: "ComponentFailed InvalidAnswer Overloaded",
    599: "ComponentFailed InvalidAnswer",
}
TRANSIENT = (429, 502, 503, 504)


for _status, _errors in REFUSED.items():
    fault(Comes.REFUSED, *_errors.split(), name=f"status {_status}", says=str(_status))(
        faults.status(_status, b'{"detail":"no"}')
    )
for _status in TRANSIENT:
    fault(Comes.RECOVERED, "Overloaded", name=f"status {_status}", says=str(_status))(faults.status(_status))
for _status in (301, 302, 307, 308):
    fault(Comes.REFUSED, "InvalidAnswer", name=f"redirect {_status}", says="http://elsewhere/apply")(
        faults.redirect("http://elsewhere/apply", _status)
    )


@fault(Comes.REFUSED, "InvalidAnswer", "ConnectionLost", "SchemaError", name="status 204")
def no_content(x: Exchange) -> None:
    x.read()
    x.send(x.head(204))


@fault(Comes.REFUSED, "InvalidAnswer", "ConnectionLost", name="status 204 with a body all the same")
def content_where_there_is_none(x: Exchange) -> None:
    x.answer(None, 204)


@fault(Comes.REFUSED, "InvalidAnswer", name="status 304")
def not_modified(x: Exchange) -> None:
    x.read()
    x.send(x.head(304))


@fault(Comes.REFUSED, "InvalidAnswer", "ConnectionLost", name="status 999")
def no_status(x: Exchange) -> None:
    x.answer(None, 999)


# --- the component's own word -----------------------------------------------------------------------------------------


@fault(Comes.REFUSED, "InvalidInput", at=CALLS, says="x: Input should be positive", name="422 with detail")
def refused_inputs(x: Exchange) -> None:
    x.answer(orjson.dumps({"detail": DETAIL}), 422)


@fault(Comes.REFUSED, "InvalidInput", at=CALLS, name="422 without detail")
def refused_inputs_without_detail(x: Exchange) -> None:
    x.answer(b"{}", 422)


@fault(Comes.REFUSED, "InvalidInput", at=CALLS, name="422 with detail of another form", says="negative volume")
def refused_inputs_in_a_sentence(x: Exchange) -> None:
    x.answer(b'{"detail":"negative volume"}', 422)


fault(Comes.REFUSED, "ComponentFailed", at=CALLS, name="500 as text", says="TESSERACT_DEBUG")(
    faults.failed("Internal Server Error")
)


fault(Comes.REFUSED, "ComponentFailed", at=CALLS, name="500 with a traceback", says="ValueError: no mesh")(
    faults.failed(TRACEBACK)
)


@fault(Comes.REFUSED, "ComponentFailed", at=CALLS, name="500 as JSON", says="no mesh")
def failed_as_json(x: Exchange) -> None:
    x.answer(b'{"detail":"no mesh"}', 500)


@fault(Comes.REFUSED, "ComponentFailed", at=CALLS, name="500 as HTML", says="no mesh")
def failed_as_html(x: Exchange) -> None:
    x.answer(b"<html><h1>no mesh</h1></html>", 500, ("Content-Type", "text/html"))


@fault(Comes.REFUSED, "ComponentFailed", at=CALLS, name="500 with nothing")
def failed_with_nothing(x: Exchange) -> None:
    x.answer(b"", 500)


@fault(Comes.REFUSED, "ComponentFailed", at=CALLS, name="500 with control characters", says="no mesh")
def failed_with_control_characters(x: Exchange) -> None:
    x.answer(b"\x1b[2J\x00\xff no mesh", 500)


@fault(Comes.REFUSED, "ComponentFailed", at=CALLS, name="500 and close")
def failed_and_closed(x: Exchange) -> None:
    x.answer(b"Internal Server Error", 500, ("Connection", "close"))
    x.close()


# --- patience ---------------------------------------------------------------------------------------------------------


for _name, _value in {
    "0": "0",
    "fractions of a second": "0.01",
    "date that has passed": email.utils.formatdate(time.time() - 3600, usegmt=True),
    "nonsense": "after lunch",
    "negative number": "-5",
    "not a number": "nan",
    "empty": "",
    "date that is none": "Mon, 99 Foo 9999 99:99:99 GMT",
}.items():
    fault(Comes.RECOVERED, "Overloaded", name=f"429 with Retry-After: {_name}")(faults.status(429, retry_after=_value))
    if _name in ("0", "nonsense"):
        fault(Comes.RECOVERED, "Overloaded", name=f"503 with Retry-After: {_name}")(
            faults.status(503, retry_after=_value)
        )
