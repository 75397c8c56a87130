"""Which components a problem has, and whether they can be asked: all at once, and none for longer than it is given.

Here: handles found without running anything, and each server's description, read now. Not here: what a problem does
with them (`survey`). The one idea: a server that is dead, or frozen, must not hide what is wrong with the others.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tesseract_flow.checks.findings import Finding
from tesseract_flow.client import AbstractTesseract
from tesseract_flow.client.handles.wrapper import AbstractWrapper
from tesseract_flow.errors import TesseractFlowError
from tesseract_flow.schema import TesseractSchema

PATIENCE = 20.0  # seconds for a description; a component that is served here takes the time that it is given to start
_DEPTH = 12  # of nested containers and functions in which handles are looked for


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one server said of itself: a schema, or why there is none."""

    server: AbstractTesseract
    schema: TesseractSchema | None
    trouble: str = ""


@dataclasses.dataclass(frozen=True)
class Component:
    """A handle, and what its servers said: several for replicas."""

    handle: AbstractTesseract
    answers: tuple[Answer, ...]

    @property
    def is_up(self) -> bool:
        return any(answer.schema is not None for answer in self.answers)

    @property
    def asked(self) -> AbstractTesseract:
        """Whom to ask for shapes: the handle, or one of its servers if they are not the same component."""
        described = [answer for answer in self.answers if answer.schema is not None]
        if any(_differences(described[0].schema, answer.schema) for answer in described[1:]):
            return described[0].server
        return self.handle

    @property
    def label(self) -> str:
        """What to call it; never asks a server that did not answer."""
        own = getattr(self.handle, "label", None)
        return own or (self.asked.name if self.is_up else repr(self.handle))

    def findings(self) -> Iterator[Finding]:
        """What is wrong with its servers."""
        described = [answer for answer in self.answers if answer.schema is not None]
        for answer in self.answers:
            if answer.schema is not None:
                continue
            if not described or len(self.answers) == 1:
                yield Finding(
                    "unreachable",
                    self.label,
                    answer.trouble if len(self.answers) == 1 else f"{answer.server!r}: {answer.trouble}",
                    "Start it, or correct its address. What this component gives was not checked.",
                )
            else:
                yield Finding(
                    "replica",
                    self.label,
                    f"{answer.server!r} cannot be asked: {answer.trouble}",
                    f"Start it, or leave it out; {len(described)} of {len(self.answers)} replicas answer.",
                    "warning",
                )
        first = described[0] if described else None
        for answer in described[1:]:
            assert first is not None
            if differences := _differences(first.schema, answer.schema):
                yield Finding(
                    "replicas-differ",
                    self.label,
                    f"{first.server!r} and {answer.server!r} are not the same component: {differences}.",
                    "Replicas answer each other's questions: serve one version everywhere.",
                )


def _differences(a: TesseractSchema | None, b: TesseractSchema | None) -> str:
    assert a is not None
    assert b is not None
    parts = [
        f"{what} {getattr(a, what)!r} and {getattr(b, what)!r}"
        for what in ("name", "version")
        if getattr(a, what) != getattr(b, what)
    ]
    if a.endpoints != b.endpoints:
        odd = ", ".join(sorted(a.endpoints ^ b.endpoints))
        parts.append(f"only one of them has {odd}")
    elif a.digest != b.digest:
        parts.append("their schemas differ")
    return ", ".join(parts)


def ask_all(handles: Iterable[AbstractTesseract], patience: float = PATIENCE) -> list[Component]:
    """What all servers of these handles say of themselves now, asked at the same time."""
    found = list(dict.fromkeys(handles))
    questions = [[_Question(server, patience) for server in servers_of(handle)] for handle in found]
    for question in (question for several in questions for question in several):
        question.start()
    return [
        Component(handle, tuple(question.answer() for question in several))
        for handle, several in zip(found, questions, strict=True)
    ]


