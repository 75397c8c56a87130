"""Any `tesseract_core.Tesseract` as one of our handles.

The object is called through its public methods only, so its configuration, subclasses and spies keep working. Its
exceptions are translated here, and nowhere else.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.meter import record_request
from tesseract_flow.client.translate import (
    Question,
    component_failed,
    error_of_status,
    faults_of_detail,
    invalid_input,
    readable,
)
from tesseract_flow.errors import (
    CallError,
    CallTimeout,
    ConnectionLost,
    EndpointNotFound,
    InvalidAnswer,
    InvalidInput,
    SchemaError,
    TesseractFlowError,
    Unreachable,
)
from tesseract_flow.schema import TesseractSchema

if TYPE_CHECKING:
    from tesseract_core import Tesseract

T = TypeVar("T")

# Per object and not per handle: apply_tesseract wraps the same object at every call.
_schemas: weakref.WeakKeyDictionary[Any, TesseractSchema] = weakref.WeakKeyDictionary()
_schemas_lock = threading.Lock()
# How tesseract-core's HTTP client reports an unsuccessful status.
_STATUS = re.compile(r"Error (?P<status>[1-5][0-9]{2}) from Tesseract: (?P<text>.*)", re.DOTALL)


class CoreTesseract(AbstractTesseract):
    """A handle to a `tesseract_core.Tesseract`, however that was made. Two are equal if they hold the same object."""

    def __init__(self, tesseract: Tesseract, label: str | None = None):
        self.tesseract = tesseract
        self.label = label

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CoreTesseract):
            return NotImplemented
        return self.tesseract is other.tesseract and self.label == other.label

    def __hash__(self) -> int:
        return hash((id(self.tesseract), self.label))

    def __repr__(self) -> str:
        return f"CoreTesseract({self._short_name})"

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        return "tesseract" if self.schema.name in GENERIC_NAMES else self.schema.name

    @property
    def schema(self) -> TesseractSchema:
        schema = _schemas.get(self.tesseract)
        if schema is None:
            with _schemas_lock:
                schema = _schemas.get(self.tesseract)
                if schema is None:
                    schema = _schemas[self.tesseract] = self._read_schema()
        return schema

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        if endpoint == "abstract_eval":
            arguments = {"abstract_inputs": payload["inputs"]}
        else:
            arguments = dict(payload) if run_id is None else {**payload, "run_id": run_id}
        question = Question(endpoint, self._short_name)
        record_request(question.name, endpoint)
        return _translated(question, lambda: getattr(self.tesseract, endpoint)(**arguments))

    @property
    def _short_name(self) -> str:
        """The name if it is known without asking the component: `repr` and messages must not start anything."""
        known = self.label is not None or self.tesseract in _schemas
        return self.name if known else "tesseract"

    def _read_schema(self) -> TesseractSchema:
        question = Question("openapi.json", self.label or "tesseract")
        document = _translated(question, lambda: self.tesseract.openapi_schema)
        try:
            return TesseractSchema.from_openapi(document)
        except SchemaError as error:
            raise SchemaError(f"Tesseract {question.name!r} does not describe itself as one: {error}") from error


def _translated(question: Question, fn: Callable[[], T]) -> T:
    try:
        return fn()
    except TesseractFlowError:
        raise  # a subclass or spy that speaks our language already
    except Exception as error:
        raise _translate(question, error) from error


def _translate(question: Question, error: Exception) -> CallError:
    """tesseract-core's exceptions → ours. It speaks through requests and pydantic, which it brings along."""
    import pydantic
    import requests

    text = readable(str(error))
    if isinstance(error, pydantic.ValidationError):
        faults = faults_of_detail(error.errors(include_url=False, include_context=False, include_input=False))
        if error.title.endswith("OutputSchema"):  # in process, where it is not wrapped: no fault of the caller's
            return component_failed(question, text)
        return invalid_input(question, faults, text)
    if isinstance(error, requests.RequestException):
        return _translate_transport(question, error, text)
    if isinstance(error, NotImplementedError):
        return question.error(EndpointNotFound, text)
    if isinstance(error, RuntimeError):
        if found := _STATUS.fullmatch(str(error)):
            return error_of_status(question, int(found["status"]), {}, found["text"].encode(errors="replace"))
        if "context manager" in text and "serve()" in text:
            return question.error(
                Unreachable, "it is not served yet. Use it inside `with tesseract:`, or call tesseract.serve() first."
            )
        return component_failed(question, text)
    if isinstance(error, TypeError) and "JSON serializable" in text:  # orjson's, which has no class of its own
        return question.error(InvalidInput, f"the inputs cannot be sent: {text}")
    if isinstance(error, ValueError | TypeError | LookupError | AttributeError):
        # What the component itself raises arrives as RuntimeError. This is tesseract-core at a loss.
        return question.error(
            InvalidAnswer,
            f"tesseract-core could not encode the inputs or decode the answer ({type(error).__name__}: {text}).\n"
            "Check the inputs, and that it is a Tesseract that answers.",
        )
    return component_failed(question, f"{type(error).__name__}: {text}")


def _translate_transport(question: Question, error: Exception, text: str) -> CallError:
    import requests
    import urllib3

    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None)
    not_connected = isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)
    bad_address = isinstance(
        error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema | requests.exceptions.MissingSchema
    )
    if bad_address:  # without its text, which quotes the address and what is in it
        return question.error(Unreachable, "its address cannot be used. It looks like http://host:8000.")
    if not_connected or isinstance(error, requests.ConnectTimeout | requests.exceptions.SSLError):
        return question.error(Unreachable, f"cannot connect ({text}). Nothing was started. Is the server running?")
    if isinstance(error, requests.Timeout):
        return question.error(CallTimeout, f"no answer in time ({text}). The solve may still be running there.")
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return question.error(
            ConnectionLost, f"the connection was lost ({text}). The solve may still be running there."
        )
    return question.error(InvalidAnswer, f"the answer is not understood ({text}).")
