"""Any `tesseract_core.Tesseract` as one of our handles.

The object is called through its public methods only, so its configuration, subclasses and spies keep working. Its
exceptions are translated here, and nowhere else. The one idea: a component in this process is treated as one behind a
server is. It is asked one question at a time, gets arrays that are its own, and what it answers is a copy: it may work
in buffers that it uses again, write into its inputs, and keep them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.meter import record_request
from tesseract_flow.client.retry import DEFAULT_RETRY, RetryPolicy
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
    NotServed,
    SchemaError,
    TesseractFlowError,
    Unreachable,
)
from tesseract_flow.exact import copied
from tesseract_flow.schema import ANY, TesseractSchema, plain_tree

if TYPE_CHECKING:
    from tesseract_core import Tesseract

T = TypeVar("T")

# Per object and not per handle: apply_tesseract wraps the same object at every call.
_schemas: weakref.WeakKeyDictionary[Any, TesseractSchema] = weakref.WeakKeyDictionary()
_schemas_lock = threading.Lock()
# How tesseract-core's HTTP client reports an unsuccessful status.
_STATUS = re.compile(r"Error (?P<status>[1-5][0-9]{2}) from Tesseract: (?P<text>.*)", re.DOTALL)


class CoreTesseract(AbstractTesseract):
    """A handle to a `tesseract_core.Tesseract`, however that was made.

    Two are equal if they hold the same object, or objects that `Tesseract.from_url` made for the same address with the
    same configuration. Answers have dicts, lists and plain values in place of tuples, sets and enum members, in process
    as through HTTP.
    """

    def __init__(self, tesseract: Tesseract, label: str | None = None, retry: RetryPolicy = DEFAULT_RETRY):
        self.tesseract = tesseract
        self.label = label
        self.retry = retry

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CoreTesseract):
            return NotImplemented
        if (self.label, self.retry) != (other.label, other.retry):
            return False
        if self.tesseract is other.tesseract:
            return True
        mine = _place(self.tesseract)
        return mine is not None and mine == _place(other.tesseract)

    def __hash__(self) -> int:
        return hash((_place(self.tesseract) or id(self.tesseract), self.label))

    def __repr__(self) -> str:
        return f"CoreTesseract({self._short_name})"

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        return "tesseract" if self.schema.name in GENERIC_NAMES else self.schema.name

    @property
    def build(self) -> str | None:  # type: ignore[override]
        # In this process the code may be anything.
        return None if _kind(self.tesseract) == "LocalClient" else ""

    @property
    def schema(self) -> TesseractSchema:
        schema = _schemas.get(self.tesseract)
        if schema is None:
            with _schemas_lock:
                schema = _schemas.get(self.tesseract)
                if schema is None:
                    schema = _schemas[self.tesseract] = self._read_schema()
        return schema

    @property
    def anchor(self) -> object:
        return self.tesseract  # apply_tesseract makes a new handle at every call

    @property
    def known_schema(self) -> TesseractSchema | None:
        return _schemas.get(self.tesseract)

    def labelled(self, label: str | None) -> CoreTesseract:
        return CoreTesseract(self.tesseract, label, self.retry)

    def elsewhere(self) -> AbstractTesseract:
        if _kind(self.tesseract) == "LocalClient":
            raise NotServed(
                f"Tesseract {self.name!r} lives in this process, and a call to it cannot leave it.\n"
                "Serve it: open_tesseract('path/to/tesseract_api.py'); or run the flow's calls on threads, as it does "
                "unless told otherwise (task_runner=)."
            )
        return self

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        if endpoint == "abstract_eval":
            arguments = {"abstract_inputs": payload["inputs"]}
        else:
            arguments = dict(payload) if run_id is None else {**payload, "run_id": run_id}
        question = Question(endpoint, self._short_name)

        def send() -> Tree:
            if _kind(self.tesseract) == "HTTPClient":  # what comes from there nobody else has
                return plain_tree(ANY, getattr(self.tesseract, endpoint)(**arguments))
            # The copies inside: another call would write over what this one answered.
            with _turn(self.tesseract), _promotion_of_its_own():
                return _own(plain_tree(ANY, getattr(self.tesseract, endpoint)(**_own(arguments))))

        def ask() -> Tree:
            record_request(question.name, endpoint)
            return _translated(question, send)

        answer = self.retry.run(ask, label=f"{question.name}.{endpoint}")
        self.check_answer(endpoint, payload, answer)
        return answer

    @property
    def _short_name(self) -> str:
        """The name if it is known without asking the component: `repr` and messages must not start anything."""
        known = self.label is not None or self.tesseract in _schemas
        return self.name if known else "tesseract"

    def _read_schema(self) -> TesseractSchema:
        question = Question("openapi.json", self.label or "tesseract")
        document = self.retry.run(
            lambda: _translated(question, lambda: self.tesseract.openapi_schema), label=f"{question.name}.openapi.json"
        )
        try:
            return _as_configured(self.tesseract, TesseractSchema.from_openapi(document))
        except SchemaError as error:
            raise SchemaError(f"Tesseract {question.name!r} does not describe itself as one: {error}") from error


def _kind(tesseract: Any) -> str:
    """How an object reaches its component: `LocalClient`, `HTTPClient`, or whatever somebody put in their place."""
    # tesseract-core has no public word for it.
    return type(getattr(tesseract, "_client", None)).__name__


def _as_configured(tesseract: Any, schema: TesseractSchema) -> TesseractSchema:
    """With name and version of the `tesseract_config.yaml` beside the code of a component in this process.

    An image is told them while it is built; in process tesseract-core does not look for them.
    """
    if _kind(tesseract) != "LocalClient" or schema.name not in GENERIC_NAMES:
        return schema
    with contextlib.suppress(Exception):  # no file, or none that says anything: it is as nameless as before
        import yaml

        folder = Path(tesseract._client.api_module.__file__).parent
        about = yaml.safe_load((folder / "tesseract_config.yaml").read_text(encoding="utf-8"))
        return dataclasses.replace(schema, name=str(about["name"]), version=str(about.get("version") or schema.version))
    return schema


def _own(tree: Tree) -> Tree:
    """The tree with arrays that nobody else can write into. Those of JAX nobody can."""
    return copied(tree, lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf)


def _promotion_of_its_own() -> contextlib.AbstractContextManager[Any]:
    """JAX's promotion of dtypes as a component has it behind a server: that the caller's is strict is nothing to it."""
    jax = sys.modules.get("jax")
    return contextlib.nullcontext() if jax is None else jax.numpy_dtype_promotion("standard")


_turns: weakref.WeakKeyDictionary[Any, tuple[int, threading.RLock]] = weakref.WeakKeyDictionary()
_turns_lock = threading.Lock()


def _turn(tesseract: Any) -> contextlib.AbstractContextManager[Any]:
    """A component in this process for one call, as a server's worker is: nobody writes one for several threads."""
    if _kind(tesseract) != "LocalClient":
        return contextlib.nullcontext()
    client = tesseract._client  # several objects may share it
    with _turns_lock:
        pid, turn = _turns.get(client, (None, None))
        if pid != os.getpid() or turn is None:  # a forked child would wait for calls of its parent
            turn = threading.RLock()
            _turns[client] = os.getpid(), turn
        return turn


