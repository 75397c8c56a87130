"""Components served here: a process of their own, started from a `tesseract_api.py` by tesseract-core's runtime.

The process starts with the first question to the handle, is shared by equal handles, and ends with this process, even
if that is killed: tesseract-core's runtime watches a pipe to its parent.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, Endpoint, Tree
from tesseract_flow.client.handles.private_folder import MEMORY, PrivateFolder, has_room, quickest
from tesseract_flow.client.http import HttpTesseract
from tesseract_flow.errors import ComponentFailed, OptionError, Unreachable
from tesseract_flow.schema import TesseractSchema
from tesseract_flow.wire import CAN_LOCK

if TYPE_CHECKING:
    from tesseract_core.sdk.local_client import TesseractProcess

_log = logging.getLogger("tesseract_flow")
_STAND_INS = Path(__file__).with_name("stand_ins")


@dataclasses.dataclass(frozen=True)
class ServedTesseract(AbstractTesseract):
    """A component served by a process of this machine. Equal handles share the process.

    Attributes:
        path: its `tesseract_api.py`.
        label: what to call it; default the name in its `tesseract_config.yaml`, else its folder's.
        n_workers: processes that answer, each one request at a time.
        python: the interpreter that runs it; it needs `tesseract-core[runtime]` and what the component imports.
        startup_timeout: seconds.
        shares_memory: large arrays go through files in memory, of which nothing is left; small ones, and where there
            is no room, through the messages. The component's output path may be in memory then, too.

    The first question raises `ComponentFailed` if the process does not come up.
    """

    path: Path
    label: str | None = None
    n_workers: int = 1
    python: str = sys.executable
    startup_timeout: float = 120.0
    shares_memory: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).resolve())
        object.__setattr__(self, "python", os.fspath(self.python))
        if self.n_workers < 1:
            raise OptionError(f"n_workers is {self.n_workers}; expected at least 1.")

    def __repr__(self) -> str:
        return f"ServedTesseract({self.label + ': ' if self.label else ''}{self.path.parent.name})"

    @property
    def name(self) -> str:
        return self.label if self.label is not None else self._http.name

    @property
    def n_lanes(self) -> int:  # type: ignore[override]
        return max(self.n_workers, 2)  # while one call is solved, the next is put into words

    @property
    def schema(self) -> TesseractSchema:
        return self._http.schema

    def read_schema(self) -> TesseractSchema:
        return self._http.read_schema()

    @property
    def build(self) -> str:  # type: ignore[override]
        """A digest of the files in the component's folder, as they were when its process was started."""
        return self._server.build

    @property
    def url(self) -> str:
        """Where it is served; starts it if need be."""
        return self._http.url

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        return self._http.request(endpoint, payload, run_id=run_id)

    def stop(self) -> None:
        """End the process. The next request starts it again."""
        place = _place_of(self)
        with place.lock:
            server, place.server = place.server, None
        if server is not None:
            server.stop()

    def logs(self) -> str:
        """What the process has printed so far."""
        server = _place_of(self).server
        return "" if server is None else server.logs()

    @property
    def _http(self) -> HttpTesseract:
        return self._server.http

    @property
    def _server(self) -> _Server:
        place = _place_of(self)
        with place.lock:
            server = place.server
            if server is not None and (code := server.process.process.poll()) is not None:
                tail = "\n".join(server.logs().splitlines()[-20:])
                _log.warning("%r has exited (code %s); it is started again. It said last:\n%s", self, code, tail)
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
    build: str

    def stop(self) -> None:
        self.process.remove(force=True)
        self.remove_folders()

    def logs(self) -> str:
        try:
            return self.process.logs().decode("utf-8", errors="replace")
        except FileNotFoundError:  # stopped by another thread, or by someone who tidies up the temporary folder
            return ""


@dataclasses.dataclass
class _Place:
    """Where the server of equal handles is kept. Each has a lock: starting takes seconds, and several start at once."""

    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    server: _Server | None = None


_places: dict[tuple[int, ServedTesseract], _Place] = {}
_places_lock = threading.Lock()


