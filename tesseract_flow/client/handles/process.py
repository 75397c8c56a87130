"""One process that serves a component: how it is started, found again by equal handles, and ended.

The process starts with the first question to the handle, is shared by equal handles, and ends with this process, even
if that is killed: tesseract-core's runtime watches a pipe to its parent. Several of them make a `ServedTesseract`.
Where whoever has started this process serves the component already (`offers`), that one is used in its place.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import http.client
import logging
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, ByFields, Endpoint, Tree
from tesseract_flow.client.handles.environment import own_python
from tesseract_flow.client.handles.offers import Loan, Offer, What, borrow
from tesseract_flow.client.handles.private_folder import MEMORY, PrivateFolder, has_room, quickest
from tesseract_flow.client.handles.source import code_of, forget_bytecode
from tesseract_flow.client.http import HttpTesseract
from tesseract_flow.client.retry import RetryPolicy
from tesseract_flow.errors import ComponentFailed
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.wire import CAN_LOCK

if TYPE_CHECKING:
    from tesseract_core.sdk.local_client import TesseractProcess

_log = logging.getLogger("tesseract_flow")
_STAND_INS = Path(__file__).with_name("stand_ins")
_POLL = 0.05  # seconds between two looks whether a process answers
_ANSWER = 5.0  # seconds that one look takes at most
_PORTS = 3  # attempts to find one that nobody takes in the meantime
_ONCE = RetryPolicy(n_retries=0)


@dataclasses.dataclass(frozen=True)
class ServedProcess(ByFields, AbstractTesseract):
    """One process with one worker. It asks once: what it fails with is for its owner to repeat.

    Attributes:
        path, label, python, environment, startup_timeout, shares_memory: as in `ServedTesseract`.
        code: of the component, a digest. Another one is not started in its place.
        number: which of several equal processes.
    """

    path: Path
    code: str
    label: str | None = None
    python: str = sys.executable
    environment: Literal["own"] | None = None
    startup_timeout: float = 120.0
    shares_memory: bool = True
    number: int = 0

    def __repr__(self) -> str:
        return f"ServedProcess({self.path.parent.name} #{self.number + 1})"

    @property
    def name(self) -> str:
        return self.label if self.label is not None else self.http.name

    @property
    def n_lanes(self) -> int:  # type: ignore[override]
        return 1

    @property
    def schema(self) -> TesseractSchema:
        return self.http.schema

    @property
    def anchor(self) -> object:
        return self._place

    @property
    def known_schema(self) -> TesseractSchema | None:
        server = self._place.server
        return None if server is None else server.http.known_schema

    @property
    def build(self) -> str:  # type: ignore[override]
        return self._server.build

    @property
    def http(self) -> HttpTesseract:
        """Where it is served; starts it if need be."""
        return self._server.http

    def elsewhere(self) -> AbstractTesseract:
        # The folders in memory have one owner, who removes what lies there.
        return dataclasses.replace(self.http, encoding="base64", input_dir=None, output_dir=None, label=self.name)

    def read_schema(self) -> TesseractSchema:
        server = self._server
        with server.asked():
            return server.http.read_schema()

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        server = self._server
        with server.asked():
            return server.http.request(endpoint, payload, run_id=run_id)

    def ask(self, endpoint: Endpoint, payload: Mapping[str, Any], run_id: str | None, key: Hashable) -> Tree:
        server = self._server
        with server.asked():
            return server.http.ask(endpoint, payload, run_id, key)

    def stop(self) -> None:
        place = self._place
        with place.lock:
            server, place.server = place.server, None
        if server is not None:
            server.stop()

    def logs(self) -> str:
        server = self._place.server
        return "" if server is None else server.logs()

    @property
    def is_alive(self) -> bool:
        """Whether its process is there, and would not have to be started."""
        server = self._place.server
        return server is not None and server.end is None

    def offered(self) -> Offer:
        """The process, started if need be, for others to use."""
        server = self._server
        assert isinstance(server, _Server)
        return Offer(server.what, server.http.url, server.folders)

    @property
    def _place(self) -> _Place:
        pid, place = self.__dict__.get("_own_place", (None, None))
        if pid != os.getpid() or place is None:  # a forked child must not stop its parent's servers
            place = _place_of(self)
            object.__setattr__(self, "_own_place", (os.getpid(), place))
        return place

    @property
    def _server(self) -> _Server | Loan:
        place = self._place
        with place.lock:
            server = place.server
            if server is not None and (end := server.end) is not None:
                tail = "\n".join(["", *server.logs().splitlines()[-20:]])
                _log.warning("%r %s; it is started again.%s", self, end, tail and f" It said last:{tail}")
                place.server = None
                server.stop()
            if place.server is None:
                place.server = _start(self)
            return place.server


@dataclasses.dataclass
class _Server:
    process: TesseractProcess
    http: HttpTesseract
    remove_folders: Callable[[], object]
    what: What
    folders: tuple[str, str] | None  # where large arrays may go

    @property
    def build(self) -> str:
        return self.what.build

    @property
    def end(self) -> str | None:
        """How it has come to its end, if it has."""
        code = self.process.process.poll()
        return None if code is None else f"has exited (code {code})"

    def asked(self) -> contextlib.AbstractContextManager[None]:
        """While a question is under way."""
        return contextlib.nullcontext()

    def stop(self) -> None:
        self.process.remove(force=True)
        self.remove_folders()

    def logs(self) -> str:
        try:
            return self.process.logs().decode("utf-8", errors="replace")
        except FileNotFoundError:  # stopped by another thread, or by someone who tidies up the temporary folder
            return ""


class _Place:
    """Where the server of equal handles is kept. Each has a lock: starting takes seconds, and several start at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.server: _Server | Loan | None = None
        self.pid = os.getpid()

    def close(self) -> None:
        server, self.server = self.server, None
        if server is not None and self.pid == os.getpid():
            server.stop()

    def __del__(self) -> None:
        # Nobody can ask any more. On a thread, as a process takes its time to end, and this may run anywhere.
        if self.server is not None and self.pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # at the end of the interpreter, when it ends by itself
                threading.Thread(target=self.server.stop, daemon=True).start()


