"""Who knows the right answers: a server, a handle, or a function. A source is asked with a request as it came.

The one idea: a proxy does not look into what it passes on, so that what is tested is what is deployed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import orjson

from tesseract_flow import wire
from tesseract_flow.client import AbstractTesseract, CoreTesseract
from tesseract_flow.client.meter import uncounted
from tesseract_flow.errors import CallError, InvalidInput, TesseractFlowError, TransientError
from tesseract_flow.schema import openapi_of
from tesseract_flow.testing.faults.exchange import Asked

Source = Callable[[Asked], tuple[int, bytes]]
_PASSED_ON = ("accept", "content-type", "authorization")


def source_of(source: Source | AbstractTesseract | str) -> Source:
    """What answers in the place of a URL, a handle, or itself."""
    if isinstance(source, str):
        return Proxied(source)
    return _of_handle(source) if isinstance(source, AbstractTesseract) else source


def of_function(answer: Callable[[str, Any], Any], document: bytes) -> Source:
    """A component that is a function.

    Args:
        answer: (endpoint, payload with decoded arrays) -> the component's answer, as a tree. What it raises of ours
            becomes the status that a server would give it.
        document: the component's OpenAPI document.
    """

    def ask(asked: Asked) -> tuple[int, bytes]:
        if asked.endpoint == "openapi.json":
            return 200, document
        if asked.endpoint == "health":
            return 200, b'{"status":"ok"}'
        try:
            return 200, wire.dumps(answer(asked.endpoint, wire.loads(asked.body)))
        except InvalidInput as error:
            faults = [{"loc": fault.path.split("."), "msg": fault.message} for fault in error.faults]
            return 422, orjson.dumps({"detail": faults or str(error)})
        except TransientError as error:
            return 503, str(error).encode()
        except TesseractFlowError as error:
            return 500, str(error).encode()

    return ask


def _of_handle(handle: AbstractTesseract) -> Source:
    def answer(endpoint: Any, payload: Any) -> Any:
        with uncounted():
            return handle.request(endpoint, payload)

    return of_function(answer, _document_of(handle))


def _document_of(handle: AbstractTesseract) -> bytes:
    """The component's own, where there is one."""
    url = getattr(handle, "url", None)
    try:
        if isinstance(url, str):
            return _got(httpx.get(f"{url}/openapi.json", trust_env=False))
        if isinstance(handle, CoreTesseract):
            return orjson.dumps(handle.tesseract.openapi_schema)
    except (httpx.HTTPError, CallError):
        pass
    return orjson.dumps(openapi_of(handle.schema))


def _got(response: httpx.Response) -> bytes:
    response.raise_for_status()
    return response.content


class Proxied:
    """A server somewhere, which is asked with the bytes that came, and answers with those that go."""

    def __init__(self, url: str):
        self._client = httpx.Client(base_url=url.rstrip("/"), timeout=None, trust_env=False)

    def __call__(self, asked: Asked) -> tuple[int, bytes]:
        headers = {name: asked.headers[name] for name in _PASSED_ON if name in asked.headers}
        response = self._client.request(asked.method, asked.target, content=asked.body, headers=headers)
        return response.status_code, response.content

    def close(self) -> None:
        self._client.close()