def servers_of(handle: AbstractTesseract) -> list[AbstractTesseract]:
    """The servers behind a handle: its replicas, or itself."""
    while isinstance(handle, AbstractWrapper):
        handle = handle.tesseract
    replicas = getattr(handle, "replicas", ())
    return [server for replica in replicas for server in servers_of(replica)] if replicas else [handle]


class _Question:
    """Asked on a thread that nobody waits for longer than it is given: it may be a frozen server's for ever."""

    def __init__(self, server: AbstractTesseract, patience: float):
        self.server = server
        # One that is served here may have to be started first, and knows itself how long that may take.
        self.patience = max(patience, getattr(server, "startup_timeout", 0.0))
        self._thread = threading.Thread(target=self._run, daemon=True, name="tesseract-check")
        self._schema: TesseractSchema | None = None
        self._trouble = ""
        self._deadline = 0.0

    def start(self) -> None:
        self._deadline = time.monotonic() + self.patience
        self._thread.start()

    def _run(self) -> None:
        try:
            self._schema = self.server.read_schema()
        except TesseractFlowError as error:
            self._trouble = str(error)
        except Exception as error:
            self._trouble = f"{type(error).__name__}: {error}"

    def answer(self) -> Answer:
        self._thread.join(max(self._deadline - time.monotonic(), 0.0))
        if self._schema is None and not self._trouble:
            trouble = (
                f"it did not describe itself within {self.patience:g} s. A server with one worker is silent while it "
                "solves; one that is stopped or hangs is silent for ever."
            )
            return Answer(self.server, None, trouble)
        return Answer(self.server, self._schema, self._trouble)


def handles_in(*roots: Any) -> list[AbstractTesseract]:
    """The handles that functions and values hold, in the order in which they are met; nothing is run for it.

    Looked at are closures, defaults, the globals that a function names, bound objects, partials and containers. A
    handle that is made inside of a function is not found.
    """
    found: dict[AbstractTesseract, None] = {}
    seen: set[int] = set()
    pending = [(root, 0) for root in reversed(roots)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, AbstractTesseract):
            found.setdefault(value)
        elif _is_core_tesseract(value):
            from tesseract_flow.client import open_tesseract

            found.setdefault(open_tesseract(value))
        elif id(value) not in seen and depth < _DEPTH:
            seen.add(id(value))
            pending += [(part, depth + 1) for part in reversed(list(_parts(value)))]
    return list(found)


def _is_core_tesseract(value: Any) -> bool:
    return type(value).__module__.startswith("tesseract_core") and all(
        callable(getattr(value, method, None)) for method in ("apply", "abstract_eval")
    )


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, types.FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from _named(value.__code__, value.__globals__)
        if (wrapped := getattr(value, "__wrapped__", None)) is not None:
            yield wrapped
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, types.ModuleType | type | str | bytes | int | float | complex | None):
        return
    else:
        wrapped = getattr(value, "__wrapped__", None)  # what jax.jit makes of a function
        if isinstance(wrapped, Callable):
            yield wrapped
        if isinstance(call := inspect.getattr_static(type(value), "__call__", None), types.FunctionType):
            yield call
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict) and not type(value).__module__.startswith(("jax", "numpy", "prefect")):
            yield from own.values()


def _named(code: types.CodeType, scope: Mapping[str, Any]) -> Iterator[Any]:
    """The globals that a function names, and what it names of modules; also in functions inside of it."""
    for name in code.co_names:
        value = scope.get(name)
        if isinstance(value, types.ModuleType):
            own = vars(value)
            yield from (own[attribute] for attribute in code.co_names if _may_hold(own.get(attribute)))
        elif _may_hold(value):
            yield value
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named(constant, scope)


def _may_hold(value: Any) -> bool:
    """Whether a global is worth looking into: libraries hold no handles of the user's."""
    if isinstance(value, AbstractTesseract):
        return True
    module = str(getattr(value, "__module__", None) or type(value).__module__)
    return value is not None and not module.startswith(("jax", "numpy", "tesseract_flow", "equinox", "optax"))


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