_places: dict[Hashable, _Place] = {}
# Of code that has changed since: they last as long as the handles that were opened before.
_former: weakref.WeakValueDictionary[Hashable, _Place] = weakref.WeakValueDictionary()
_places_lock = threading.Lock()


def _place_of(handle: ServedProcess) -> _Place:
    # By process too: a forked child has no hold on the server of its parent, and must not stop it.
    role = (os.getpid(), dataclasses.replace(handle, code=""))
    key = (*role, handle.code)
    with _places_lock:
        place = _places.get(key) or _former.get(key)
        if place is None:
            for other in [other for other in _places if other[:2] == role]:  # type: ignore[index]
                _former[other] = _places.pop(other)
            place = _places[key] = _Place()
        return place


@atexit.register
def _stop_all() -> None:
    for place in [*_places.values(), *_former.values()]:
        place.close()


def _start(handle: ServedProcess) -> _Server | Loan:
    from tesseract_core.sdk import local_client

    if not handle.path.is_file():
        raise _failure(handle, f"There is no component at {handle.path}; one is defined by a tesseract_api.py file.")
    if code_of(handle.path) != handle.code:
        raise _failure(
            handle,
            "Its code has changed since this handle was opened, and whoever holds the handle counts on the old one.\n"
            "Open it again with open_tesseract(path): that serves the files as they are now.",
        )
    if handle.environment is not None:
        try:
            python = own_python(handle.path)
        except RuntimeError as error:
            requirements = handle.path.with_name("tesseract_requirements.txt")
            raise _failure(
                handle,
                f"its environment could not be made. {error}\nIt is made of {requirements}; mend that, or name "
                "an interpreter that has it all: open_tesseract(path, python=...).",
            ) from error
        handle = dataclasses.replace(handle, python=python, environment=None)
    environment = _without_debugger(handle)
    shares_memory = handle.shares_memory and CAN_LOCK and has_room(MEMORY)
    loan = borrow(handle.path, handle.python, environment, shares_memory=shares_memory)
    if loan is not None:
        return _called(loan, handle)
    forget_bytecode(handle.path.parent)
    what = What.now(handle.path, handle.python, environment)
    disk, folders = Path(tempfile.gettempdir()), list[PrivateFolder]()

    def remove_folders() -> None:
        for folder in folders:
            folder.remove()

    try:
        folders.append(PrivateFolder(MEMORY if shares_memory else disk))
        # Not always beside the other, as here each file is new. The runtime also puts a log of each call there.
        folders.append(PrivateFolder(quickest(MEMORY, disk) if shares_memory else disk))
        input_dir, output_dir = (folder.path for folder in folders)
        options = {
            "num_workers": 1,
            "python_executable": handle.python,
            "input_path": input_dir,
            "output_path": output_dir,
            "output_format": "json+base64",
            # Debug mode is what makes the server tell a component's own error text.
            "runtime_config": {"debug": True},
            "environment": environment,
            # Its own check asks through the proxy of the environment, if there is one.
            "skip_health_check": True,
        }
        process = _answering(lambda: local_client.serve(handle.path, **options), handle.startup_timeout)
    except Exception as error:
        remove_folders()
        raise _failure(
            handle,
            f"{error}\nTry it by hand: TESSERACT_API_PATH={handle.path} tesseract-runtime serve",
        ) from error
    except BaseException:
        remove_folders()
        raise
    http = HttpTesseract(process.url, n_lanes=1, label=handle.label, proxy=False, retry=_ONCE)
    if shares_memory:
        http = dataclasses.replace(http, encoding="auto", input_dir=input_dir, output_dir=output_dir)
    shared = (str(input_dir), str(output_dir)) if shares_memory else None
    return _called(_Server(process, http, remove_folders, what, shared), handle)