# What an HTTPClient of tesseract-core is told, and what it finds out or works with.
_CONFIGURATION = ("_output_path", "_input_path", "_timeout", "_binref_pool")
_STATE = {"_url", "_session", "openapi_schema", "server_capabilities"} | {
    f"_{name}" for name in ("transport_lock", "transport_checks", "transport_fallback_warned", "done_exports")
}


def _place(tesseract: Any) -> Hashable:
    """Where the requests of a `Tesseract.from_url` go, and how; None for any other object.

    tesseract-core has no public word for it. So whatever is not exactly as `from_url` makes it (a subclass, a spy, a
    view with another encoding, a session with credentials) gives None, and is compared as an object.
    """
    try:
        if vars(tesseract).keys() != {"_client"} or type(tesseract).__module__.split(".")[0] != "tesseract_core":
            return None
        client = vars(tesseract)["_client"]
        if type(client).__name__ != "HTTPClient" or vars(client).keys() - _STATE - set(_CONFIGURATION):
            return None
        if not _is_as_made(client._session):
            return None
        place = (client.url, *(vars(client).get(name) for name in _CONFIGURATION))
        hash(place)
    except (AttributeError, TypeError):
        return None
    return place


def _is_as_made(session: Any) -> bool:
    """Whether nobody has given a session headers, credentials or certificates of their own."""
    fresh = _fresh_session()
    names = (*session.__attrs__, *vars(session))
    return all(getattr(session, name) == getattr(fresh, name, None) for name in names if name != "adapters") and all(
        type(mine) is type(new) for mine, new in zip(session.adapters.values(), fresh.adapters.values(), strict=False)
    )


@functools.cache
def _fresh_session() -> Any:
    import requests

    session = requests.Session()
    session.headers["Content-Type"] = "application/json"  # as an HTTPClient sets it
    return session


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
                NotServed, "it is not served yet. Use it inside `with tesseract:`, or call tesseract.serve() first."
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
    if isinstance(error, requests.exceptions.ProxyError):
        return question.error(
            Unreachable,
            "the proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be asked. Nothing was started.\n"
            "tesseract-core asks through it whatever NO_PROXY does not name, this machine included: put the host into "
            "NO_PROXY, such as NO_PROXY=127.0.0.1,localhost, or open its address with open_tesseract(url).",
        )
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