def _place_of(handle: ServedTesseract) -> _Place:
    # By process too: a forked child has no hold on the server of its parent, and must not stop it.
    with _places_lock:
        return _places.setdefault((os.getpid(), handle), _Place())


def _start(handle: ServedTesseract) -> _Server:
    from tesseract_core.sdk import local_client

    if not handle.path.is_file():
        raise Unreachable(f"There is no component at {handle.path}: a Tesseract is defined by a tesseract_api.py file.")
    build = _build_of(handle.path.parent)
    disk, folders = Path(tempfile.gettempdir()), list[PrivateFolder]()
    shares_memory = handle.shares_memory and CAN_LOCK and has_room(MEMORY)

    def remove_folders() -> None:
        for folder in folders:
            folder.remove()

    try:
        folders.append(PrivateFolder(MEMORY if shares_memory else disk))
        # Not always beside the other, as here each file is new. The runtime also puts a log of each call there.
        folders.append(PrivateFolder(quickest(MEMORY, disk) if shares_memory else disk))
        input_dir, output_dir = (folder.path for folder in folders)
        process = local_client.serve(
            handle.path,
            num_workers=handle.n_workers,
            python_executable=handle.python,
            input_path=input_dir,
            output_path=output_dir,
            output_format="json+base64",
            # Debug mode is what makes the server tell a component's own error text.
            runtime_config={"debug": True},
            environment=_without_debugger(handle),
            startup_timeout=handle.startup_timeout,
        )
    except Exception as error:
        remove_folders()
        raise ComponentFailed(
            f"The component {handle.path} could not be served:\n{error}\n"
            f"Try it by hand: TESSERACT_API_PATH={handle.path} tesseract-runtime serve",
            tesseract=repr(handle),
            endpoint="serve",
        ) from error
    http = HttpTesseract(process.url, n_lanes=handle.n_workers, label=handle.label)
    if shares_memory:
        http = dataclasses.replace(http, encoding="auto", input_dir=input_dir, output_dir=output_dir)
    server = _Server(process, http, remove_folders, build)
    try:
        if handle.label is None and http.schema.name in GENERIC_NAMES:
            server.http = dataclasses.replace(http, label=handle.path.parent.name)
        # Another interpreter may have an older tesseract-core.
        server.http.owns_folders(is_known=handle.python == sys.executable)
    except BaseException:
        server.stop()
        raise
    return server


def _build_of(folder: Path) -> str:
    """A digest of a component's folder: text of its code and configuration, size and time of what else it may read."""
    digest = hashlib.sha256()
    for top, folders, files in os.walk(folder):
        # Hidden folders, what Python has compiled, and environments say nothing about the component.
        own = {name for name in folders if not Path(top, name, "pyvenv.cfg").exists()} - {"__pycache__"}
        folders[:] = sorted(name for name in own if name[0] != ".")
        for path in (Path(top, name) for name in sorted(files)):
            with contextlib.suppress(OSError):
                status = path.stat()
                is_code = path.suffix in (".py", ".yaml", ".toml")
                content = path.read_bytes() if is_code else str(status.st_mtime_ns).encode()
                digest.update(
                    f"{path.relative_to(folder)}\0{len(content)}\0{status.st_size}\0".encode(errors="replace")
                )
                digest.update(content)
    return digest.hexdigest()


def _without_debugger(handle: ServedTesseract) -> dict[str, str]:
    """The environment in which `import debugpy` finds our stand-in, which says why."""
    from tesseract_core.sdk import local_client

    declared, _ = local_client.declared_env_and_metadata(handle.path)  # which ours would replace
    is_own = os.path.abspath(handle.python) == os.path.abspath(sys.executable)
    before = declared.get("PYTHONPATH", os.environ.get("PYTHONPATH", "") if is_own else "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(_STAND_INS), before)))}


@atexit.register
def _stop_all() -> None:
    for (pid, _), place in list(_places.items()):
        server, place.server = place.server, None
        if server is not None and pid == os.getpid():
            server.stop()