_Any = TypeVar("_Any", "_Server", Loan)


def _called(server: _Any, handle: ServedProcess) -> _Any:
    """The server, whose handle is called as this one."""
    try:
        schema = server.http.schema
        label = handle.path.parent.name if handle.label is None and schema.name in GENERIC_NAMES else handle.label
        if label != server.http.label:
            server.http = dataclasses.replace(server.http, label=label)
            server.http.learn_schema(schema)
        # Another interpreter may have an older tesseract-core.
        server.http.owns_folders(is_known=handle.python == sys.executable)
    except BaseException:
        server.stop()
        raise
    return server


def served_here() -> list[ServedProcess]:
    """All components that processes of this one serve."""
    with _places_lock:
        found = [(key, place) for key, place in _places.items() if isinstance(place.server, _Server)]
    return [dataclasses.replace(key[1], code=key[2]) for key, _ in found]  # type: ignore[index]


def _failure(handle: ServedProcess, text: str) -> ComponentFailed:
    return ComponentFailed(
        f"The component {handle.path} could not be served:\n{text}", tesseract=repr(handle), endpoint="serve"
    )


def _answering(serve: Callable[[], TesseractProcess], seconds: float) -> TesseractProcess:
    """A process that answers."""
    for attempt in range(1, _PORTS + 1):
        process = serve()
        try:
            _wait_for(process, seconds)
            return process
        except BaseException as error:
            text = process.logs().decode("utf-8", errors="replace")
            process.remove(force=True)
            if attempt < _PORTS and "address already in use" in text.lower():
                continue
            if not isinstance(error, RuntimeError | TimeoutError):
                raise
            raise RuntimeError(f"{error} It said last:\n{text[-8000:]}") from error
    raise AssertionError


def _wait_for(process: TesseractProcess, seconds: float) -> None:
    """Until it answers, which is asked for without any proxy: it is on this machine."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        left = deadline - time.monotonic()
        connection = http.client.HTTPConnection(process.host_ip, process.port, timeout=max(0.1, min(_ANSWER, left)))
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        if (code := process.process.poll()) is not None:
            raise RuntimeError(f"Its process exited with code {code} before it answered.")
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"It did not answer within {seconds:g} s. If it needs longer to start: startup_timeout=SECONDS."
            )
        pause.wait(_POLL)


def _without_debugger(handle: ServedProcess) -> dict[str, str]:
    """The environment in which `import debugpy` finds our stand-in, which says why."""
    from tesseract_core.sdk import local_client

    declared, _ = local_client.declared_env_and_metadata(handle.path)  # which ours would replace
    is_own = os.path.abspath(handle.python) == os.path.abspath(sys.executable)
    before = declared.get("PYTHONPATH", os.environ.get("PYTHONPATH", "") if is_own else "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(_STAND_INS), before)))}
