"""Components served here, from a `tesseract_api.py`, by tesseract-core's runtime.

Here: the handle that people hold. Not here: the processes (`process`). The one idea: several workers are several
servers of one worker each, behind one handle. In one server with several, a supervisor kills each worker that is silent
for five seconds, and a solver that holds Python's lock is silent for as long as it works.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tesseract_flow.client.base import GENERIC_NAMES, AbstractTesseract, ByFields, Endpoint, Tree
from tesseract_flow.client.handles.process import ServedProcess
from tesseract_flow.client.handles.replicas import ReplicatedTesseract
from tesseract_flow.client.handles.source import code_of
from tesseract_flow.client.retry import DEFAULT_RETRY, RetryPolicy
from tesseract_flow.errors import OptionError
from tesseract_flow.schema import TesseractSchema


@dataclasses.dataclass(frozen=True)
class ServedTesseract(ByFields, AbstractTesseract):
    """A component served by processes of this machine. Equal handles share them.

    A handle stands for the code as it was when the handle was made: the Python and configuration files of the
    component's folder. Once they are edited, a new handle has processes of its own, those of the old one go on with the
    old code for as long as somebody holds it, and are not started again.

    Attributes:
        path: its `tesseract_api.py`.
        label: what to call it; default the name in its `tesseract_config.yaml`, else its folder's.
        n_workers: processes that answer, each one request at a time.
        python: the interpreter that runs it; it needs `tesseract-core[runtime]` and what the component imports.
        environment: `"own"`: it runs in an environment of its own, which is made by tesseract-core, once, from its
            `tesseract_requirements.txt`, in the folder `.tesseract-venv` beside its code. None: it is run by `python`.
        startup_timeout: seconds.
        shares_memory: large arrays go through files in memory, of which nothing is left; small ones, and where there
            is no room, through the messages. The component's output path may be in memory then, too.
        retry: what happens when a process is lost, where nobody else repeats the call; it is started again.
        code: a digest of the code.

    The first question raises `ComponentFailed` if a process does not come up.
    """

    path: Path
    label: str | None = None
    n_workers: int = 1
    python: str = sys.executable
    environment: Literal["own"] | None = None
    startup_timeout: float = 120.0
    shares_memory: bool = True
    retry: RetryPolicy = DEFAULT_RETRY
    code: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).resolve())
        object.__setattr__(self, "python", os.fspath(self.python))
        object.__setattr__(self, "code", code_of(self.path))
        if self.n_workers < 1:
            raise OptionError(f"n_workers is {self.n_workers}; expected at least 1.")
        if self.environment not in (None, "own"):
            raise OptionError(f"environment is {self.environment!r}; expected 'own', or None for that of python.")
        if self.environment is not None and self.python != sys.executable:
            raise OptionError(
                "environment='own' makes an interpreter, and python names another one: choose one of them."
            )

    def __repr__(self) -> str:
        return f"ServedTesseract({self.label + ': ' if self.label else ''}{self.path.parent.name})"

    @property
    def name(self) -> str:
        if self.label is not None:
            return self.label
        return self.path.parent.name if self.schema.name in GENERIC_NAMES else self.schema.name

    @property
    def n_lanes(self) -> int:  # type: ignore[override]
        return max(self.n_workers, 2)  # while one call is solved, the next is put into words

    @property
    def schema(self) -> TesseractSchema:
        handle = self._handle
        return self.retry.run(lambda: handle.schema, label=f"{self._short_name}.openapi.json")

    def read_schema(self) -> TesseractSchema:
        _ = self.schema  # which starts all processes at once
        return self._processes[0].http.read_schema()

    @property
    def known_schema(self) -> TesseractSchema | None:
        return self._handle.known_schema

    @property
    def build(self) -> str:  # type: ignore[override]
        """A digest of the files in the component's folder, as they were when its processes were started."""
        return self._handle.build or ""

    @property
    def url(self) -> str:
        """Where it is served, by the first of its processes; starts it if need be."""
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """Where all of its processes answer; starts them if need be."""
        _ = self.schema  # which starts all of them at once
        return [process.http.url for process in self._processes]

    @property
    def anchor(self) -> object:
        return self._handle.anchor

    def elsewhere(self) -> AbstractTesseract:
        _ = self.schema  # which starts all processes at once
        handles = tuple(process.elsewhere() for process in self._processes)
        return ReplicatedTesseract(handles, label=self.name, retry=self.retry)

    def request(self, endpoint: Endpoint, payload: Mapping[str, Any], *, run_id: str | None = None) -> Tree:
        handle = self._handle
        return self.retry.run(
            lambda: handle.request(endpoint, payload, run_id=run_id), label=f"{self._short_name}.{endpoint}"
        )

    def stop(self) -> None:
        """End the processes. The next request starts them again."""
        for process in self._processes:
            process.stop()

    def logs(self) -> str:
        """What the processes have printed so far."""
        return "".join(process.logs() for process in self._processes)

    @property
    def _short_name(self) -> str:
        return self.label or self.path.parent.name

    @property
    def _processes(self) -> tuple[ServedProcess, ...]:
        found = self.__dict__.get("_own_processes")
        if found is None:
            shared = {
                name: getattr(self, name) for name in ("path", "label", "python", "environment", "startup_timeout")
            }
            found = tuple(
                ServedProcess(code=self.code, shares_memory=self.shares_memory, number=k, **shared)
                for k in range(self.n_workers)
            )
            object.__setattr__(self, "_own_processes", found)
        return found

    @property
    def _handle(self) -> AbstractTesseract:
        handle = self.__dict__.get("_own_handle")
        if handle is None:
            processes = self._processes
            handle = processes[0] if len(processes) == 1 else ReplicatedTesseract(processes, label=self._short_name)
            object.__setattr__(self, "_own_handle", handle)
        return handle
